// Slide the window over all cells of a layer. With reduced motion only step by step.

import {calm, h} from "./dom.js";

const SLOWEST = 350,
  WHOLE = 12000,
  FASTEST = 30; // milliseconds: of a cell, of all cells, between frames

export class Player {
  constructor(playground) {
    this.playground = playground;
    this.timer = 0;
    this.playing = null;
  }

  buttons(key) {
    const play = () => (this.playing ? this.stop() : this.play(key));
    const next = () => {
      this.stop();
      this.step(key);
    };
    return h(
      "div",
      {class: "row"},
      h("button", {type: "button", class: "play", hidden: calm(), onclick: play}, "Slide"),
      h("button", {type: "button", onclick: next}, "Next cell"),
    );
  }

  // How many cells the animation has drawn when it is at this one; undefined when it does not run.
  reached({key, group, y, x}) {
    return this.playing === key ? y * group.last.shape[2] + x + 1 : undefined;
  }

  step(key) {
    const {playground} = this,
      target = this.target(key),
      [, rows, columns] = target.group.last.shape;
    const {at} = playground,
      here = at.key === key && at.group === target.group ? at.y * columns + at.x + 1 : 0;
    const next = here % (rows * columns);
    playground.select({...target, y: Math.floor(next / columns), x: next % columns});
  }

  // The chosen layer, or the first one where the input is chosen.
  target(key) {
    const {at, results} = this.playground,
      {groups} = results[key];
    if (at.key === key && at.group.head.op !== "input") return at;
    return {key, group: groups[Math.min(1, groups.length - 1)], c: 0, y: 0, x: 0};
  }

  play(key) {
    const target = this.target(key),
      [, rows, columns] = target.group.last.shape,
      total = rows * columns;
    const every = Math.min(SLOWEST, WHOLE / total),
      began = performance.now();
    this.playing = key;
    this.label();
    const tick = () => {
      const at = Math.floor((performance.now() - began) / every);
      if (this.playing === null) return;
      if (at >= total) {
        this.stop();
        return;
      }
      this.playground.select({...target, y: Math.floor(at / columns), x: at % columns});
      this.timer = setTimeout(() => requestAnimationFrame(tick), Math.max(every, FASTEST));
    };
    tick();
  }

  stop() {
    clearTimeout(this.timer);
    if (this.playing === null) return;
    this.playing = null;
    this.label();
    this.playground.select(this.playground.at);
  }

  label() {
    for (const button of this.playground.element.querySelectorAll(".play")) {
      button.textContent = this.playing ? "Stop" : "Slide";
    }
  }
}
