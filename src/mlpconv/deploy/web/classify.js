"use strict";
// Send images to /maps (or /predict for networks without maps), and show classes and category maps.

const TOP = 5;
const SIDE = 480; // pixels of the canvas
const drop = document.getElementById("drop");
const input = document.getElementById("files");
const status = document.getElementById("status");
const results = document.getElementById("results");
let route = "/maps";

async function describe() {
  const names = await (await fetch("/openapi.json")).json();
  const model = Object.keys(names.paths).find((path) => path.endsWith("/infer")).replace("/infer", "");
  const metadata = await (await fetch(model)).json();
  document.getElementById("model").textContent = metadata.name;
  document.title = metadata.name + ": classify an image";
  if (!metadata.outputs.some((output) => output.name === "maps")) route = "/predict";
}

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// The part of the image that the network sees: the middle of it, all of it with bars, or all of it stretched.
function paintImage(canvas, image, fit, grey) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  let [w, h] = [canvas.width, canvas.height];
  if (fit !== "stretch") {
    const choose = fit === "crop" ? Math.max : Math.min;
    const scale = choose(canvas.width / image.width, canvas.height / image.height);
    [w, h] = [image.width * scale, image.height * scale];
  }
  pen.imageSmoothingEnabled = image.width > 64;
  pen.filter = grey ? "grayscale(1) brightness(1.1) contrast(0.8)" : "none";
  pen.drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  pen.filter = "none";
}

// Orange where the map speaks for the class, blue where it speaks against it.
function paintMap(canvas, map, largest) {
  const small = element("canvas", { width: map[0].length, height: map.length });
  const pixels = new ImageData(small.width, small.height);
  map.flat().forEach((value, index) => {
    const color = value > 0 ? [230, 110, 0] : [0, 90, 200];
    pixels.data.set([...color, (Math.abs(value) / largest) ** 1.5 * 220], 4 * index);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function showPrediction(card, image, answer, fit) {
  const canvas = element("canvas", { width: SIDE, height: SIDE });
  const values = answer.top.flatMap((entry) => (entry.map || []).flat()).map(Math.abs);
  const largest = Math.max(...values, 1e-9);
  const paint = (entry) => {
    paintImage(canvas, image, fit, Boolean(entry.map));
    if (entry.map) paintMap(canvas, entry.map, largest);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", entry.map ? "Where the network saw " + entry.label : "The image");
  };
  const group = "class-" + Math.random().toString(36).slice(2);
  const list = element("fieldset", {}, element("legend", { textContent: answer.top[0].map
    ? "Choose a class to see where it was seen: orange for, blue against" : "Most probable classes" }));
  answer.top.forEach((entry, index) => {
    const choice = element("input", { type: "radio", name: group, checked: index === 0, hidden: !entry.map });
    choice.addEventListener("change", () => paint(entry));
    const share = element("output", { textContent: (100 * entry.confidence).toFixed(1) + " %" });
    const meter = element("meter", { min: 0, max: 1, value: entry.confidence });
    meter.setAttribute("aria-hidden", "true");
    list.append(element("label", { className: "class" }, choice, element("span", { textContent: entry.label }), share, meter));
  });
  paint(answer.top[0]);
  card.append(canvas, list);
}

async function classify(file) {
  const card = element("article", { className: "card" }, element("h2", { textContent: file.name }));
  results.prepend(card);
  const fail = (text) => {
    card.classList.add("failed");
    card.append(element("p", { textContent: text }));
  };
  try {
    const response = await fetch(route + "?top=" + TOP, { method: "POST", body: file });
    const answer = await response.json();
    if (!response.ok) return fail(answer.message);
    showPrediction(card, await createImageBitmap(file), answer.predictions[0], answer.fit || "crop");
  } catch (error) {
    fail("The server did not answer: is it still running?");
  }
}

async function classifyAll(files) {
  const list = [...files];
  for (const [index, file] of list.entries()) {
    status.textContent = "Image " + (index + 1) + " of " + list.length + " ...";
    await classify(file);
  }
  status.textContent = list.length ? list.length + (list.length === 1 ? " image" : " images") + " classified." : "";
}

input.addEventListener("change", () => classifyAll(input.files).then(() => { input.value = ""; }));
document.addEventListener("paste", (event) => classifyAll(event.clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  classifyAll(event.dataTransfer.files);
});
describe().catch(() => { status.textContent = "The server does not answer."; });
