/**
 * Encodes images to the codes z and v, decodes codes, and samples new images.
 * @module
 */

import { tryWebGpu } from "./webgpu_trial.js";
import { WorkerClient } from "./worker_client.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */
/** @typedef {import("./worker_client.js").Progress} Progress */

/**
 * @typedef {object} Config The content of model/config.json.
 * @property {string} name
 * @property {number[]} image_shape Height, width and channels.
 * @property {number} centre_crop Side in pixels of the middle square that training kept; 0 means the largest square.
 * @property {number} latent_dim How many numbers z has.
 * @property {number} colours How many numbers at the beginning of z are the image's colours; 0 if z has no such part.
 * @property {number} n_bits Bits per colour value.
 * @property {number[]} [label_shares] The probability of each label, for a model whose sampler takes labels.
 * @property {number | null} bits_per_dim
 * @property {string} data The name of the training data.
 * @property {boolean} web_gpu Whether the export contains the runtime for WebGPU.
 * @property {Record<string, number>} sizes The size in bytes of each file that the page downloads.
 * @property {{file: string, title: string, author: string, licence: string, seen: boolean | null}[]} examples The example
 *   pictures; `seen` says whether the model was trained on one, and is null if that is not known.
 * @property {{name: string, vector: number[], description?: string}[]} [directions] Directions in z. The page shows the
 *   description as a tooltip.
 */

/** Runs the model in a worker, with WebAssembly or on the graphics card. */
export class Model {
  #cpuWorker;
  /** @type {WorkerClient | null} */
  #gpuWorker = null;
  /** @type {Config} */
  #config;
  #threads = 1;
  #gpuNote = "";
  /** Called when the result of `describeDevice` changes. */
  onDeviceChange = () => {};

  /** @param {(progress: Progress) => void} onProgress Called during downloads. */
  constructor(onProgress) {
    this.#cpuWorker = new WorkerClient("wasm", onProgress);
  }

  /** Downloads and starts the runtime, the encoder and the decoder. @param {Promise<Config>} configPromise */
  async load(configPromise) {
    const loading = this.#cpuWorker.request("load", { provider: "wasm" });
    const [config, { threads }] = await Promise.all([configPromise, loading]);
    [this.#config, this.#threads] = [config, threads];
  }

  /** Switches to the graphics card if it is exact and faster. Codes from before the switch stay valid. */
  async tryWebGpu() {
    const { gpuWorker, note } = await tryWebGpu(this.#cpuWorker, this.#config);
    this.#gpuWorker = gpuWorker;
    this.#gpuNote = note;
    this.onDeviceChange();
  }

  /** @returns {"wasm" | "webgpu"} What runs the model: WebAssembly, or the graphics card. */
  get provider() {
    return this.#gpuWorker ? "webgpu" : "wasm";
  }

  /** @returns {string} What runs the model, and the outcome of the trial of WebGPU, as a text for the page. */
  describeDevice() {
    const threads = this.#threads === 1 ? "one thread" : `${this.#threads} threads`;
    const device = this.#gpuWorker ? "the graphics card (WebGPU)" : `the processor (${threads})`;
    return this.#gpuNote ? `${device}: ${this.#gpuNote}` : device;
  }

  /**
   * Encodes a batch of images.
   * @param {Uint8Array} images RGB, `count` images of the model's size, one after the other.
   * @param {number} count
   * @returns {Promise<Code>} The z of all images one after the other, and the v of all images.
   */
  encode(images, count) {
    return this.#request("encode", { images, count });
  }

  /**
   * Decodes a batch of codes.
   * @param {Float32Array} z `count * latent_dim` numbers.
   * @param {Float32Array} v As many numbers as the images have values.
   * @param {number} count
   * @returns {Promise<Uint8Array>} RGB, the images one after the other.
   */
  async decode(z, v, count) {
    return (await this.#request("decode", { z, v, count })).images;
  }

  /**
   * Samples a batch of new images.
   * @param {Float32Array} zNoise Standard normal, `count * latent_dim` numbers.
   * @param {Float32Array} vNoise Standard normal, as many numbers as the images have values.
   * @param {Float32Array} temperature For each image, the factor by which the sampler scales the noise of v.
   * @param {number} count
   * @param {Int32Array} [labels] One label for each image, if the sampler takes labels.
   * @returns {Promise<Uint8Array>} RGB, the images one after the other.
   */
  async sample(zNoise, vNoise, temperature, count, labels) {
    return (await this.#request("sample", { zNoise, vNoise, temperature, count, labels })).images;
  }

  /**
   * Runs a task on the graphics card if that is in use. If the card fails, this and all later tasks run on the processor.
   * @param {string} task
   * @param {object} content
   * @returns {Promise<any>}
   */
  async #request(task, content) {
    const message = { ...content, imageSize: this.#config.image_shape[0], latentDim: this.#config.latent_dim };
    const gpuWorker = this.#gpuWorker;
    if (gpuWorker) {
      try {
        return await gpuWorker.request(task, message);
      } catch (error) {
        // Of several tasks that fail together, only the first one stops the worker.
        if (this.#gpuWorker === gpuWorker) {
          this.#gpuWorker = null;
          this.#gpuNote = `the graphics card failed: ${error.message}`;
          gpuWorker.stop();
          this.onDeviceChange();
        }
      }
    }
    return this.#cpuWorker.request(task, message);
  }
}
