// One chain of the playground: its tensors as pictures, and below them the forms of its layers.

import {MOST} from "./chain.js";
import {chainForm} from "./chain-form.js";
import {counted, disclosure, h, numberField, selectField} from "./dom.js";
import {describe} from "./inspector.js";
import {TensorPicture, extentOf} from "./picture.js";
import {channelTable, sizeText} from "./text.js";

export const NAMES = {a: "First network", b: "Second network"};
export const IMAGES = [
  ["mixed", "digits by a formula"],
  ["edge", "a vertical edge"],
  ["detectors", "a cat and a dog detector"],
];
const DRAWN = 24,
  GAP = 6,
  LARGEST = 100; // pixels of a tile whose cells are smaller than a pixel

export class Stage {
  constructor(playground, key) {
    Object.assign(this, {playground, key, result: playground.results[key], pictures: new Map()});
    const both = Boolean(playground.results.b),
      {error, feasible, macs} = this.result;
    const trouble = error || (feasible ? "" : `${counted(macs)} multiply-adds are too many for this page to compute.`);
    this.element = h(
      "section",
      {class: "card stage", "aria-label": NAMES[key]},
      h("div", {class: "row"}, h("h3", {}, both ? NAMES[key] : "Network"), playground.player.buttons(key)),
      trouble && h("p", {class: "trouble", role: "alert"}, trouble),
      h(
        "div",
        {class: "flow"},
        this.result.groups.map((group) => this.figure(group)),
      ),
      h("div", {class: "chain"}, key === "a" && this.inputForm(), this.layerForms(), this.second(both)),
    );
  }

  figure(group) {
    const {playground, key, result} = this,
      {shape} = group.last,
      input = group.head.op === "input";
    const picture = new TensorPicture({
      name: `${NAMES[key]}, ${input ? "input" : `output of layer ${group.head.name}`}`,
      onPoint: (cell) => playground.select({key, group, ...cell}),
      onPick: (cell) => playground.select({key, group, ...cell}, {pick: true}),
    });
    this.pictures.set(group, picture);
    const chosen = () => (playground.at.group === group ? playground.at.c : 0);
    const figure = h(
      "figure",
      {class: "tensor"},
      h(
        "figcaption",
        {},
        h("b", {}, [group.head, ...group.tail].map(describe).join(", ")),
        h("span", {class: "shape"}, sizeText(shape)),
        shape[0] > DRAWN && h("span", {class: "quiet"}, `${DRAWN} of ${counted(shape[0])} channels drawn`),
      ),
      picture.element,
      disclosure("Values", () => channelTable(result.outputs.get(group.last.id), chosen())),
    );
    figure.style.flexBasis = `${wanted(shape)}px`;
    return figure;
  }

  draw() {
    for (const [group, picture] of this.pictures) {
      const output = this.result.outputs.get(group.last.id);
      if (output) picture.show(output, {cell: cellSize(output.shape), limit: DRAWN, extent: extentOf(output)});
    }
  }

  // `after`: the cell that the animation has reached, as a raster index; later cells are veiled.
  mark({group, c, y, x}, boxes, after) {
    for (const [other, picture] of this.pictures) {
      const box = boxes.get(other.last.id),
        direct = group.head.inputs.includes(other.last.id);
      const channels = direct ? readChannels(group.head, c) : [0, Infinity];
      if (other === group) picture.mark({cell: {c, y, x}, after});
      else picture.mark(box ? {windows: [{channels, box, quiet: !direct}]} : {});
    }
  }

  clear() {
    for (const picture of this.pictures.values()) picture.mark({});
  }

  inputForm() {
    const {playground} = this,
      [channels, rows, columns] = playground.shape;
    const set = (index) => (value) => {
      playground.shape[index] = value;
      playground.write();
    };
    const choose = (value) => {
      playground.data = value;
      playground.write();
    };
    const fields = h(
      "div",
      {class: "fields"},
      numberField("Rows", rows, [1, MOST.side], set(1)),
      numberField("Columns", columns, [1, MOST.side], set(2)),
      numberField("Channels", channels, [1, MOST.channels], set(0)),
      selectField("Values", playground.data, IMAGES, choose),
    );
    return h("fieldset", {class: "layer setup"}, h("legend", {}, "Input"), fields);
  }

  layerForms() {
    const {playground, key} = this;
    return chainForm(playground.chains[key], this.result, (layers) => {
      playground.chains[key] = layers;
      playground.write();
    });
  }

  // The button that adds the second network, or removes it.
  second(both) {
    const {playground, key} = this;
    if (key === "a" && both) return null;
    const title = key === "a" ? "Compare with a second network" : "Remove the second network";
    return h(
      "button",
      {
        type: "button",
        onclick: () => {
          playground.chains.b = key === "a" ? playground.chains.a.map((layer) => ({...layer})) : [];
          playground.changes.b = {};
          playground.write();
        },
      },
      title,
    );
  }
}

// Pixels of a cell: numbers fit into small tensors of few channels.
function cellSize([channels, rows, columns]) {
  const side = Math.max(rows, columns),
    room = channels <= 9 ? 165 : 60;
  return side > room ? LARGEST / side : Math.min(22, Math.floor(room / side));
}

// Width of a tensor whose channels are laid out about as wide as high.
function wanted(shape) {
  const drawn = Math.min(shape[0], DRAWN),
    square = Math.sqrt(drawn);
  const across = drawn <= 3 ? drawn : Math.ceil(drawn <= 9 ? square : 1.2 * square);
  return Math.max(120, across * (shape[2] * cellSize(shape) + GAP) - GAP);
}

// The input channels that an output channel reads, as [first, end).
function readChannels(step, c) {
  if (["maxpool", "avgpool", "mean"].includes(step.op)) return [c, c + 1];
  if (step.op !== "conv") return [0, Infinity];
  const perGroup = step.in / step.groups,
    first = Math.floor(c / (step.shape[0] / step.groups)) * perGroup;
  return [first, first + perGroup];
}
