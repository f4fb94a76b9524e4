/**
 * Shows the reader's photographs at their own size, unchanged or with another z.
 * @module
 */

import { joinBatch, matchZ, splitBatch } from "./code_arithmetic.js";
import { applyColourMaps, fitColourMaps, shrinkToSquare } from "./guided_filter.js";
import { readPhotograph, roundToBins } from "./image_files.js";
import { runLatestOnly } from "./latest_request.js";
import { getElement } from "./page_elements.js";

/** The longest side of a picture at full size, in pixels. Larger photographs are shrunk. */
const LONGEST_SIDE = 2048;
/** How many rows of a picture are computed before the page handles events again. */
const ROWS_AT_ONCE = 64;

/** @typedef {{blob: Blob, name: string, photograph?: Promise<any>}} File A picture file, and its pixels once read. */
/**
 * @typedef {object} Request
 * @property {number} index The photograph that is shown: 0 for A, 1 for B.
 * @property {(zs: Float32Array[]) => Float32Array} [makeZ] Returns the new z from those of both photographs. Without
 *   this function, the photograph is unchanged.
 * @property {boolean} [isSwitch] Whether the photograph's own z is to become this z, by `matchZ`.
 */

/** Reads the photographs A and B, encodes small copies of them, and changes the photographs as the model changes these. */
export class Photographs {
  #model;
  #config;
  /** @type {(File | null)[]} */
  #files = [null, null];
  /** @type {Promise<any> | null} */
  #encoded = null;

  /** @param {import("./model.js").Model} model @param {Promise<any>} config */
  constructor(model, config) {
    [this.#model, this.#config] = [model, config];
    for (const id of ["view-model", "view-full-size"]) {
      getElement(id).addEventListener("change", () => this.#selectView());
    }
  }

  /** Sets the file of a picture. @param {number} index 0 for A, 1 for B. @param {Blob} blob @param {string} name */
  setFile(index, blob, name) {
    this.#files = this.#files.with(index, { blob, name });
    this.#encoded = null;
  }

  /**
   * Returns a function that covers an image of the model's size with a photograph, or with null uncovers it. Of several
   * requests only the newest one is computed. The files of A and B must be set, and the model must be loaded.
   * @param {import("./page_elements.js").Picture} picture
   * @returns {(request: Request | null) => void}
   */
  connectPicture(picture) {
    /** @type {Request | null} */
    let newest = null;
    const queue = runLatestOnly(async (/** @type {Request} */ request) => {
      const image = await this.#computePhotograph(request, () => request === newest);
      if (image && request === newest) picture.showFullSize(image);
    });
    return (request) => {
      newest = request;
      if (request) queue(request);
      else picture.hideFullSize();
    };
  }

  /** Shows all pictures at the size that the reader selected. */
  #selectView() {
    const isModel = getElement("view-model").checked;
    getElement("main").classList.toggle("model", isModel);
    getElement("strength").disabled = isModel;
  }

  /**
   * Reads the photographs and encodes small copies of them.
   * @param {File[]} files
   * @returns {Promise<any>} Photographs, small copies, zs and vs, each of A and B; null if a picture is no larger than
   *   the model's images, and so has no further detail to show.
   */
  async #encodePhotographs(files) {
    const { image_shape: [size], n_bits: bits, colours } = await this.#config;
    const photographs = await Promise.all(
      files.map((file) => (file.photograph ??= readPhotograph(file.blob, file.name, LONGEST_SIDE))),
    );
    const hasDetail = photographs.every(({ width, height }) => Math.max(width, height) > size);
    if (files === this.#files) getElement("view").hidden = !hasDetail;
    if (!hasDetail) return null;
    const before = photographs.map(({ rgba, width, height }) =>
      roundToBins(shrinkToSquare(rgba, width, height, size), bits),
    );
    const { z, v } = await this.#model.encode(joinBatch(before), 2);
    return { size, colours, photographs, before, zs: splitBatch(z, 2), vs: splitBatch(v, 2) };
  }

  /**
   * Computes a photograph with another z. Between two bands of rows the page handles events.
   * @param {Request} request
   * @param {() => boolean} isNewest Returns false when the result is no longer needed.
   * @returns {Promise<ImageData | null>} Null if the result is not needed, or the pictures are small.
   */
  async #computePhotograph({ index, makeZ, isSwitch }, isNewest) {
    this.#encoded ??= this.#encodePhotographs(/** @type {File[]} */ (this.#files));
    const encoded = await this.#encoded;
    if (!encoded || !isNewest()) return null;
    const { size, colours, zs } = encoded;
    const [photograph, before, v] = [encoded.photographs, encoded.before, encoded.vs].map((pair) => pair[index]);
    const { rgba, width, height } = photograph;
    if (!makeZ) return new ImageData(rgba, width, height);
    const decode = (/** @type {Float32Array} */ code) => this.#model.decode(code, v, 1);
    const wanted = makeZ(zs);
    const measureZ = async (/** @type {Float32Array} */ code) => (await this.#model.encode(await decode(code), 1)).z;
    const z = isSwitch ? await matchZ(wanted, colours, measureZ) : wanted;
    if (!isNewest()) return null;
    const maps = fitColourMaps(before, await decode(z), size);
    const result = new ImageData(width, height);
    for (let row = 0; row < height; row += ROWS_AT_ONCE) {
      if (!isNewest()) return null;
      applyColourMaps(maps, size, photograph, result.data, row, Math.min(row + ROWS_AT_ONCE, height));
      await new Promise((resolve) => setTimeout(resolve));
    }
    return result;
  }
}
