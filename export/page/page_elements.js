/**
 * Finds and creates elements of the page: pictures, progress bars, and the message below the grid.
 * @module
 */

import { drawPixels, saveCanvas, savePixels } from "./image_files.js";

/** @param {string} id @returns {any} The element with this id. The type is any, so that callers need no casts. */
export function getElement(id) {
  return document.getElementById(id);
}

/**
 * Creates an element with attributes and children.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} [children]
 * @returns {any} The type is any, so that callers need no casts.
 */
export function createElement(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Shows an image of the model's size, or the same picture at the size of a photograph, with a button that saves it. */
export class Picture {
  /** @type {Uint8Array | null} */
  #pixels = null;
  #modelCanvas = createElement("canvas", { class: "model", role: "img", width: "1", height: "1" });
  #fullSizeCanvas = createElement("canvas", { class: "full-size", role: "img", width: "1", height: "1", hidden: "" });
  #saveButton = createElement("button", { type: "button", class: "save", title: "Save as PNG", hidden: "" }, ["↓"]);

  /**
   * @param {string} label Describes the picture to screen readers.
   * @param {string} fileName Name of the saved file without its extension.
   */
  constructor(label, fileName) {
    this.setLabel(label);
    this.#saveButton.addEventListener("click", () => {
      const isFullSize = !this.#fullSizeCanvas.hidden && this.#fullSizeCanvas.checkVisibility();
      if (isFullSize) saveCanvas(this.#fullSizeCanvas, `${fileName}.png`);
      else savePixels(this.#pixels, `${fileName}.png`);
    });
    const children = [this.#modelCanvas, this.#fullSizeCanvas, this.#saveButton];
    this.element = createElement("div", { class: "picture" }, children);
  }

  /** Shows an image of the model's size. @param {Uint8Array} pixels RGB values of a square. */
  showPixels(pixels) {
    this.#pixels = pixels;
    drawPixels(this.#modelCanvas, pixels);
    this.element.classList.remove("stale");
    this.#saveButton.hidden = false;
  }

  /** Covers the image of the model's size with the picture at the size of a photograph. @param {ImageData} image */
  showFullSize(image) {
    [this.#fullSizeCanvas.width, this.#fullSizeCanvas.height] = [image.width, image.height];
    this.#fullSizeCanvas.getContext("2d").putImageData(image, 0, 0);
    this.#fullSizeCanvas.hidden = false;
  }

  /** Hides the picture at the size of a photograph, so that the image of the model's size is visible. */
  hideFullSize() {
    this.#fullSizeCanvas.hidden = true;
  }

  /** Dims the picture and disables saving until `showPixels` is called, because the shown pixels are out of date. */
  markStale() {
    this.element.classList.add("stale");
    this.#saveButton.hidden = true;
  }

  /** Sets the description of the picture for screen readers. @param {string} label */
  setLabel(label) {
    this.#modelCanvas.setAttribute("aria-label", label);
    this.#fullSizeCanvas.setAttribute("aria-label", label);
    this.#saveButton.setAttribute("aria-label", `↓ Save as PNG: ${label}`);
  }
}

/** Shows the progress of a download, in megabytes and as a bar. */
export class LoadBar {
  #text;
  #bar;
  #name;
  /** @type {Record<string, number>} */
  #sizes = {};
  /** @type {Record<string, number>} */
  #loaded = {};

  /**
   * @param {string} id Id of an element that contains a paragraph and a progress bar.
   * @param {string} name What the text calls the downloaded files together.
   */
  constructor(id, name) {
    this.element = getElement(id);
    [this.#text, this.#bar] = this.element.children;
    this.#name = name;
  }

  /** Sets which files the bar counts. @param {Record<string, number>} sizes The size of each file in bytes. */
  setSizes(sizes) {
    this.#sizes = sizes;
  }

  /** Updates text and bar. Files without a size do not count. @param {import("./worker_client.js").Progress} progress */
  showProgress({ file, loaded }) {
    this.#loaded[file] = loaded;
    const sumBytes = (/** @type {Record<string, number>} */ bytes) =>
      Object.keys(this.#sizes).reduce((sum, name) => sum + (bytes[name] ?? 0), 0);
    const [arrived, total] = [sumBytes(this.#loaded), sumBytes(this.#sizes)];
    if (total === 0) return;
    if (arrived < total) {
      this.#text.textContent = `Loading the ${this.#name}: ${formatMegabytes(arrived)} of ${formatMegabytes(total)} MB`;
      this.#bar.value = arrived / total;
    } else {
      this.#text.textContent = `Starting the ${this.#name} …`;
      // A progress bar without a value shows activity, and the time that ONNX Runtime needs to start is not known.
      this.#bar.removeAttribute("value");
    }
  }
}

/** @param {number} bytes @returns {string} Megabytes with one decimal, without the unit. */
export function formatMegabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

/**
 * Shows a message below the grid of pictures.
 * @param {string} text
 * @param {"good" | "bad" | "open"} state Selects the colour: green, red, or the colour of text for a result still to come.
 */
export function showVerdict(text, state) {
  getElement("verdict").textContent = text;
  getElement("verdict").className = `verdict ${state}`;
}
