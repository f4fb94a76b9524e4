/**
 * The model as the page sees it: images to codes z and v, and back.
 * @module
 */

import { DownloadError, LoadError, download } from "./download.js";
import { tryCard } from "./graphics.js";
import { Runner } from "./runner.js";

/**
 * @typedef {object} Config What model/config.json says.
 * @property {string} name
 * @property {number} image_size
 * @property {number} [centre_crop] Side in pixels of the middle square of a picture; 0 for the largest.
 * @property {number} latent_dim
 * @property {number[]} [label_shares] Of a model whose sampler takes labels: how often each is drawn.
 * @property {number | null} bits_per_dim
 * @property {string} data
 * @property {number} [n_bits] Of a colour value as the model sees it; 8 where it is missing.
 * @property {Record<string, number>} sizes Bytes of the encoder, decoder and sampler, and of the runtime's files.
 * @property {Example[]} examples Pictures to begin with.
 * @property {string | null} [project] Address of the project that made the page.
 * @property {Direction[]} [directions] In z, that change one thing about a picture.
 */

/**
 * @typedef {object} Example
 * @property {string} file
 * @property {string} title
 * @property {string} author
 * @property {string} licence
 * @property {boolean | null} seen Whether the model was trained on it; null where nobody knows.
 */

/**
 * @typedef {object} Direction
 * @property {string} name
 * @property {number[]} vector `latent_dim` numbers; an amount of 1 goes as far.
 * @property {string} [told] What was measured of it.
 */

/**
 * @typedef {object} Code The two codes of one image.
 * @property {Float32Array} z Global, `latent_dim` numbers.
 * @property {Float32Array} v Local, as many numbers as the image has.
 */

/** @typedef {{file: string, loaded: number, total: number}} Progress */

/**
 * Reads model/config.json.
 * @returns {Promise<Config>}
 */
export async function loadConfig() {
  const name = "model/config.json";
  const { bytes } = await download(new URL(name, import.meta.url), name);
  let config;
  try {
    config = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new LoadError(`${name} is not JSON.`);
  }
  if (!(config.image_size > 0)) throw new LoadError(`${name} names no image_size.`);
  if (!(config.latent_dim > 0)) throw new LoadError("It has no global code z, so there is nothing to swap.");
  return config;
}

/** The model, running in a worker: on the processor, or on the graphics card. */
export class Codes {
  /** Stays when the card takes over: it goes on where the card fails later. */
  #processor;
  /** @type {Runner | null} */
  #card = null;
  #onProgress;
  /** @type {Config | undefined} */
  #config;
  #threads = 1;
  #told = "";
  /** Called when something else computes. */
  onChange = () => {};

  /** @param {(progress: Progress) => void} onProgress */
  constructor(onProgress) {
    this.#onProgress = onProgress;
    this.#processor = new Runner("wasm", onProgress);
  }

  /**
   * Downloads and starts everything that encoding and decoding need. The configuration may arrive meanwhile.
   * @param {Promise<Config>} config
   * @returns {Promise<Config>}
   */
  async load(config) {
    const [loaded, { threads }] = await Promise.all([config, this.#processor.load()]);
    this.#threads = threads;
    this.#config = loaded;
    return loaded;
  }

  /** Lets the graphics card take over where it is exact and faster. Codes of before are good for it, too. */
  async useCard() {
    const { runner, told } = await tryCard(this.#processor, this.#config);
    this.#told = told;
    if (runner) runner.onProgress = this.#onProgress;
    this.#card = runner;
  }

  /** What computes: "wasm", the processor, or "webgpu", the graphics card. */
  get provider() {
    return this.#card ? "webgpu" : "wasm";
  }

  /** What computes, for people. @returns {string} */
  get runsOn() {
    const threads = this.#threads === 1 ? "one thread" : `${this.#threads} threads`;
    const where = this.provider === "webgpu" ? "the graphics card (WebGPU)" : `the processor (${threads})`;
    return this.#told ? `${where}: ${this.#told}` : where;
  }

  /**
   * @param {Uint8Array} images `count` images, one after the other.
   * @param {number} count
   * @returns {Promise<Code>} The codes, one after the other.
   */
  async encode(images, count) {
    requireLength("images", images, count * this.#valuesPerImage());
    return this.#ask("encode", { images, count });
  }

  /**
   * @param {Float32Array} z
   * @param {Float32Array} v
   * @param {number} count
   * @returns {Promise<Uint8Array>} The images, one after the other.
   */
  async decode(z, v, count) {
    requireLength("z", z, count * this.#config.latent_dim);
    requireLength("v", v, count * this.#valuesPerImage());
    return (await this.#ask("decode", { z, v, count })).images;
  }

  /**
   * @param {Float32Array} zNoise Standard normal noise of z's size.
   * @param {Float32Array} vNoise Standard normal noise of v's size.
   * @param {number | Float32Array} temperature For all images, or one for each. It acts on v.
   * @param {number} count
   * @param {Int32Array} [labels] One for each image, where the sampler takes them.
   * @returns {Promise<Uint8Array>} The images, one after the other.
   */
  async sample(zNoise, vNoise, temperature, count, labels) {
    requireLength("zNoise", zNoise, count * this.#config.latent_dim);
    requireLength("vNoise", vNoise, count * this.#valuesPerImage());
    const each = typeof temperature === "number" ? new Float32Array(count).fill(temperature) : temperature;
    requireLength("temperature", each, count);
    if (this.#config.label_shares) requireLength("labels", labels ?? [], count);
    return (await this.#ask("sample", { zNoise, vNoise, temperature: each, count, labels })).images;
  }

  #valuesPerImage() {
    if (!this.#config) throw new Error("The model is not loaded yet: wait for `ready`.");
    return this.#config.image_size ** 2 * 3;
  }

  /** @param {string} task @param {object} content @returns {Promise<any>} */
  async #ask(task, content) {
    const sizes = { imageSize: this.#config.image_size, latentDim: this.#config.latent_dim };
    const card = this.#card;
    try {
      if (card) return await card.ask(task, { ...sizes, ...copied(content) });
    } catch (error) {
      if (error instanceof DownloadError) throw error;
      // A driver that crashes, a card that is taken away: once is enough.
      if (this.#card === card) this.#told = `the graphics card failed: ${error.message}`;
      this.#card = null;
      card.leave();
      this.onChange();
    }
    return this.#processor.ask(task, { ...sizes, ...copied(content) });
  }
}

/**
 * What a worker may be given: arrays are handed over, and their owners keep them.
 * @param {object} content
 * @returns {object}
 */
function copied(content) {
  const entries = Object.entries(content);
  return Object.fromEntries(entries.map(([name, value]) => [name, ArrayBuffer.isView(value) ? value.slice() : value]));
}

/**
 * Whether all numbers of a code are finite. An image far from what a model was trained on can overflow it.
 * @param {Code} code
 * @returns {boolean}
 */
export function isFiniteCode(code) {
  return code.z.every(Number.isFinite) && code.v.every(Number.isFinite);
}

/**
 * Cuts a batch into equal parts.
 * @template {Uint8Array | Float32Array} T
 * @param {T} batch
 * @param {number} count
 * @returns {T[]}
 */
export function split(batch, count) {
  const length = batch.length / count;
  const part = (_, index) => /** @type {T} */ (batch.slice(index * length, (index + 1) * length));
  return Array.from({ length: count }, part);
}

/**
 * Joins equal parts to a batch.
 * @template {Uint8Array | Float32Array} T
 * @param {T[]} parts
 * @returns {T}
 */
export function join(parts) {
  const Values = /** @type {{new (length: number): T}} */ (parts[0].constructor);
  const batch = new Values(parts.length * parts[0].length);
  parts.forEach((part, index) => batch.set(part, index * part.length));
  return batch;
}

/** Of the sine of the angle between two codes: below, there is no one arc between them. */
const LEAST_SINE = 1e-6;

/**
 * The place on the line between two vectors. Rounded to single precision at each step as in Python, so that both give the same
 * codes; both ends are exact.
 * @param {Float32Array} a At 0.
 * @param {Float32Array} b At 1.
 * @param {number} place
 * @returns {Float32Array}
 */
export function between(a, b, place) {
  const ofB = Math.fround(place);
  const ofA = Math.fround(1 - ofB);
  return a.map((value, index) => Math.fround(ofA * value) + Math.fround(ofB * b[index]));
}

/**
 * The place on the arc around the origin between two vectors, which turns at an even speed while the length goes evenly from
 * one to the other; on the line where there is no one arc. As `slerp` in Python; both ends are exact.
 * @param {Float32Array} a At 0.
 * @param {Float32Array} b At 1.
 * @param {number} place
 * @returns {Float32Array}
 */
export function onArc(a, b, place) {
  const [lengthA, lengthB] = [Math.sqrt(product(a, a)), Math.sqrt(product(b, b))];
  const both = lengthA * lengthB;
  const angle = Math.acos(Math.min(1, Math.max(-1, both > 0 ? product(a, b) / both : 0)));
  const sine = Math.sin(angle);
  if (!(both > 0 && sine > LEAST_SINE)) return between(a, b, place);
  const length = (1 - place) * lengthA + place * lengthB;
  const ofA = Math.fround(((length / lengthA) * Math.sin((1 - place) * angle)) / sine);
  const ofB = Math.fround(((length / lengthB) * Math.sin(place * angle)) / sine);
  return a.map((value, index) => Math.fround(ofA * value) + Math.fround(ofB * b[index]));
}

/** @param {Float32Array} a @param {Float32Array} b */
function product(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index] * b[index];
  return sum;
}

/**
 * The place that some steps lead to. Rounded to single precision at each step as in Python; steps of 0 change nothing.
 * @param {Float32Array} z
 * @param {{amount: number, vector: Float32Array}[]} steps
 * @returns {Float32Array}
 */
export function along(z, steps) {
  const place = z.slice();
  for (const { amount, vector } of steps) {
    const times = Math.fround(amount);
    vector.forEach((value, index) => (place[index] += Math.fround(times * value)));
  }
  return place;
}

/**
 * How far two lists of values are apart.
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 * @returns {{count: number, largest: number}} How many values differ, and by how much at most.
 */
export function differences(a, b) {
  let count = 0;
  let largest = 0;
  for (let index = 0; index < a.length; index++) {
    const distance = Math.abs(a[index] - b[index]);
    if (distance > 0) count++;
    if (distance > largest) largest = distance;
  }
  return { count, largest };
}

/** @param {string} name @param {ArrayLike<number>} values @param {number} length */
function requireLength(name, values, length) {
  if (values.length !== length) throw new RangeError(`${name} has ${values.length} values instead of ${length}.`);
}
