// Where the numbers come from: torch behind the local server, or the same steps in this page for an exported site.

import {edited, filterSize, writeEdits} from "./edits.js";
import {downstream, run} from "./program.js";
import {tensor} from "./tensor.js";

const LARGE = 2e6;

async function request(path, options) {
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer: start mlpconv explore again.");
  });
  if (!answer.ok)
    throw new Error((await answer.json().catch(() => ({}))).message ?? `The server answered ${answer.status}.`);
  return answer;
}

export class ServerEngine {
  // base: where the network's routes are; a second network has its own.
  static async open(base = "api") {
    const engine = new ServerEngine();
    engine.base = base;
    engine.model = await (await request(`${base}/model`)).json();
    engine.cache = new Map();
    return engine;
  }

  async pixels(image) {
    const {shape} = this.model.steps[0];
    return this.kept(`pixels ${image}`, async () =>
      tensor(
        shape,
        Uint8Array.from(new Uint8Array(await (await request(`${this.base}/pixels?image=${image}`)).arrayBuffer())),
      ),
    );
  }

  // Outputs of the steps with these ids: Map of id to tensor.
  async outputs(image, edits, ids) {
    const query = `image=${image}&edits=${encodeURIComponent(writeEdits(edits))}&steps=${ids.join(",")}`;
    const data = new Float64Array(await (await request(`${this.base}/outputs?${query}`)).arrayBuffer());
    const result = new Map(),
      byId = new Map(this.model.steps.map((step) => [step.id, step]));
    let at = 0;
    for (const id of ids) {
      const {shape} = byId.get(id),
        size = shape[0] * shape[1] * shape[2];
      result.set(id, tensor(shape, data.subarray(at, at + size)));
      at += size;
    }
    return result;
  }

  // Weights of a step; of a very large convolution only those of one filter, `first`.
  async weights(step, edits, filter) {
    const own = edits.filter((edit) => edit.step === step.id);
    const large = step.op === "conv" && step.shape[0] * filterSize(step) > LARGE;
    const query = `step=${step.id}&edits=${encodeURIComponent(writeEdits(own))}${large ? `&filter=${filter}` : ""}`;
    return this.kept(query, async () => {
      const data = new Float64Array(await (await request(`${this.base}/weights?${query}`)).arrayBuffer());
      return large ? {...parts({...step, shape: [1]}, data), first: filter} : parts(step, data);
    });
  }

  async accuracy(edits) {
    return (await request(`${this.base}/accuracy?edits=${encodeURIComponent(writeEdits(edits))}`)).json();
  }

  async addImage(file) {
    const headers = {"content-type": "application/octet-stream"},
      name = encodeURIComponent(file.name.slice(0, 100));
    this.model.images = (
      await (await request(`api/images?name=${name}`, {method: "POST", headers, body: file})).json()
    ).images;
    return this.model.images.length - 1;
  }

  async kept(key, load) {
    if (this.cache.size > 200) this.cache.clear();
    if (!this.cache.has(key)) this.cache.set(key, load());
    try {
      return await this.cache.get(key);
    } catch (error) {
      this.cache.delete(key);
      throw error;
    }
  }
}

function parts(step, data) {
  if (step.op === "norm") return normParts(step, data);
  const size = data.length - (step.bias ? step.shape[0] : 0);
  return {weight: data.subarray(0, size), bias: step.bias ? data.subarray(size) : null};
}

// Batch norm in eval mode as one factor and one shift per channel.
function normParts(step, data) {
  const count = step.shape[0],
    [gain, shift, mean, variance] = [0, 1, 2, 3].map((k) => data.subarray(k * count, (k + 1) * count));
  const scale = gain.map((value, c) => value / Math.sqrt(variance[c] + step.eps));
  return {scale, shift: shift.map((value, c) => value - mean[c] * scale[c])};
}

// site: {model, weights: base64 float32, images: [{pixels, input}], heldOut: {inputs, labels} or null}
export class SiteEngine {
  constructor(site) {
    this.model = site.model;
    this.site = site;
    this.all = new Float32Array(bytesOf(site.weights).buffer);
    this.results = {};
  }

  async pixels(image) {
    return tensor(this.model.steps[0].shape, bytesOf(this.site.images[image].pixels));
  }

  // Only the steps after the first edited one are computed again.
  async outputs(image, edits, ids) {
    const key = writeEdits(edits),
      {steps} = this.model;
    if (this.results.image !== image) {
      const input = tensor(
        steps[0].shape,
        Float64Array.from(new Float32Array(bytesOf(this.site.images[image].input).buffer)),
      );
      this.results = {image, input, plain: run(steps, input, (step) => this.weightsNow(step, [])), key: ""};
      this.results.current = this.results.plain;
    }
    if (this.results.key !== key) {
      const changed = downstream(
        steps,
        edits.map((edit) => edit.step),
      );
      const valid = new Map([...this.results.plain].filter(([id]) => !changed.has(id)));
      this.results.current = run(steps, this.results.input, (step) => this.weightsNow(step, edits), valid);
      this.results.key = key;
    }
    return new Map(ids.map((id) => [id, this.results.current.get(id)]));
  }

  weightsNow(step, edits) {
    const [from, to] = step.stored ?? [0, 0];
    return edited(step, parts(step, Float64Array.from(this.all.subarray(from, to))), edits);
  }

  async weights(step, edits) {
    return this.weightsNow(step, edits);
  }

  async accuracy(edits) {
    const {inputs, labels} = this.site.heldOut,
      all = new Float32Array(bytesOf(inputs).buffer),
      {steps} = this.model;
    const kept = new Map(steps.filter((step) => step.stored).map((step) => [step.id, this.weightsNow(step, edits)]));
    const size = all.length / labels.length,
      last = steps[steps.length - 1].id;
    let correct = 0;
    for (let i = 0; i < labels.length; i++) {
      const input = tensor(steps[0].shape, Float64Array.from(all.subarray(i * size, (i + 1) * size)));
      const logits = run(steps, input, (step) => kept.get(step.id)).get(last).data;
      if (logits.indexOf(Math.max(...logits)) === labels[i]) correct++;
      if (i % 16 === 15) await new Promise((resume) => setTimeout(resume)); // keep the page responsive
    }
    return {n: labels.length, correct, ...wilson(correct, labels.length)};
  }

  async addImage() {
    throw new Error("An exported site shows the images that it was made with: use mlpconv explore to add your own.");
  }
}

// Wilson's 95 % interval of an accuracy, as in mlpconv.evaluation.
function wilson(correct, n) {
  const z = 1.959963984540054,
    share = correct / n,
    scale = 1 + (z * z) / n;
  const centre = (share + (z * z) / (2 * n)) / scale;
  const reach = (z / scale) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return {accuracy: share, low: Math.max(0, centre - reach), high: Math.min(1, centre + reach)};
}

function bytesOf(text) {
  const raw = atob(text),
    bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
