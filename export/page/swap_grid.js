/**
 * The two pictures A and B, and what becomes of them when their codes are swapped.
 * @module
 */

import { countDifferences, hasColoursOf, joinBatch, splitBatch } from "./code_arithmetic.js";
import { Picture, byId, element, latestOnly, showVerdict } from "./page_elements.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */
/** @typedef {[Uint8Array, Uint8Array]} Images A and B. */

const LETTERS = ["A", "B"];
/** The cells of the grid, row by row: z goes down, v across. */
const CELLS = [
  { z: 0, v: 0, file: "a" },
  { z: 0, v: 1, file: "v-of-b-z-of-a" },
  { z: 1, v: 0, file: "v-of-a-z-of-b" },
  { z: 1, v: 1, file: "b" },
];
const SWITCHED = [1, 2];

/** The grid of four pictures, of which A and B are two. */
export class Swap {
  #codes;
  #onCodes;
  #pictures = CELLS.map(({ file }) => new Picture("", file));
  #rows = LETTERS.map(() => element("p", { class: "row z" }));
  /** @type {(Uint8Array | null)[]} */
  #images = [null, null];
  #started = false;
  #request = latestOnly((images) => this.#swap(images));

  /**
   * @param {import("./model.js").Codes} codes
   * @param {(pair: [Code, Code] | null, decoded: Uint8Array[], milliseconds: number) => void} onCodes Is given the codes
   *   of A and B, the four pictures, and how long they took; null as soon as there are none.
   */
  constructor(codes, onCodes) {
    [this.#codes, this.#onCodes] = [codes, onCodes];
    const columns = LETTERS.map((letter) => element("p", { class: "column v" }, [element("i", {}, ["v"]), ` of ${letter}`]));
    const [topLeft, topRight, bottomLeft, bottomRight] = this.#pictures.map((picture) => picture.element);
    [topLeft.dataset.slot, bottomRight.dataset.slot] = LETTERS;
    const [first, second] = this.#rows;
    byId("grid").append(element("span"), ...columns, first, topLeft, topRight, second, bottomLeft, bottomRight);
    this.#describe([false, false]);
  }

  /** @param {number} index 0 for A, 1 for B. @param {Uint8Array} pixels */
  put(index, pixels) {
    this.#images = this.#images.with(index, pixels);
    for (const picture of this.#pictures) picture.hideOwnSize();
    this.#pictures[index * 3].show(pixels);
    for (const cell of SWITCHED) this.#pictures[cell].expire();
    this.#describe([false, false]);
    this.#onCodes(null, [], 0);
    showVerdict("", "open");
    this.#compute();
  }

  /** @param {number} cell @param {ImageData} image The picture of a cell at the size of a photograph. */
  showOwnSize(cell, image) {
    this.#pictures[cell].showOwnSize(image);
  }

  /** Begins: the model is loaded. */
  start() {
    this.#started = true;
    this.#compute();
  }

  #compute() {
    if (!this.#started || this.#images.includes(null)) return;
    showVerdict("Computing …", "open");
    this.#request(/** @type {Images} */ (this.#images));
  }

  /** @param {Images} images */
  async #swap(images) {
    const start = performance.now();
    const encoded = await this.#codes.encode(joinBatch(images), 2);
    const [zs, vs] = [splitBatch(encoded.z, 2), splitBatch(encoded.v, 2)];
    const broken = LETTERS.filter((_, k) => ![...zs[k], ...vs[k]].every(Number.isFinite));
    const z = joinBatch(CELLS.map((cell) => zs[cell.z]));
    const v = joinBatch(CELLS.map((cell) => vs[cell.v]));
    const decoded = broken.length ? [] : splitBatch(await this.#codes.decode(z, v, CELLS.length), CELLS.length);
    // Newer pictures wait: of these nobody wants to hear any more.
    if (images !== this.#images) return;
    if (broken.length) {
      return showVerdict(`Picture ${broken[0]} is too far from what this model was trained on: its codes are not finite.`, "bad");
    }
    decoded.forEach((pixels, index) => this.#pictures[index].show(pixels));
    this.#describe(SWITCHED.map((cell) => hasColoursOf(decoded[cell], images[CELLS[cell].v], images[CELLS[cell].z])));
    this.#judge(countDifferences(images[0], decoded[0]) + countDifferences(images[1], decoded[3]), 2 * images[0].length);
    this.#onCodes([0, 1].map((k) => ({ z: zs[k], v: vs[k] })), decoded, performance.now() - start);
  }

  /** Calls z "colours" in the rows where it was measured to carry them. @param {boolean[]} carriesColours By row. */
  #describe(carriesColours) {
    this.#rows.forEach((row, k) => {
      row.replaceChildren(carriesColours[k] ? "colours" : element("i", {}, ["z"]), ` of ${LETTERS[k]}`);
    });
    this.#pictures.forEach((picture, index) => {
      const { z, v } = CELLS[index];
      const taken = carriesColours[z] ? "in the colours of" : "with the z of";
      picture.rename(z === v ? LETTERS[z] : `${LETTERS[v]} ${taken} ${LETTERS[z]}`);
    });
  }

  /** @param {number} different @param {number} values */
  #judge(different, values) {
    const [count, all] = [different, values].map((number) => number.toLocaleString("en"));
    if (different === 0) showVerdict(`Exact: A and B came back from their codes, all ${all} values.`, "good");
    else showVerdict(`Not exact: ${count} of ${all} values of A and B changed on the way through their codes.`, "bad");
  }
}
