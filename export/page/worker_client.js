/**
 * Sends requests to the worker that runs the model, and waits for the answers.
 * @module
 */

/** @typedef {{file: string, loaded: number}} Progress How many bytes of a file have arrived. */

/** Starts a worker and sends requests to it. */
export class WorkerClient {
  #worker = new Worker(new URL("model_worker.js", import.meta.url), { type: "module" });
  #pendingRequests = new Map();
  #lastId = 0;
  #stopping = false;

  /**
   * @param {"wasm" | "webgpu"} provider What runs the model: WebAssembly, or the graphics card.
   * @param {(progress: Progress) => void} onProgress Called during downloads.
   */
  constructor(provider, onProgress) {
    this.provider = provider;
    this.onProgress = onProgress;
    this.#worker.onmessage = ({ data }) => this.#receiveMessage(data);
    this.#worker.onerror = ({ message }) => this.#rejectPendingRequests(message);
  }

  /**
   * Sends a request to the worker.
   * @param {"load" | "encode" | "decode" | "sample"} task
   * @param {object} content The arguments of the task, which are copied.
   * @returns {Promise<any>} The answer of the worker.
   */
  request(task, content) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#pendingRequests.set(id, { resolve, reject });
      this.#worker.postMessage({ id, task, ...content });
    });
  }

  /** Terminates the worker after it has answered the pending requests. */
  stop() {
    this.#stopping = true;
    if (this.#pendingRequests.size === 0) this.#worker.terminate();
  }

  /**
   * Reports progress, or settles the request that a message answers.
   * @param {{id?: number, result?: object, error?: string, progress?: Progress}} message
   */
  #receiveMessage({ id, result, error, progress }) {
    if (progress) return this.onProgress(progress);
    const { resolve, reject } = this.#pendingRequests.get(id);
    this.#pendingRequests.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
    if (this.#stopping) this.stop();
  }

  /** Rejects all requests, because the worker failed. @param {string} [message] Missing if the worker did not start. */
  #rejectPendingRequests(message) {
    const reason = message ? ` (${message})` : "";
    const error = new Error(`The model's worker stopped${reason}. A browser with module workers is needed.`);
    for (const { reject } of this.#pendingRequests.values()) reject(error);
    this.#pendingRequests.clear();
  }
}
