/**
 * A worker that runs the model, and the questions that wait for its answers.
 * @module
 */

import { DownloadError, LoadError } from "./download.js";

/** @typedef {import("./codes.js").Progress} Progress */
/** @typedef {"wasm" | "webgpu"} Provider What computes: the processor, or the graphics card. */

export class Runner {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #lastId = 0;
  #leaving = false;

  /**
   * @param {Provider} provider
   * @param {(progress: Progress) => void} onProgress
   */
  constructor(provider, onProgress) {
    this.provider = provider;
    this.onProgress = onProgress;
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => this.#fail(event);
  }

  /** Downloads and starts all that encoding and decoding need. @returns {Promise<{threads: number}>} */
  load() {
    return this.ask("load", { provider: this.provider });
  }

  /** @param {string} task @param {object} content Its arrays are handed over. @returns {Promise<any>} */
  ask(task, content) {
    const id = ++this.#lastId;
    const buffers = Object.values(content)
      .filter(ArrayBuffer.isView)
      .map((view) => view.buffer);
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, task, ...content }, buffers);
    });
  }

  /** Ends the worker when all that it was asked is answered. */
  leave() {
    this.#leaving = true;
    if (this.#waiting.size === 0) this.#worker.terminate();
  }

  /** @param {{id?: number, result?: object, error?: string, download?: boolean, progress?: Progress}} message */
  #receive({ id, result, error, download, progress }) {
    if (progress) return this.onProgress(progress);
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new (download ? DownloadError : LoadError)(error));
    if (this.#leaving) this.leave();
  }

  /** @param {ErrorEvent} event A worker that cannot start has no message. */
  #fail(event) {
    const reason = event.message ? ` (${event.message})` : "";
    const error = new LoadError(`The model's worker stopped${reason}. A browser with module workers is needed.`);
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
