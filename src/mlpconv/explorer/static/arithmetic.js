// The playground: small tensors through one chain of layers, or two beside each other, with every number in reach.

import {MOST, compute, parseChain, parseChanges, writeChain, writeChanges} from "./chain.js";
import {chainForm} from "./chain-form.js";
import {calm, codeBlock, counted, dataTable, disclosure, h, minus, numberField, replace, selectField, short} from "./dom.js";
import {Inspector, describe} from "./inspector.js";
import {TensorPicture, extentOf} from "./picture.js";
import {PRESETS} from "./presets.js";
import {layersOf, receptiveBoxes} from "./program.js";
import {integer, writeState} from "./state.js";
import {channelTable, sizeText} from "./text.js";
import {chainCode} from "./torch-code.js";

const DRAWN = 24, IMAGES = [["mixed", "digits by a formula"], ["edge", "a vertical edge"], ["detectors", "a cat and a dog detector"]];
const NAMES = {a: "First network", b: "Second network"};

export class Arithmetic {
  constructor() {
    this.element = h("div", {class: "view arithmetic"});
    this.inspector = new Inspector({
      title: (layer) => `Layer ${layer.head.name}, ${describe(layer.head)}`,
      onWeight: (step, channel, index, value) => this.changeWeight(step, channel, index, value),
    });
    this.timer = 0;
  }

  open(values, {embedded = false} = {}) {
    this.stop();
    this.embedded = embedded;
    this.values = values;
    const [rows, columns, channels] = (values.in ?? "6x6x3").split("x");
    this.shape = [integer(channels, 1, MOST.channels, 3), integer(rows, 1, MOST.side, 6), integer(columns, 1, MOST.side, 6)];
    if (this.shape.reduce((a, b) => a * b) > MOST.values) this.shape[0] = Math.max(1, Math.floor(MOST.values / (this.shape[1] * this.shape[2])));
    this.data = IMAGES.some(([key]) => key === values.data) ? values.data : "mixed";
    this.changes = parseChanges(values.w);
    this.chains = {a: parseChain(values.a ?? "c3.4.p1-r-c1.2"), b: parseChain(values.b)};
    this.results = {};
    for (const key of ["a", "b"]) {
      if (key === "a" || this.chains.b.length) {
        this.results[key] = {...compute(this.shape, this.data, this.chains[key], this.changes[key]), changes: this.changes[key]};
        this.results[key].groups = layersOf(this.results[key].steps);
      }
    }
    this.build();
    this.select(this.startCell(), {quiet: true});
  }

  startCell() {
    const key = this.values.cell?.[0] === "b" && this.results.b ? "b" : "a", groups = this.results[key].groups;
    const [, layer, c, y, x] = /^[ab](\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(this.values.cell ?? "") ?? [];
    const group = groups[integer(layer, 0, groups.length - 1, Math.min(1, groups.length - 1))], shape = group.last.shape;
    const row = integer(y, 0, shape[1] - 1, middle(shape[1])), column = integer(x, 0, shape[2] - 1, middle(shape[2]));
    return {key, group, c: integer(c, 0, shape[0] - 1, strongest(this.results[key].outputs.get(group.last.id), row, column)), y: row, x: column};
  }

  // Write the current state to the address; a new state is a new step of the history.
  write(changed = {}, {replace = false, keepPreset = false} = {}) {
    const state = {
      preset: keepPreset ? this.values.preset : undefined, in: [this.shape[1], this.shape[2], this.shape[0]].join("x"),
      data: this.data === "mixed" ? undefined : this.data, a: writeChain(this.chains.a),
      b: this.chains.b.length ? writeChain(this.chains.b) : undefined, w: writeChanges(this.changes) || undefined, ...changed,
    };
    if (replace) Object.assign(this.values, state);
    if (replace && this.embedded) return; // inside the walk, pointing at a cell does not leave it
    writeState("arithmetic", state, {replace});
  }

  changeWeight(step, channel, index, value) {
    const {key} = this.at, perFilter = (step.in / step.groups) * step.kernel[0] * step.kernel[1];
    (this.changes[key][step.id - 1] ??= {})[channel * perFilter + index] = value;
    this.write({cell: this.cellText(this.at)});
  }

  build() {
    this.pictures = {a: new Map(), b: new Map()};
    const preset = PRESETS.find((one) => one.id === this.values.preset);
    const choose = h("nav", {class: "presets", "aria-label": "Presets"}, PRESETS.map((one) => h("a", {
      href: presetAddress(one), "aria-current": one.id === preset?.id ? "true" : undefined,
    }, one.title)));
    const stages = ["a", "b"].filter((key) => this.results[key]).map((key) => this.stage(key));
    replace(this.element,
      choose,
      h("div", {class: "lead"}, h("h2", {}, preset?.title ?? "Your own layers"),
        h("p", {}, preset?.text ?? "Choose the layers below. Point at any output cell to see what it reads and how its value adds up.")),
      h("div", {class: "columns"},
        h("div", {class: "stages"}, this.inputForm(), stages, this.compared(), this.codes()),
        h("div", {class: "side"}, this.inspector.element, this.costs())),
    );
    this.draw();
  }

  inputForm() {
    const set = (index) => (value) => {
      this.shape[index] = value;
      this.write();
    };
    const fields = h("div", {class: "row fields"},
      numberField("Rows", this.shape[1], [1, MOST.side], set(1)), numberField("Columns", this.shape[2], [1, MOST.side], set(2)),
      numberField("Channels", this.shape[0], [1, MOST.channels], set(0)),
      selectField("Values", this.data, IMAGES, (value) => {
        this.data = value;
        this.write();
      }));
    return h("fieldset", {class: "card setup"}, h("legend", {}, "Input"), fields);
  }

  stage(key) {
    const result = this.results[key], flow = h("div", {class: "flow"});
    for (const group of result.groups) {
      const shape = group.last.shape, picture = new TensorPicture({
        name: `${NAMES[key]}, ${group.head.op === "input" ? "input" : `output of layer ${group.head.name}`}`,
        onPoint: (cell) => this.select({key, group, ...cell}),
        onPick: (cell) => this.select({key, group, ...cell}, {pick: true}),
      });
      this.pictures[key].set(group.index, picture);
      const title = group.head.op === "input" ? "input" : [group.head, ...group.tail].map(describe).join(", ");
      const few = shape[0] > DRAWN ? h("span", {class: "quiet"}, `${DRAWN} of ${counted(shape[0])} channels drawn`) : null;
      const figure = h("figure", {class: "tensor"},
        h("figcaption", {}, h("b", {}, title), h("span", {class: "shape"}, sizeText(shape)), few), picture.element,
        disclosure("Values", () => channelTable(result.outputs.get(group.last.id), this.at.group === group ? this.at.c : 0)));
      figure.style.flexBasis = `${wanted(shape)}px`;
      flow.append(figure);
    }
    const trouble = result.error || (result.feasible ? "" : `${counted(result.macs)} multiply-adds are too many to compute on this page; the costs are exact.`);
    return h("section", {class: "card stage", "aria-label": NAMES[key]},
      h("div", {class: "row"}, h("h3", {}, this.results.b ? NAMES[key] : "Network"), this.player(key)),
      chainForm(this.chains[key], result, (layers) => {
        this.chains[key] = layers;
        this.write();
      }),
      trouble ? h("p", {class: "trouble", role: "alert"}, trouble) : null, flow,
      key === "a" && !this.results.b ? h("button", {type: "button", onclick: () => {
        this.chains.b = this.chains.a.map((layer) => ({...layer}));
        this.write();
      }}, "Compare with a second network") : null,
      key === "b" ? h("button", {type: "button", onclick: () => {
        this.chains.b = [];
        this.changes.b = {};
        this.write();
      }}, "Remove the second network") : null);
  }

  draw() {
    for (const key of ["a", "b"]) {
      for (const [index, picture] of this.pictures[key]) {
        const group = this.results[key].groups[index], output = this.results[key].outputs.get(group.last.id);
        if (output) picture.show(output, {cell: cellSize(output.shape), limit: DRAWN, extent: extentOf(output)});
      }
    }
  }

  // Point at a cell: mark it, what it reads in the layer before, and in fainter lines everything before that.
  select(at, {pick = false, quiet = false} = {}) {
    const {key, group, c, y, x} = at, result = this.results[key];
    if (pick) this.stop();
    this.at = at;
    const boxes = receptiveBoxes(result.steps, group.head.id, y, x);
    for (const side of ["a", "b"]) {
      for (const [index, picture] of this.pictures[side]) {
        const other = this.results[side].groups[index];
        if (side !== key) picture.mark({});
        else if (other === group) picture.mark({cell: {c, y, x}, after: this.playing?.key === key ? y * group.last.shape[2] + x + 1 : undefined});
        else if (boxes.has(other.last.id)) {
          const direct = group.head.inputs.includes(other.last.id);
          picture.mark({windows: [{channels: direct ? readChannels(group.head, c) : [0, Infinity], box: boxes.get(other.last.id), quiet: !direct}]});
        } else picture.mark({});
      }
    }
    const known = result.outputs.has(group.last.id);
    if (known) this.inspector.show({steps: result.steps, outputs: result.outputs, weightsOf: result.weightsOf, layer: group, cell: {c, y, x}});
    this.inspector.element.hidden = !known;
    if (pick && !quiet) this.write({cell: this.cellText(at)}, {replace: true, keepPreset: true});
  }

  cellText({key, group, c, y, x}) {
    return `${key}${group.index}.${c}.${y}.${x}`;
  }

  // Slide over all cells of the selected layer; with reduced motion only step by step.
  player(key) {
    const step = () => {
      const target = this.target(key), [, rows, columns] = target.group.last.shape;
      const next = (this.at.key === key && this.at.group === target.group ? this.at.y * columns + this.at.x + 1 : 0) % (rows * columns);
      this.select({...target, y: Math.floor(next / columns), x: next % columns});
    };
    const play = h("button", {type: "button", class: "play", hidden: calm(), onclick: () => (this.playing ? this.stop() : this.play(key))}, "Slide");
    return h("div", {class: "row"}, play, h("button", {type: "button", onclick: () => {
      this.stop();
      step();
    }}, "Next cell"));
  }

  target(key) {
    if (this.at.key === key && this.at.group.head.op !== "input") return this.at;
    const groups = this.results[key].groups;
    return {key, group: groups[Math.min(1, groups.length - 1)], c: 0, y: 0, x: 0};
  }

  play(key) {
    const target = this.target(key), [, rows, columns] = target.group.last.shape, total = rows * columns;
    const every = Math.min(350, 12000 / total), began = performance.now();
    this.playing = {key};
    this.label();
    const tick = () => {
      const at = Math.floor((performance.now() - began) / every);
      if (at >= total) {
        this.stop();
        return;
      }
      this.select({...target, y: Math.floor(at / columns), x: at % columns});
      this.timer = setTimeout(() => requestAnimationFrame(tick), Math.max(every, 30));
    };
    tick();
  }

  stop() {
    clearTimeout(this.timer);
    const was = this.playing;
    this.playing = null;
    if (was) {
      this.label();
      this.select(this.at);
    }
  }

  label() {
    for (const button of this.element.querySelectorAll(".play")) button.textContent = this.playing ? "Stop" : "Slide";
  }

  // Where both networks give the same shape: how far apart their outputs are.
  compared() {
    if (!this.results.b) return null;
    const [a, b] = ["a", "b"].map((key) => this.results[key].outputs.get(this.results[key].steps.length - 1));
    if (!a || !b || this.results.a.error || this.results.b.error) return null;
    if (a.shape.join() !== b.shape.join()) return h("p", {class: "note"}, `The outputs have different shapes: ${sizeText(a.shape)} and ${sizeText(b.shape)}.`);
    const most = a.data.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b.data[i])), 0);
    const text = most === 0 ? "Both networks give the same output: every value is equal." : `The outputs have the same shape and differ by up to ${short(most)}.`;
    return h("p", {class: "note"}, text);
  }

  costs() {
    const tables = ["a", "b"].filter((key) => this.results[key]).map((key) => {
      const {steps, costs, macs} = this.results[key];
      const rows = steps.slice(1).map((step, i) => [
        `${step.name}. ${describe(step)}`, sizeText(step.shape), counted(costs[i + 1].params), costFormula(step, costs[i + 1].macs)]);
      const total = costs.reduce((sum, cost) => sum + cost.params, 0);
      rows.push(["total", "", counted(total), counted(macs)]);
      return dataTable(this.results.b ? NAMES[key] : "Cost of each layer", ["layer", "output", "parameters", "multiply-adds"], rows);
    });
    const [a, b] = ["a", "b"].map((key) => this.results[key]?.macs);
    const ratio = b && a ? h("p", {class: "note"}, `The second network needs ${short(b / a, 3)} times the multiply-adds of the first.`) : null;
    return h("section", {class: "card"}, h("h3", {}, "Cost"), h("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": "Cost"}, tables), ratio);
  }

  codes() {
    return h("section", {class: "card codes"}, h("h3", {}, "As PyTorch"), h("p", {class: "quiet"}, "This code runs and gives the tensor above, in double precision."),
      ["a", "b"].filter((key) => this.results[key]).map((key) => codeBlock(this.results.b ? NAMES[key] : "Code", chainCode(this.shape, this.data, this.results[key]))));
  }
}

function middle(size) {
  return Math.floor((size - 1) / 2);
}

// The channel with the largest value at one position.
function strongest(output, y, x) {
  if (!output) return 0;
  const [channels, rows, columns] = output.shape;
  const values = Array.from({length: channels}, (_, c) => output.data[(c * rows + y) * columns + x]);
  return values.indexOf(Math.max(...values));
}

// Pixels of a cell: numbers fit into small tensors of few channels.
function cellSize([channels, rows, columns]) {
  const side = Math.max(rows, columns), room = channels <= 2 ? 200 : channels <= 9 ? 170 : 60;
  return Math.max(1, Math.min(26, Math.floor(room / side)));
}

// Width of a tensor whose channels are laid out about as wide as high.
function wanted(shape) {
  const drawn = Math.min(shape[0], DRAWN), across = drawn <= 3 ? drawn : Math.ceil(1.2 * Math.sqrt(drawn));
  return Math.max(120, across * (shape[2] * cellSize(shape) + 6) - 6);
}

function readChannels(step, c) {
  if (step.op !== "conv") return ["maxpool", "avgpool", "mean"].includes(step.op) ? [c, c + 1] : [0, Infinity];
  const perGroup = step.in / step.groups, first = Math.floor(c / (step.shape[0] / step.groups)) * perGroup;
  return [first, first + perGroup];
}

function costFormula(step, macs) {
  if (step.op !== "conv") return "0";
  const factors = [step.shape[1], step.shape[2], step.shape[0], step.in / step.groups, ...step.kernel];
  return h("span", {}, h("span", {class: "quiet"}, minus(factors.join("\u2009·\u2009")), " = "), counted(macs));
}

function presetAddress(preset) {
  const query = Object.entries(preset.values).map(([key, value]) => `${key}=${value}`);
  return `#/arithmetic?preset=${preset.id}&${query.join("&")}`;
}

