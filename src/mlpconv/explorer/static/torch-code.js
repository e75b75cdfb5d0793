// "Copy as PyTorch": code that runs and gives the tensor on the page.

import {DETECTORS} from "./chain.js";

const IMAGES = {
  mixed: "((5 * c + 3 * y + 7 * x + y * x * (c + 1)) % 10).double()",
  edge: "torch.where(x < W // 2, 10, 0).double()",
};

// The code of one playground chain; `output` is the last tensor (1, C, H, W).
export function chainCode([channels, rows, columns], data, chain) {
  const {layers, steps} = chain;
  const convs = steps.filter((step) => step.op === "conv");
  return [
    "import torch",
    "from torch import nn",
    "",
    `C, H, W = ${channels}, ${rows}, ${columns}`,
    ...imageLines(data),
    "",
    "",
    ...fillLines(convs),
    "",
    "network = nn.Sequential(",
    ...layers.slice(0, steps.length - 1).map((layer, i) => `    ${layerCode(layer, steps[i], steps[i + 1])},`),
    ").double()",
    ...convs.map((step) => `fill(network[${step.id - 1}], ${fillShape(step)})`),
    ...changeLines(chain),
    "output = network(image)",
    "print(output)",
    "",
  ].join("\n");
}

function imageLines(data) {
  if (data === "detectors") {
    return [
      `maps = torch.tensor(${JSON.stringify(DETECTORS).replace(/,/g, ", ")})  # cat, dog`,
      'c, y, x = torch.meshgrid(torch.arange(C), torch.arange(H), torch.arange(W), indexing="ij")',
      "image = maps[c % 2, y % 6 * 6 + x % 6].double()[None]",
    ];
  }
  return [
    'c, y, x = torch.meshgrid(torch.arange(C), torch.arange(H), torch.arange(W), indexing="ij")',
    `image = ${IMAGES[data] ?? IMAGES.mixed}[None]`,
  ];
}

function fillLines(convs) {
  if (!convs.length) return [];
  return [
    "def fill(layer, shape):",
    '    """Set weights of -3 to 3 and biases of -1 to 1."""',
    '    o, i, u, v = torch.meshgrid(*map(torch.arange, shape), indexing="ij")',
    "    weight = (3 * o + 2 * i + 4 * u + 5 * v + o * i + i * i) % 7 - 3",
    "    layer.weight.data = weight.double().reshape(layer.weight.shape)",
    "    layer.bias.data = (torch.arange(shape[0]) % 3 - 1).double()",
    "",
  ];
}

function fillShape(step) {
  const reads = step.linear ? step.from : [step.in / step.groups, ...step.kernel];
  return `(${[step.shape[0], ...reads].join(", ")})`;
}

function layerCode(layer, before, step) {
  if (layer.op === "relu") return "nn.ReLU()";
  if (layer.op === "flatten") return "nn.Flatten()";
  if (layer.op === "mean") return "nn.AdaptiveAvgPool2d(1)";
  if (layer.op === "linear") return `nn.Linear(${before.shape[0]}, ${layer.out})`;
  if (layer.op !== "conv")
    return `nn.${layer.op === "maxpool" ? "Max" : "Avg"}Pool2d(${layer.kernel}, ${layer.stride})`;
  const settings = ["stride", "padding", "dilation", "groups"].filter(
    (name) => layer[name] !== (name === "padding" ? 0 : 1),
  );
  const words = [before.shape[0], step.shape[0], layer.kernel, ...settings.map((name) => `${name}=${layer[name]}`)];
  return `nn.Conv2d(${words.join(", ")})`;
}

function changeLines({changes = {}, steps}) {
  return Object.entries(changes).flatMap(([index, values]) => {
    const step = steps[Number(index) + 1];
    if (step?.op !== "conv") return [];
    return Object.entries(values).flatMap(([key, value]) => {
      const [name, at] = key[0] === "b" ? ["bias", key.slice(1)] : ["weight", key];
      const size =
        name === "bias" ? step.shape[0] : (step.shape[0] * step.in * step.kernel[0] * step.kernel[1]) / step.groups;
      return Number(at) < size ? [`network[${index}].${name}.data.view(-1)[${at}] = ${value}`] : [];
    });
  });
}

// Edits of a trained network as code: every edit changes the weights of one convolution.
export function editCode(source, edits, steps) {
  const byId = new Map(steps.map((step) => [step.id, step]));
  const lines = edits.flatMap((edit) => editLines(edit, byId.get(edit.step)));
  return [
    "import torch",
    "import mlpconv",
    "",
    `classifier = mlpconv.load(${pythonString(source)})`,
    "model = classifier.model.double()",
    "",
    "with torch.no_grad():",
    ...(lines.length ? lines.map((line) => `    ${line}`) : ["    pass  # no edits"]),
    "",
    '# pixels = classifier.pixels(["image.png"])',
    "# logits = model(classifier.preprocessing(pixels).double())",
    "",
  ].join("\n");
}

function editLines(edit, step) {
  const name = `layer = model.get_submodule(${pythonString(step.name)})`;
  if (edit.kind === "scale") {
    const lines = [name, `layer.weight[${edit.channel}] *= ${edit.factor}`];
    return step.bias ? [...lines, `layer.bias[${edit.channel}] *= ${edit.factor}`] : lines;
  }
  if (edit.kind === "weight")
    return [name, `layer.weight.view(layer.weight.shape[0], -1)[${edit.channel}, ${edit.index}] = ${edit.value}`];
  if (edit.kind === "identity") {
    const lines = [name, "layer.weight.copy_(torch.eye(len(layer.weight)).reshape(layer.weight.shape))"];
    return step.bias ? [...lines, "layer.bias.zero_()"] : lines;
  }
  return [
    name,
    "u, s, v = torch.linalg.svd(layer.weight.reshape(len(layer.weight), -1), full_matrices=False)",
    `layer.weight.copy_(((u[:, :${edit.rank}] * s[:${edit.rank}]) @ v[:${edit.rank}]).reshape(layer.weight.shape))`,
  ];
}

function pythonString(text) {
  return JSON.stringify(text);
}
