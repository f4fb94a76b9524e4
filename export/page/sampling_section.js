/**
 * Runs the section "Make new pictures", which samples from the model.
 * @module
 */

import { runLatestOnly } from "./latest_request.js";
import { LoadBar, Picture, getElement } from "./page_elements.js";
import { drawInteger, drawNormals } from "./seeded_random.js";

const PICTURES = 8;

/** Shows fields for seed and temperature, and the pictures sampled with them. */
export class SamplingSection {
  #model;
  /** @type {import("./model.js").Config} */
  #config;
  #pictures = Array.from({ length: PICTURES }, (_, index) => new Picture(`Sample ${index + 1}`, `sample-${index + 1}`));
  #started = false;
  #requestNumber = 0;
  #requestPictures = runLatestOnly((number) => this.#samplePictures(number));

  /** @param {import("./model.js").Model} model */
  constructor(model) {
    this.#model = model;
    this.loadBar = new LoadBar("sample-load", "sampler");
    getElement("samples").append(...this.#pictures.map((picture) => picture.element));
    const seed = getElement("seed");
    getElement("sample-form").addEventListener("submit", (event) => {
      event.preventDefault();
      // The first click uses the seed as it stands in the field; each further click uses the next one.
      if (this.#started) seed.value = String(seed.valueAsNumber + 1 || 0);
      this.#startSampling();
    });
    for (const id of ["seed", "temperature"]) {
      getElement(id).addEventListener("input", () => this.#started && this.#startSampling());
    }
  }

  /** Enables the button, once the model is loaded. @param {import("./model.js").Config} config */
  enable(config) {
    this.#config = config;
    getElement("sample").disabled = false;
  }

  /** Marks the shown pictures as stale and requests new ones. */
  #startSampling() {
    if (!this.#started) this.loadBar.element.hidden = false;
    this.#started = true;
    for (const picture of this.#pictures) picture.markStale();
    this.#requestPictures(++this.#requestNumber);
  }

  /** Samples the pictures one by one, and stops when a newer request exists. @param {number} requestNumber */
  async #samplePictures(requestNumber) {
    getElement("sample-problem").textContent = "";
    const [seed, temperature] = [getElement("seed").valueAsNumber || 0, getElement("temperature").valueAsNumber];
    const { image_shape: [size], latent_dim: latentDim, label_shares: shares } = this.#config;
    try {
      for (const [index, picture] of this.#pictures.entries()) {
        // Each picture has a stream of its own, so its noise does not depend on the number of pictures.
        const noise = drawNormals(seed, index, latentDim + size * size * 3);
        const labels = shares && Int32Array.of(drawInteger(seed, PICTURES + index, shares));
        const [zNoise, vNoise] = [noise.slice(0, latentDim), noise.slice(latentDim)];
        const pixels = await this.#model.sample(zNoise, vNoise, Float32Array.of(temperature), 1, labels);
        this.loadBar.element.hidden = true;
        if (requestNumber !== this.#requestNumber) return;
        picture.showPixels(pixels);
      }
    } catch (error) {
      this.loadBar.element.hidden = true;
      getElement("sample-problem").textContent = error.message;
    }
  }
}
