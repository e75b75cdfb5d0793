// The playground: small tensors through one chain of layers, or two beside each other, with every number in reach.

import {MOST, compute, parseChain, parseChanges, writeChain, writeChanges} from "./chain.js";
import {costSection} from "./cost-table.js";
import {codeBlock, h, replace, short} from "./dom.js";
import {Inspector, describe} from "./inspector.js";
import {Player} from "./player.js";
import {PRESETS} from "./presets.js";
import {layersOf, receptiveBoxes} from "./program.js";
import {IMAGES, NAMES, Stage} from "./stage.js";
import {integer, writeState} from "./state.js";
import {sizeText} from "./text.js";
import {chainCode} from "./torch-code.js";

const GREETING =
  "Point at any output cell to see what it reads and how its value adds up. Change the layers below the pictures.";

export class Arithmetic {
  constructor() {
    this.element = h("div", {class: "view arithmetic"});
    this.player = new Player(this);
    this.inspector = new Inspector({
      title: (layer) => `Layer ${layer.head.name}, ${describe(layer.head)}`,
      onWeight: (step, channel, index, value) => this.changeWeight(step, channel, index, value),
    });
  }

  open(values, {embedded = false} = {}) {
    this.player.stop();
    Object.assign(this, {values, embedded});
    this.shape = shapeOf(values.in);
    this.data = IMAGES.some(([key]) => key === values.data) ? values.data : "mixed";
    this.changes = parseChanges(values.w);
    this.chains = {a: parseChain(values.a ?? "c3.4.p1-r-c1.2"), b: parseChain(values.b)};
    this.results = {};
    for (const key of this.chains.b.length ? ["a", "b"] : ["a"]) {
      const changes = this.changes[key],
        result = compute(this.shape, this.data, this.chains[key], changes);
      this.results[key] = {...result, changes, groups: layersOf(result.steps)};
    }
    this.build();
    this.select(this.startCell());
  }

  get keys() {
    return Object.keys(this.results);
  }

  // The cell in the address, or one in the middle of the first layer with a large value.
  startCell() {
    const [, named, index, c, y, x] = /^([ab])(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(this.values.cell ?? "") ?? [];
    const key = this.results[named] ? named : "a",
      {groups, outputs} = this.results[key];
    const group = groups[integer(index, 0, groups.length - 1, Math.min(1, groups.length - 1))];
    const [channels, rows, columns] = group.last.shape;
    const row = integer(y, 0, rows - 1, middle(rows)),
      column = integer(x, 0, columns - 1, middle(columns));
    const channel = strongest(outputs.get(group.last.id), row, column);
    return {key, group, c: integer(c, 0, channels - 1, channel), y: row, x: column};
  }

  // Write the current state to the address; a new state is a new step of the history.
  write(changed = {}, {replace: same = false, keepPreset = false} = {}) {
    const [channels, rows, columns] = this.shape;
    const state = {
      preset: keepPreset ? this.values.preset : undefined,
      in: `${rows}x${columns}x${channels}`,
      data: this.data === "mixed" ? undefined : this.data,
      a: writeChain(this.chains.a),
      b: writeChain(this.chains.b) || undefined,
      w: writeChanges(this.changes) || undefined,
      ...changed,
    };
    if (same) Object.assign(this.values, state);
    if (same && this.embedded) return; // inside the walk, pointing at a cell does not leave it
    writeState("arithmetic", state, {replace: same});
  }

  changeWeight(step, channel, index, value) {
    const {key} = this.at,
      perFilter = (step.in / step.groups) * step.kernel[0] * step.kernel[1];
    (this.changes[key][step.id - 1] ??= {})[channel * perFilter + index] = value;
    this.write({cell: this.cellText(this.at)});
  }

  build() {
    const preset = PRESETS.find((one) => one.id === this.values.preset);
    this.stages = Object.fromEntries(this.keys.map((key) => [key, new Stage(this, key)]));
    const stages = Object.values(this.stages);
    replace(
      this.element,
      presetLinks(preset),
      h("div", {class: "lead"}, h("h2", {}, preset?.title ?? "Your own layers"), h("p", {}, preset?.text ?? GREETING), claimOf(preset)),
      h(
        "div",
        {class: "columns"},
        h(
          "div",
          {class: "stages"},
          stages.map((stage) => stage.element),
          this.compared(),
          this.codes(),
        ),
        h("div", {class: "side"}, this.inspector.element, costSection(this.results)),
      ),
    );
    for (const stage of stages) stage.draw();
  }

  // Point at a cell: mark it, what it reads in the layer before, and in fainter lines everything before that.
  select(at, {pick = false} = {}) {
    const {key, group, c, y, x} = at,
      {steps, outputs, weightsOf} = this.results[key];
    if (pick) this.player.stop();
    this.at = at;
    const boxes = receptiveBoxes(steps, group.head.id, y, x);
    for (const stage of Object.values(this.stages)) {
      if (stage.key === key) stage.mark(at, boxes, this.player.reached(at));
      else stage.clear();
    }
    const known = outputs.has(group.last.id);
    if (known) this.inspector.show({outputs, weightsOf, layer: group, cell: {c, y, x}});
    this.inspector.element.hidden = !known;
    if (pick) this.write({cell: this.cellText(at)}, {replace: true, keepPreset: true});
  }

  cellText({key, group, c, y, x}) {
    return `${key}${group.index}.${c}.${y}.${x}`;
  }

  // Where both networks give the same shape: how far apart their outputs are.
  compared() {
    const last = this.keys.map((key) => this.results[key].outputs.get(this.results[key].steps.length - 1));
    if (last.length < 2 || !last[0] || !last[1] || this.keys.some((key) => this.results[key].error)) return null;
    const [a, b] = last;
    if (a.shape.join() !== b.shape.join()) {
      const shapes = `${sizeText(a.shape)} and ${sizeText(b.shape)}`;
      return h("p", {class: "note"}, `The outputs have different shapes: ${shapes}.`);
    }
    const most = a.data.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b.data[i])), 0);
    return h(
      "p",
      {class: "note"},
      most === 0
        ? "Both networks give the same output: every value is equal."
        : `The outputs have the same shape and differ by up to ${short(most)}.`,
    );
  }

  codes() {
    const blocks = this.keys.map((key) =>
      codeBlock(this.results.b ? NAMES[key] : "Code", chainCode(this.shape, this.data, this.results[key])),
    );
    return h(
      "section",
      {class: "card codes"},
      h("h3", {}, "As PyTorch"),
      h("p", {class: "quiet"}, "This code runs and gives the tensor above, in double precision."),
      blocks,
    );
  }
}

// [channels, rows, columns] of a text such as 6x6x3, within the limits of the page.
function shapeOf(text) {
  const [rows, columns, channels] = (text ?? "6x6x3").split("x");
  const height = integer(rows, 1, MOST.side, 6),
    width = integer(columns, 1, MOST.side, 6);
  const most = Math.max(1, Math.floor(MOST.values / (height * width)));
  return [Math.min(integer(channels, 1, MOST.channels, 3), most), height, width];
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

function claimOf(preset) {
  if (!preset?.claim) return null;
  return h("p", {class: "claim"}, "Is it true? ", h("code", {}, `mlpconv claims run ${preset.claim}`), " tests it.");
}

function presetLinks(chosen) {
  const links = PRESETS.map((preset) => {
    const query = Object.entries(preset.values)
      .map(([key, value]) => `${key}=${value}`)
      .join("&");
    const current = preset === chosen ? "true" : undefined;
    return h("a", {href: `#/arithmetic?preset=${preset.id}&${query}`, "aria-current": current}, preset.title);
  });
  return h("nav", {class: "presets", "aria-label": "Presets"}, links);
}
