/**
 * The section that samples new pictures.
 * @module
 */

import { LoadBar, Picture, byId, latestOnly } from "./page_elements.js";
import { drawInteger, drawNormals } from "./seeded_random.js";

const COUNT = 8;

/** Temperature, seed, button and pictures. */
export class Samples {
  #codes;
  /** @type {import("./model.js").Config} */
  #config;
  #pictures = Array.from({ length: COUNT }, (_, index) => new Picture(`Sample ${index + 1}`, `sample-${index + 1}`));
  #started = false;
  #turn = 0;
  #request = latestOnly((turn) => this.#sample(turn));

  /** @param {import("./model.js").Codes} codes */
  constructor(codes) {
    this.#codes = codes;
    /** Of the sampler's download. */
    this.bar = new LoadBar("sample-load", "sampler");
    byId("samples").append(...this.#pictures.map((picture) => picture.element));
    byId("sample-form").addEventListener("submit", (event) => {
      event.preventDefault();
      // The first press takes the seed that is there.
      if (this.#started) byId("seed").value = String(byId("seed").valueAsNumber + 1 || 0);
      this.#show();
    });
    for (const id of ["seed", "temperature"]) byId(id).addEventListener("input", () => this.#started && this.#show());
  }

  /** Lets the reader sample. @param {import("./model.js").Config} config */
  enable(config) {
    this.#config = config;
    byId("sample").disabled = false;
  }

  #show() {
    if (!this.#started) this.bar.element.hidden = false;
    this.#started = true;
    for (const picture of this.#pictures) picture.expire();
    this.#request(++this.#turn);
  }

  /** @param {number} turn */
  async #sample(turn) {
    byId("sample-problem").textContent = "";
    const [seed, temperature] = [byId("seed").valueAsNumber || 0, byId("temperature").valueAsNumber];
    const { image_shape: [size], latent_dim: latentDim, label_shares: shares } = this.#config;
    try {
      for (const [index, picture] of this.#pictures.entries()) {
        // Each picture has streams of its own: its noise does not depend on how many there are.
        const noise = drawNormals(seed, index, latentDim + size * size * 3);
        const labels = shares && Int32Array.of(drawInteger(seed, COUNT + index, shares));
        const codes = [noise.slice(0, latentDim), noise.slice(latentDim)];
        const pixels = await this.#codes.sample(codes[0], codes[1], Float32Array.of(temperature), 1, labels);
        this.bar.element.hidden = true;
        if (turn !== this.#turn) return;
        picture.show(pixels);
      }
    } catch (error) {
      this.bar.element.hidden = true;
      byId("sample-problem").textContent = error.message;
    }
  }
}
