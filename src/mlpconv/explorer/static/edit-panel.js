// Change the network and see what follows: maps and probabilities at once, accuracy on the held-out images on demand.

import {canBeIdentity, maxRank, writeEdits} from "./edits.js";
import {counted, field, h, percent, plural, replace} from "./dom.js";

export class EditPanel {
  constructor(network) {
    this.network = network;
    this.form = h("div", {class: "edits"});
    this.list = h("ol", {class: "done"});
    this.result = h("p", {role: "status"});
    this.element = h(
      "section",
      {class: "card", "aria-label": "Change the network"},
      h("h3", {}, "Change it"),
      this.form,
      this.list,
      this.result,
    );
    this.known = new Map();
  }

  show() {
    const {network} = this,
      {layer, c} = network.at,
      step = layer.head,
      edit = (values) => network.edit({step: step.id, ...values});
    if (step.op === "conv") {
      const factor = h("input", {type: "number", step: "any", value: 0.5});
      const rank = h("input", {
        type: "number",
        min: 1,
        max: maxRank(step),
        value: Math.max(1, Math.floor(maxRank(step) / 2)),
      });
      const bounded = () => Math.min(Math.max(Math.round(Number(rank.value)) || 1, 1), maxRank(step));
      replace(
        this.form,
        h(
          "p",
          {class: "quiet"},
          `${layer.head.name}, channel ${c + 1}. A single weight can be changed in the sum above.`,
        ),
        h(
          "div",
          {class: "row"},
          button("Drop this channel", () => edit({kind: "scale", channel: c, factor: 0})),
        ),
        h(
          "div",
          {class: "row fields"},
          field("Factor", factor),
          button(
            "Scale this channel",
            () =>
              Number.isFinite(Number(factor.value)) && edit({kind: "scale", channel: c, factor: Number(factor.value)}),
          ),
        ),
        h(
          "div",
          {class: "row fields"},
          field(`Rank of ${maxRank(step)}`, rank),
          button("Cut the rank", () => edit({kind: "rank", rank: bounded()})),
        ),
        canBeIdentity(step)
          ? h(
              "div",
              {class: "row"},
              button("Replace by the identity: ReLU alone", () => edit({kind: "identity"})),
            )
          : null,
      );
    } else replace(this.form, h("p", {class: "quiet"}, "Choose a cell of a convolution to change that convolution."));
    this.paintList();
    this.paintAccuracy();
  }

  paintList() {
    const {network} = this,
      names = new Map(network.steps.map((step) => [step.id, step.name])),
      keep = (edits) => network.write({edits: writeEdits(edits) || undefined});
    replace(
      this.list,
      ...network.edits.map((edit, i) =>
        h(
          "li",
          {},
          `${names.get(edit.step)}: ${wording(edit)} `,
          h(
            "button",
            {
              type: "button",
              class: "link",
              "aria-label": `Undo: ${wording(edit)}`,
              onclick: () => keep(network.edits.filter((_, k) => k !== i)),
            },
            "undo",
          ),
        ),
      ),
    );
    if (network.edits.length > 1)
      this.list.append(
        h(
          "li",
          {class: "all"},
          button("Undo all", () => keep([])),
        ),
      );
  }

  paintAccuracy() {
    const {network} = this,
      {heldOut} = network.model,
      key = writeEdits(network.edits);
    if (!heldOut.count) {
      replace(this.result, heldOut.why);
      return;
    }
    const lines = [["without edits", ""], ...(key ? [["with the edits", key]] : [])]
      .filter(([, one]) => this.known.has(one))
      .map(([name, one]) => {
        const {accuracy, low, high, n} = this.known.get(one);
        return h(
          "span",
          {class: "block"},
          `Accuracy ${name}: `,
          h("b", {}, percent(accuracy, 2)),
          ` (95 % interval ${percent(low, 2)} to ${percent(high, 2)}, ${plural(n, "image")})`,
        );
      });
    const missing = ["", key].filter((one) => !this.known.has(one));
    replace(
      this.result,
      ...lines,
      missing.length
        ? button(`Accuracy on ${counted(heldOut.count)} held-out images`, () => this.measure(missing))
        : "",
    );
  }

  async measure(keys) {
    const {network} = this;
    replace(this.result, "Evaluating …");
    try {
      for (const key of new Set(keys)) this.known.set(key, await network.engine.accuracy(key ? network.edits : []));
      this.paintAccuracy();
    } catch (error) {
      replace(this.result, error.message);
    }
  }
}

function button(text, onclick) {
  return h("button", {type: "button", onclick}, text);
}

function wording(edit) {
  if (edit.kind === "identity") return "replaced by the identity";
  if (edit.kind === "rank") return `rank cut to ${edit.rank}`;
  if (edit.kind === "weight") return `weight ${edit.index + 1} of filter ${edit.channel + 1} set to ${edit.value}`;
  return edit.factor === 0
    ? `channel ${edit.channel + 1} dropped`
    : `channel ${edit.channel + 1} scaled by ${edit.factor}`;
}
