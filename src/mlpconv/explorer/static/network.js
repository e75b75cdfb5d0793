// A trained network: every layer's channels, and behind any of their cells how its value is made.

import {ClassPanel} from "./class-panel.js";
import {codeBlock, counted, h, percent, plural, replace} from "./dom.js";
import {EditPanel} from "./edit-panel.js";
import {parseEdits, removed, writeEdits} from "./edits.js";
import {ImageStrip} from "./image-strip.js";
import {Inspector} from "./inspector.js";
import {LayerList} from "./layer-list.js";
import {TensorPicture, extentOf} from "./picture.js";
import {classMaps, costOf, deadChannels, downstream, kindOf, layersOf, receptiveBoxes} from "./program.js";
import {integer, writeState} from "./state.js";
import {softmax} from "./tensor.js";
import {editCode} from "./torch-code.js";

const LARGE = 176;

export class Network {
  constructor(engine) {
    this.engine = engine;
    this.model = engine.model;
    this.steps = this.model.steps;
    this.layers = layersOf(this.steps);
    this.maps = classMaps(this.steps, this.layers);
    this.outputs = new Map();
    this.weights = new Map();
    this.inspector = new Inspector({
      title: (layer) => (layer.head.op === "input" ? "Image" : layer.head.name),
      onWeight: (step, channel, index, value) => this.edit({kind: "weight", step: step.id, channel, index, value}),
    });
    this.classes = new ClassPanel(this);
    this.changes = new EditPanel(this);
    this.list = new LayerList(this);
    this.strip = new ImageStrip(this);
    this.build();
  }

  // The channels of the class maps and of the logits have the names of the classes.
  namesOf(layer) {
    const last = this.layers[this.layers.length - 1];
    const same = layer.last.shape.join() === last.last.shape.join();
    return layer === this.maps || same ? this.model.classes : undefined;
  }

  async open(values, {embedded = false} = {}) {
    this.embedded = embedded;
    this.values = values;
    this.image = integer(values.image, 0, this.model.images.length - 1, 0);
    this.edits = parseEdits(values.edits, this.steps);
    this.by = values.by === "params" ? "params" : "macs";
    const [, index, c, y, x] = /^(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(values.cell ?? "") ?? [];
    const start = this.maps ? this.maps.index : Math.min(1, this.layers.length - 1);
    const layer = this.layers[integer(index, 0, this.layers.length - 1, start)];
    const [channels, rows, columns] = layer.last.shape;
    const cell = {c: integer(c, 0, channels - 1, 0), y: integer(y, 0, rows - 1, 0), x: integer(x, 0, columns - 1, 0)};
    this.at = {layer, ...cell};
    this.free = index === undefined;
    await this.compute();
  }

  write(changed, {replace: same = false} = {}) {
    const state = {...this.values, ...changed};
    if (same) this.values = state;
    if (same && this.embedded) return; // inside the walk, choosing a cell does not leave it
    writeState("network", state, {replace: same});
  }

  edit(edit) {
    this.write({edits: writeEdits([...this.edits, edit]), cell: this.cellText(this.at)});
  }

  async compute() {
    this.paintTotals();
    if (this.key !== this.question && !(await this.ask())) return;
    if (this.free) this.startAtPeak();
    await this.choose(this.at);
    this.classes.show();
    this.changes.show();
  }

  get question() {
    return `${this.image} ${writeEdits(this.edits)}`;
  }

  // Fetch what the image and the edits change. False after an error, or if a newer question came meanwhile.
  async ask() {
    const question = this.question,
      ids = this.layers.map((layer) => layer.last.id),
      touched = this.touched();
    const wanted = touched ? ids.filter((id) => touched.has(id)) : ids;
    this.element.setAttribute("aria-busy", "true");
    try {
      const outputs = await this.engine.outputs(this.image, this.edits, wanted);
      const pixels = await this.engine.pixels(this.image);
      const norms = await this.normWeights();
      if (this.question !== question) return false;
      for (const [id, value] of outputs) this.outputs.set(id, value);
      Object.assign(this, {pixels, weights: norms, key: question});
      this.say("");
    } catch (error) {
      this.say(error.message);
      return false;
    } finally {
      this.element.removeAttribute("aria-busy");
    }
    this.list.paint();
    return true;
  }

  // Ids that the new edits can have changed, or null where another image changes all.
  touched() {
    if (this.key?.split(" ")[0] !== String(this.image)) return null;
    const before = parseEdits(this.key.slice(this.key.indexOf(" ") + 1), this.steps);
    return downstream(
      this.steps,
      [...before, ...this.edits].map((edit) => edit.step),
    );
  }

  // Weights of norms are needed at once; those of a convolution when its layer is chosen.
  async normWeights() {
    const weights = new Map();
    for (const step of this.steps.filter((one) => one.op === "norm")) {
      weights.set(step.id, await this.engine.weights(step, this.edits));
    }
    return weights;
  }

  // The weights of a convolution that hold filter c, if they are here already.
  known(step, c) {
    const weights = this.weights.get(step.id);
    return weights && (weights.first ?? c) === c ? weights : undefined;
  }

  async weightsOf(step, c) {
    const edits = this.edits;
    if (!this.known(step, c)) {
      const weights = await this.engine.weights(step, edits, c);
      if (this.edits === edits) this.weights.set(step.id, weights);
    }
    return this.known(step, c);
  }

  startAtPeak() {
    this.free = false;
    if (!this.maps) return;
    const best = this.logits.indexOf(Math.max(...this.logits));
    this.at = {layer: this.maps, c: best, ...this.peak(best)};
  }

  peak(c) {
    const {
      shape: [, rows, columns],
      data,
    } = this.outputs.get(this.maps.last.id);
    const values = data.subarray(c * rows * columns, (c + 1) * rows * columns);
    const at = values.indexOf(Math.max(...values));
    return {y: Math.floor(at / columns), x: at % columns};
  }

  get logits() {
    return this.outputs.get(this.steps[this.steps.length - 1].id).data;
  }

  get probabilities() {
    return softmax(this.logits);
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  build() {
    this.message = h("p", {class: "trouble", role: "alert", hidden: true});
    this.totals = h("p", {class: "totals"});
    this.code = h("div", {});
    this.field = new TensorPicture({name: "The image as the network receives it, with the receptive field"});
    this.large = new TensorPicture({
      name: "The chosen channel",
      onPoint: (cell) => this.choose({layer: this.at.layer, ...cell}),
      onPick: (cell) => this.choose({layer: this.at.layer, ...cell}, true),
    });
    this.largeName = h("figcaption", {}, "channel");
    const field = h("figure", {}, h("figcaption", {}, "receptive field"), this.field.element);
    const pair = h("div", {class: "card pair"}, field, h("figure", {}, this.largeName, this.large.element));
    const side = h("div", {class: "side"}, pair, this.inspector.element, this.changes.element, this.code);
    this.element = h(
      "div",
      {class: "view network"},
      h("div", {class: "lead"}, h("h2", {}, this.model.name), this.totals, this.strip.element, this.message),
      h("div", {class: "columns"}, h("div", {class: "overview"}, this.classes.element, this.list.element), side),
    );
    this.strip.acceptDrops(this.element);
  }

  // Parameters and multiply-adds of each layer, with the edits.
  costs() {
    const {dropped, changes} = removed(this.edits),
      dead = deadChannels(this.steps, dropped);
    return new Map(
      this.layers.map((layer) => {
        const parts = [layer.head, ...layer.tail].map((step) => costOf(step, dead, changes.get(step.id)));
        const sum = (name) => parts.reduce((total, part) => total + part[name], 0);
        return [layer, {params: sum("params"), macs: sum("macs")}];
      }),
    );
  }

  paintTotals() {
    const costs = this.costs();
    const sum = (name, some = this.layers) => some.reduce((total, layer) => total + costs.get(layer)[name], 0);
    const pointwise = this.layers.filter((layer) => kindOf(layer.head) === "1x1");
    const share = percent(sum("macs", pointwise) / (sum("macs") || 1), 0);
    this.totals.textContent =
      `${counted(sum("params"))} parameters, ${counted(sum("macs"))} multiply-adds an image, ` +
      `${share} of them in 1 × 1 convolutions.`;
    this.strip.show();
    this.list.paintCosts(costs);
    const title = this.edits.length ? `With ${plural(this.edits.length, "edit")}` : "Without edits";
    const code = codeBlock(title, editCode(this.model.source, this.edits, this.steps));
    replace(this.code, h("section", {class: "card codes"}, h("h3", {}, "As PyTorch"), code));
  }

  // Point at one cell of a layer: mark it and what it reads, and explain its value.
  async choose(at, pick = false) {
    const before = this.at,
      {layer, c, y, x} = at,
      output = this.outputs.get(layer.last.id);
    this.at = at;
    if (!output) return;
    const boxes = receptiveBoxes(this.steps, layer.head.id, y, x);
    if (before.layer !== layer || !this.extent) this.extent = extentOf(output);
    this.list.mark(at, boxes);
    const [rows, columns] = this.pixels.shape.slice(1),
      side = Math.max(...output.shape.slice(1));
    this.field.show(this.pixels, {image: true, limit: 1, cell: LARGE / Math.max(rows, columns)});
    this.field.mark({windows: [{channels: [0, 1], box: boxes.get(0) ?? [0, 0, 0, 0]}]});
    this.large.show(output, {first: c, limit: 1, extent: this.extent, cell: LARGE / side, numbers: side <= 8});
    this.large.mark({cell: {c, y, x}});
    this.largeName.textContent = this.namesOf(layer)?.[c] ?? `channel ${c + 1}`;
    await this.explain(at);
    if (!pick) return;
    this.write({cell: this.cellText(at)}, {replace: true});
    this.changes.show();
  }

  async explain(at) {
    const {layer, c, y, x} = at,
      conv = layer.head.op === "conv";
    try {
      if (conv && !this.known(layer.head, c)) await this.weightsOf(layer.head, c);
    } catch (error) {
      this.say(error.message);
      return;
    }
    if (this.at !== at || (conv && !this.known(layer.head, c))) return;
    const weightsOf = (step) => this.weights.get(step.id);
    this.inspector.show({outputs: this.outputs, weightsOf, layer, cell: {c, y, x}, names: this.namesOf(layer)});
  }

  cellText({layer, c, y, x}) {
    return `${layer.index}.${c}.${y}.${x}`;
  }
}
