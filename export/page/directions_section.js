/**
 * The section that changes one thing about a picture: its z moves along directions, each by a slider.
 * @module
 */

import { moveAlong } from "./code_arithmetic.js";
import { Picture, byId, element, latestOnly } from "./page_elements.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */

/** How many times a direction a slider reaches to both sides. */
const REACH = 2;

/** Sliders, one for each direction, and the picture that they change. */
export class Steering {
  #codes;
  /** @type {[Code, Code] | null} */
  #pair = null;
  /** @type {{input: any, vector: Float32Array}[]} */
  #sliders = [];
  #picture = new Picture("The changed picture", "changed");
  #request = latestOnly(() => this.#decode());

  /** @param {import("./model.js").Codes} codes */
  constructor(codes) {
    this.#codes = codes;
    byId("steer-picture").append(this.#picture.element);
    for (const id of ["steer-a", "steer-b"]) byId(id).addEventListener("change", () => this.#request(null));
    byId("steer-reset").addEventListener("click", () => {
      for (const { input } of this.#sliders) input.value = "0";
      this.#request(null);
    });
  }

  /**
   * Offers the directions of a model; without any the section stays hidden.
   * @param {NonNullable<import("./model.js").Config["directions"]>} directions
   */
  offer(directions) {
    byId("steer").hidden = directions.length === 0;
    this.#sliders = directions.map(({ name, vector, told = "" }) => {
      const range = { type: "range", min: `${-REACH}`, max: `${REACH}`, step: "0.05", value: "0", autocomplete: "off" };
      const input = element("input", range);
      input.addEventListener("input", () => this.#request(null));
      byId("steer-sliders").append(element("label", { title: told }, [element("span", {}, [name]), input]));
      return { input, vector: Float32Array.from(vector) };
    });
  }

  /** @param {[Code, Code] | null} pair The codes of A and B. */
  use(pair) {
    this.#pair = pair;
    this.#picture.expire();
    this.#request(null);
  }

  async #decode() {
    const pair = this.#pair;
    if (!pair || this.#sliders.length === 0) return;
    const { z, v } = pair[Number(byId("steer-b").checked)];
    const steps = this.#sliders.map(({ input, vector }) => ({ amount: input.valueAsNumber, vector }));
    const pixels = await this.#codes.decode(moveAlong(z, steps), v, 1);
    if (pair === this.#pair) this.#picture.show(pixels);
  }
}
