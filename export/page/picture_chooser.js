/**
 * Lets the reader choose picture A or B among the examples and own files.
 * @module
 */

import { createElement } from "./page_elements.js";

/** @typedef {import("./model.js").Config["examples"][number]} Example */

/** Shows buttons for the examples and one for the reader's own file. */
export class PictureChooser {
  #nameElement = createElement("span", { class: "name" });
  #problemElement = createElement("p", { class: "problem", role: "alert" });
  #examplesElement;
  #onChoice;

  /**
   * @param {"A" | "B"} letter
   * @param {(blob: Blob | Promise<Blob>, name: string) => void} onChoice Called with each chosen picture.
   */
  constructor(letter, onChoice) {
    this.#onChoice = onChoice;
    // Speech control finds a field by its visible words, so the label begins with them.
    const label = `Your own file for picture ${letter}`;
    const input = createElement("input", { type: "file", accept: "image/*", "aria-label": label });
    input.addEventListener("change", () => {
      for (const file of input.files) onChoice(file, file.name);
      // Without this the browser reports no change when the reader chooses the same file again.
      input.value = "";
    });
    const group = { class: "examples", role: "group", "aria-label": `Examples for picture ${letter}` };
    this.#examplesElement = createElement("div", group);
    this.element = createElement("div", { class: "chooser", "data-slot": letter }, [
      createElement("h2", {}, [letter, this.#nameElement]),
      this.#examplesElement,
      createElement("label", { class: "file" }, [input, createElement("span", {}, ["Your own file"])]),
      this.#problemElement,
    ]);
  }

  /** Adds a button for each example picture. @param {Example[]} examples */
  addExamples(examples) {
    for (const { file, title } of examples) {
      const image = createElement("img", { src: file, alt: title, draggable: "false" });
      const button = createElement("button", { type: "button", "aria-pressed": "false", title }, [image]);
      button.addEventListener("click", () => this.#onChoice(fetchBlob(file), title));
      this.#examplesElement.append(button);
    }
  }

  /** Shows the name of the chosen picture, marks its example, and removes the last problem. @param {string} name */
  markChosen(name) {
    this.#nameElement.textContent = name;
    this.showProblem("");
    for (const button of this.#examplesElement.children) {
      button.setAttribute("aria-pressed", String(button.title === name));
    }
  }

  /** Shows why a file was refused. @param {string} problem A sentence, or an empty text to remove the last one. */
  showProblem(problem) {
    this.#problemElement.textContent = problem;
  }
}

/** @param {string} file Path in the folder of the page. @returns {Promise<Blob>} The content of the file. */
export async function fetchBlob(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`${file} could not be fetched: HTTP ${response.status}.`);
  return response.blob();
}
