// A trained network: every layer's channels, and behind any of their cells how its value is made.

import {ClassPanel} from "./class-panel.js";
import {codeBlock, counted, disclosure, h, percent, plural, replace, selectField, short} from "./dom.js";
import {EditPanel} from "./edit-panel.js";
import {parseEdits, removed, writeEdits} from "./edits.js";
import {Inspector, describe} from "./inspector.js";
import {TensorPicture, colourImage, extentOf} from "./picture.js";
import {classMaps, costOf, deadChannels, downstream, kindOf, layersOf, receptiveBoxes} from "./program.js";
import {integer, writeState} from "./state.js";
import {softmax} from "./tensor.js";
import {channelTable, sizeText} from "./text.js";
import {editCode} from "./torch-code.js";

const DRAWN = 24, MORE = 256;
const KINDS = {kxk: "k × k convolution", "1x1": "1 × 1 convolution", depthwise: "depthwise convolution", pool: "pool", image: "image", other: "other"};

export class Network {
  constructor(engine) {
    this.engine = engine;
    this.model = engine.model;
    this.steps = this.model.steps;
    this.layers = layersOf(this.steps);
    this.maps = classMaps(this.steps, this.layers);
    this.outputs = new Map();
    this.weights = new Map();
    this.open_ = new Set();
    this.element = h("div", {class: "view network"});
    this.inspector = new Inspector({title: (layer) => this.title(layer), onWeight: (step, channel, index, value) =>
      this.edit({kind: "weight", step: step.id, channel, index, value})});
    this.classes = new ClassPanel(this);
    this.edits_ = new EditPanel(this);
    this.build();
  }

  title(layer) {
    return layer.head.op === "input" ? "Image" : layer.head.name;
  }

  // The channels of the class maps and of the logits have the names of the classes.
  namesOf(layer) {
    const last = this.layers[this.layers.length - 1];
    return layer === this.maps || layer === last || layer.last.shape.join() === last.last.shape.join() ? this.model.classes : undefined;
  }

  async open(values, {embedded = false} = {}) {
    this.embedded = embedded;
    this.values = values;
    this.image = integer(values.image, 0, this.model.images.length - 1, 0);
    this.edits = parseEdits(values.edits, this.steps);
    this.by = values.by === "params" ? "params" : "macs";
    const [, layer, c, y, x] = /^(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(values.cell ?? "") ?? [];
    const start = this.maps ? this.maps.index : Math.min(1, this.layers.length - 1);
    const chosen = this.layers[integer(layer, 0, this.layers.length - 1, start)], shape = chosen.last.shape;
    this.at = {layer: chosen, c: integer(c, 0, shape[0] - 1, 0), y: integer(y, 0, shape[1] - 1, 0), x: integer(x, 0, shape[2] - 1, 0)};
    this.free = layer === undefined;
    await this.compute();
  }

  write(changed, {replace = false} = {}) {
    const state = {...this.values, ...changed};
    if (replace) this.values = state;
    if (replace && this.embedded) return; // inside the walk, choosing a cell does not leave it
    writeState("network", state, {replace});
  }

  edit(edit) {
    this.write({edits: writeEdits([...this.edits, edit]), cell: this.cellText(this.at)});
  }

  // Fetch what the image and the edits change; the answer to an older question is dropped.
  async compute() {
    const key = `${this.image} ${writeEdits(this.edits)}`;
    this.paintForm();
    if (this.key !== key) {
      this.asked = key;
      this.element.setAttribute("aria-busy", "true");
      const ids = this.layers.map((layer) => layer.last.id), touched = this.touched(key);
      const wanted = touched ? ids.filter((id) => touched.has(id)) : ids;
      try {
        const [outputs, pixels] = await Promise.all([this.engine.outputs(this.image, this.edits, wanted), this.engine.pixels(this.image)]);
        if (this.asked !== key) return;
        for (const [id, value] of outputs) this.outputs.set(id, value);
        this.pixels = pixels;
        await this.loadWeights();
        if (this.asked !== key) return;
        this.key = key;
        this.say("");
      } catch (error) {
        this.say(error.message);
        return;
      } finally {
        this.element.removeAttribute("aria-busy");
      }
      this.paint();
    }
    if (this.free) this.startAtPeak();
    await this.choose(this.at);
    this.classes.show();
    this.edits_.show();
  }

  // Ids that the new edits can have changed, or null where another image changes all.
  touched() {
    if (this.key === undefined || this.key.split(" ")[0] !== String(this.image)) return null;
    const before = parseEdits(this.key.slice(this.key.indexOf(" ") + 1), this.steps);
    return downstream(this.steps, [...before, ...this.edits].map((edit) => edit.step));
  }

  // Weights of the steps that follow a head are needed at once; those of a convolution when its layer is chosen.
  async loadWeights() {
    this.weights.clear();
    for (const step of this.steps.filter((one) => one.op === "norm")) this.weights.set(step.id, await this.engine.weights(step, this.edits));
  }

  startAtPeak() {
    this.free = false;
    if (!this.maps) return;
    const logits = this.outputs.get(this.steps[this.steps.length - 1].id).data;
    const best = logits.indexOf(Math.max(...logits));
    this.at = {layer: this.maps, c: best, ...this.peak(best)};
  }

  peak(c) {
    const {shape: [, rows, columns], data} = this.outputs.get(this.maps.last.id);
    const values = data.subarray(c * rows * columns, (c + 1) * rows * columns), at = values.indexOf(Math.max(...values));
    return {y: Math.floor(at / columns), x: at % columns};
  }

  get probabilities() {
    return softmax(this.outputs.get(this.steps[this.steps.length - 1].id).data);
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = !text;
  }

  build() {
    this.message = h("p", {class: "trouble", role: "alert", hidden: true});
    this.strip = h("div", {class: "images", role: "group", "aria-label": "Images"});
    this.list = h("ol", {class: "layers"});
    this.field = new TensorPicture({name: "The image as the network receives it, with the receptive field"});
    this.large = new TensorPicture({name: "The chosen channel", onPoint: (cell) => this.choose({layer: this.at.layer, ...cell}),
      onPick: (cell) => this.choose({layer: this.at.layer, ...cell}, true)});
    this.code = h("div", {});
    this.cost = h("p", {class: "totals"});
    const pair = h("div", {class: "card pair"},
      h("figure", {}, h("figcaption", {}, "receptive field"), this.field.element), h("figure", {}, this.largeName = h("figcaption", {}, "channel"), this.large.element));
    const side = h("div", {class: "side"}, pair, this.inspector.element, this.edits_.element, this.code);
    this.sizeBy = h("div", {});
    replace(this.element,
      h("div", {class: "lead"}, h("h2", {}, this.model.name), this.cost, this.strip, this.message),
      h("div", {class: "columns"}, h("div", {class: "overview"}, this.classes.element,
        h("section", {"aria-label": "Layers"}, h("div", {class: "row"}, h("h3", {}, "Layers"), this.sizeBy), legend(), this.list)), side),
    );
    this.pictures = new Map();
    for (const layer of this.layers.slice(1)) this.list.append(this.layerItem(layer));
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }

  layerItem(layer) {
    const [channels] = layer.last.shape, picture = new TensorPicture({
      name: `${layer.head.name}: output channels`,
      onPoint: (cell) => this.choose({layer, ...cell}), onPick: (cell) => this.choose({layer, ...cell}, true),
    });
    const bar = h("i", {class: "bar plus"}), note = h("span", {class: "quiet"}), scale = h("span", {class: "quiet"});
    const all = channels > DRAWN ? h("button", {type: "button", class: "link", "aria-expanded": "false", onclick: () => {
      this.open_[this.open_.has(layer) ? "delete" : "add"](layer);
      all.setAttribute("aria-expanded", String(this.open_.has(layer)));
      all.textContent = this.open_.has(layer) ? "Fewer channels" : moreText(channels);
      this.paintLayer(layer);
    }}, moreText(channels)) : null;
    const name = [layer.head, ...layer.tail.filter((step) => step.op !== "identity")].map(describe).join(", ");
    const item = h("li", {class: `layer ${kindOf(layer.head)}`},
      h("div", {class: "row head"}, h("span", {class: `kind k-${kindOf(layer.head)}`, role: "img", "aria-label": KINDS[kindOf(layer.head)]}), h("b", {}, layer.head.name), h("span", {}, name),
        h("span", {class: "shape"}, sizeText(layer.last.shape))),
      h("div", {class: "row"}, h("span", {class: "track", "aria-hidden": "true"}, bar), note), picture.element,
      h("div", {class: "row under"}, all, scale, disclosure("Values", () => channelTable(this.outputs.get(layer.last.id), this.at.layer === layer ? this.at.c : 0))));
    this.pictures.set(layer, {picture, bar, note, item, scale});
    return item;
  }

  costs() {
    const {dropped, changes} = removed(this.edits), dead = deadChannels(this.steps, dropped);
    return new Map(this.layers.map((layer) => {
      const parts = [layer.head, ...layer.tail].map((step) => costOf(step, dead, changes.get(step.id)));
      return [layer, {params: parts.reduce((n, part) => n + part.params, 0), macs: parts.reduce((n, part) => n + part.macs, 0)}];
    }));
  }

  paintForm() {
    const {images} = this.model;
    const add = h("input", {type: "file", accept: "image/png,image/jpeg,image/webp,image/bmp", multiple: true, class: "unseen", id: "add-image",
      onchange: (event) => this.add([...event.target.files])});
    replace(this.strip, ...images.map((name, i) => h("button", {type: "button", "aria-pressed": String(i === this.image),
      onclick: () => this.write({image: i || undefined, cell: undefined})}, h("span", {class: "thumb", id: `thumb-${i}`, "aria-hidden": "true"}), h("span", {class: "name"}, name))),
    this.model.canAdd ? h("span", {class: "adder"}, add, h("label", {for: "add-image"}, "Add an image")) : null);
    images.forEach((_, i) => this.engine.pixels(i).then((pixels) => document.getElementById(`thumb-${i}`)?.replaceChildren(colourImage(pixels)), () => {}));
    replace(this.sizeBy, selectField("Bars show", this.by, [["macs", "multiply-adds"], ["params", "parameters"]],
      (by) => this.write({by: by === "macs" ? undefined : by})));
    const costs = this.costs(), most = Math.max(1, ...[...costs.values()].map((cost) => cost[this.by]));
    const sum = (name) => [...costs.values()].reduce((n, cost) => n + cost[name], 0);
    const pointwise = this.layers.filter((layer) => kindOf(layer.head) === "1x1").reduce((n, layer) => n + costs.get(layer).macs, 0);
    this.cost.textContent = `${counted(sum("params"))} parameters, ${counted(sum("macs"))} multiply-adds an image, ${percent(pointwise / (sum("macs") || 1), 0)} of them in 1 × 1 convolutions.`;
    for (const [layer, {bar, note}] of this.pictures) {
      const cost = costs.get(layer);
      bar.style.width = `${(100 * cost[this.by]) / most}%`;
      note.textContent = cost.macs || cost.params ? `${counted(cost.macs)} multiply-adds, ${counted(cost.params)} parameters` : "";
    }
    replace(this.code, h("section", {class: "card codes"}, h("h3", {}, "As PyTorch"), codeBlock(this.edits.length ? `With ${plural(this.edits.length, "edit")}` : "Without edits",
      editCode(this.model.source, this.edits, this.steps))));
  }

  paint() {
    for (const layer of this.layers.slice(1)) this.paintLayer(layer);
  }

  paintLayer(layer) {
    const output = this.outputs.get(layer.last.id);
    if (!output) return;
    const [channels, rows, columns] = output.shape, side = Math.max(rows, columns), extent = extentOf(output);
    this.pictures.get(layer).scale.textContent = `strongest colour: ${short(extent, 3)}`;
    this.pictures.get(layer).picture.show(output, {extent,
      cell: side === 1 ? 14 : Math.min(8, side > 56 ? 56 / side : Math.floor(56 / side)), limit: this.open_.has(layer) ? Math.min(channels, MORE) : DRAWN,
      first: this.at.layer === layer && this.at.c >= DRAWN && !this.open_.has(layer) ? Math.min(this.at.c, channels - DRAWN) : 0, numbers: false,
    });
  }

  // Point at one cell of a layer: mark it and what it reads, and explain its value.
  async choose(at, pick = false) {
    const before = this.at;
    this.at = at;
    const {layer, c, y, x} = at, boxes = receptiveBoxes(this.steps, layer.head.id, y, x), output = this.outputs.get(layer.last.id);
    if (!output) return;
    for (const [other, {picture, item}] of this.pictures) {
      const box = boxes.get(other.last.id), direct = layer.head.inputs.includes(other.last.id);
      item.classList.toggle("chosen", other === layer);
      if (other === layer) picture.mark({cell: {c, y, x}});
      else picture.mark(box && direct ? {windows: [{channels: [0, Infinity], box}]} : {});
    }
    this.field.show(this.pixels, {image: true, limit: 1, cell: 176 / Math.max(...this.pixels.shape.slice(1))});
    this.field.mark({windows: [{channels: [0, 1], box: boxes.get(0) ?? [0, 0, 0, 0]}]});
    this.large.show(output, {first: c, limit: 1, extent: before?.layer === layer && this.extent ? this.extent : (this.extent = extentOf(output)),
      cell: 176 / Math.max(...output.shape.slice(1)), numbers: output.shape[1] <= 8});
    this.large.mark({cell: {c, y, x}});
    this.largeName.textContent = this.namesOf(layer)?.[c] ?? `channel ${c + 1}`;
    await this.explain(at);
    if (pick) {
      this.write({cell: this.cellText(at)}, {replace: true});
      this.edits_.show();
    }
  }

  async explain(at) {
    const {layer, c, y, x} = at, step = layer.head;
    if (step.op === "conv" && !this.weights.has(step.id)) {
      try {
        this.weights.set(step.id, await this.engine.weights(step, this.edits));
      } catch (error) {
        this.say(error.message);
        return;
      }
      if (this.at !== at) return;
    }
    this.inspector.show({steps: this.steps, outputs: this.outputs, weightsOf: (one) => this.weights.get(one.id), layer, cell: {c, y, x}, names: this.namesOf(layer)});
  }

  cellText({layer, c, y, x}) {
    return `${layer.index}.${c}.${y}.${x}`;
  }

  async add(files) {
    for (const file of files.slice(0, 16)) {
      try {
        const index = await this.engine.addImage(file);
        this.say("");
        this.write({image: index, cell: undefined});
      } catch (error) {
        this.say(`${file.name.slice(0, 80)}: ${error.message}`);
        return;
      }
    }
  }
}

function moreText(channels) {
  return channels > MORE ? `The first ${MORE} of ${counted(channels)} channels` : `All ${counted(channels)} channels`;
}

function legend() {
  return h("p", {class: "legend quiet"}, ["kxk", "1x1", "depthwise", "pool"].map((kind) => h("span", {}, h("i", {class: `kind k-${kind}`}), KINDS[kind])));
}
