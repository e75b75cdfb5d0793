// Two networks on the same image, side by side: probabilities, a class map, every layer and its cost.

import {counted, h, percent, plural, replace, selectField, short} from "./dom.js";
import {describe} from "./inspector.js";
import {TensorPicture, colourImage, extentOf} from "./picture.js";
import {classMaps, costOf, kindOf, layersOf} from "./program.js";
import {integer, writeState} from "./state.js";
import {softmax} from "./tensor.js";
import {sizeText} from "./text.js";

const DRAWN = 12,
  TOP = 3;

export class Compare {
  constructor(engines) {
    this.engines = engines;
    this.element = h("div", {class: "view compare"});
    this.pair = engines.map((engine) => {
      const layers = layersOf(engine.model.steps);
      return {
        engine,
        layers,
        maps: classMaps(engine.model.steps, layers),
        costs: new Map(layers.map((layer) => [layer, costOf(layer.head)])),
      };
    });
  }

  async open(values) {
    const {images, classes} = this.engines[0].model;
    this.image = integer(values.image, 0, images.length - 1, 0);
    this.by = values.by === "params" ? "params" : "macs";
    const pixels = await Promise.all(this.engines.map((engine) => engine.pixels(this.image)));
    const outputs = await Promise.all(
      this.pair.map(({engine, layers}) =>
        engine.outputs(
          this.image,
          [],
          layers.map((layer) => layer.last.id),
        ),
      ),
    );
    const logits = this.pair.map(({layers}, i) => outputs[i].get(layers[layers.length - 1].last.id).data);
    const best = logits.map((one) => one.indexOf(Math.max(...one)));
    const name = classes[integer(values.class, 0, classes.length - 1, best[0])],
      names = best.map((k, i) => this.engines[i].model.classes[k]);
    const write = (changed) => writeState("compare", {...values, ...changed});
    const choices = h(
      "div",
      {class: "row fields"},
      selectField(
        "Image",
        String(this.image),
        images.map((one, i) => [String(i), one]),
        (i) => write({image: i}),
      ),
      selectField(
        "Class",
        name,
        classes.map((one) => [one, one]),
        (one) => write({class: classes.indexOf(one)}),
      ),
      selectField(
        "Bars show",
        this.by,
        [
          ["macs", "multiply-adds"],
          ["params", "parameters"],
        ],
        (by) => write({by}),
      ),
    );
    const verdict =
      names[0] === names[1] ? `Both see ${names[0]}.` : `The first sees ${names[0]}, the second ${names[1]}.`;
    this.pictures = [];
    const most = Math.max(1, ...this.pair.flatMap(({costs}) => [...costs.values()].map((cost) => cost[this.by])));
    const columns = this.pair.map((one, i) =>
      this.column(one, {pixels: pixels[i], outputs: outputs[i], logits: logits[i]}, name, most),
    );
    replace(
      this.element,
      h("div", {class: "lead"}, h("h2", {}, "Two networks, one image"), h("p", {}, verdict), choices),
      h("div", {class: "columns even"}, columns),
    );
    for (const [picture, tensor, options] of this.pictures) picture.show(tensor, options);
  }

  column({engine, layers, maps, costs}, {pixels, outputs, logits}, name, most) {
    const {model} = engine,
      chances = softmax(logits),
      order = [...chances.keys()].sort((a, b) => chances[b] - chances[a]).slice(0, TOP);
    const sum = (key) => [...costs.values()].reduce((n, cost) => n + cost[key], 0);
    const bars = order.map((k) => h("li", {}, `${model.classes[k]}: `, h("b", {}, percent(chances[k]))));
    return h(
      "section",
      {"aria-label": model.name},
      h("h3", {}, model.source),
      h("p", {class: "totals"}, `${counted(sum("params"))} parameters, ${counted(sum("macs"))} multiply-adds`),
      h(
        "div",
        {class: "card"},
        h("div", {class: "row seen"}, colourImage(pixels), h("ol", {class: "top"}, bars)),
        this.classMap(maps, model, outputs, name),
        this.accuracy(engine),
      ),
      h(
        "ol",
        {class: "layers"},
        layers.slice(1).map((layer) => this.layer(layer, outputs.get(layer.last.id), costs.get(layer), most)),
      ),
    );
  }

  classMap(maps, model, outputs, name) {
    const k = model.classes.indexOf(name);
    if (!maps || k < 0)
      return h("p", {class: "quiet"}, maps ? `This network does not know ${name}.` : "This network has no class maps.");
    const picture = this.picture(`Class map of ${name}`, outputs.get(maps.last.id), {first: k, limit: 1, size: 120});
    return h("div", {}, h("h4", {}, `class map of ${name}`), picture);
  }

  layer(layer, output, cost, most) {
    const bar = h("i", {class: "bar plus"}),
      name = [layer.head, ...layer.tail]
        .filter((step) => step.op !== "identity")
        .map(describe)
        .join(", ");
    bar.style.width = `${(100 * cost[this.by]) / most}%`;
    return h(
      "li",
      {class: "layer"},
      h(
        "div",
        {class: "row head"},
        h("span", {class: `kind k-${kindOf(layer.head)}`, "aria-hidden": "true"}),
        h("b", {}, layer.head.name),
        h("span", {}, name),
        h("span", {class: "shape"}, sizeText(layer.last.shape)),
      ),
      h(
        "div",
        {class: "row"},
        h("span", {class: "track", "aria-hidden": "true"}, bar),
        h(
          "span",
          {class: "quiet"},
          cost.macs ? plural(cost[this.by], this.by === "macs" ? "multiply-add" : "parameter") : "",
        ),
      ),
      this.picture(`${layer.head.name}: the first channels`, output, {limit: DRAWN, size: 40, numbers: false}),
    );
  }

  // A picture with the value of the cell under the pointer below it.
  picture(name, output, {size, ...options}) {
    const said = h("span", {class: "quiet reading"}, "\u00a0"),
      [, rows, columns] = output.shape;
    const tell = (cell) => {
      picture.mark({cell});
      const value = output.data[(cell.c * rows + cell.y) * columns + cell.x];
      said.textContent = `channel ${cell.c + 1}, row ${cell.y + 1}, column ${cell.x + 1}: ${short(value)}`;
    };
    const picture = new TensorPicture({name, onPoint: tell, onPick: tell});
    const side = Math.max(rows, columns);
    this.pictures.push([
      picture,
      output,
      {...options, extent: extentOf(output), cell: side === 1 ? 14 : Math.min(24, size / side)},
    ]);
    return h("div", {}, picture.element, said);
  }

  accuracy(engine) {
    const {heldOut} = engine.model,
      said = h("p", {role: "status", class: "quiet"});
    if (!heldOut.count) return h("p", {class: "quiet"}, heldOut.why);
    const measure = async () => {
      said.textContent = "Evaluating …";
      try {
        const {accuracy, low, high, n} = await engine.accuracy([]);
        const interval = `95 % interval ${percent(low, 2)} to ${percent(high, 2)}, ${plural(n, "image")}`;
        said.textContent = `Accuracy ${percent(accuracy, 2)} (${interval})`;
      } catch (error) {
        said.textContent = error.message;
      }
    };
    return h(
      "div",
      {},
      h("button", {type: "button", onclick: measure}, `Accuracy on ${counted(heldOut.count)} held-out images`),
      said,
    );
  }
}
