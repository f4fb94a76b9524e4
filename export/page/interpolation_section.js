/**
 * The section that goes from A to B, in z and in v separately.
 * @module
 */

import { interpolateLinearly, interpolateOnArc } from "./code_arithmetic.js";
import { Picture, byId, element, latestOnly } from "./page_elements.js";
import { draw } from "./image_files.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */

/** Cells along a side of the map; the middles of the outer ones lie at 0 and 1, as in the style sheet. */
const SIDE = 5;
const CORNERS = [0, SIDE - 1, SIDE * (SIDE - 1), SIDE * SIDE - 1];
/** A model that takes longer to swap gets no map: it would take minutes. */
const SLOWEST_SWAP_MS = 1500;

/** A map of pictures between A and B, sliders for z and v along its sides, and the picture of their place. */
export class Walk {
  #codes;
  /** @type {[Code, Code] | null} */
  #pair = null;
  #picture = new Picture("Between A and B", "between");
  #cells = Array.from({ length: SIDE * SIDE }, () => element("canvas", { width: "1", height: "1" }));
  #sliders = { x: byId("walk-v"), y: byId("walk-z") };
  #request = latestOnly(() => this.#decode());
  #fill = latestOnly((pair) => this.#fillMap(pair));

  /** @param {import("./model.js").Codes} codes */
  constructor(codes) {
    this.#codes = codes;
    byId("walk-picture").append(this.#picture.element);
    byId("map").prepend(...this.#cells);
    for (const slider of Object.values(this.#sliders)) slider.addEventListener("input", () => this.#move());
    this.#listenToPointer(byId("map"));
    this.#move();
  }

  /** @param {[Code, Code] | null} pair @param {Uint8Array[]} corners @param {number} milliseconds Of the swap. */
  use(pair, corners, milliseconds) {
    this.#pair = pair;
    this.#picture.expire();
    if (!pair) return this.#cells.forEach((cell) => (cell.width = 1));
    CORNERS.forEach((cell, k) => draw(this.#cells[cell], corners[k]));
    this.#request(null);
    if (milliseconds < SLOWEST_SWAP_MS) this.#fill(pair);
  }

  /** @param {HTMLElement} map */
  #listenToPointer(map) {
    const follow = ({ clientX, clientY }) => {
      const { left, top, width, height } = byId("track").getBoundingClientRect();
      this.#sliders.x.value = (clientX - left) / width;
      this.#sliders.y.value = (clientY - top) / height;
      this.#move();
    };
    map.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      map.setPointerCapture(event.pointerId);
      follow(event);
    });
    map.addEventListener("pointermove", (event) => {
      if (map.hasPointerCapture(event.pointerId)) follow(event);
    });
  }

  #move() {
    for (const [axis, slider] of Object.entries(this.#sliders)) {
      const share = `${Math.round(slider.valueAsNumber * 100)} %`;
      byId("track").style.setProperty(`--${axis}`, share.replace(" ", ""));
      slider.setAttribute("aria-valuetext", `${share} from B`);
    }
    this.#request(null);
  }

  /** @param {[Code, Code]} pair @param {number} x Share of B in v. @param {number} y Share of B in z. */
  #decodeAt([a, b], x, y) {
    return this.#codes.decode(interpolateLinearly(a.z, b.z, y), interpolateOnArc(a.v, b.v, x), 1);
  }

  async #decode() {
    const pair = this.#pair;
    if (!pair) return;
    const pixels = await this.#decodeAt(pair, this.#sliders.x.valueAsNumber, this.#sliders.y.valueAsNumber);
    if (pair === this.#pair) this.#picture.show(pixels);
  }

  /** Decodes the map one picture at a time, so that a drag need not wait for all. @param {[Code, Code]} pair */
  async #fillMap(pair) {
    for (const [index, cell] of this.#cells.entries()) {
      if (CORNERS.includes(index)) continue;
      const pixels = await this.#decodeAt(pair, (index % SIDE) / (SIDE - 1), Math.floor(index / SIDE) / (SIDE - 1));
      if (pair !== this.#pair) return;
      draw(cell, pixels);
    }
  }
}
