// The layers of a network, each with its kind, its cost as a bar, and its channels on one scale.

import {counted, disclosure, h, replace, selectField, short} from "./dom.js";
import {describe} from "./inspector.js";
import {TensorPicture, extentOf} from "./picture.js";
import {kindOf} from "./program.js";
import {channelTable, sizeText} from "./text.js";

const FEW = 24,
  MANY = 256,
  TILE = 56;
const KINDS = {
  kxk: "k × k convolution",
  "1x1": "1 × 1 convolution",
  depthwise: "depthwise convolution",
  pool: "pool",
  image: "image",
  other: "other",
};
const MEASURES = [
  ["macs", "multiply-adds"],
  ["params", "parameters"],
];

export class LayerList {
  constructor(network) {
    this.network = network;
    this.items = new Map();
    this.wide = new Set(); // layers that show all channels
    this.choice = h("div", {});
    const list = h(
      "ol",
      {class: "layers"},
      network.layers.slice(1).map((layer) => this.item(layer)),
    );
    this.element = h(
      "section",
      {"aria-label": "Layers"},
      h("div", {class: "row"}, h("h3", {}, "Layers"), this.choice),
      legend(),
      list,
    );
  }

  item(layer) {
    const {network} = this;
    const picture = new TensorPicture({
      name: `${layer.head.name}: output channels`,
      onPoint: (cell) => network.choose({layer, ...cell}),
      onPick: (cell) => network.choose({layer, ...cell}, true),
    });
    const bar = h("i", {class: "bar plus"}),
      note = h("span", {class: "quiet"}),
      scale = h("span", {class: "quiet"});
    const kind = kindOf(layer.head),
      name = [layer.head, ...layer.tail].filter((step) => step.op !== "identity");
    const chosen = () => (network.at.layer === layer ? network.at.c : 0);
    const values = disclosure("Values", () => channelTable(network.outputs.get(layer.last.id), chosen()));
    const item = h(
      "li",
      {class: `layer ${kind}`},
      h(
        "div",
        {class: "row head"},
        h("span", {class: `kind k-${kind}`, role: "img", "aria-label": KINDS[kind]}),
        h("b", {}, layer.head.name),
        h("span", {}, name.map(describe).join(", ")),
        h("span", {class: "shape"}, sizeText(layer.last.shape)),
      ),
      h("div", {class: "row"}, h("span", {class: "track", "aria-hidden": "true"}, bar), note),
      picture.element,
      h("div", {class: "row under"}, this.widen(layer), scale, values),
    );
    this.items.set(layer, {picture, bar, note, item, scale});
    return item;
  }

  // A button that shows all channels of a layer; nothing where all are shown anyway.
  widen(layer) {
    const [channels] = layer.last.shape;
    if (channels <= FEW) return null;
    const all = channels > MANY ? `The first ${MANY} of ${counted(channels)} channels` : `All ${channels} channels`;
    const button = h("button", {type: "button", class: "link", "aria-expanded": "false"}, all);
    button.addEventListener("click", () => {
      const open = !this.wide.delete(layer);
      if (open) this.wide.add(layer);
      button.setAttribute("aria-expanded", String(open));
      button.textContent = open ? "Fewer channels" : all;
      this.paintLayer(layer);
    });
    return button;
  }

  paint() {
    for (const layer of this.items.keys()) this.paintLayer(layer);
  }

  paintLayer(layer) {
    const {network} = this,
      output = network.outputs.get(layer.last.id);
    if (!output) return;
    const [channels, rows, columns] = output.shape,
      side = Math.max(rows, columns),
      extent = extentOf(output);
    const {picture, scale} = this.items.get(layer),
      wide = this.wide.has(layer);
    const cell = side === 1 ? 14 : Math.min(8, side > TILE ? TILE / side : Math.floor(TILE / side));
    const beyond = network.at.layer === layer && network.at.c >= FEW && !wide;
    const first = beyond ? Math.min(network.at.c, channels - FEW) : 0;
    scale.textContent = `strongest colour: ${short(extent, 3)}`;
    picture.show(output, {extent, cell, first, limit: wide ? Math.min(channels, MANY) : FEW, numbers: false});
  }

  // Mark the chosen cell, and what it reads in the layers before it.
  mark({layer, c, y, x}, boxes) {
    for (const [other, {picture, item}] of this.items) {
      const box = boxes.get(other.last.id),
        direct = layer.head.inputs.includes(other.last.id);
      item.classList.toggle("chosen", other === layer);
      if (other === layer) picture.mark({cell: {c, y, x}});
      else picture.mark(box && direct ? {windows: [{channels: [0, Infinity], box}]} : {});
    }
  }

  paintCosts(costs) {
    const {network} = this,
      most = Math.max(1, ...[...costs.values()].map((cost) => cost[network.by]));
    const change = (by) => network.write({by: by === "macs" ? undefined : by});
    replace(this.choice, selectField("Bars show", network.by, MEASURES, change));
    for (const [layer, {bar, note}] of this.items) {
      const {macs, params} = costs.get(layer);
      bar.style.width = `${(100 * costs.get(layer)[network.by]) / most}%`;
      note.textContent = macs || params ? `${counted(macs)} multiply-adds, ${counted(params)} parameters` : "";
    }
  }
}

function legend() {
  const kinds = ["kxk", "1x1", "depthwise", "pool"];
  const entry = (kind) => h("span", {}, h("i", {class: `kind k-${kind}`}), KINDS[kind]);
  return h("p", {class: "legend quiet"}, kinds.map(entry));
}
