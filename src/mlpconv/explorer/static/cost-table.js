// The cost of each layer of the playground, with the product that gives it.

import {counted, dataTable, h, short} from "./dom.js";
import {describe} from "./inspector.js";
import {NAMES} from "./stage.js";
import {sizeText} from "./text.js";

const COLUMNS = ["layer", "output", "parameters", "multiply-adds"];

export function costSection(results) {
  const keys = Object.keys(results);
  const caption = (key) => (keys.length > 1 ? NAMES[key] : "Cost of each layer");
  const tables = keys.map((key) => dataTable(caption(key), COLUMNS, rows(results[key])));
  const {a, b} = results,
    ratio = a.macs && b?.macs ? short(b.macs / a.macs, 3) : "";
  return h(
    "section",
    {class: "card"},
    h("h3", {}, "Cost"),
    h("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": "Cost"}, tables),
    ratio && h("p", {class: "note"}, `The second network needs ${ratio} times the multiply-adds of the first.`),
  );
}

function rows({steps, costs, macs}) {
  const lines = steps.slice(1).map((step, i) => {
    const cost = costs[i + 1],
      name = `${step.name}. ${describe(step)}`;
    return [name, sizeText(step.shape), counted(cost.params), product(step, cost.macs)];
  });
  const params = costs.reduce((sum, cost) => sum + cost.params, 0);
  return [...lines, ["total", "", counted(params), counted(macs)]];
}

function product(step, macs) {
  if (step.op !== "conv") return "0";
  const factors = [step.shape[1], step.shape[2], step.shape[0], step.in / step.groups, ...step.kernel];
  return h("span", {}, h("span", {class: "quiet"}, factors.join("\u2009·\u2009"), " = "), counted(macs));
}
