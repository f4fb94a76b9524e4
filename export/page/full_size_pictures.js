/**
 * Computes the four pictures of the grid at the size of the reader's photographs.
 * @module
 */

import { interpolateLinearly, joinBatch, splitBatch } from "./code_arithmetic.js";
import { applyColourMaps, fitColourMaps, shrinkToSquare } from "./guided_filter.js";
import { readPhotograph, roundToBins } from "./image_files.js";
import { runLatestOnly } from "./latest_request.js";
import { getElement } from "./page_elements.js";

/** The longest side of a picture at full size, in pixels. Larger photographs are shrunk. */
const LONGEST_SIDE = 2048;
/** How far z is interpolated from one photograph to the other: 0 is the z of the first, 1 of the second. */
const STRENGTH = 0.7;
/** How many rows of a picture are computed before the page handles events again. */
const ROWS_AT_ONCE = 64;
/** The cells of the grid that show A and B. */
const ORIGINAL_CELLS = [0, 3];
/** The cell that shows v of A with z of B, and the cell that shows v of B with z of A. */
const SWITCHED_CELLS = [2, 1];

/** @typedef {{blob: Blob, name: string, photograph?: Promise<any>}} File A picture file, and its pixels once read. */

/** Computes the four pictures at full size and shows them in the grid. */
export class FullSizePictures {
  #model;
  #grid;
  #config;
  /** @type {(File | null)[]} */
  #files = [null, null];
  #queuePictures = runLatestOnly((files) => this.#computePictures(files));

  /**
   * @param {import("./model.js").Model} model
   * @param {import("./swap_grid.js").SwapGrid} grid
   * @param {Promise<any>} config
   */
  constructor(model, grid, config) {
    [this.#model, this.#grid, this.#config] = [model, grid, config];
    for (const id of ["view-model", "view-full-size"]) {
      getElement(id).addEventListener("change", () => this.#selectView());
    }
  }

  /** Sets the file of a picture. @param {number} index 0 for A, 1 for B. @param {Blob} blob @param {string} name */
  setFile(index, blob, name) {
    this.#files = this.#files.with(index, { blob, name });
  }

  /** Starts computing the pictures. The files of A and B must be set, and the model must be loaded. */
  requestPictures() {
    this.#queuePictures(this.#files);
  }

  /** Shows the grid at the size that the reader selected. */
  #selectView() {
    getElement("grid").classList.toggle("model", getElement("view-model").checked);
  }

  /** Computes and shows the pictures, unless the reader chooses another file meanwhile. @param {File[]} files */
  async #computePictures(files) {
    const { image_shape: [size], n_bits: bits } = await this.#config;
    const photographs = await Promise.all(
      files.map((file) => (file.photograph ??= readPhotograph(file.blob, file.name, LONGEST_SIDE))),
    );
    // A picture no larger than the model's images has no further detail to show.
    if (photographs.some(({ width, height }) => Math.max(width, height) <= size)) return;
    const before = photographs.map(({ rgba, width, height }) =>
      roundToBins(shrinkToSquare(rgba, width, height, size), bits),
    );
    const encoded = await this.#model.encode(joinBatch(before), 2);
    const [zs, vs] = [splitBatch(encoded.z, 2), splitBatch(encoded.v, 2)];
    const switchedZs = [interpolateLinearly(zs[0], zs[1], STRENGTH), interpolateLinearly(zs[1], zs[0], STRENGTH)];
    const after = splitBatch(await this.#model.decode(joinBatch(switchedZs), joinBatch(vs), 2), 2);
    for (const [index, photograph] of photographs.entries()) {
      const { width, height, rgba } = photograph;
      const maps = fitColourMaps(before[index], after[index], size);
      const result = new ImageData(width, height);
      for (let row = 0; row < height; row += ROWS_AT_ONCE) {
        if (files !== this.#files) return;
        applyColourMaps(maps, size, photograph, result.data, row, Math.min(row + ROWS_AT_ONCE, height));
        await new Promise((resolve) => setTimeout(resolve));
      }
      this.#grid.showFullSize(ORIGINAL_CELLS[index], new ImageData(rgba, width, height));
      this.#grid.showFullSize(SWITCHED_CELLS[index], result);
    }
    getElement("view").hidden = false;
  }
}
