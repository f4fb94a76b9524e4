/**
 * The section that changes one thing about a picture: its z moves along directions, each by a slider.
 * @module
 */

import { along, differences } from "./codes.js";
import { Picture, byId, element } from "./elements.js";
import { latestOnly } from "./live.js";

/** @typedef {import("./codes.js").Codes} Codes */
/** @typedef {import("./codes.js").Code} Code */
/** @typedef {import("./codes.js").Direction} Direction */
/** @typedef {{input: any, output: any, vector: Float32Array}} Slider */

const LETTERS = ["A", "B"];
/** Multiples of a direction that a slider reaches to both sides. */
const REACH = 2;

/** Sliders, one for each direction, and the picture that they change. */
export class Steering {
  #codes;
  #size = 0;
  /** @type {Uint8Array[]} The pixels of A and B. */
  #images = [];
  /** @type {Code[]} The codes of A and B; empty where there are none. */
  #pair = [];
  /** @type {Slider[]} */
  #sliders = [];
  #picture = new Picture("The changed picture", "changed");
  #show = latestOnly(() => this.#decode());

  /** @param {Codes} codes */
  constructor(codes) {
    this.#codes = codes;
    byId("steer-picture").append(this.#picture.element);
    byId("steer-reset").addEventListener("click", () => this.#reset());
    for (const letter of LETTERS) {
      byId(`steer-${letter.toLowerCase()}`).addEventListener("change", () => this.#show(null));
    }
  }

  /** Offers the directions of a model; without any the section stays hidden. @param {Direction[]} directions */
  offer(directions) {
    this.#sliders = directions.map((direction, index) => this.#slider(direction, index));
    byId("steer").hidden = directions.length === 0;
  }

  /**
   * @param {Uint8Array[]} images The pixels of A and B.
   * @param {Code[]} pair Their codes; empty where they have none that are finite.
   * @param {number} size
   */
  use(images, pair, size) {
    [this.#images, this.#pair, this.#size] = [images, pair, size];
    if (pair.length === 0) {
      this.#picture.clear();
      this.#tell("", false);
    } else this.#show(null);
  }

  /** @param {Direction} direction @param {number} index @returns {Slider} */
  #slider({ name, vector, told }, index) {
    const id = `steer-${index}`;
    const input = element("input", {
      id,
      type: "range",
      min: String(-REACH),
      max: String(REACH),
      step: "0.05",
      value: "0",
      list: "steer-ticks",
    });
    const output = element("output", { for: id });
    const label = element("label", { for: id }, [element("span", {}, [name]), output]);
    if (told) label.title = told;
    byId("steer-sliders").append(element("div", { class: "steer-row" }, [label, input]));
    const slider = { input, output, vector: Float32Array.from(vector) };
    input.addEventListener("input", () => {
      showAmount(slider);
      this.#show(null);
    });
    showAmount(slider);
    return slider;
  }

  /** Which picture is changed. Browsers may keep the choice when the page is loaded anew. */
  get #chosen() {
    return Number(byId("steer-b").checked);
  }

  #reset() {
    for (const slider of this.#sliders) {
      slider.input.value = "0";
      showAmount(slider);
    }
    this.#show(null);
  }

  async #decode() {
    const [code, before] = [this.#pair[this.#chosen], this.#images[this.#chosen]];
    if (!code || this.#sliders.length === 0) return;
    const steps = this.#sliders.map(({ input, vector }) => ({ amount: input.valueAsNumber, vector }));
    try {
      const pixels = await this.#codes.decode(along(code.z, steps), code.v, 1);
      if (code !== this.#pair[this.#chosen]) return;
      this.#picture.show(pixels, this.#size);
      this.#judge(steps.every(({ amount }) => amount === 0), differences(before, pixels).count);
    } catch (error) {
      this.#tell(`The model failed: ${error.message}`, false);
    }
  }

  /** @param {boolean} unchanged @param {number} count */
  #judge(unchanged, count) {
    const letter = LETTERS[this.#chosen];
    if (!unchanged) this.#tell(`${count.toLocaleString("en")} values differ from ${letter}; its v is as it was.`, true);
    else if (count === 0) this.#tell(`Exact: with all sliders at 0 it is ${letter}, to the last value.`, true);
    else this.#tell(`Not exact: at 0, ${count.toLocaleString("en")} values differ from ${letter}.`, false);
  }

  /** @param {string} text @param {boolean} good */
  #tell(text, good) {
    byId("steer-verdict").textContent = text;
    byId("steer-verdict").classList.toggle("bad", text !== "" && !good);
  }
}

/** @param {Slider} slider */
function showAmount({ input, output }) {
  const amount = input.valueAsNumber;
  const text = amount === 0 ? "0" : `${amount > 0 ? "+" : "−"}${Math.abs(amount).toFixed(2)}`;
  output.textContent = text;
  input.setAttribute("aria-valuetext", text);
}
