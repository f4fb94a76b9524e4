/**
 * Defines functions that the checks call inside the browser, and waits for the page.
 * @module
 */

/** @typedef {import("playwright-core").Page} Page */

/** How long a check waits for the model, as an option of Playwright. */
export const MODEL_TIMEOUT = { timeout: 120_000 };
/** Selects the images of the grid, in this order: A, B with the z of A, A with the z of B, B. */
export const GRID_CANVASES = "#grid canvas.model";

/** Throws an error unless a condition holds. @param {unknown} condition @param {string} message Says what is wrong. */
export function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/** Defines `window.check`, the functions that the checks call inside the browser. Runs before the page's own scripts. */
export function defineBrowserFunctions() {
  const loadTexts = [];
  new MutationObserver(() => loadTexts.push(document.querySelector("#load p")?.textContent)).observe(document, {
    childList: true,
    subtree: true,
  });
  window.check = {
    /** The texts that the page showed while it loaded. */
    loadTexts,
    encodeBase64: (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")),
    decodeBase64: (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)),
    areEqual: (a, b) => a.length === b.length && a.every((value, index) => value === b[index]),
    /** Returns the RGB values of each selected canvas. */
    readCanvases: (selector) =>
      [...document.querySelectorAll(selector)].map((canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Uint8Array(data.filter((_, index) => index % 4 !== 3));
      }),
    fetchConfig: async () => (await fetch("model/config.json")).json(),
    /** Returns the size of a bin: the difference between neighbouring pixel values of the model. */
    fetchBinSize: async () => 256 >> (await window.check.fetchConfig()).n_bits,
    roundToBins: (pixels, binSize) => pixels.map((value) => value - (value % binSize)),
    drawNoise: (length) => Uint8Array.from({ length }, () => Math.floor(256 * Math.random())),
    /** Returns the bytes of a PNG file that `paint` draws. */
    makePng: async (width, height, paint) => {
      const canvas = new OffscreenCanvas(width, height);
      paint(canvas.getContext("2d"));
      return new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer());
    },
  };
}

/** Waits until the grid shows four pictures, and A and B as exact. @param {Page} page */
export function waitForGrid(page) {
  const isExact = () => document.querySelector("#verdict").textContent.startsWith("Exact");
  return page.waitForFunction(isExact, null, MODEL_TIMEOUT);
}

/**
 * Waits until a canvas shows the expected image.
 * @param {Page} page
 * @param {string} selector Selects canvases, of which the first one counts.
 * @param {string} expected RGB values in base64.
 * @param {string} complaint The error message if the canvas shows another image.
 * @param {number} share The share of values that may lie in a neighbouring bin, because images that are encoded together
 *   are computed with other rounding errors.
 */
export async function waitForPixels(page, selector, expected, complaint, share = 0) {
  const arrived = await page
    .waitForFunction(
      ([selector, expected, share, binSize]) => {
        const [[shown], values] = [window.check.readCanvases(selector), window.check.decodeBase64(expected)];
        const distances = values.map((value, index) => Math.abs(value - shown[index]));
        const isNear = distances.every((distance) => distance <= binSize);
        return shown.length === values.length && isNear && distances.filter(Boolean).length <= share * values.length;
      },
      [selector, expected, share, await page.evaluate(() => window.check.fetchBinSize())],
      { timeout: 10_000 },
    )
    .catch(() => null);
  expect(arrived, complaint);
}
