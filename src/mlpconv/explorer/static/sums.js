// A sum that can be seen: one row per term with its input, weight and product, and bars that add up to the value.

import {dataTable, disclosure, exact, h, plural, short} from "./dom.js";

const ROWS = 10;

// terms: [{label, factors: [text, text], value}]; after: [{label, value}] for norms and activations.
// onTerm(index): a term was chosen.
export function sumBars({
  terms,
  bias,
  sum,
  after = [],
  order = "size",
  columns = ["input", "weight", "product"],
  rows = ROWS,
  onTerm,
}) {
  const numbered = terms.map((term, index) => ({...term, index}));
  const sorted = order === "size" ? numbered.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)) : numbered;
  const shown = sorted.length <= rows + 1 ? sorted : sorted.slice(0, rows),
    rest = sorted.slice(shown.length);
  const lines = shown.map((term) => ({...term, kind: "term"}));
  if (rest.length) {
    lines.push({label: `the other ${rest.length}`, value: total(rest), kind: "rest"});
  }
  if (bias !== undefined) lines.push({label: "bias", value: bias, kind: "bias"});
  const ends = [0];
  for (const line of lines) ends.push(ends[ends.length - 1] + line.value);
  const results = [{label: "sum", value: sum}, ...after];
  const all = [...ends, ...results.map((result) => result.value)].filter(Number.isFinite);
  const low = Math.min(0, ...all),
    high = Math.max(0, ...all),
    place = (v) => (100 * (v - low)) / (high - low || 1);
  const body = [
    ...lines.map((line, i) => row(line, [ends[i], ends[i + 1]], place, columns.length - 1, onTerm)),
    ...results.map((result) => row({...result, kind: "result"}, [0, result.value], place, columns.length - 1)),
  ];
  const head = h(
    "tr",
    {},
    ["term", ...columns].map((name) => h("th", {scope: "col"}, name)),
    h("th", {scope: "col"}, "adding up"),
  );
  return h("table", {class: "sum"}, h("thead", {}, head), h("tbody", {}, body));
}

function total(terms) {
  return terms.reduce((sum, term) => sum + term.value, 0);
}

function row({label, factors, value, kind, index}, [from, to], place, count, onTerm) {
  const bar = h("i", {class: value < 0 ? "bar minus" : "bar plus"}),
    zero = h("i", {class: "zero"});
  const left = Math.min(place(from), place(to)),
    width = Math.abs(place(to) - place(from));
  bar.style.left = `${left}%`;
  bar.style.width = `max(1px, ${width}%)`;
  zero.style.left = `${place(0)}%`;
  const number = h("td", {class: "value", title: exact(value)}, short(value));
  const title =
    onTerm && kind === "term"
      ? h("button", {type: "button", class: "link", onclick: () => onTerm(index)}, label)
      : label;
  return h(
    "tr",
    {class: kind},
    h("th", {scope: "row"}, title),
    (factors ?? Array(count).fill("")).map((text) => h("td", {}, text)),
    number,
    h("td", {class: "track", "aria-hidden": "true"}, zero, bar),
  );
}

// The table of all products, with every digit.
export function allProducts(terms, bias) {
  return disclosure(
    `All ${plural(
      terms.reduce((n, term) => n + term.taps.length, 0),
      "product",
    )}`,
    () => {
      const rows = terms.flatMap((term) =>
        term.taps.map((tap) => [
          term.channel + 1,
          tap.inside ? `${tap.row + 1}, ${tap.column + 1}` : "padding",
          exact(tap.input),
          exact(tap.weight),
          exact(tap.product),
        ]),
      );
      return dataTable(
        `Products; the bias is ${exact(bias)}`,
        ["channel", "row, column", "input", "weight", "product"],
        rows,
      );
    },
  );
}
