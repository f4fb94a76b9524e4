/**
 * The section that samples new pictures.
 * @module
 */

import { join, split } from "./codes.js";
import { Picture, byId } from "./elements.js";
import { latestOnly } from "./live.js";
import { Meter, progressText } from "./loading.js";
import { normals, oneOf } from "./random.js";

const COUNT = 8;
const SEEDS = 2 ** 32;
/** Larger pictures come one by one: eight at once would take long and much memory. */
const LARGEST_BATCHED_SIDE = 64;

/** @typedef {import("./codes.js").Codes} Codes */
/** @typedef {import("./codes.js").Config} Config */
/** @typedef {{seed: number, temperature: number}} Request */

/** Sampling: temperature, seed, button and pictures. */
export class Samples {
  #pictures = Array.from({ length: COUNT }, (_, index) => new Picture(`Sample ${index + 1}`, `sample-${index + 1}`));
  #meter = new Meter(["sampler"]);
  #shown = false;
  #request;
  /** @type {Codes} */
  #codes;
  /** @type {Config} */
  #config;

  /** @param {Codes} codes */
  constructor(codes) {
    this.#codes = codes;
    this.#request = latestOnly((request) => this.#sample(request));
    byId("samples").replaceChildren(...this.#pictures.map((picture) => picture.element));
    this.#listen();
    this.#showTemperature();
  }

  /** Lets the reader sample. @param {Config} config */
  enable(config) {
    this.#config = config;
    this.#meter.expect(config.sizes ?? {});
    byId("sample").disabled = byId("next-seed").disabled = false;
  }

  /** @param {import("./codes.js").Progress} progress Of the sampler's download. */
  noteProgress(progress) {
    this.#meter.note(progress);
    byId("sample-text").textContent = progressText("the sampler", this.#meter.sum());
  }

  #listen() {
    byId("sample-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#request(this.#inputs());
    });
    byId("next-seed").addEventListener("click", () => {
      byId("seed").value = String((byId("seed").valueAsNumber + 1 || 0) % SEEDS);
      byId("sample-form").requestSubmit();
    });
    byId("temperature").addEventListener("input", () => {
      this.#showTemperature();
      if (this.#shown) this.#request(this.#inputs());
    });
  }

  #showTemperature() {
    byId("temperature-text").textContent = byId("temperature").valueAsNumber.toFixed(2);
  }

  /** @returns {Request} */
  #inputs() {
    return { seed: byId("seed").valueAsNumber || 0, temperature: byId("temperature").valueAsNumber };
  }

  /** @param {Request} request */
  async #sample(request) {
    const start = performance.now();
    try {
      for (const indices of batches(this.#config.image_size)) await this.#sampleBatch(request, indices);
      this.#shown = true;
      byId("sample-text").textContent = outcome(request, performance.now() - start);
    } catch (error) {
      byId("sample-text").textContent = error.message;
    }
  }

  /** @param {Request} request @param {number[]} indices */
  async #sampleBatch({ seed, temperature }, indices) {
    const { image_size: size, latent_dim: latentDim } = this.#config;
    // Each picture has a stream of its own, so that its noise does not depend on how many there are.
    const noise = indices.map((index) => normals(seed, index, latentDim + size * size * 3));
    const zNoise = join(noise.map((values) => values.slice(0, latentDim)));
    const vNoise = join(noise.map((values) => values.slice(latentDim)));
    // A model whose sampler takes labels is given one for each picture, drawn by its share.
    const shares = this.#config.label_shares;
    const labels = shares && Int32Array.from(indices, (index) => oneOf(seed, COUNT + index, shares));
    const images = split(await this.#codes.sample(zNoise, vNoise, temperature, indices.length, labels), indices.length);
    indices.forEach((index, place) => this.#pictures[index].show(images[place], size));
  }
}

/** @param {number} size @returns {number[][]} */
function batches(size) {
  const all = Array.from({ length: COUNT }, (_, index) => index);
  return size <= LARGEST_BATCHED_SIDE ? [all] : all.map((index) => [index]);
}

/** @param {Request} request @param {number} milliseconds @returns {string} */
function outcome({ seed, temperature }, milliseconds) {
  return `Seed ${seed}, temperature ${temperature.toFixed(2)}: ${COUNT} pictures in ${Math.round(milliseconds)} ms.`;
}
