// Changes of a trained network, each of one convolution. In the address and to the server:
// s3.17:0.5 scales channel 17 of step 3 (0 drops it), w3.17.5:0.25 sets weight 5 of filter 17, i3 replaces the
// convolution by the identity, r3.8 cuts the rank of its weight matrix to 8.

const NUMBER = "(-?\\d*\\.?\\d+(?:e-?\\d+)?)";
const FORMS = [
  [/^i(\d+)$/, ([step]) => ({kind: "identity", step})],
  [/^r(\d+)\.(\d+)$/, ([step, rank]) => ({kind: "rank", step, rank})],
  [new RegExp(`^s(\\d+)\\.(\\d+):${NUMBER}$`), ([step, channel, factor]) => ({kind: "scale", step, channel, factor})],
  [
    new RegExp(`^w(\\d+)\\.(\\d+)\\.(\\d+):${NUMBER}$`),
    ([step, channel, index, value]) => ({kind: "weight", step, channel, index, value}),
  ],
];

export function parseEdits(text, steps) {
  const byId = new Map(steps.map((step) => [step.id, step])),
    edits = [];
  for (const word of (text ?? "").split(",").slice(0, 200)) {
    for (const [form, build] of FORMS) {
      const match = form.exec(word),
        edit = match && build(match.slice(1).map(Number));
      if (edit && fits(edit, byId.get(edit.step))) edits.push(edit);
    }
  }
  return edits;
}

function fits(edit, step) {
  if (step?.op !== "conv") return false;
  const perFilter = filterSize(step);
  if (edit.kind === "identity") return canBeIdentity(step);
  if (edit.kind === "rank") return edit.rank >= 1 && edit.rank <= maxRank(step);
  if (edit.channel >= step.shape[0]) return false;
  return edit.kind === "scale" ? Number.isFinite(edit.factor) : edit.index < perFilter && Number.isFinite(edit.value);
}

export function writeEdits(edits) {
  return edits
    .map((edit) => {
      if (edit.kind === "identity") return `i${edit.step}`;
      if (edit.kind === "rank") return `r${edit.step}.${edit.rank}`;
      if (edit.kind === "scale") return `s${edit.step}.${edit.channel}:${edit.factor}`;
      return `w${edit.step}.${edit.channel}.${edit.index}:${edit.value}`;
    })
    .join(",");
}

export function filterSize(step) {
  return (step.in / step.groups) * step.kernel[0] * step.kernel[1];
}

export function maxRank(step) {
  return Math.min(step.shape[0], filterSize(step));
}

export function canBeIdentity(step) {
  return (
    step.op === "conv" &&
    filterSize(step) === step.shape[0] &&
    step.groups === 1 &&
    step.kernel.join() === "1,1" &&
    step.stride.join() === "1,1" &&
    step.padding.join() === "0,0"
  );
}

// The weights of a convolution after all edits of it, in order.
export function edited(step, weights, edits) {
  const own = edits.filter((edit) => edit.step === step.id),
    {weight, bias} = weights;
  if (!own.length) return weights;
  let result = {weight: Float64Array.from(weight), bias: bias && Float64Array.from(bias)};
  for (const edit of own) result = editOne(step, result, edit);
  return result;
}

function editOne(step, {weight, bias}, edit) {
  const size = filterSize(step),
    outs = step.shape[0];
  if (edit.kind === "scale") {
    for (let i = edit.channel * size; i < (edit.channel + 1) * size; i++) weight[i] *= edit.factor;
    if (bias) bias[edit.channel] *= edit.factor;
  } else if (edit.kind === "weight") weight[edit.channel * size + edit.index] = edit.value;
  else if (edit.kind === "identity") {
    weight.fill(0);
    for (let o = 0; o < outs; o++) weight[o * size + o] = 1;
    bias?.fill(0);
  } else return {weight: lowRank(weight, outs, size, edit.rank), bias};
  return {weight, bias};
}

// What the edits remove: dropped channels of each step, and {rank} or {identity} for the cost.
export function removed(edits) {
  const dropped = new Map(),
    changes = new Map();
  for (const edit of edits) {
    if (edit.kind === "scale" && edit.factor === 0)
      dropped.set(edit.step, new Set([...(dropped.get(edit.step) ?? []), edit.channel]));
    if (edit.kind === "identity") changes.set(edit.step, {identity: true});
    if (edit.kind === "rank") changes.set(edit.step, {rank: edit.rank});
  }
  return {dropped, changes};
}

// The closest matrix of this rank (Eckart and Young): project on the first eigenvectors of the smaller Gram matrix.
function lowRank(matrix, rows, columns, rank) {
  if (rank >= Math.min(rows, columns)) return matrix;
  const wide = rows <= columns,
    n = wide ? rows : columns;
  const at = wide ? (i, k) => matrix[i * columns + k] : (i, k) => matrix[k * columns + i];
  const gram = new Float64Array(n * n),
    length = wide ? columns : rows;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let k = 0; k < length; k++) sum += at(i, k) * at(j, k);
      gram[i * n + j] = gram[j * n + i] = sum;
    }
  }
  const vectors = eigenvectors(gram, n).slice(0, rank),
    result = new Float64Array(matrix.length);
  for (const vector of vectors) {
    for (let k = 0; k < length; k++) {
      let dot = 0;
      for (let i = 0; i < n; i++) dot += vector[i] * at(i, k);
      for (let i = 0; i < n; i++) result[wide ? i * columns + k : k * columns + i] += vector[i] * dot;
    }
  }
  return result;
}

// Eigenvectors of a symmetric matrix by Jacobi rotations, the largest eigenvalue first.
function eigenvectors(a, n) {
  const v = Array.from({length: n}, (_, i) => Float64Array.from({length: n}, (__, j) => (i === j ? 1 : 0)));
  for (let sweep = 0; sweep < 40; sweep++) {
    let off = 0,
      diagonal = 0;
    for (let p = 0; p < n; p++) {
      diagonal += a[p * n + p] ** 2;
      for (let q = p + 1; q < n; q++) off += a[p * n + q] ** 2;
    }
    if (off <= 1e-30 * diagonal) break;
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) rotate(a, v, n, p, q);
  }
  return v
    .map((vector, i) => [a[i * n + i], vector])
    .sort((x, y) => y[0] - x[0])
    .map(([, vector]) => vector);
}

function rotate(a, v, n, p, q) {
  if (a[p * n + q] === 0) return;
  const theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1)),
    c = 1 / Math.hypot(t, 1),
    s = t * c;
  for (let k = 0; k < n; k++) {
    const x = a[k * n + p],
      y = a[k * n + q];
    a[k * n + p] = c * x - s * y;
    a[k * n + q] = s * x + c * y;
  }
  for (let k = 0; k < n; k++) {
    const x = a[p * n + k],
      y = a[q * n + k];
    a[p * n + k] = c * x - s * y;
    a[q * n + k] = s * x + c * y;
  }
  const x = v[p],
    y = v[q];
  for (let k = 0; k < n; k++) [x[k], y[k]] = [c * x[k] - s * y[k], s * x[k] + c * y[k]];
}
