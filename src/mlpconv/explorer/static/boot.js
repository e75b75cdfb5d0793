// The served page: the document says whether the server has a network, and a second one.

import {ServerEngine} from "./engine.js";
import {fail, start} from "./main.js";

const {network, other} = document.documentElement.dataset;
Promise.all([network === "yes" ? ServerEngine.open() : null, other === "yes" ? ServerEngine.open("api/other") : null])
  .then(([engine, second]) => start(engine, second))
  .catch((error) => fail(error.message));
