// Start the page: three views, chosen by the address.

import {Arithmetic} from "./arithmetic.js";
import {Compare} from "./compare.js";
import {h} from "./dom.js";
import {Network} from "./network.js";
import {readState} from "./state.js";
import {Walk} from "./walk.js";

const TITLES = {network: "Network", compare: "Compare", arithmetic: "Arithmetic", why: "Why 1 × 1"};

// engine: the source of the network's numbers, or null for the playground alone; other: that of a second network.
export function start(engine, other = null) {
  const arithmetic = new Arithmetic(),
    network = engine ? new Network(engine) : null;
  const views = {
    ...(network ? {network} : {}),
    ...(other ? {compare: new Compare([engine, other])} : {}),
    arithmetic,
    why: new Walk(arithmetic, network),
  };
  const tabs = document.getElementById("tabs"),
    main = document.getElementById("main");
  const links = Object.entries(TITLES)
    .filter(([key]) => views[key])
    .map(([key, title]) => [key, h("a", {href: `#/${key}`}, title)]);
  tabs.replaceChildren(...links.map(([, link]) => link));
  const show = async () => {
    const {view, values} = readState(),
      name = views[view] ? view : Object.keys(views)[0];
    for (const [key, link] of links) link.toggleAttribute("aria-current", key === name);
    if (main.firstElementChild !== views[name].element) main.replaceChildren(views[name].element);
    document.title = `${TITLES[name]} · mlpconv`;
    await keepFocus(main, () => views[name].open(values));
  };
  addEventListener("hashchange", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  return show();
}

// A view that is built anew gives the focus back to the control in the same place.
async function keepFocus(main, open) {
  const controls = () => [...main.querySelectorAll("a, button, input, select, summary, [tabindex]")];
  const focused = document.activeElement,
    place = controls().indexOf(focused);
  await open();
  if (place >= 0 && !focused.isConnected) controls()[place]?.focus({preventScroll: true});
}

export function fail(message) {
  document.getElementById("main").replaceChildren(h("p", {class: "trouble", role: "alert"}, message));
}
