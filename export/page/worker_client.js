/**
 * A worker that runs the model, and the questions that wait for its answers.
 * @module
 */

/** @typedef {{file: string, loaded: number}} Progress Bytes of a file that have arrived. */

export class Runner {
  #worker = new Worker(new URL("model_worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #lastId = 0;
  #stopping = false;

  /**
   * @param {"wasm" | "webgpu"} provider What computes: the processor, or the graphics card.
   * @param {(progress: Progress) => void} onProgress
   */
  constructor(provider, onProgress) {
    this.provider = provider;
    this.onProgress = onProgress;
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = ({ message }) => this.#fail(message);
  }

  /** @param {string} task One of the worker's. @param {object} content Is copied. @returns {Promise<any>} */
  ask(task, content) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, task, ...content });
    });
  }

  /** Ends the worker once all that it was asked is answered. */
  stop() {
    this.#stopping = true;
    if (this.#waiting.size === 0) this.#worker.terminate();
  }

  /** @param {{id?: number, result?: object, error?: string, progress?: Progress}} message */
  #receive({ id, result, error, progress }) {
    if (progress) return this.onProgress(progress);
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
    if (this.#stopping) this.stop();
  }

  /** @param {string} [message] A worker that cannot start has none. */
  #fail(message) {
    const reason = message ? ` (${message})` : "";
    const error = new Error(`The model's worker stopped${reason}. A browser with module workers is needed.`);
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
