/**
 * The pictures that lie in the square between A and B.
 * @module
 */

import { between, onArc } from "./codes.js";
import { element } from "./elements.js";
import { draw } from "./images.js";

/** Cells along a side; the middles of the outer ones lie at 0 and 1, as the style sheet's track does. */
const SIDE = 5;

/** @typedef {import("./codes.js").Code} Code */
/** @typedef {{x: number, y: number}} Place In [0, 1]. */

/** A square of small pictures, for the eye only: the slider above it is what can be operated. */
export class PairMap {
  #cells = Array.from({ length: SIDE * SIDE }, () => element("canvas", { width: "1", height: "1" }));
  /** Which filling is the newest; older ones stop. */
  #filling = 0;

  /** @param {HTMLElement} parent */
  constructor(parent) {
    parent.prepend(element("div", { class: "map-cells", "aria-hidden": "true" }, this.#cells));
  }

  /** Empties the square. */
  clear() {
    this.#filling++;
    for (const cell of this.#cells) cell.width = cell.height = 1;
  }

  /**
   * @param {Uint8Array[]} corners Row by row.
   * @param {number} size
   */
  showCorners(corners, size) {
    this.clear();
    cornerIndices().forEach((cell, index) => draw(this.#cells[cell], corners[index], size));
  }

  /**
   * Decodes what lies between the corners, one picture at a time, so that a drag need not wait for all.
   * @param {Code[]} pair The codes of A and B.
   * @param {number} size
   * @param {(z: Float32Array, v: Float32Array, count: number) => Promise<Uint8Array>} decode
   */
  async fill([a, b], size, decode) {
    const filling = ++this.#filling;
    for (const index of indicesBetween()) {
      const { x, y } = placeOf(index);
      const pixels = await decode(between(a.z, b.z, y), onArc(a.v, b.v, x), 1);
      if (filling !== this.#filling) return;
      draw(this.#cells[index], pixels, size);
    }
  }
}

/** @param {number} index @returns {Place} */
function placeOf(index) {
  return { x: (index % SIDE) / (SIDE - 1), y: Math.floor(index / SIDE) / (SIDE - 1) };
}

/** @returns {number[]} */
function cornerIndices() {
  return [0, SIDE - 1, SIDE * (SIDE - 1), SIDE * SIDE - 1];
}

/** @returns {number[]} */
function indicesBetween() {
  const corners = cornerIndices();
  return Array.from({ length: SIDE * SIDE }, (_, index) => index).filter((index) => !corners.includes(index));
}
