/**
 * Runs the section "Change one thing": a slider for each direction in z, and a picture that the sliders change.
 * @module
 */

import { addDirections } from "./code_arithmetic.js";
import { runLatestOnly } from "./latest_request.js";
import { Picture, createElement, getElement } from "./page_elements.js";

/** @typedef {import("./code_arithmetic.js").Code} Code */

/** The largest amount of a direction that a slider adds to z or subtracts from z, like the default of `edit`. */
const LARGEST_AMOUNT = 1;

/** Shows A or B after steps along the model's directions in z. */
export class DirectionsSection {
  #model;
  #showPhotograph;
  /** @type {[Code, Code] | null} */
  #codes = null;
  /** @type {{input: any, vector: Float32Array}[]} */
  #sliders = [];
  #picture = new Picture("The changed picture", "changed");
  #requestPicture = runLatestOnly(() => this.#decodePicture());

  /** @param {import("./model.js").Model} model @param {import("./photographs.js").Photographs} photographs */
  constructor(model, photographs) {
    [this.#model, this.#showPhotograph] = [model, photographs.connectPicture(this.#picture)];
    getElement("steer-picture").append(this.#picture.element);
    for (const id of ["steer-a", "steer-b"]) getElement(id).addEventListener("change", () => this.#requestPicture(null));
    getElement("steer-reset").addEventListener("click", () => {
      for (const { input } of this.#sliders) input.value = "0";
      this.#requestPicture(null);
    });
  }

  /**
   * Adds a slider for each direction. The section stays hidden if the model has none.
   * @param {NonNullable<import("./model.js").Config["directions"]>} directions
   */
  addSliders(directions) {
    getElement("steer").hidden = directions.length === 0;
    const amounts = { min: `${-LARGEST_AMOUNT}`, max: `${LARGEST_AMOUNT}`, step: "0.05", value: "0" };
    this.#sliders = directions.map(({ name, vector, description = "" }) => {
      const input = createElement("input", { type: "range", ...amounts, autocomplete: "off" });
      input.addEventListener("input", () => this.#requestPicture(null));
      const label = createElement("label", { title: description }, [createElement("span", {}, [name]), input]);
      getElement("steer-sliders").append(label);
      return { input, vector: Float32Array.from(vector) };
    });
  }

  /** Sets the codes of A and B, or marks the picture as stale. @param {[Code, Code] | null} codes */
  setCodes(codes) {
    this.#codes = codes;
    this.#picture.markStale();
    this.#showPhotograph(null);
    this.#requestPicture(null);
  }

  /** Decodes the selected picture with the amounts of all sliders, and shows the result. */
  async #decodePicture() {
    const codes = this.#codes;
    if (!codes || this.#sliders.length === 0) return;
    const index = Number(getElement("steer-b").checked);
    const { z, v } = codes[index];
    const steps = this.#sliders.map(({ input, vector }) => ({ amount: input.valueAsNumber, vector }));
    const pixels = await this.#model.decode(addDirections(z, steps), v, 1);
    if (codes !== this.#codes) return;
    this.#picture.showPixels(pixels);
    this.#showPhotograph({ index, makeZ: (zs) => addDirections(zs[index], steps) });
  }
}
