// One output cell, explained: what it reads, and the products, sum, norm and activation that make its value.

import {exact, field, h, plural, replace, short} from "./dom.js";
import {TensorPicture} from "./picture.js";
import {explainConv, explainPool, tailValues} from "./program.js";
import {allProducts, sumBars} from "./sums.js";
import {tensor} from "./tensor.js";

const FUNCTIONS = {
  relu: "ReLU",
  relu6: "ReLU6",
  leaky_relu: "leaky ReLU",
  elu: "ELU",
  silu: "SiLU",
  sigmoid: "sigmoid",
  tanh: "tanh",
};

export function describe(step) {
  if (step.linear) return "fully connected layer";
  if (step.op === "conv") {
    const size = `${step.kernel[0]}\u2009×\u2009${step.kernel[1]}`;
    return step.groups > 1 && step.groups === step.in ? `${size} depthwise convolution` : `${size} convolution`;
  }
  const names = {
    input: "input",
    norm: "batch norm",
    maxpool: "max pool",
    avgpool: "average pool",
    mean: "global average",
    cat: "concatenation",
    add: "sum of two",
    pad: "padding with zeros",
    flatten: "flatten",
    identity: "identity",
    other: "other operation",
  };
  return step.op === "act" ? FUNCTIONS[step.fn] : (names[step.op] ?? step.op);
}

export class Inspector {
  // onWeight(step, channel, index, value): a new weight; index counts within the filter. title(layer): its name.
  constructor({onWeight, title}) {
    Object.assign(this, {onWeight, title, term: -1, tap: 0, order: "size"});
    this.heading = h("h3", {});
    this.reads = h("p", {class: "quiet"});
    this.sum = h("div", {class: "scroll"});
    this.window = new TensorPicture({name: "What the window reads in this channel"});
    this.kernel = new TensorPicture({
      name: "Weights of this channel",
      onPick: ({y, x}) => this.pickTap(y, x),
      onPoint: ({y, x}) => this.pickTap(y, x),
    });
    this.products = new TensorPicture({name: "Products of this channel"});
    this.trio = h(
      "div",
      {class: "trio"},
      this.window.element,
      h("b", {}, "×"),
      this.kernel.element,
      h("b", {}, "="),
      this.products.element,
    );
    this.controls = h("div", {class: "row fields"});
    this.more = h("div", {});
    this.element = h(
      "section",
      {class: "inspector card", "aria-label": "One output cell"},
      this.heading,
      this.reads,
      this.sum,
      this.trio,
      this.controls,
      this.more,
    );
  }

  pickTap(y, x) {
    this.tap = y * this.shown.layer.head.kernel[1] + x;
    this.paintTerm();
  }

  // view: {steps, outputs, weightsOf, layer, cell: {c, y, x}, names: channel names of the output or undefined}
  show(view) {
    const {layer, cell, outputs, names} = view,
      step = layer.head;
    if (this.shown?.layer.head.id !== step.id) this.term = -1;
    this.shown = view;
    const where = names?.[cell.c] ? `${names[cell.c]} (channel ${cell.c + 1})` : `channel ${cell.c + 1}`;
    const flat = layer.last.shape[1] * layer.last.shape[2] === 1;
    const place = flat ? "" : `, row ${cell.y + 1}, column ${cell.x + 1}`;
    this.heading.textContent = `${this.title(layer)}: ${where}${place}`;
    const inputs = step.inputs.map((id) => outputs.get(id));
    this.trio.hidden = true;
    replace(this.controls);
    replace(this.more);
    if (step.op === "conv") this.showConv(view, inputs[0]);
    else if (["maxpool", "avgpool", "mean"].includes(step.op)) this.showPool(view, inputs[0]);
    else this.showOther(view, inputs);
  }

  after({layer, weightsOf}, value, channel) {
    return tailValues(layer, value, channel, weightsOf).map((one) => ({label: describe(one.step), value: one.value}));
  }

  showConv({layer, cell, weightsOf}, x) {
    const step = layer.head,
      result = explainConv(step, x, weightsOf(step), cell.c, cell.y, cell.x);
    const after = this.after(this.shown, result.sum, cell.c);
    this.result = result;
    const area = step.kernel[0] * step.kernel[1],
      single = area === 1;
    const what = single ? "one position" : `a window of ${step.kernel[0]} × ${step.kernel[1]}`;
    const products = plural(result.terms.length * area, "product");
    this.reads.textContent = `Reads ${what} in ${plural(result.terms.length, "channel")}: ${products}.`;
    const terms = result.terms.map((term) => ({
      label: `channel ${term.channel + 1}`,
      value: term.value,
      factors: single ? [short(term.taps[0].input), short(term.taps[0].weight)] : [],
    }));
    replace(
      this.sum,
      sumBars({
        terms,
        bias: step.bias ? result.bias : undefined,
        sum: result.sum,
        after,
        order: this.order,
        columns: single ? ["input", "weight", "product"] : [`${area} products`],
        onTerm: (index) => {
          this.term = index;
          this.paintTerm();
        },
      }),
    );
    if (!result.terms[this.term]) this.term = strongest(result.terms);
    this.paintTerm();
    replace(this.more, allProducts(result.terms, result.bias));
  }

  paintTerm() {
    const step = this.shown.layer.head,
      term = this.result.terms[this.term],
      [kh, kw] = step.kernel;
    this.tap = Math.min(this.tap, kh * kw - 1);
    if (kh * kw > 1) {
      this.trio.hidden = false;
      const parts = [
        [this.window, "input"],
        [this.kernel, "weight"],
        [this.products, "product"],
      ];
      for (const [picture, name] of parts) {
        picture.show(
          tensor(
            [1, kh, kw],
            Float64Array.from(term.taps, (tap) => tap[name]),
          ),
          {cell: kh > 7 ? 16 : 26},
        );
        picture.mark({cell: {c: 0, y: Math.floor(this.tap / kw), x: this.tap % kw}});
      }
    }
    this.paintControls(term);
  }

  paintControls(term) {
    const {
        layer: {head: step},
        cell,
      } = this.shown,
      area = step.kernel[0] * step.kernel[1];
    const first = this.result.terms[0].channel,
      count = this.result.terms.length;
    const channel = h("input", {type: "number", min: first + 1, max: first + count, value: term.channel + 1});
    channel.addEventListener("change", () => {
      this.term = Math.min(Math.max(Math.round(Number(channel.value)) - 1 - first, 0), count - 1) || 0;
      this.paintTerm();
    });
    const weight = h("input", {
      type: "number",
      step: "any",
      value: term.taps[this.tap].weight,
      disabled: !this.onWeight,
    });
    weight.addEventListener("change", () => {
      const value = Number(weight.value);
      if (weight.value !== "" && Number.isFinite(value))
        this.onWeight(step, cell.c, this.term * area + this.tap, value);
    });
    const order = h(
      "button",
      {
        type: "button",
        "aria-pressed": this.order === "channel" ? "true" : "false",
        onclick: () => {
          this.order = this.order === "size" ? "channel" : "size";
          this.show(this.shown);
        },
      },
      "In channel order",
    );
    replace(this.controls, field("Input channel", channel), field("Its weight", weight), order);
  }

  showPool({layer, cell}, x) {
    const step = layer.head,
      result = explainPool(step, x, cell.c, cell.y, cell.x),
      maximum = step.op === "maxpool";
    const after = this.after(this.shown, result.value, cell.c);
    const rule = maximum ? "the largest stays" : `their sum is divided by ${result.counted}`;
    this.reads.textContent = `Reads ${plural(result.cells.length, "value")} of channel ${cell.c + 1} alone; ${rule}.`;
    const terms = result.cells.map((one) => ({
      label: `row ${one.row + 1}, column ${one.column + 1}`,
      factors: maximum ? [short(one.value)] : [short(one.value), `1/${result.counted}`],
      value: maximum ? one.value : one.value / result.counted,
    }));
    const table = maximum
      ? maxTable(terms, result.value, after)
      : sumBars({terms, sum: result.value, after, order: this.order, columns: ["value", "weight", "product"]});
    replace(this.sum, table);
  }

  showOther({layer, cell, outputs}, inputs) {
    const step = layer.head,
      output = outputs.get(layer.last.id);
    this.reads.textContent =
      {
        input: "The input of the network.",
        cat: "Channels of several layers, one after the other.",
        add: "The sum of two layers, cell by cell.",
        flatten: "The same values as one list.",
      }[step.op] ?? `${step.module ?? describe(step)}: the page shows its output, not how it is computed.`;
    const [, rows, columns] = output.shape,
      at = (cell.c * rows + cell.y) * columns + cell.x;
    const lines = step.op === "add" ? inputs.map((x, i) => [["first", "second"][i], x.data[at]]) : [];
    replace(
      this.sum,
      h(
        "dl",
        {class: "values"},
        [...lines, ["value", output.data[at]]].flatMap(([name, number]) => [
          h("dt", {}, name),
          h("dd", {title: exact(number)}, short(number, 6)),
        ]),
      ),
    );
  }
}

function strongest(terms) {
  return terms.reduce((best, term, i) => (Math.abs(term.value) > Math.abs(terms[best].value) ? i : best), 0);
}

// The values of a window as bars from zero; the largest stays.
function maxTable(terms, value, after) {
  const values = terms.map((term) => term.value),
    low = Math.min(0, ...values),
    span = Math.max(0, ...values) - low || 1;
  const line = (kind, name, one, bar) =>
    h(
      "tr",
      {class: kind},
      h("th", {scope: "row"}, name),
      h("td", {class: "value", title: exact(one)}, short(one)),
      h("td", {class: "track", "aria-hidden": "true"}, bar),
    );
  const rows = terms.slice(0, 25).map((term) => {
    const best = term.value === value,
      bar = h("i", {class: `bar ${best ? (value < 0 ? "minus" : "plus") : "faint"}`});
    bar.style.left = `${(100 * (Math.min(0, term.value) - low)) / span}%`;
    bar.style.width = `max(1px, ${(100 * Math.abs(term.value)) / span}%)`;
    return line(best ? "largest" : "term", term.label, term.value, bar);
  });
  const ends = [{label: "largest", value}, ...after].map((one) => line("result", one.label, one.value, null));
  const head = h(
    "tr",
    {},
    ["position", "value", "size"].map((name) => h("th", {scope: "col"}, name)),
  );
  return h("table", {class: "sum"}, h("thead", {}, head), h("tbody", {}, rows, ends));
}
