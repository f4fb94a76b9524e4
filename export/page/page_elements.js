/**
 * The pieces that the page is built of.
 * @module
 */

import { draw, saveCanvas, savePng } from "./image_files.js";

/** @param {string} id @returns {any} The element of the page; any, so that callers need no casts. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} [children]
 * @returns {any}
 */
export function element(tag, attributes = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A picture that can be saved. */
export class Picture {
  /** @type {Uint8Array | null} */
  #pixels = null;
  #canvas = element("canvas", { class: "model", role: "img", width: "1", height: "1" });
  /** The same at the size of a photograph, where there is one. */
  #own = element("canvas", { class: "own", role: "img", width: "1", height: "1", hidden: "" });
  #save = element("button", { type: "button", class: "save", title: "Save as PNG", hidden: "" }, ["↓"]);

  /**
   * @param {string} label Says what it shows.
   * @param {string} fileName Of the saved file, without its ending.
   */
  constructor(label, fileName) {
    this.rename(label);
    this.#save.addEventListener("click", () => {
      const isOwnShown = !this.#own.hidden && this.#own.checkVisibility();
      isOwnShown ? saveCanvas(this.#own, `${fileName}.png`) : savePng(this.#pixels, `${fileName}.png`);
    });
    this.element = element("div", { class: "picture" }, [this.#canvas, this.#own, this.#save]);
  }

  /** @param {Uint8Array} pixels */
  show(pixels) {
    this.#pixels = pixels;
    draw(this.#canvas, pixels);
    this.element.classList.remove("stale");
    this.#save.hidden = false;
  }

  /** @param {ImageData} image The picture at the size of a photograph, which is shown instead. */
  showOwnSize(image) {
    [this.#own.width, this.#own.height] = [image.width, image.height];
    this.#own.getContext("2d").putImageData(image, 0, 0);
    this.#own.hidden = false;
  }

  /** Leaves the model's pixels alone. */
  hideOwnSize() {
    this.#own.hidden = true;
  }

  /** Dims the picture until the next one is shown: what it shows is no longer asked for. */
  expire() {
    this.element.classList.add("stale");
    this.#save.hidden = true;
  }

  /** @param {string} label Says what it shows now. */
  rename(label) {
    this.#canvas.setAttribute("aria-label", label);
    this.#own.setAttribute("aria-label", label);
    this.#save.setAttribute("aria-label", `↓ Save as PNG: ${label}`);
  }
}

/** Says how much of what the page loads has arrived. */
export class LoadBar {
  #text;
  #bar;
  #what;
  /** @type {Record<string, number>} */
  #sizes = {};
  /** @type {Record<string, number>} */
  #loaded = {};

  /** @param {string} id Of an element with a paragraph and a progress bar. @param {string} what Is loaded. */
  constructor(id, what) {
    this.element = byId(id);
    [this.#text, this.#bar] = this.element.children;
    this.#what = what;
  }

  /** @param {Record<string, number>} sizes Bytes by file. */
  expect(sizes) {
    this.#sizes = sizes;
  }

  /** @param {import("./worker_client.js").Progress} progress Of a file; those that are not expected do not count. */
  note({ file, loaded }) {
    this.#loaded[file] = loaded;
    const sum = (/** @type {Record<string, number>} */ bytes) =>
      Object.keys(this.#sizes).reduce((total, name) => total + (bytes[name] ?? 0), 0);
    const [arrived, total] = [sum(this.#loaded), sum(this.#sizes)];
    if (total === 0) return;
    if (arrived < total) {
      this.#text.textContent = `Loading the ${this.#what}: ${megabytes(arrived)} of ${megabytes(total)} MB`;
      this.#bar.value = arrived / total;
    } else {
      this.#text.textContent = `Starting the ${this.#what} …`;
      // Without a value the bar only says that something is going on.
      this.#bar.removeAttribute("value");
    }
  }
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

/**
 * Wraps slow work so that one call runs at a time and only the newest request waits; older ones are dropped.
 * @template T
 * @param {(request: T) => Promise<void>} work
 * @returns {(request: T) => Promise<void>} Settles when no work is left. What fails stands in the page's verdict.
 */
export function latestOnly(work) {
  /** @type {{request: T} | null} */
  let waiting = null;
  /** @type {Promise<void> | null} */
  let running = null;
  const drain = async () => {
    while (waiting) {
      const { request } = waiting;
      waiting = null;
      try {
        await work(request);
      } catch (error) {
        showVerdict(`The model failed: ${error.message}`, "bad");
      }
    }
    running = null;
  };
  return (request) => {
    waiting = { request };
    running ??= drain();
    return running;
  };
}

/** @param {string} text @param {"good" | "bad" | "open"} state */
export function showVerdict(text, state) {
  byId("verdict").textContent = text;
  byId("verdict").className = `verdict ${state}`;
}
