/**
 * The two pictures A and B, their codes, and everything that is decoded from them.
 * @module
 */

import { between, differences, isFiniteCode, join, onArc, split } from "./codes.js";
import { hasColoursOf } from "./colours.js";
import { Picture, byId, element } from "./elements.js";
import { FrameRate, latestOnly } from "./live.js";
import { PairMap } from "./map.js";
import { createPad } from "./pad.js";

/** @typedef {import("./codes.js").Codes} Codes */
/** @typedef {import("./codes.js").Code} Code */
/** @typedef {import("./pad.js").Point} Point */
/** @typedef {{a: Uint8Array, b: Uint8Array}} Images */
/** @typedef {{count: number, largest: number}} Difference */

/** A model that takes longer for the four pictures of the switch is left alone: its map would take minutes. */
const SLOWEST_SWITCH_MS = 1500;

/** The cells of the switch, row by row: z goes down, v across. Also the corners of the map. */
const CELLS = [
  { z: 0, v: 0, caption: "A, back again", file: "a-again" },
  { z: 0, v: 1, caption: "B with the z of A", file: "v-of-b-z-of-a" },
  { z: 1, v: 0, caption: "A with the z of B", file: "v-of-a-z-of-b" },
  { z: 1, v: 1, caption: "B, back again", file: "b-again" },
];

/** Two pictures, switched and interpolated. */
export class Pair {
  #codes;
  #size = 0;
  /** @type {Images | null} */
  #images = null;
  /** @type {Code[] | null} The codes of A and B. */
  #pair = null;
  /** @type {Point} */
  #point = { x: 0, y: 0.5 };
  #cells = CELLS.map(({ caption, file }) => new Picture(caption, file));
  #captions = CELLS.map(({ caption }) => element("figcaption", {}, [caption]));
  #between = new Picture("Between A and B", "between");
  #showPair = latestOnly((images) => this.#guarded(() => this.#switch(images)));
  #showPoint = latestOnly((point) => this.#guarded(() => this.#interpolate(point)));
  #onComplaint;
  #onPicture;
  #onCodes;
  #map;
  #pad;

  /** Frames per second of the most recent drag. */
  rate = new FrameRate();

  /**
   * @param {Codes} codes
   * @param {(index: number, text: string) => void} onComplaint Told what is wrong with a picture.
   * @param {() => void} onPicture Told when decoded pictures have been shown.
   * @param {(images: Uint8Array[], pair: Code[], size: number) => void} onCodes Given A and B with their codes; these
   *   are empty where they are not finite.
   */
  constructor(codes, onComplaint, onPicture, onCodes) {
    this.#codes = codes;
    this.#onComplaint = onComplaint;
    this.#onPicture = onPicture;
    this.#onCodes = onCodes;
    buildGrid(this.#cells, this.#captions);
    byId("between-picture").append(this.#between.element);
    this.#map = new PairMap(byId("pad"));
    this.#pad = createPad(byId("pad"), byId("pad-track"), byId("pad-thumb"), {
      onMove: (point) => this.#move(point),
      onStart: () => this.rate.restart(),
      describe: ({ x, y }) => `z ${percent(y)} from B, v ${percent(x)} from B`,
    });
    for (const name of ["alpha", "beta"]) byId(name).addEventListener("input", () => this.#readRanges());
    this.#showPlace();
  }

  /**
   * @param {Images} images
   * @param {number} size
   * @returns {Promise<void>}
   */
  async show(images, size) {
    if (this.#images?.a === images.a && this.#images?.b === images.b) return;
    this.#images = images;
    this.#size = size;
    await this.#showPair(images);
  }

  /** @param {() => Promise<void>} work */
  async #guarded(work) {
    try {
      await work();
    } catch (error) {
      tell(`The model failed: ${error.message}`, false);
    }
  }

  /** @param {Images} images */
  async #switch(images) {
    const { a, b } = images;
    const encoded = await this.#codes.encode(join([a, b]), 2);
    // Newer ones wait: of these nobody wants to hear any more.
    if (images !== this.#images) return;
    const [zs, vs] = [split(encoded.z, 2), split(encoded.v, 2)];
    this.#pair = [0, 1].map((index) => ({ z: zs[index], v: vs[index] }));
    if (!this.#allFinite()) return this.#clear();
    const start = performance.now();
    const decoded = await this.#decodeCells(zs, vs);
    const fast = performance.now() - start < SLOWEST_SWITCH_MS;
    this.#showCells(decoded);
    this.#showCaptions([a, b], decoded);
    this.#judge(differences(a, decoded[0]), differences(b, decoded[3]), a.length);
    this.#onPicture();
    this.#onCodes([a, b], this.#pair, this.#size);
    this.#showPoint(this.#point);
    if (fast) this.#guarded(() => this.#fillMap());
  }

  /** @param {Float32Array[]} zs @param {Float32Array[]} vs @returns {Promise<Uint8Array[]>} */
  async #decodeCells(zs, vs) {
    const [z, v] = [join(CELLS.map((cell) => zs[cell.z])), join(CELLS.map((cell) => vs[cell.v]))];
    return split(await this.#codes.decode(z, v, CELLS.length), CELLS.length);
  }

  #fillMap() {
    return this.#map.fill(this.#pair, this.#size, (z, v, count) => this.#codes.decode(z, v, count));
  }

  #allFinite() {
    const finite = this.#pair.map(isFiniteCode);
    finite.forEach((fine, index) => fine || this.#onComplaint(index, notFinite("AB"[index])));
    return finite.every(Boolean);
  }

  #clear() {
    this.#pair = null;
    for (const picture of [...this.#cells, this.#between]) picture.clear();
    this.#map.clear();
    this.#onCodes([], [], this.#size);
    tell("Nothing to swap: a picture has no finite codes.", false);
  }

  /** @param {Uint8Array[]} decoded */
  #showCells(decoded) {
    decoded.forEach((pixels, index) => this.#cells[index].show(pixels, this.#size));
    this.#map.showCorners(decoded, this.#size);
  }

  /**
   * Says of a switched picture that it has the colours of the other where it has.
   * @param {Uint8Array[]} images
   * @param {Uint8Array[]} decoded
   */
  #showCaptions(images, decoded) {
    CELLS.forEach(({ z, v, caption }, index) => {
      const taken = z !== v && hasColoursOf(decoded[index], images[v], images[z]);
      const text = taken ? `${"AB"[v]} in the colours of ${"AB"[z]}` : caption;
      this.#captions[index].textContent = text;
      this.#cells[index].rename(text);
    });
  }

  /**
   * @param {Difference} ofA
   * @param {Difference} ofB
   * @param {number} length
   */
  #judge(ofA, ofB, length) {
    if (ofA.count + ofB.count === 0) {
      tell(`Exact: A and B came back from their codes with all ${length.toLocaleString("en")} values unchanged.`, true);
    } else {
      tell(`Not exact: ${lost("A", ofA, length)}, ${lost("B", ofB, length)}.`, false);
    }
  }

  /** @param {Point} point */
  #move(point) {
    this.#point = point;
    this.#showPlace();
    this.#showPoint(point);
  }

  #readRanges() {
    this.#move({ x: byId("beta").valueAsNumber, y: byId("alpha").valueAsNumber });
  }

  #showPlace() {
    const { x, y } = this.#point;
    this.#pad.show(this.#point);
    [byId("alpha").value, byId("beta").value] = [String(y), String(x)];
    [byId("alpha-text").textContent, byId("beta-text").textContent] = [percent(y), percent(x)];
  }

  /** @param {Point} point */
  async #interpolate({ x, y }) {
    const pair = this.#pair;
    if (!pair) return;
    const [a, b] = pair;
    const pixels = await this.#codes.decode(between(a.z, b.z, y), onArc(a.v, b.v, x), 1);
    if (pair !== this.#pair) return;
    this.#between.show(pixels, this.#size);
    this.rate.tick();
    this.#showRate();
  }

  #showRate() {
    const rate = this.rate.value();
    if (rate) byId("rate").textContent = `${Math.round(rate)} pictures per second`;
  }
}

/** @param {Picture[]} cells @param {HTMLElement[]} captions */
function buildGrid(cells, captions) {
  const header = (letter, kind) => [element("i", {}, [letter]), ` of ${kind}`];
  const nodes = [element("span")];
  for (const kind of ["A", "B"]) nodes.push(element("p", { class: "column v" }, header("v", kind)));
  cells.forEach((picture, index) => {
    if (index % 2 === 0) nodes.push(element("p", { class: "row z" }, header("z", "AB"[index / 2])));
    nodes.push(element("figure", {}, [picture.element, captions[index]]));
  });
  byId("switch-grid").append(...nodes);
}

/** @param {string} text @param {boolean} good */
function tell(text, good) {
  byId("verdict").textContent = text;
  byId("verdict").classList.toggle("good", good);
  byId("verdict").classList.toggle("bad", !good);
}

/** @param {string} letter */
function notFinite(letter) {
  return `Picture ${letter} has no finite codes: it lies too far from what this model was trained on. Try another one.`;
}

/** @param {string} letter @param {Difference} difference @param {number} length */
function lost(letter, { count, largest }, length) {
  if (count === 0) return `${letter} came back unchanged`;
  return `in ${letter} ${count} of ${length.toLocaleString("en")} values differ, by at most ${largest}`;
}

/** @param {number} share */
function percent(share) {
  return `${Math.round(share * 100)} %`;
}
