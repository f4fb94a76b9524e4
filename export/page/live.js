/**
 * Following a hand without falling behind.
 * @module
 */

const LONGEST_PAUSE_MS = 500;
const MOST_FRAMES = 240;

/**
 * Wraps slow work so that one call runs at a time and only the newest request waits; older ones are dropped.
 * @template T
 * @param {(request: T) => Promise<void>} work Must handle its own errors.
 * @returns {(request: T) => Promise<void>} Settles when no work is left.
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
      await work(request);
    }
    running = null;
  };
  return (request) => {
    waiting = { request };
    running ??= drain();
    return running;
  };
}

/** Counts pictures per second over the most recent movement. */
export class FrameRate {
  /** @type {number[]} */
  #times = [];

  /** Notes that a picture was shown now. */
  tick() {
    const now = performance.now();
    if (now - (this.#times.at(-1) ?? now) > LONGEST_PAUSE_MS) this.#times = [];
    this.#times.push(now);
    if (this.#times.length > MOST_FRAMES) this.#times.shift();
  }

  /** Begins a new movement. */
  restart() {
    this.#times = [];
  }

  /** @returns {number | null} Pictures per second; null before there are two. */
  value() {
    if (this.#times.length < 2) return null;
    return ((this.#times.length - 1) * 1000) / (this.#times.at(-1) - this.#times[0]);
  }
}
