// The served page: ask the server whether it has a network.

import {ServerEngine} from "./engine.js";
import {fail, start} from "./main.js";

const engine = document.documentElement.dataset.network === "yes" ? ServerEngine.open() : Promise.resolve(null);
engine.then(start).catch((error) => fail(error.message));
