/**
 * Shows the grid of four pictures: A, B, and two pictures that are decoded from the z of one and the v of the other.
 * @module
 */

import { interpolateLinearly, joinBatch, splitBatch } from "./code_arithmetic.js";
import { runLatestOnly } from "./latest_request.js";
import { Picture, createElement, getElement, showVerdict } from "./page_elements.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */
/** @typedef {[Uint8Array, Uint8Array]} Images The RGB values of A and of B. */

const LETTERS = ["A", "B"];
/** For each cell, row by row, the picture that gives z, the picture that gives v (0 is A, 1 is B), and a file name. */
const CELLS = [
  { z: 0, v: 0, file: "a" },
  { z: 0, v: 1, file: "v-of-b-z-of-a" },
  { z: 1, v: 0, file: "v-of-a-z-of-b" },
  { z: 1, v: 1, file: "b" },
];
/** The cells that show A and B. */
const ORIGINAL_CELLS = [0, 3];
/** The cells that show the switched pictures, with the z of A and with the z of B. */
const SWITCHED_CELLS = [1, 2];

/** @param {Uint8Array} a @param {Uint8Array} b @returns {number} How many values of two images differ. */
function countDifferences(a, b) {
  return a.reduce((count, value, index) => count + Number(value !== b[index]), 0);
}

/** Shows the four pictures, and whether A and B are decoded exactly. */
export class SwapGrid {
  #model;
  #onCodes;
  #pictures = CELLS.map(({ file }) => new Picture("", file));
  #rowLabels = LETTERS.map(() => createElement("p", { class: "row z" }));
  /** @type {(Uint8Array | null)[]} */
  #images = [null, null];
  #enabled = false;
  #requestSwap = runLatestOnly((images) => this.#swapCodes(images));
  #showPhotographs;

  /**
   * @param {import("./model.js").Model} model
   * @param {import("./photographs.js").Photographs} photographs
   * @param {(codes: [Code, Code] | null, decoded: Uint8Array[], milliseconds: number) => void} onCodes Called with the
   *   codes of A and B, the four pictures, and how long they took to compute; called with null when an image changes.
   */
  constructor(model, photographs, onCodes) {
    [this.#model, this.#onCodes] = [model, onCodes];
    this.#showPhotographs = this.#pictures.map((picture) => photographs.connectPicture(picture));
    getElement("strength").addEventListener("input", () => SWITCHED_CELLS.forEach((cell) => this.#showPhotograph(cell)));
    const columnLabels = LETTERS.map((letter) =>
      createElement("p", { class: "column v" }, [createElement("i", {}, ["v"]), ` of ${letter}`]),
    );
    const [topLeft, topRight, bottomLeft, bottomRight] = this.#pictures.map((picture) => picture.element);
    [topLeft.dataset.slot, bottomRight.dataset.slot] = LETTERS;
    const [topLabel, bottomLabel] = this.#rowLabels;
    const corner = createElement("span");
    const [topRow, bottomRow] = [[topLabel, topLeft, topRight], [bottomLabel, bottomLeft, bottomRight]];
    getElement("grid").append(corner, ...columnLabels, ...topRow, ...bottomRow);
    this.labelPictures(false);
  }

  /** Replaces A or B, and recomputes the grid. @param {number} index 0 for A, 1 for B. @param {Uint8Array} pixels RGB. */
  setImage(index, pixels) {
    this.#images = this.#images.with(index, pixels);
    for (const show of this.#showPhotographs) show(null);
    this.#pictures[ORIGINAL_CELLS[index]].showPixels(pixels);
    for (const cell of SWITCHED_CELLS) this.#pictures[cell].markStale();
    this.#onCodes(null, [], 0);
    showVerdict("", "open");
    this.#startSwap();
  }

  /** Shows a cell's photograph. With strength 1 its z is that of the other photograph. @param {number} cell */
  #showPhotograph(cell) {
    const { z, v } = CELLS[cell];
    const strength = getElement("strength").valueAsNumber;
    const makeZ = (/** @type {Float32Array[]} */ zs) => interpolateLinearly(zs[v], zs[z], strength);
    this.#showPhotographs[cell](z === v ? { index: v } : { index: v, makeZ, isSwitch: true });
  }

  /** Lets the grid compute its pictures, once the model is loaded. */
  enable() {
    this.#enabled = true;
    this.#startSwap();
  }

  /** Requests the four pictures if the model and both images are there. */
  #startSwap() {
    if (!this.#enabled || this.#images.includes(null)) return;
    showVerdict("Computing …", "open");
    this.#requestSwap(/** @type {Images} */ (this.#images));
  }

  /** Computes and shows the four pictures, unless an image is replaced meanwhile. @param {Images} images */
  async #swapCodes(images) {
    const start = performance.now();
    const encoded = await this.#model.encode(joinBatch(images), 2);
    const [zs, vs] = [splitBatch(encoded.z, 2), splitBatch(encoded.v, 2)];
    const notFinite = LETTERS.filter((_, k) => ![...zs[k], ...vs[k]].every(Number.isFinite));
    const z = joinBatch(CELLS.map((cell) => zs[cell.z]));
    const v = joinBatch(CELLS.map((cell) => vs[cell.v]));
    const decoded = notFinite.length ? [] : splitBatch(await this.#model.decode(z, v, CELLS.length), CELLS.length);
    if (images !== this.#images) return;
    if (notFinite.length) {
      const problem = `Picture ${notFinite[0]} is too far from what this model was trained on: its codes are not finite.`;
      return showVerdict(problem, "bad");
    }
    decoded.forEach((pixels, index) => this.#pictures[index].showPixels(pixels));
    this.#showExactness(images, decoded);
    this.#onCodes([0, 1].map((k) => ({ z: zs[k], v: vs[k] })), decoded, performance.now() - start);
    CELLS.forEach((_, cell) => this.#showPhotograph(cell));
  }

  /**
   * Labels the rows and the pictures. A row is called "colours of A" instead of "z of A" if z begins with colours.
   * @param {boolean} hasColours Whether z begins with the image's colours.
   */
  labelPictures(hasColours) {
    this.#rowLabels.forEach((label, k) => {
      label.replaceChildren(hasColours ? "colours" : createElement("i", {}, ["z"]), ` of ${LETTERS[k]}`);
    });
    const relation = hasColours ? "in the colours of" : "with the z of";
    this.#pictures.forEach((picture, index) => {
      const { z, v } = CELLS[index];
      picture.setLabel(z === v ? LETTERS[z] : `${LETTERS[v]} ${relation} ${LETTERS[z]}`);
    });
  }

  /** Shows whether A and B are decoded exactly. @param {Images} images @param {Uint8Array[]} decoded Four pictures. */
  #showExactness(images, decoded) {
    const different = images.reduce((sum, image, k) => sum + countDifferences(image, decoded[ORIGINAL_CELLS[k]]), 0);
    const [count, all] = [different, 2 * images[0].length].map((number) => number.toLocaleString("en"));
    // The pictures of the grid can be photographs at their own size, which are not what the model decodes.
    const side = Math.sqrt(images[0].length / 3);
    const where = `at the model’s ${side} × ${side} pixels`;
    if (different === 0) showVerdict(`Exact ${where}: A and B came back from their codes, all ${all} values.`, "good");
    else showVerdict(`Not exact ${where}: ${count} of ${all} values of A and B changed through their codes.`, "bad");
  }
}
