// The images of a network as buttons; more can be added with a button or dropped on the page.

import {h, replace} from "./dom.js";
import {colourImage} from "./picture.js";

const AT_ONCE = 16,
  TYPES = "image/png,image/jpeg,image/webp,image/bmp";

export class ImageStrip {
  constructor(network) {
    this.network = network;
    this.element = h("div", {class: "images", role: "group", "aria-label": "Images"});
  }

  show() {
    const {network} = this,
      {images, canAdd} = network.model;
    replace(
      this.element,
      images.map((name, i) => this.button(name, i)),
      canAdd && this.adder(),
    );
  }

  button(name, i) {
    const {network} = this,
      thumb = h("span", {class: "thumb", "aria-hidden": "true"});
    network.engine.pixels(i).then(
      (pixels) => thumb.replaceChildren(colourImage(pixels)),
      () => {},
    );
    const choose = () => network.write({image: i || undefined, cell: undefined});
    const chosen = String(i === network.image),
      label = h("span", {class: "name"}, name);
    return h("button", {type: "button", "aria-pressed": chosen, onclick: choose}, thumb, label);
  }

  adder() {
    const add = (event) => this.add([...event.target.files]);
    const settings = {type: "file", accept: TYPES, multiple: true, class: "unseen", id: "add-image", onchange: add};
    const input = h("input", settings);
    return h("span", {class: "adder"}, input, h("label", {for: "add-image"}, "Add an image"));
  }

  acceptDrops(element) {
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }

  async add(files) {
    const {network} = this;
    for (const file of files.slice(0, AT_ONCE)) {
      try {
        const image = await network.engine.addImage(file);
        network.say("");
        network.write({image, cell: undefined});
      } catch (error) {
        network.say(`${file.name.slice(0, 80)}: ${error.message}`);
        return;
      }
    }
  }
}
