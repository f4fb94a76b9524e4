/**
 * Where the reader chooses a picture.
 * @module
 */

import { element } from "./page_elements.js";

/** @typedef {import("./model.js").Config["examples"][number]} Example */

/** The examples and a button for one's own file. */
export class Chooser {
  #name = element("span", { class: "name" });
  #problem = element("p", { class: "problem", role: "alert" });
  #examples;
  #choose;

  /**
   * @param {"A" | "B"} letter
   * @param {(blob: Blob | Promise<Blob>, name: string) => void} choose Is given the picture.
   */
  constructor(letter, choose) {
    this.#choose = choose;
    // The name begins with the words that can be seen, so that it can be spoken.
    const input = element("input", { type: "file", accept: "image/*", "aria-label": `Your own file for picture ${letter}` });
    input.addEventListener("change", () => {
      for (const file of input.files) choose(file, file.name);
      // Choosing the same file again counts, too.
      input.value = "";
    });
    this.#examples = element("div", { class: "examples", role: "group", "aria-label": `Examples for picture ${letter}` });
    this.element = element("div", { class: "chooser", "data-slot": letter }, [
      element("h2", {}, [letter, this.#name]),
      this.#examples,
      element("label", { class: "file" }, [input, element("span", {}, ["Your own file"])]),
      this.#problem,
    ]);
  }

  /** @param {Example[]} examples */
  offer(examples) {
    for (const { file, title } of examples) {
      const image = element("img", { src: file, alt: title, draggable: "false" });
      const button = element("button", { type: "button", "aria-pressed": "false", title }, [image]);
      button.addEventListener("click", () => this.#choose(fetchBlob(file), title));
      this.#examples.append(button);
    }
  }

  /** Says which picture is shown. @param {string} name */
  mark(name) {
    this.#name.textContent = name;
    this.complain("");
    for (const button of this.#examples.children) button.setAttribute("aria-pressed", String(button.title === name));
  }

  /** @param {string} problem Empty for none. */
  complain(problem) {
    this.#problem.textContent = problem;
  }
}

/** @param {string} file @returns {Promise<Blob>} */
export async function fetchBlob(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`${file} could not be fetched: HTTP ${response.status}.`);
  return response.blob();
}
