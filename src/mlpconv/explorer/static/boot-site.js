// An exported site: the network, if there is one, is in network.js.

import {SiteEngine} from "./engine.js";
import {fail, start} from "./main.js";

const {MLPCONV_SITE: site, MLPCONV_OTHER: other} = window;
Promise.resolve()
  .then(() => start(site ? new SiteEngine(site) : null, other ? new SiteEngine(other) : null))
  .catch((error) => fail(error.message));
