/**
 * What the page says while files arrive.
 * @module
 */

/** @typedef {import("./codes.js").Progress} Progress */

/** Adds up the progress of several downloads. */
export class Meter {
  /** @type {Map<string, {loaded: number, total: number}>} */
  #files;
  /** @type {Record<string, number>} */
  #sizes = {};

  /** @param {string[]} names What will be downloaded. */
  constructor(names) {
    this.#files = new Map(names.map((name) => [name, { loaded: 0, total: 0 }]));
  }

  /** @param {Record<string, number>} sizes Known sizes; a compressing server states none. */
  expect(sizes) {
    this.#sizes = sizes;
  }

  /** @param {Progress} progress */
  note({ file, loaded, total }) {
    if (this.#files.has(file)) this.#files.set(file, { loaded, total });
  }

  /** @returns {{loaded: number, total: number}} Bytes; the total is 0 as long as any is unknown. */
  sum() {
    let [loaded, total, known] = [0, 0, true];
    for (const [file, progress] of this.#files) {
      const size = this.#sizes[file] || progress.total;
      known &&= size > 0;
      loaded += progress.loaded;
      total += size;
    }
    return { loaded, total: known ? total : 0 };
  }
}

/**
 * @param {string} what
 * @param {{loaded: number, total: number}} sum
 * @returns {string}
 */
export function progressText(what, { loaded, total }) {
  if (total > 0 && loaded >= total) return `Starting ${what} …`;
  return `Loading ${what}: ${total > 0 ? `${megabytes(loaded)} of ${megabytes(total)}` : megabytes(loaded)} MB`;
}

/** @param {number} bytes @returns {string} */
export function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

/**
 * @param {HTMLProgressElement} bar
 * @param {{loaded: number, total: number}} sum
 */
export function showProgress(bar, { loaded, total }) {
  // Without a value the bar only says that something is going on.
  if (total > 0) bar.value = loaded / total;
  else bar.removeAttribute("value");
}
