// The layers of one chain as a row of small forms: change a setting, add a layer, remove one.

import {MOST} from "./chain.js";
import {h, numberField} from "./dom.js";
import {describe} from "./inspector.js";

const NEW = {
  conv: {op: "conv", kernel: 3, out: 4, stride: 1, padding: 1, dilation: 1, groups: 1},
  conv1: {op: "conv", kernel: 1, out: 4, stride: 1, padding: 0, dilation: 1, groups: 1},
  relu: {op: "relu"},
  maxpool: {op: "maxpool", kernel: 2, stride: 2},
  avgpool: {op: "avgpool", kernel: 2, stride: 2},
  mean: {op: "mean"},
  flatten: {op: "flatten"},
  linear: {op: "linear", out: 4},
};
const TITLES = {
  conv: "3 × 3 convolution",
  conv1: "1 × 1 convolution",
  relu: "ReLU",
  maxpool: "Max pool",
  avgpool: "Average pool",
  mean: "Global average",
  flatten: "Flatten",
  linear: "Fully connected",
};
const SETTINGS = {
  kernel: ["Kernel", 1, MOST.kernel],
  out: ["Filters", 1, MOST.channels],
  stride: ["Stride", 1, MOST.kernel],
  padding: ["Padding", 0, MOST.kernel],
  dilation: ["Dilation", 1, MOST.kernel],
  groups: ["Groups", 1, MOST.channels],
};

export function chainForm(layers, result, onChange) {
  const change = (index, name, value) =>
    onChange(layers.map((layer, i) => (i === index ? {...layer, [name]: value} : layer)));
  const boxes = layers.map((layer, index) => {
    const step = result.steps[index + 1],
      title = `${index + 1}. ${step ? describe(step) : TITLES[layer.op]}`;
    const fields = Object.keys(SETTINGS)
      .filter((name) => name in layer)
      .map((name) => {
        const [label, low, high] = SETTINGS[name];
        return numberField(layer.op === "linear" ? "Outputs" : label, layer[name], [low, high], (value) =>
          change(index, name, value),
        );
      });
    const remove = h(
      "button",
      {
        type: "button",
        class: "remove",
        "aria-label": `Remove layer ${title}`,
        onclick: () => onChange(layers.filter((_, i) => i !== index)),
      },
      "×",
    );
    return h(
      "fieldset",
      {class: `layer ${layer.op === "conv" && layer.kernel === 1 ? "pointwise" : layer.op}`},
      h("legend", {}, title),
      h("div", {class: "fields"}, fields),
      remove,
    );
  });
  const add = h(
    "select",
    {"aria-label": "Add a layer", onchange: () => add.value && onChange([...layers, {...NEW[add.value]}])},
    h("option", {value: ""}, "Add a layer …"),
    Object.entries(TITLES).map(([key, title]) => h("option", {value: key}, title)),
  );
  return layers.length < MOST.layers ? [...boxes, add] : boxes;
}
