// A tensor as a picture: every channel is a tile on one shared scale. Cells can be pointed at, with a mouse, a finger
// or the arrow keys. Zero has the colour of the paper; positive values are blue, negative ones orange.

import {h, short} from "./dom.js";
import {range} from "./tensor.js";

const GAP = 6,
  LEGIBLE = 20,
  MANY = 2000,
  KEYS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

export class TensorPicture {
  // onPoint({c, y, x}) while pointing, onPick after a click, a tap or Enter, onLeave when the pointer leaves.
  constructor({name, onPoint, onPick, onLeave}) {
    Object.assign(this, {name, onPoint, onPick, onLeave, tensor: null, marks: {}, options: {}});
    this.base = h("canvas", {"aria-hidden": "true"});
    this.over = h("canvas", {class: "over", "aria-hidden": "true"});
    this.spoken = h("span", {class: "unseen", "aria-live": "polite"});
    this.pad = h("div", {class: "tiles", tabindex: "0", role: "application", "aria-label": name}, this.base, this.over);
    this.element = h("div", {class: "picture"}, this.pad, this.spoken);
    this.pad.addEventListener("pointermove", (event) => this.point(event, this.onPoint));
    this.pad.addEventListener("pointerdown", (event) => this.point(event, this.onPick ?? this.onPoint));
    this.pad.addEventListener("pointerleave", () => this.onLeave?.());
    this.pad.addEventListener("keydown", (event) => this.key(event));
    this.width = 0;
    new ResizeObserver(() => {
      if (this.tensor && this.element.clientWidth !== this.width) this.paint();
    }).observe(this.element);
  }

  // options: cell (pixels), limit (tiles), first (channel), extent (value of the strongest colour), numbers
  show(tensor, options = {}) {
    this.tensor = tensor;
    this.options = options;
    this.paint();
  }

  // marks: cell {c, y, x}, windows [{channels: [first, end), box}], after (raster index from which cells are veiled)
  mark(marks) {
    this.marks = marks;
    this.paintMarks();
  }

  get shown() {
    const [channels] = this.tensor.shape;
    const first = Math.min(this.options.first ?? 0, channels - 1);
    return [first, Math.min(channels, first + (this.options.limit ?? channels))];
  }

  layout() {
    const [, rows, columns] = this.tensor.shape,
      [first, end] = this.shown;
    this.width = this.element.clientWidth;
    const fit = Math.min(this.options.cell ?? 8, (this.width || 600) / columns),
      cell = fit >= 1 ? Math.floor(fit) : fit;
    const across = Math.max(1, Math.min(end - first, Math.floor(((this.width || 600) + GAP) / (columns * cell + GAP))));
    const down = Math.ceil((end - first) / across);
    return {cell, across, width: across * (columns * cell + GAP) - GAP, height: down * (rows * cell + GAP) - GAP};
  }

  origin(channel) {
    const [, rows, columns] = this.tensor.shape,
      index = channel - this.shown[0],
      {cell, across} = this.at;
    return [(index % across) * (columns * cell + GAP), Math.floor(index / across) * (rows * cell + GAP)];
  }

  paint() {
    this.at = this.layout();
    const {cell, width, height} = this.at,
      [, rows, columns] = this.tensor.shape,
      [first, end] = this.shown;
    const colours = palette(this.pad),
      ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.base, this.over]) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.pad.style.width = `${width}px`;
    this.pad.style.height = `${height}px`;
    const context = this.base.getContext("2d"),
      extent = this.options.extent ?? extentOf(this.tensor);
    const source = this.options.image ? colourImage(this.tensor) : raster(this.tensor, first, end, extent, colours);
    context.imageSmoothingEnabled = cell < 1; // a map larger than its tile
    for (let c = first; c < end; c++) {
      const [left, top] = this.origin(c);
      context.drawImage(source, 0, (c - first) * rows, columns, rows, left, top, columns * cell, rows * cell);
      if (cell >= 7) grid(context, left, top, rows, columns, cell, colours.rule);
      context.strokeStyle = colours.rule;
      context.strokeRect(left + 0.5, top + 0.5, columns * cell - 1, rows * cell - 1);
    }
    if (this.options.numbers !== false && !this.options.image && cell >= LEGIBLE)
      this.paintNumbers(context, extent, colours);
    this.paintMarks();
  }

  paintNumbers(context, extent, colours) {
    const {cell} = this.at,
      [, rows, columns] = this.tensor.shape,
      [first, end] = this.shown;
    context.font = `${Math.min(13, Math.floor(cell * 0.42))}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let c = first; c < end; c++) {
      const [left, top] = this.origin(c);
      for (let i = 0; i < rows * columns; i++) {
        const value = this.tensor.data[c * rows * columns + i];
        context.fillStyle = Math.abs(value) > 0.55 * extent ? colours.onStrong : colours.ink;
        const x = left + ((i % columns) + 0.5) * cell,
          y = top + (Math.floor(i / columns) + 0.5) * cell;
        context.fillText(short(value, 2), x, y + 0.5, cell - 2);
      }
    }
  }

  paintMarks() {
    if (!this.at) return;
    const context = this.over.getContext("2d"),
      {cell: size, width, height} = this.at,
      colours = palette(this.pad);
    const [, rows, columns] = this.tensor.shape,
      [first, end] = this.shown,
      {cell, windows = [], after} = this.marks;
    context.clearRect(0, 0, width, height);
    if (after !== undefined) this.veil(context, after, colours);
    for (const {channels, box, quiet} of windows) {
      for (let c = Math.max(first, channels[0]); c < Math.min(end, channels[1]); c++) {
        const [left, top] = this.origin(c);
        outline(
          context,
          left + box[1] * size,
          top + box[0] * size,
          (box[3] - box[1]) * size,
          (box[2] - box[0]) * size,
          quiet ? colours.quiet : colours.mark,
          colours.paper,
        );
      }
    }
    if (!cell || cell.c < first || cell.c >= end || cell.y >= rows || cell.x >= columns) return;
    const [left, top] = this.origin(cell.c);
    outline(context, left + cell.x * size, top + cell.y * size, size, size, colours.mark, colours.paper);
  }

  // Cover the cells that the animation has not reached yet, in every channel.
  veil(context, after, colours) {
    const {cell} = this.at,
      [, rows, columns] = this.tensor.shape,
      [first, end] = this.shown;
    context.fillStyle = colours.card;
    for (let c = first; c < end; c++) {
      const [left, top] = this.origin(c),
        row = Math.floor(after / columns),
        column = after % columns;
      if (row < rows) context.fillRect(left + column * cell, top + row * cell, (columns - column) * cell, cell);
      if (row + 1 < rows) context.fillRect(left, top + (row + 1) * cell, columns * cell, (rows - row - 1) * cell);
    }
  }

  point(event, handler) {
    if (!this.tensor || !handler) return;
    const place = this.pad.getBoundingClientRect(),
      [, rows, columns] = this.tensor.shape,
      {cell, across} = this.at;
    const x = event.clientX - place.left,
      y = event.clientY - place.top,
      [first, end] = this.shown;
    const column = Math.floor(x / (columns * cell + GAP)),
      row = Math.floor(y / (rows * cell + GAP));
    const c = first + row * across + column;
    const inner = {
      y: Math.floor((y - row * (rows * cell + GAP)) / cell),
      x: Math.floor((x - column * (columns * cell + GAP)) / cell),
    };
    const inside = x >= 0 && y >= 0 && column < across && c < end && inner.y < rows && inner.x < columns;
    if (inside) handler({c, ...inner});
  }

  // Arrows move the cell, Page Up and Page Down change the channel, Enter picks.
  key(event) {
    if (!this.tensor) return;
    const [channels, rows, columns] = this.tensor.shape,
      cell = {...(this.marks.cell ?? {c: this.shown[0], y: 0, x: 0})};
    if (KEYS[event.key]) {
      cell.y = Math.min(Math.max(cell.y + KEYS[event.key][0], 0), rows - 1);
      cell.x = Math.min(Math.max(cell.x + KEYS[event.key][1], 0), columns - 1);
    } else if (event.key === "PageUp" || event.key === "PageDown") {
      cell.c = Math.min(Math.max(cell.c + (event.key === "PageDown" ? 1 : -1), 0), channels - 1);
    } else if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    const pick = event.key === "Enter" || event.key === " ";
    (pick ? (this.onPick ?? this.onPoint) : this.onPoint)?.(cell);
    const value = this.tensor.data[(cell.c * rows + cell.y) * columns + cell.x];
    this.spoken.textContent = `Channel ${cell.c + 1}, row ${cell.y + 1}, column ${cell.x + 1}: ${short(value)}`;
  }
}

// The value that gets the strongest colour: the largest, or with many values one that few exceed.
export function extentOf({data}) {
  const [low, high] = range(data),
    largest = Math.max(Math.abs(low), Math.abs(high)) || 1;
  if (data.length < MANY) return largest;
  const every = Math.floor(data.length / MANY),
    sample = [];
  for (let i = 0; i < data.length; i += every) if (data[i] !== 0) sample.push(Math.abs(data[i]));
  return sample.sort((a, b) => a - b)[Math.floor(0.99 * sample.length)] ?? largest;
}

// The colours of the style sheet; read again when light and dark change.
let cached = {};
function palette(element) {
  const key = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  if (cached.key === key) return cached;
  const style = getComputedStyle(element),
    get = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["zero", "plus", "minus", "ink", "rule", "quiet", "paper", "card", "mark"];
  cached = {key, onStrong: get("on-strong"), ...Object.fromEntries(names.map((name) => [name, get(name)]))};
  cached.rgb = Object.fromEntries(["zero", "plus", "minus"].map((name) => [name, rgb(cached[name])]));
  return cached;
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// One pixel per cell, the channels below one another.
function raster(tensor, first, end, extent, {rgb: {zero, plus, minus}}) {
  const [, rows, columns] = tensor.shape,
    size = rows * columns;
  const canvas = h("canvas", {width: columns, height: Math.max(1, (end - first) * rows)}),
    context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < (end - first) * size; i++) {
    const t = Math.min(1, Math.abs(tensor.data[first * size + i]) / extent);
    const strong = tensor.data[first * size + i] < 0 ? minus : plus;
    for (let k = 0; k < 3; k++) pixels.data[4 * i + k] = zero[k] + (strong[k] - zero[k]) * t;
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// An image (C, H, W) of values 0 to 255 in its own colours; one channel is grey.
export function colourImage({shape: [channels, rows, columns], data}) {
  const canvas = h("canvas", {width: columns, height: rows, "aria-hidden": "true"}),
    context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows),
    size = rows * columns;
  for (let i = 0; i < size; i++) {
    for (let k = 0; k < 3; k++) pixels.data[4 * i + k] = data[channels >= 3 ? k * size + i : i];
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function grid(context, left, top, rows, columns, cell, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  for (let row = 1; row < rows; row++) {
    context.moveTo(left, top + row * cell + 0.5);
    context.lineTo(left + columns * cell, top + row * cell + 0.5);
  }
  for (let column = 1; column < columns; column++) {
    context.moveTo(left + column * cell + 0.5, top);
    context.lineTo(left + column * cell + 0.5, top + rows * cell);
  }
  context.stroke();
}

function outline(context, left, top, width, height, colour, around) {
  context.lineJoin = "round";
  for (const [line, stroke] of [
    [4, around],
    [2, colour],
  ]) {
    context.lineWidth = line;
    context.strokeStyle = stroke;
    context.strokeRect(left + 0.5, top + 0.5, Math.max(width - 1, 1), Math.max(height - 1, 1));
  }
}
