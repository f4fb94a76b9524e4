/**
 * Runs slow work for the newest request only.
 * @module
 */

import { showVerdict } from "./page_elements.js";

/**
 * Returns a function that runs `work` with one request at a time. While it runs, only the newest further request waits;
 * older ones are dropped. An error of `work` appears as the page's verdict.
 * @template T
 * @param {(request: T) => Promise<void>} work
 * @returns {(request: T) => Promise<void>} The promise resolves when no request is left.
 */
export function runLatestOnly(work) {
  /** @type {{request: T} | null} */
  let waiting = null;
  /** @type {Promise<void> | null} */
  let running = null;
  const runWaiting = async () => {
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
    running ??= runWaiting();
    return running;
  };
}
