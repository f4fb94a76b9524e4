/**
 * The model as the page sees it: images to codes z and v, and back.
 * @module
 */

import { tryCard } from "./webgpu_trial.js";
import { Runner } from "./worker_client.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */
/** @typedef {import("./worker_client.js").Progress} Progress */

/**
 * @typedef {object} Config model/config.json; examples/web/README.md describes it.
 * @property {string} name
 * @property {number[]} image_shape
 * @property {number} centre_crop Side in pixels of the middle square of a picture; 0 for the largest.
 * @property {number} latent_dim
 * @property {number} n_bits Bits of a colour value as the model sees it.
 * @property {number[]} [label_shares] Of a model whose sampler takes labels: how often each is drawn.
 * @property {number | null} bits_per_dim
 * @property {string} data
 * @property {boolean} web_gpu Whether the runtime for graphics cards lies beside the page.
 * @property {Record<string, number>} sizes Bytes of the files that the page downloads.
 * @property {{file: string, title: string, author: string, licence: string, seen: boolean | null}[]} examples
 * @property {{name: string, vector: number[], told?: string}[]} [directions] In z.
 */

/** The model, running in a worker: on the processor, or on the graphics card. */
export class Codes {
  #processor;
  /** @type {Runner | null} The processor goes on where it fails. */
  #card = null;
  /** @type {Config} */
  #config;
  #threads = 1;
  #note = "";
  /** Called when something else computes. */
  onChange = () => {};

  /** @param {(progress: Progress) => void} onProgress */
  constructor(onProgress) {
    this.#processor = new Runner("wasm", onProgress);
  }

  /** Downloads and starts what encoding and decoding need. @param {Promise<Config>} config */
  async load(config) {
    const [known, { threads }] = await Promise.all([config, this.#processor.ask("load", { provider: "wasm" })]);
    [this.#config, this.#threads] = [known, threads];
  }

  /** Lets the graphics card take over where it is exact and faster. The codes stay valid. */
  async tryCard() {
    const { runner, note } = await tryCard(this.#processor, this.#config);
    this.#card = runner;
    this.#note = note;
    this.onChange();
  }

  /** @returns {"wasm" | "webgpu"} */
  get provider() {
    return this.#card ? "webgpu" : "wasm";
  }

  /** What computes, for people. */
  get device() {
    const threads = this.#threads === 1 ? "one thread" : `${this.#threads} threads`;
    const device = this.#card ? "the graphics card (WebGPU)" : `the processor (${threads})`;
    return this.#note ? `${device}: ${this.#note}` : device;
  }

  /**
   * @param {Uint8Array} images `count` images, one after the other.
   * @param {number} count
   * @returns {Promise<Code>} The codes, one after the other.
   */
  encode(images, count) {
    return this.#ask("encode", { images, count });
  }

  /**
   * @param {Float32Array} z
   * @param {Float32Array} v
   * @param {number} count
   * @returns {Promise<Uint8Array>} The images, one after the other.
   */
  async decode(z, v, count) {
    return (await this.#ask("decode", { z, v, count })).images;
  }

  /**
   * @param {Float32Array} zNoise Standard normal, of z's size.
   * @param {Float32Array} vNoise Standard normal, of v's size.
   * @param {Float32Array} temperature One for each image; it scales the noise of v.
   * @param {number} count
   * @param {Int32Array} [labels] One for each image, where the sampler takes them.
   * @returns {Promise<Uint8Array>} The images, one after the other.
   */
  async sample(zNoise, vNoise, temperature, count, labels) {
    return (await this.#ask("sample", { zNoise, vNoise, temperature, count, labels })).images;
  }

  /** @param {string} task @param {object} content @returns {Promise<any>} */
  async #ask(task, content) {
    const message = { ...content, imageSize: this.#config.image_shape[0], latentDim: this.#config.latent_dim };
    const card = this.#card;
    if (card) {
      try {
        return await card.ask(task, message);
      } catch (error) {
        if (this.#card === card) {
          this.#card = null;
          this.#note = `the graphics card failed: ${error.message}`;
          card.stop();
          this.onChange();
        }
      }
    }
    return this.#processor.ask(task, message);
  }
}
