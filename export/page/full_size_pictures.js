/**
 * The switched pictures at the size of the reader's photographs.
 * @module
 */

import { interpolateLinearly, joinBatch, splitBatch } from "./code_arithmetic.js";
import { byId, latestOnly } from "./page_elements.js";
import { applyColourMaps, fitColourMaps, shrink } from "./guided_filter.js";
import { readPhotograph, toLevels } from "./image_files.js";

/** Longer sides are shrunk to so many pixels. */
const LONGEST_SIDE = 2048;
/** How far z goes from the photograph's own to the other's: the default of `tfdecouple switch`. */
const STRENGTH = 0.7;
/** Rows that are computed before the page answers again. */
const ROWS = 64;
/** The cells of A and of B in the grid, and the cells of their switched pictures. */
const OWN = [0, 3];
const SWITCHED = [2, 1];

/** @typedef {{blob: Blob, name: string, read?: Promise<any>}} File A picture file, and what was read of it. */

/** Shows the four pictures at the photographs' own size as soon as they are computed. */
export class OwnSize {
  #codes;
  #swap;
  #config;
  /** @type {(File | null)[]} */
  #files = [null, null];
  #request = latestOnly((files) => this.#compute(files));

  /** @param {import("./model.js").Codes} codes @param {import("./swap_grid.js").Swap} swap @param {Promise<any>} config */
  constructor(codes, swap, config) {
    [this.#codes, this.#swap, this.#config] = [codes, swap, config];
    byId("view-model").addEventListener("change", () => this.#choose());
    byId("view-own").addEventListener("change", () => this.#choose());
  }

  /** @param {number} index 0 for A, 1 for B. @param {Blob} blob @param {string} name */
  put(index, blob, name) {
    this.#files = this.#files.with(index, { blob, name });
  }

  /** Begins: the model's own pictures of both are there. */
  start() {
    this.#request(this.#files);
  }

  #choose() {
    byId("grid").classList.toggle("model", byId("view-model").checked);
  }

  /** @param {File[]} files */
  async #compute(files) {
    const { image_shape: [size], n_bits: bits } = await this.#config;
    const photographs = await Promise.all(files.map((file) => (file.read ??= readPhotograph(file.blob, file.name, LONGEST_SIDE))));
    // Smaller pictures have nothing that the model does not see.
    if (photographs.some(({ width, height }) => Math.max(width, height) <= size)) return;
    const small = photographs.map(({ rgba, width, height }) => toLevels(shrink(rgba, width, height, size), bits));
    const encoded = await this.#codes.encode(joinBatch(small), 2);
    const [zs, vs] = [splitBatch(encoded.z, 2), splitBatch(encoded.v, 2)];
    const moved = [interpolateLinearly(zs[0], zs[1], STRENGTH), interpolateLinearly(zs[1], zs[0], STRENGTH)];
    const after = splitBatch(await this.#codes.decode(joinBatch(moved), joinBatch(vs), 2), 2);
    for (const [index, photograph] of photographs.entries()) {
      const { width, height, rgba } = photograph;
      const maps = fitColourMaps(small[index], after[index], size);
      const result = new ImageData(width, height);
      for (let row = 0; row < height; row += ROWS) {
        if (files !== this.#files) return;
        applyColourMaps(maps, size, photograph, result.data, row, Math.min(row + ROWS, height));
        await new Promise((resolve) => setTimeout(resolve));
      }
      this.#swap.showOwnSize(OWN[index], new ImageData(rgba, width, height));
      this.#swap.showOwnSize(SWITCHED[index], result);
    }
    byId("view").hidden = false;
  }
}
