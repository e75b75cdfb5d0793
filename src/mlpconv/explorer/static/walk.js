// "Why 1x1": one idea a step; the playground or the network beside the text moves with it.

import {h, replace} from "./dom.js";
import {PRESETS} from "./presets.js";
import {integer, writeState} from "./state.js";

// Each step shows a preset with a chosen cell, or with a model one of its layers.
const STEPS = [
  {
    title: "A convolution is a sum",
    preset: "edge",
    cell: "a1.0.1.2",
    text: "A 3 × 3 convolution lays nine weights over nine values, multiplies and adds. This kernel subtracts the right from the left and so finds an edge. Point at other cells of the output.",
  },
  {
    title: "Channels are summed too",
    chain: {in: "6x6x3", a: "c3.1", cell: "a1.0.1.1"},
    text: "With three input channels the kernel has three slices, and all 27 products go into one sum. Drawings with a single channel leave this out, and with it the reason for 1 × 1.",
  },
  {
    title: "One channel: it only multiplies",
    preset: "one-channel",
    cell: "a1.0.2.3",
    text: "Shrink the kernel to 1 × 1. On one channel only a multiplication is left, and that seems to be pointless.",
  },
  {
    title: "Many channels: it mixes them",
    preset: "many-channels",
    cell: "a1.2.2.3",
    text: "On 32 channels the same 1 × 1 adds 32 products. Each output value depends on every channel at one position, and on no neighbour.",
  },
  {
    title: "It is a neuron at every position",
    preset: "cat-dog",
    cell: "a1.0.2.2",
    text: 'Weights, a bias, a sum, ReLU: one neuron, used at every position. Here it has learnt "cat but not dog". More filters are more neurons.',
  },
  {
    title: "Not each channel by itself",
    preset: "all-channels",
    cell: "a1.2.1.1",
    text: "A common sentence says that a 1 × 1 treats each channel independently. That would be the second network, with one group per channel. The first one, the real 1 × 1, mixes them.",
  },
  {
    title: "Network In Network",
    preset: "mlpconv",
    cell: "b3.1.1.1",
    text: "Follow a 3 × 3 by two 1 × 1 convolutions, each with ReLU, and a small multilayer perceptron slides over the image. That is the mlpconv layer, the network in the network. The window on the image stays 3 × 3.",
  },
  {
    title: "Fewer channels, less work",
    preset: "inception",
    cell: "b1.2.13.13",
    text: "A 1 × 1 with fewer filters than channels is a bottleneck. Placed before a 5 × 5, it saves nine tenths of the multiply-adds: compare the two totals below.",
  },
  {
    title: "Stride and pooling",
    preset: "max-pool",
    cell: "b2.2.1.1",
    text: "Pooling makes the map smaller, a 1 × 1 the channels fewer. Their order matters for the cost and for the numbers.",
  },
  {
    title: "Fully connected is a convolution",
    preset: "fully-connected",
    cell: "b1.0.0.0",
    text: "A fully connected layer on a map is a convolution as large as the map; the next one is a 1 × 1. Every value is equal. Make the input larger, and only the convolution still works.",
  },
  {
    title: "Class maps",
    network: true,
    text: "At the end of Network In Network, a 1 × 1 makes one map per class, and the mean of each map is the logit of its class. So one can see where each class was found.",
  },
  {
    title: "Take one out",
    network: true,
    text: "In a network, replace a 1 × 1 by the identity, cut its rank or drop a channel, and see how the maps, the cost and the accuracy follow.",
  },
];

export class Walk {
  constructor(playground, network) {
    Object.assign(this, {playground, network});
    this.element = h("div", {class: "view walk"});
  }

  async open(values) {
    this.at = integer(values.step, 1, STEPS.length, 1);
    const step = STEPS[this.at - 1],
      go = (number) => () => writeState("why", {step: number});
    const dots = STEPS.map((one, i) =>
      h(
        "li",
        {},
        h(
          "a",
          {href: `#/why?step=${i + 1}`, "aria-current": i + 1 === this.at ? "step" : undefined, title: one.title},
          String(i + 1),
        ),
      ),
    );
    const text = h(
      "div",
      {class: "card lesson"},
      h("p", {class: "quiet"}, `Step ${this.at} of ${STEPS.length}`),
      h("h2", {tabindex: "-1"}, step.title),
      h("p", {}, step.text),
      h(
        "div",
        {class: "row"},
        h("button", {type: "button", disabled: this.at === 1, onclick: go(this.at - 1)}, "Back"),
        h(
          "button",
          {type: "button", class: "strong", disabled: this.at === STEPS.length, onclick: go(this.at + 1)},
          "Next",
        ),
      ),
      h("ol", {class: "dots", "aria-label": "Steps"}, dots),
    );
    if (step.network && !this.network) {
      replace(
        this.element,
        text,
        h("p", {class: "card"}, "This step needs a network: start with mlpconv explore digits."),
      );
      return;
    }
    const shown = step.network ? this.network : this.playground;
    replace(this.element, text, shown.element);
    await shown.open(step.network ? {} : this.valuesOf(step), {embedded: true});
  }

  valuesOf(step) {
    const preset = PRESETS.find((one) => one.id === step.preset);
    return {...(preset ? {...preset.values, preset: preset.id} : step.chain), cell: step.cell ?? step.chain?.cell};
  }
}
