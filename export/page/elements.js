/**
 * The pieces that the page is built of.
 * @module
 */

import { draw, savePng } from "./images.js";

/** @typedef {import("./codes.js").Example} Example */

/**
 * @param {string} id
 * @returns {any} The element of the page; any, so that callers need no casts.
 */
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
  #size = 0;
  #canvas;
  #save;

  /**
   * @param {string} label Says what it shows.
   * @param {string} fileName Of the saved file, without its ending.
   */
  constructor(label, fileName) {
    this.#canvas = element("canvas", { role: "img", "aria-label": label, width: "1", height: "1" });
    this.#save = element("button", {
      type: "button",
      class: "save",
      "aria-label": `Save as PNG: ${label}`,
      title: "Save as PNG",
    });
    this.#save.append(downloadIcon());
    this.#save.hidden = true;
    this.#save.addEventListener("click", () => savePng(this.#pixels, this.#size, `${fileName}.png`));
    this.element = element("div", { class: "picture" }, [this.#canvas, this.#save]);
  }

  /** @param {Uint8Array} pixels @param {number} size */
  show(pixels, size) {
    this.#pixels = pixels;
    this.#size = size;
    draw(this.#canvas, pixels, size);
    this.#save.hidden = false;
  }

  /** @param {string} label Says what it shows now. */
  rename(label) {
    this.#canvas.setAttribute("aria-label", label);
    this.#save.setAttribute("aria-label", `Save as PNG: ${label}`);
  }

  /** Shows nothing. */
  clear() {
    this.#pixels = null;
    this.#canvas.getContext("2d").clearRect(0, 0, this.#size, this.#size);
    this.#save.hidden = true;
  }
}

function downloadIcon() {
  const namespace = "http://www.w3.org/2000/svg";
  const icon = document.createElementNS(namespace, "svg");
  icon.setAttribute("viewBox", "0 0 16 16");
  icon.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(namespace, "path");
  path.setAttribute("d", "M8 2v8m0 0L4.8 6.8M8 10l3.2-3.2M2.8 13.2h10.4");
  icon.append(path);
  return icon;
}

/**
 * Where the reader chooses a picture.
 *
 * Fires the given callback with a file or an example; the caller shows the outcome.
 */
export class Slot {
  #message;
  #input;
  #name;
  #examples;
  #onExample;

  /**
   * @param {"A" | "B"} letter
   * @param {(blob: Blob, name: string) => void} onFile
   * @param {(example: Example) => void} onExample
   */
  constructor(letter, onFile, onExample) {
    this.picture = new Picture(`Picture ${letter}`, `picture-${letter.toLowerCase()}`);
    // The name begins with the words that can be seen: whoever speaks to the device says them.
    const name = `Choose a file for picture ${letter}`;
    this.#input = element("input", { type: "file", accept: "image/*", "aria-label": name });
    this.#message = element("p", { class: "problem", role: "alert" });
    this.#examples = element("div", {
      class: "examples",
      role: "group",
      "aria-label": `Examples for picture ${letter}`,
    });
    const choose = element("label", { class: "file" }, [this.#input, element("span", {}, ["Choose a file"])]);
    this.#name = element("span", { class: "slot-name" });
    const heading = element("h3", {}, [element("b", {}, [letter]), this.#name]);
    this.element = element("div", { class: "slot" }, [
      heading,
      this.picture.element,
      choose,
      this.#examples,
      this.#message,
    ]);
    this.#onExample = onExample;
    this.#listen(onFile);
  }

  /** @param {(blob: Blob, name: string) => void} onFile */
  #listen(onFile) {
    this.#input.addEventListener("change", () => {
      const [file] = this.#input.files;
      if (file) onFile(file, file.name);
      // Choosing the same file again shall be noticed too.
      this.#input.value = "";
    });
    this.element.addEventListener("dragover", () => this.element.classList.add("over"));
    for (const end of ["dragleave", "drop"]) {
      this.element.addEventListener(end, () => this.element.classList.remove("over"));
    }
    this.picture.element.addEventListener("click", (event) => {
      if (!event.target.closest("button")) this.#input.click();
    });
  }

  /** @param {Example[]} examples */
  offer(examples) {
    this.#examples.replaceChildren(...examples.map((example) => this.#example(example)));
  }

  /** @param {Example} example */
  #example(example) {
    const image = element("img", { src: example.file, alt: example.title, draggable: "false" });
    const told = `${example.title}, ${example.author}, ${example.licence}`;
    const button = element(
      "button",
      { type: "button", "aria-pressed": "false", title: told, "data-address": example.file },
      [image],
    );
    button.addEventListener("click", () => this.#onExample(example));
    return button;
  }

  /**
   * Says which picture is shown.
   * @param {string} name
   * @param {Example | null} example The example that it is, if any.
   */
  mark(name, example) {
    this.#name.textContent = ` ${name}`;
    this.#name.title = name;
    for (const button of this.#examples.children) {
      button.setAttribute("aria-pressed", String(button.dataset.address === example?.file));
    }
  }

  /** @param {string} text Empty for none. */
  complain(text) {
    this.#message.textContent = text;
  }
}
