/**
 * Runs the section "Walk from A to B", which interpolates z and v separately between two pictures.
 * @module
 */

import { interpolateLinearly, interpolateOnArc } from "./code_arithmetic.js";
import { drawPixels } from "./image_files.js";
import { runLatestOnly } from "./latest_request.js";
import { Picture, createElement, getElement } from "./page_elements.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */

/** How many cells each side of the map has. `.map` and `.track` in style.css depend on this number. */
const CELLS_PER_SIDE = 5;
const CORNER_CELLS = [0, CELLS_PER_SIDE - 1, CELLS_PER_SIDE * (CELLS_PER_SIDE - 1), CELLS_PER_SIDE * CELLS_PER_SIDE - 1];
/** If the four pictures of the grid take longer than this, the map is not filled, because that would take minutes. */
const SLOWEST_SWAP_MS = 1500;

/** @param {number} index @returns {[number, number]} The shares of B in v and in z, from 0 to 1, of a cell of the map. */
function locateCell(index) {
  const last = CELLS_PER_SIDE - 1;
  return [(index % CELLS_PER_SIDE) / last, Math.floor(index / CELLS_PER_SIDE) / last];
}

/**
 * How far a key moves a slider for z or v. Browsers disagree on the direction of keys on a vertical slider; here a key moves
 * the thumb where its arrow points.
 */
const KEY_STEPS = {
  ArrowUp: -0.01,
  ArrowLeft: -0.01,
  ArrowDown: 0.01,
  ArrowRight: 0.01,
  PageUp: -0.1,
  PageDown: 0.1,
  Home: -1,
  End: 1,
};

/**
 * Shows a map of interpolated pictures, a slider for z and one for v, and the picture at the position of the sliders. At the
 * photographs' size it shows A or B, since there is no photograph with a v between theirs.
 */
export class InterpolationSection {
  #model;
  #showPhotograph;
  /** @type {[Code, Code] | null} */
  #codes = null;
  #picture = new Picture("Between A and B", "between");
  #cells = Array.from({ length: CELLS_PER_SIDE ** 2 }, (_, index) => {
    const [v, z] = locateCell(index).map((share) => `${100 * share} %`);
    return createElement("canvas", { role: "img", "aria-label": `z ${z}, v ${v} from B`, width: "1", height: "1" });
  });
  #sliders = { x: getElement("walk-v"), y: getElement("walk-z") };
  #requestPicture = runLatestOnly(() => this.#decodePicture());
  #requestMap = runLatestOnly((codes) => this.#fillMap(codes));

  /** @param {import("./model.js").Model} model @param {import("./photographs.js").Photographs} photographs */
  constructor(model, photographs) {
    [this.#model, this.#showPhotograph] = [model, photographs.connectPicture(this.#picture)];
    getElement("walk-picture").append(this.#picture.element);
    getElement("map").prepend(...this.#cells);
    for (const slider of Object.values(this.#sliders)) {
      slider.addEventListener("input", () => this.#showPosition());
      slider.addEventListener("keydown", (event) => this.#followKey(event, slider));
    }
    this.#followPointer(getElement("map"));
    this.#showPosition();
  }

  /**
   * Sets the codes of A and B, and fills the map with pictures between them. Null empties the map.
   * @param {[Code, Code] | null} codes
   * @param {Uint8Array[]} corners The four pictures of the grid, row by row.
   * @param {number} milliseconds How long the four pictures took to compute.
   */
  setCodes(codes, corners, milliseconds) {
    this.#codes = codes;
    this.#picture.markStale();
    this.#showPhotograph(null);
    if (!codes) return this.#cells.forEach((cell) => (cell.width = 1));
    CORNER_CELLS.forEach((cell, k) => drawPixels(this.#cells[cell], corners[k]));
    this.#requestPicture(null);
    if (milliseconds < SLOWEST_SWAP_MS) this.#requestMap(codes);
  }

  /** Moves a slider by a key that was pressed on it. @param {KeyboardEvent} event @param {HTMLInputElement} slider */
  #followKey(event, slider) {
    const step = KEY_STEPS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    slider.valueAsNumber += step;
    this.#showPosition();
  }

  /** Moves both sliders to the position of a pointer that is pressed or dragged on the map. @param {HTMLElement} map */
  #followPointer(map) {
    const moveSliders = ({ clientX, clientY }) => {
      const { left, top, width, height } = getElement("track").getBoundingClientRect();
      this.#sliders.x.value = (clientX - left) / width;
      this.#sliders.y.value = (clientY - top) / height;
      this.#showPosition();
    };
    map.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      map.setPointerCapture(event.pointerId);
      moveSliders(event);
    });
    map.addEventListener("pointermove", (event) => {
      if (map.hasPointerCapture(event.pointerId)) moveSliders(event);
    });
  }

  /** Marks the position of the sliders on the map, and requests the picture at this position. */
  #showPosition() {
    for (const [axis, slider] of Object.entries(this.#sliders)) {
      const share = `${Math.round(slider.valueAsNumber * 100)} %`;
      getElement("track").style.setProperty(`--${axis}`, share.replace(" ", ""));
      slider.setAttribute("aria-valuetext", `${share} from B`);
    }
    this.#requestPicture(null);
  }

  /**
   * Decodes a picture between A and B.
   * @param {[Code, Code]} codes
   * @param {number} x The share of B in v, from 0 to 1.
   * @param {number} y The share of B in z, from 0 to 1.
   * @returns {Promise<Uint8Array>} RGB values.
   */
  #decodeAt([a, b], x, y) {
    return this.#model.decode(interpolateLinearly(a.z, b.z, y), interpolateOnArc(a.v, b.v, x), 1);
  }

  /** Decodes and shows the picture at the position of the sliders. */
  async #decodePicture() {
    const codes = this.#codes;
    if (!codes) return;
    const [x, y] = [this.#sliders.x.valueAsNumber, this.#sliders.y.valueAsNumber];
    const pixels = await this.#decodeAt(codes, x, y);
    if (codes !== this.#codes) return;
    this.#picture.showPixels(pixels);
    const isBetween = x > 0 && x < 1;
    this.#showPhotograph(isBetween ? null : { index: x, makeZ: ([a, b]) => interpolateLinearly(a, b, y) });
  }

  /** Decodes the map one picture at a time, so that a drag waits for one picture at most. @param {[Code, Code]} codes */
  async #fillMap(codes) {
    for (const [index, cell] of this.#cells.entries()) {
      if (CORNER_CELLS.includes(index)) continue;
      const pixels = await this.#decodeAt(codes, ...locateCell(index));
      if (codes !== this.#codes) return;
      drawPixels(cell, pixels);
    }
  }
}
