// Small networks of the playground: a chain of layers, written in the address as c3.8.s2.p1-r-c1.4.
// c kernel.filters with s stride, p padding, d dilation, g groups; r ReLU; m and a kernel.stride, max and average pool;
// f flatten; l outputs, a fully connected layer; g global average. Images and weights are whole numbers from a formula.

import {costOf, run} from "./program.js";
import {outputSize, tensor} from "./tensor.js";

export const MOST = {side: 256, channels: 2048, kernel: 15, layers: 8, values: 4e6, macs: 5e8};
const CODES = {c: "conv", r: "relu", m: "maxpool", a: "avgpool", f: "flatten", l: "linear", g: "mean"};
const LETTERS = {s: "stride", p: "padding", d: "dilation", g: "groups"};

export function parseChain(text) {
  return (text ?? "").split("-").filter(Boolean).slice(0, MOST.layers).map(parseLayer).filter(Boolean);
}

function parseLayer(word) {
  const op = CODES[word[0]],
    numbers = word.slice(1).split(".");
  if (!op) return null;
  if (op === "conv") return parseConv(numbers);
  if (op === "linear") return {op, out: bounded(numbers[0], 1, MOST.channels, 10)};
  if (op === "maxpool" || op === "avgpool") {
    const kernel = bounded(numbers[0], 1, MOST.kernel, 2);
    return {op, kernel, stride: bounded(numbers[1], 1, MOST.kernel, kernel)};
  }
  return {op};
}

function parseConv([kernel, out, ...settings]) {
  const layer = {
    op: "conv",
    kernel: bounded(kernel, 1, MOST.kernel, 3),
    out: bounded(out, 1, MOST.channels, 4),
    stride: 1,
    padding: 0,
    dilation: 1,
    groups: 1,
  };
  for (const word of settings) {
    const name = LETTERS[word[0]];
    if (name)
      layer[name] = bounded(
        word.slice(1),
        name === "padding" ? 0 : 1,
        name === "groups" ? MOST.channels : MOST.kernel,
        layer[name],
      );
  }
  return layer;
}

function bounded(text, low, high, otherwise) {
  return /^\d{1,6}$/.test(text ?? "") ? Math.min(Math.max(Number(text), low), high) : otherwise;
}

export function writeChain(layers) {
  return layers
    .map((layer) => {
      const code = Object.keys(CODES).find((key) => CODES[key] === layer.op);
      if (layer.op === "linear") return `l${layer.out}`;
      if (layer.op === "maxpool" || layer.op === "avgpool") return `${code}${layer.kernel}.${layer.stride}`;
      if (layer.op !== "conv") return code;
      const extra = Object.entries(LETTERS).filter(([, name]) => layer[name] !== (name === "padding" ? 0 : 1));
      return [`c${layer.kernel}`, layer.out, ...extra.map(([letter, name]) => `${letter}${layer[name]}`)].join(".");
    })
    .join("-");
}

// Steps of a chain for an input [C, H, W]; `error` says which layer cannot follow.
function stepsOf(shape, layers) {
  const steps = [{id: 0, op: "input", name: "input", inputs: [], shape}];
  for (const [index, layer] of layers.entries()) {
    const before = steps[index];
    try {
      steps.push({...stepOf(layer, before), id: index + 1, inputs: [index], name: `${index + 1}`});
    } catch (error) {
      return {steps, error: `Layer ${index + 1}: ${error.message}`};
    }
  }
  return {steps, error: ""};
}

function stepOf(layer, before) {
  const [channels, rows, columns] = before.shape,
    flat = before.flat ?? false;
  if (layer.op === "relu") return {op: "act", fn: "relu", shape: before.shape, flat};
  if (layer.op === "flatten")
    return {op: "flatten", shape: [channels * rows * columns, 1, 1], flat: true, from: before.shape};
  if (layer.op === "linear") {
    if (!flat) throw new Error("a fully connected layer reads a list of values: add Flatten before it.");
    const from = before.from ?? before.shape;
    return convStep(
      {...layer, kernel: 1, stride: 1, padding: 0, dilation: 1, groups: 1, linear: true, from, flat: true},
      before.shape,
    );
  }
  if (flat)
    throw new Error("after Flatten there are no rows and columns: only a fully connected layer or ReLU can follow.");
  if (layer.op === "mean") return {op: "mean", shape: [channels, 1, 1]};
  return layer.op === "conv" ? convStep(layer, before.shape) : poolStep(layer, before.shape);
}

function convStep({kernel, out, stride, padding, dilation, groups, linear, from, flat}, [channels, rows, columns]) {
  if (channels % groups) throw new Error(`${groups} groups do not divide ${channels} input channels.`);
  if (out % groups) throw new Error(`${groups} groups do not divide ${out} filters.`);
  const shape = [
    out,
    outputSize(rows, kernel, stride, padding, dilation),
    outputSize(columns, kernel, stride, padding, dilation),
  ];
  if (!shape[1] || !shape[2])
    throw new Error(`a kernel of ${kernel} does not fit into ${rows} × ${columns}: add padding.`);
  if (shape[0] * shape[1] * shape[2] > MOST.values)
    throw new Error("the output is too large to draw: use fewer filters.");
  const pair = (value) => [value, value];
  return {
    op: "conv",
    in: channels,
    kernel: pair(kernel),
    stride: pair(stride),
    padding: pair(padding),
    dilation: pair(dilation),
    groups,
    bias: true,
    shape,
    linear,
    from,
    flat,
  };
}

function poolStep({op, kernel, stride}, [channels, rows, columns]) {
  const shape = [channels, outputSize(rows, kernel, stride, 0), outputSize(columns, kernel, stride, 0)];
  if (!shape[1] || !shape[2]) throw new Error(`a pool of ${kernel} does not fit into ${rows} × ${columns}.`);
  return {op, kernel: [kernel, kernel], stride: [stride, stride], padding: [0, 0], shape};
}

// Images by formula, the same in `torch-code.js`: mixed digits, an edge, or the maps of two detectors.
const CAT = "000000094000489000380000000000000000",
  DOG = "000000004000008000000000000680000890";
export const DETECTORS = [CAT, DOG].map((text) => [...text].map(Number));

function makeImage([channels, rows, columns], kind) {
  const image = tensor([channels, rows, columns]);
  for (let c = 0, i = 0; c < channels; c++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++, i++) image.data[i] = pixel(kind, c, y, x, columns);
    }
  }
  return image;
}

function pixel(kind, c, y, x, columns) {
  if (kind === "edge") return x < Math.floor(columns / 2) ? 10 : 0;
  if (kind === "detectors") return DETECTORS[c % 2][(y % 6) * 6 + (x % 6)];
  return (5 * c + 3 * y + 7 * x + y * x * (c + 1)) % 10;
}

// Weights by formula, -3 to 3, and biases -1 to 1; then the changes {"0": value, "b0": value} of one layer.
function makeWeights(step, changes = {}) {
  const outs = step.shape[0],
    [ins, kh, kw] = step.linear ? step.from : [step.in / step.groups, ...step.kernel];
  const weight = new Float64Array(outs * ins * kh * kw),
    bias = new Float64Array(outs);
  for (let o = 0, at = 0; o < outs; o++) {
    bias[o] = (o % 3) - 1;
    for (let i = 0; i < ins; i++) {
      for (let u = 0; u < kh; u++) {
        for (let v = 0; v < kw; v++, at++) weight[at] = ((3 * o + 2 * i + 4 * u + 5 * v + o * i + i * i) % 7) - 3;
      }
    }
  }
  for (const [key, value] of Object.entries(changes)) {
    const target = key[0] === "b" ? bias : weight,
      index = Number(key.replace("b", ""));
    if (index < target.length) target[index] = value;
  }
  return {weight, bias};
}

// Changed weights in the address: a0.17:2.5,b1.b0:-1 is weight 17 of layer 0 of chain a, and bias 0 of layer 1 of
// chain b.
export function parseChanges(text) {
  const changes = {a: {}, b: {}};
  for (const word of (text ?? "").split(",")) {
    const match = /^([ab])(\d)\.(b?\d{1,7}):(-?\d*\.?\d+(?:e-?\d+)?)$/.exec(word);
    if (match && Number.isFinite(Number(match[4]))) (changes[match[1]][match[2]] ??= {})[match[3]] = Number(match[4]);
  }
  return changes;
}

export function writeChanges(changes) {
  const words = [];
  for (const chain of ["a", "b"]) {
    for (const [layer, values] of Object.entries(changes[chain])) {
      for (const [key, value] of Object.entries(values)) words.push(`${chain}${layer}.${key}:${value}`);
    }
  }
  return words.join(",");
}

// Everything about one chain: steps, outputs (unless too much work), weights, costs.
export function compute(shape, data, layers, changes) {
  const {steps, error} = stepsOf(shape, layers),
    weights = new Map();
  const costs = steps.map((step) => costOf(step)),
    macs = costs.reduce((sum, cost) => sum + cost.macs, 0);
  const weightsOf = (step) => {
    if (step.op === "conv" && !weights.has(step.id)) weights.set(step.id, makeWeights(step, changes[step.id - 1]));
    return weights.get(step.id);
  };
  const feasible = macs <= MOST.macs;
  const outputs = feasible ? run(steps, makeImage(shape, data), weightsOf) : new Map([[0, makeImage(shape, data)]]);
  return {steps, error, layers, outputs, weightsOf, costs, macs, feasible};
}
