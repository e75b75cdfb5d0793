// A network as a list of steps, in the order of execution: run it, count it, and look up what a cell reads.
// step: {id, op, name, inputs: [ids], shape: [C, H, W], ...settings}; weights: {weight, bias} or {scale, shift}.

import {
  ACTIVATIONS,
  activate,
  add,
  affine,
  concatenate,
  conv2d,
  mean,
  padded,
  pool2d,
  poolWindow,
  tensor,
} from "./tensor.js";

function evaluate(step, inputs, weights) {
  const x = inputs[0];
  switch (step.op) {
    case "conv":
      return conv2d(x, weights.weight, weights.bias, step);
    case "norm":
      return affine(x, weights.scale, weights.shift);
    case "act":
      return activate(x, step);
    case "maxpool":
    case "avgpool":
      return pool2d(x, step);
    case "mean":
      return mean(x);
    case "cat":
      return concatenate(inputs, step.shape);
    case "add":
      return add(inputs[0], inputs[1]);
    case "pad":
      return padded(x, step.pad, step.shape);
    case "flatten":
      return tensor(step.shape, x.data);
    case "identity":
      return x;
    default:
      throw new Error(`The page cannot compute ${step.op}.`);
  }
}

// Outputs of all steps. `known` holds outputs that are still valid.
export function run(steps, input, weightsOf, known = new Map()) {
  const outputs = new Map(known);
  for (const step of steps) {
    if (outputs.has(step.id)) continue;
    const value =
      step.op === "input"
        ? input
        : evaluate(
            step,
            step.inputs.map((id) => outputs.get(id)),
            weightsOf(step),
          );
    outputs.set(step.id, value);
  }
  return outputs;
}

// Ids of a step and of all steps that depend on it.
export function downstream(steps, ids) {
  const changed = new Set(ids);
  for (const step of steps) if (step.inputs.some((id) => changed.has(id))) changed.add(step.id);
  return changed;
}

// Group the steps for display: a convolution with the norms and activations that follow it is one layer.
export function layersOf(steps) {
  const readers = new Map(steps.map((step) => [step.id, steps.filter((s) => s.inputs.includes(step.id))]));
  const layers = [],
    owner = new Map();
  for (const step of steps) {
    const source = step.inputs.length === 1 ? step.inputs[0] : -1,
      layer = owner.get(source);
    const joins =
      ["norm", "act", "identity"].includes(step.op) &&
      layer &&
      layer.head.op !== "input" &&
      layer.last.id === source &&
      readers.get(source).length === 1;
    if (joins) {
      layer.tail.push(step);
      layer.last = step;
      owner.set(step.id, layer);
    } else {
      const fresh = {head: step, tail: [], last: step, index: layers.length};
      layers.push(fresh);
      owner.set(step.id, fresh);
    }
  }
  return layers;
}

export function kindOf(step) {
  if (step.op === "conv") {
    if (step.groups > 1 && step.groups === step.in) return "depthwise";
    return step.kernel[0] * step.kernel[1] === 1 ? "1x1" : "kxk";
  }
  return {maxpool: "pool", avgpool: "pool", mean: "pool", input: "image"}[step.op] ?? "other";
}

// Channels of each step that are zero everywhere, given the channels that edits removed: {id: Set}.
export function deadChannels(steps, dropped) {
  const dead = new Map();
  for (const step of steps) {
    const sets = step.inputs.map((id) => dead.get(id));
    let own = new Set();
    if (step.op === "conv") own = dropped.get(step.id) ?? own;
    else if (step.op === "cat") {
      let offset = 0;
      step.inputs.forEach((id, index) => {
        for (const c of sets[index]) own.add(c + offset);
        offset += steps.find((s) => s.id === id).shape[0];
      });
    } else if (step.op === "add") own = new Set([...sets[0]].filter((c) => sets[1].has(c)));
    else if (["maxpool", "avgpool", "mean", "identity", "pad"].includes(step.op)) own = sets[0];
    else if (step.op === "act" && step.fn !== "sigmoid") own = sets[0];
    dead.set(step.id, own);
  }
  return dead;
}

// Parameters and multiply-adds of one step. `change` is {rank} or {identity: true}; dead channels cost nothing.
export function costOf(step, dead = new Map(), change = {}) {
  if (step.op === "norm") return {params: 2 * step.shape[0], macs: 0};
  if (step.op !== "conv" || change.identity) return {params: 0, macs: 0};
  const [outs, height, width] = step.shape,
    area = step.kernel[0] * step.kernel[1];
  const alive = outs - (dead.get(step.id)?.size ?? 0);
  const reads = step.groups === 1 ? step.in - (dead.get(step.inputs[0])?.size ?? 0) : step.in / step.groups;
  const rank = change.rank;
  const weights = rank ? rank * (reads * area + alive) : alive * reads * area;
  return {params: weights + (step.bias ? alive : 0), macs: weights * height * width};
}

// The box [top, left, bottom, right) of each step's output that one cell of `layer` can see: {id: box}.
export function receptiveBoxes(steps, id, y, x) {
  const byId = new Map(steps.map((step) => [step.id, step]));
  const boxes = new Map([[id, [y, x, y + 1, x + 1]]]);
  for (const step of [...steps].reverse()) {
    const box = boxes.get(step.id);
    if (!box) continue;
    for (const source of step.inputs) {
      const seen = inputBox(step, byId.get(source).shape, box),
        old = boxes.get(source);
      boxes.set(source, old ? union(old, seen) : seen);
    }
  }
  return boxes;
}

function union(a, b) {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
}

// The cells of an input that a box of the output reads, clipped to the input.
function inputBox(step, [, rows, columns], [top, left, bottom, right]) {
  if (["mean", "flatten", "other"].includes(step.op)) return [0, 0, rows, columns];
  if (step.op === "pad") {
    const clip = (value, high) => Math.min(Math.max(value, 0), high),
      [dx, , dy] = step.pad;
    return [clip(top - dy, rows), clip(left - dx, columns), clip(bottom - dy, rows), clip(right - dx, columns)];
  }
  if (!step.kernel) return [top, left, bottom, right];
  const [kh, kw] = step.kernel,
    [sy, sx] = step.stride,
    [py, px] = step.padding,
    [dy, dx] = step.dilation ?? [1, 1];
  return [
    Math.max(0, top * sy - py),
    Math.max(0, left * sx - px),
    Math.min(rows, (bottom - 1) * sy - py + (kh - 1) * dy + 1),
    Math.min(columns, (right - 1) * sx - px + (kw - 1) * dx + 1),
  ];
}

// Every product behind one output cell of a convolution, grouped by input channel. `weights.first` is the filter that
// the weights begin with.
export function explainConv(step, x, weights, channel, y, col) {
  const perGroup = step.in / step.groups,
    first = Math.floor(channel / (step.shape[0] / step.groups)) * perGroup;
  const [kh, kw] = step.kernel,
    [, rows, columns] = x.shape;
  const terms = [],
    filter = channel - (weights.first ?? 0);
  for (let c = 0; c < perGroup; c++) {
    const taps = [];
    let value = 0;
    for (let u = 0; u < kh; u++) {
      for (let v = 0; v < kw; v++) {
        const row = y * step.stride[0] - step.padding[0] + u * step.dilation[0];
        const column = col * step.stride[1] - step.padding[1] + v * step.dilation[1];
        const inside = row >= 0 && row < rows && column >= 0 && column < columns;
        const input = inside ? x.data[((first + c) * rows + row) * columns + column] : 0;
        const weight = weights.weight[((filter * perGroup + c) * kh + u) * kw + v];
        taps.push({u, v, row, column, inside, input, weight, product: input * weight});
        value += input * weight;
      }
    }
    terms.push({channel: first + c, value, taps});
  }
  const bias = weights.bias ? weights.bias[filter] : 0;
  return {terms, bias, sum: terms.reduce((sum, term) => sum + term.value, bias)};
}

// The cells that a pooling window or a global mean reads in one channel.
export function explainPool(step, x, channel, y, col) {
  const [, rows, columns] = x.shape;
  const whole = {box: [0, 0, rows, columns], counted: rows * columns};
  const {box, counted} = step.op === "mean" ? whole : poolWindow(step, [rows, columns], y, col);
  const cells = [];
  for (let row = box[0]; row < box[2]; row++) {
    for (let column = box[1]; column < box[3]; column++) {
      cells.push({row, column, value: x.data[(channel * rows + row) * columns + column]});
    }
  }
  const sum = cells.reduce((total, cell) => total + cell.value, 0);
  const value = step.op === "maxpool" ? Math.max(...cells.map((cell) => cell.value)) : sum / counted;
  return {cells, counted, value};
}

// The value of one cell after each norm and activation of a layer, given the value after its head.
export function tailValues(layer, value, channel, weightsOf) {
  const after = [];
  for (const step of layer.tail) {
    if (step.op === "identity") continue;
    const weights = step.op === "norm" ? weightsOf(step) : null;
    value = weights ? value * weights.scale[channel] + weights.shift[channel] : ACTIVATIONS[step.fn](value, step.slope);
    after.push({step, value});
  }
  return after;
}

// Where the class maps of a network are: {layer} whose channels are averaged to the logits, or null.
export function classMaps(steps, layers) {
  let step = steps[steps.length - 1];
  const byId = (id) => steps.find((one) => one.id === id);
  while (["identity", "flatten"].includes(step.op)) step = byId(step.inputs[0]);
  if (step.op !== "mean") return null;
  return layers.find((layer) => layer.last.id === step.inputs[0] && layer.head.op === "conv") ?? null;
}
