// An exported site: the network, if there is one, is in network.js.

import {SiteEngine} from "./engine.js";
import {fail, start} from "./main.js";

Promise.resolve().then(() => start(window.MLPCONV_SITE ? new SiteEngine(window.MLPCONV_SITE) : null)).catch((error) => fail(error.message));
