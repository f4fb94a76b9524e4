/**
 * What the checks share: functions inside the browser, waiting, and what went wrong.
 * @module
 */

/** @typedef {import("playwright-core").Page} Page */

export const PATIENT = { timeout: 120_000 };
/** The picture of a cell of the swap: A, B with the z of A, A with the z of B, B. */
export const CELLS = "#grid canvas.model";

/** @param {unknown} condition @param {string} message Says what is wrong with the page. */
export function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/** Functions that every page gets: the checks run them inside the browser. And what the page said while it loaded. */
export function addTools() {
  const loading = [];
  new MutationObserver(() => loading.push(document.querySelector("#load p")?.textContent)).observe(document, {
    childList: true,
    subtree: true,
  });
  window.check = {
    loading,
    base64: (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")),
    bytes: (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)),
    same: (a, b) => a.length === b.length && a.every((value, index) => value === b[index]),
    pixels: (canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Uint8Array(data.filter((_, index) => index % 4 !== 3));
    },
    all: (selector) => [...document.querySelectorAll(selector)].map((canvas) => window.check.pixels(canvas)),
    config: async () => (await fetch("model/config.json")).json(),
    // Neighbouring values differ by it: a model of fewer than 8 bits knows multiples of it alone.
    step: async () => 256 >> (await window.check.config()).n_bits,
    round: (pixels, step) => pixels.map((value) => value - (value % step)),
    noise: (length) => Uint8Array.from({ length }, () => Math.floor(256 * Math.random())),
    png: async (width, height, paint) => {
      const canvas = new OffscreenCanvas(width, height);
      paint(canvas.getContext("2d"));
      return new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer());
    },
  };
}

/** Waits until the swap is there. @param {Page} page */
export function waitForSwap(page) {
  return page.waitForFunction(() => document.querySelector("#verdict").textContent.startsWith("Exact"), null, PATIENT);
}

/**
 * Waits until a picture is the wanted one.
 * @param {Page} page
 * @param {string} selector
 * @param {string} wanted Base64.
 * @param {string} complaint
 * @param {number} share Of the values that may differ by one level: those on a border may fall either way where pictures
 *   are encoded together.
 */
export async function waitForPixels(page, selector, wanted, complaint, share = 0) {
  const arrived = await page
    .waitForFunction(
      ([selector, wanted, share, step]) => {
        const [[shown], right] = [window.check.all(selector), window.check.bytes(wanted)];
        const distances = right.map((value, place) => Math.abs(value - shown[place]));
        const near = distances.every((distance) => distance <= step);
        return shown.length === right.length && near && distances.filter(Boolean).length <= share * right.length;
      },
      [selector, wanted, share, await page.evaluate(() => window.check.step())],
      { timeout: 10_000 },
    )
    .catch(() => null);
  expect(arrived, complaint);
}
