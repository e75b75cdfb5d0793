// The probabilities, and one class: its map, where it peaks, and which channels speak for and against it there.

import {h, percent, replace, short} from "./dom.js";
import {TensorPicture} from "./picture.js";
import {explainConv} from "./program.js";
import {integer} from "./state.js";

const TOP = 5;

export class ClassPanel {
  constructor(network) {
    this.network = network;
    this.bars = h("div", {class: "probabilities"});
    this.map = new TensorPicture({
      name: "Class map",
      onPoint: (cell) => this.look(cell),
      onPick: (cell) => this.look(cell, true),
    });
    this.channels = h("div", {class: "evidence"});
    this.note = h("p", {class: "quiet"});
    this.choice = h("div", {class: "row fields"});
    this.select = h(
      "select",
      {"aria-label": "Class", onchange: () => this.pick(Number(this.select.value))},
      network.model.classes.map((name, k) => h("option", {value: k}, name)),
    );
    this.choice.append(this.select);
    this.element = h(
      "section",
      {class: "card classes", "aria-label": "Classes"},
      h("h3", {}, "Classes"),
      h("div", {class: "class-grid"}, h("div", {}, this.bars, this.choice), h("div", {}, this.map.element, this.note)),
      this.channels,
    );
  }

  look(cell, pick) {
    this.network.choose({layer: this.network.maps, ...cell}, pick);
    this.evidence(cell);
  }

  show() {
    const {network} = this,
      {classes} = network.model,
      chances = network.probabilities;
    const order = [...chances.keys()].sort((a, b) => chances[b] - chances[a]);
    this.chosen = integer(network.values.class, 0, classes.length - 1, order[0]);
    const shown = [...new Set([...order.slice(0, TOP), this.chosen])];
    replace(
      this.bars,
      ...shown.map((k) => {
        const bar = h("i", {class: "bar plus"});
        bar.style.width = `${100 * chances[k]}%`;
        return h(
          "button",
          {type: "button", "aria-pressed": String(k === this.chosen), onclick: () => this.pick(k)},
          h("span", {class: "name"}, classes[k]),
          h("span", {class: "track", "aria-hidden": "true"}, bar),
          h("span", {class: "value"}, percent(chances[k])),
        );
      }),
    );
    this.select.value = this.chosen;
    const maps = network.maps;
    this.map.element.hidden = this.channels.hidden = !maps;
    if (!maps) {
      this.note.textContent =
        "This network has no class maps: its last layers are not a convolution and a global average.";
      return;
    }
    const output = network.outputs.get(maps.last.id),
      [, rows, columns] = output.shape;
    const logit = short(network.logits[this.chosen], 4);
    this.note.textContent = `The mean of this map, ${logit}, is the logit of the class.`;
    this.map.show(output, {first: this.chosen, limit: 1, cell: Math.min(44, 176 / Math.max(rows, columns))});
    this.evidence({c: this.chosen, ...network.peak(this.chosen)});
  }

  pick(k) {
    const {network} = this;
    network.write({
      class: k,
      cell: network.maps ? network.cellText({layer: network.maps, c: k, ...network.peak(k)}) : network.values.cell,
    });
  }

  // The channels of the layer before with the largest products for and against the class at one cell.
  async evidence(cell) {
    const {network} = this,
      step = network.maps.head;
    const weights = await network.weightsOf(step, cell.c),
      before = network.outputs.get(step.inputs[0]);
    if (!before || !weights) return;
    const {terms} = explainConv(step, before, weights, cell.c, cell.y, cell.x);
    this.map.mark({cell});
    const sorted = [...terms].sort((a, b) => b.value - a.value);
    const group = (title, list) =>
      h(
        "div",
        {},
        h("h4", {}, title),
        list.length ? list.map((term) => this.channel(term, before)) : h("p", {class: "quiet"}, "none"),
      );
    replace(
      this.channels,
      group(
        "for it here",
        sorted.slice(0, 4).filter((term) => term.value > 0),
      ),
      group(
        "against it here",
        sorted
          .slice(-4)
          .reverse()
          .filter((term) => term.value < 0),
      ),
    );
    for (const {picture, channel} of this.small)
      picture.show(before, {first: channel, limit: 1, cell: 40 / Math.max(...before.shape.slice(1)), numbers: false});
    this.small = [];
  }

  small = [];

  channel(term, before) {
    const {network} = this,
      source = network.layers.find((layer) => layer.last.id === network.maps.head.inputs[0]);
    const picture = new TensorPicture({
      name: `Channel ${term.channel + 1}`,
      onPick: (cell) => source && network.choose({layer: source, ...cell}, true),
    });
    this.small.push({picture, channel: term.channel, before});
    return h(
      "div",
      {class: "row"},
      picture.element,
      h("span", {}, `channel ${term.channel + 1}`),
      h("b", {class: "value"}, (term.value > 0 ? "+" : "") + short(term.value)),
    );
  }
}
