// Operations on tensors (C, H, W) in double precision: the same arithmetic as torch's, in plain loops.
// A tensor is {data: Float64Array, shape: [C, H, W]}.

export function tensor(shape, data) {
  return {shape, data: data ?? new Float64Array(shape[0] * shape[1] * shape[2])};
}

// Output length of a window that slides over `size` values.
export function outputSize(size, kernel, stride, padding, dilation = 1, ceil = false) {
  const room = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (room < 0) return 0;
  if (!ceil) return Math.floor(room / stride) + 1;
  const count = Math.ceil(room / stride) + 1;
  return (count - 1) * stride >= size + padding ? count - 1 : count; // no window may start beyond the input
}

// Convolution with groups. weight: (out, in / groups, kh, kw), bias: (out) or null.
export function conv2d(x, weight, bias, step) {
  const [outs, height, width] = step.shape;
  const result = tensor(step.shape);
  const perGroup = step.in / step.groups,
    outsPerGroup = outs / step.groups;
  const area = step.kernel[0] * step.kernel[1];
  for (let o = 0; o < outs; o++) {
    const plane = result.data.subarray(o * height * width, (o + 1) * height * width);
    if (bias) plane.fill(bias[o]);
    const first = Math.floor(o / outsPerGroup) * perGroup;
    for (let tap = 0; tap < area; tap++) {
      const offsets = tapOffsets(step, tap);
      const weights = (c) => weight[(o * perGroup + c) * area + tap];
      addTap(plane, [height, width], x, first, perGroup, weights, offsets, step.stride);
    }
  }
  return result;
}

// Row and column in the input of one tap of the kernel, for output cell (0, 0).
function tapOffsets(step, tap) {
  const u = Math.floor(tap / step.kernel[1]),
    v = tap % step.kernel[1];
  return [u * step.dilation[0] - step.padding[0], v * step.dilation[1] - step.padding[1]];
}

// Add the products of one tap with all input channels of a group; four channels at a time save memory traffic.
function addTap(plane, [height, width], x, first, count, weights, [dy, dx], [sy, sx]) {
  const [, rows, columns] = x.shape,
    size = rows * columns,
    data = x.data;
  const top = Math.max(0, Math.ceil(-dy / sy)),
    bottom = Math.min(height - 1, Math.floor((rows - 1 - dy) / sy));
  const left = Math.max(0, Math.ceil(-dx / sx)),
    right = Math.min(width - 1, Math.floor((columns - 1 - dx) / sx));
  for (let c = 0; c < count; c += 4) {
    const w0 = weights(c),
      w1 = c + 1 < count ? weights(c + 1) : 0;
    const w2 = c + 2 < count ? weights(c + 2) : 0,
      w3 = c + 3 < count ? weights(c + 3) : 0;
    const last = first + count - 1;
    const base = [0, 1, 2, 3].map((k) => Math.min(first + c + k, last) * size);
    for (let y = top; y <= bottom; y++) {
      const row = (y * sy + dy) * columns + dx,
        target = y * width;
      const a0 = base[0] + row,
        a1 = base[1] + row,
        a2 = base[2] + row,
        a3 = base[3] + row;
      for (let i = left, s = left * sx; i <= right; i++, s += sx) {
        plane[target + i] += w0 * data[a0 + s] + w1 * data[a1 + s] + w2 * data[a2 + s] + w3 * data[a3 + s];
      }
    }
  }
}

// The input cells of one pooling window, clipped to the input, and torch's divisor for an average.
export function poolWindow(step, [rows, columns], y, x) {
  const [kh, kw] = step.kernel,
    [sy, sx] = step.stride,
    [py, px] = step.padding;
  const top = y * sy - py,
    left = x * sx - px;
  const bottom = Math.min(top + kh, rows + py),
    right = Math.min(left + kw, columns + px);
  const box = [Math.max(top, 0), Math.max(left, 0), Math.min(bottom, rows), Math.min(right, columns)];
  const counted = step.countPad ? (bottom - top) * (right - left) : (box[2] - box[0]) * (box[3] - box[1]);
  return {box, counted};
}

export function pool2d(x, step) {
  const [channels, height, width] = step.shape,
    [, rows, columns] = x.shape;
  const result = tensor(step.shape);
  for (let y = 0; y < height; y++) {
    for (let i = 0; i < width; i++) {
      const {box, counted} = poolWindow(step, [rows, columns], y, i);
      for (let c = 0; c < channels; c++) {
        const value = poolOne(x, step.op, box, c);
        result.data[(c * height + y) * width + i] = step.op === "avgpool" ? value / counted : value;
      }
    }
  }
  return result;
}

function poolOne(x, op, [top, left, bottom, right], c) {
  const [, rows, columns] = x.shape;
  let sum = 0,
    best = -Infinity;
  for (let y = top; y < bottom; y++) {
    for (let i = left; i < right; i++) {
      const value = x.data[(c * rows + y) * columns + i];
      sum += value;
      if (value > best) best = value;
    }
  }
  return op === "avgpool" ? sum : best;
}

// Global average: (C, H, W) -> (C, 1, 1).
export function mean(x) {
  const [channels, rows, columns] = x.shape,
    size = rows * columns;
  const result = tensor([channels, 1, 1]);
  for (let c = 0; c < channels; c++) {
    let sum = 0;
    for (let i = c * size; i < (c + 1) * size; i++) sum += x.data[i];
    result.data[c] = sum / size;
  }
  return result;
}

export const ACTIVATIONS = {
  relu: (v) => Math.max(v, 0),
  relu6: (v) => Math.min(Math.max(v, 0), 6),
  leaky_relu: (v, slope) => (v > 0 ? v : v * slope),
  elu: (v) => (v > 0 ? v : Math.expm1(v)),
  silu: (v) => v / (1 + Math.exp(-v)),
  sigmoid: (v) => 1 / (1 + Math.exp(-v)),
  tanh: Math.tanh,
};

export function activate(x, step) {
  const fn = ACTIVATIONS[step.fn];
  return tensor(
    x.shape,
    x.data.map((v) => fn(v, step.slope)),
  );
}

// One factor and one shift per channel: batch norm in eval mode.
export function affine(x, scale, shift) {
  const size = x.shape[1] * x.shape[2];
  return tensor(
    x.shape,
    x.data.map((v, i) => v * scale[Math.floor(i / size)] + shift[Math.floor(i / size)]),
  );
}

export function concatenate(inputs, shape) {
  const result = tensor(shape);
  let at = 0;
  for (const x of inputs) {
    result.data.set(x.data, at);
    at += x.data.length;
  }
  return result;
}

// Zeros around the rows and columns: pad is [left, right, top, bottom].
export function padded(x, [left, , top], shape) {
  const [channels, rows, columns] = x.shape,
    [, height, width] = shape,
    result = tensor(shape);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < rows; y++) {
      const row = x.data.subarray((c * rows + y) * columns, (c * rows + y + 1) * columns);
      result.data.set(row, (c * height + y + top) * width + left);
    }
  }
  return result;
}

export function add(a, b) {
  return tensor(
    a.shape,
    a.data.map((v, i) => v + b.data[i]),
  );
}

// Probabilities of logits; subtracting the largest avoids overflow.
export function softmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(logits, (v) => Math.exp(v - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((v) => v / total);
}

export function range(data) {
  let low = Infinity,
    high = -Infinity;
  for (let i = 0; i < data.length; i++) {
    if (data[i] < low) low = data[i];
    if (data[i] > high) high = data[i];
  }
  return [low, high];
}
