/**
 * Waiting for what the page shall show.
 * @module
 */

import { expect } from "./report.mjs";

/** @typedef {import("playwright-core").Page} Page */

export const PATIENT = { timeout: 120_000 };

/** @param {Page} page */
export function waitForPicture(page) {
  return page.waitForFunction(() => window.tfdecouple?.timing.firstPicture != null, null, PATIENT);
}

/** @param {Page} page @param {number} index @param {string} values Base64. */
export async function waitForShown(page, index, values, selector = ".slot .picture canvas") {
  const arrived = await page
    .waitForFunction(
      ([place, wanted, where]) => window.check.same(window.check.all(where)[place], window.check.bytes(wanted)),
      [index, values, selector],
      { timeout: 10_000 },
    )
    .catch(() => null);
  expect(arrived, `${selector} does not show the pixels of the file`);
}

/**
 * Waits until a picture is the wanted one, but for values on the border of two levels: they may fall either way where
 * pictures are encoded together.
 * @param {Page} page
 * @param {string} selector
 * @param {string} wanted Base64.
 * @param {string} complaint
 */
export async function waitForNear(page, selector, wanted, complaint) {
  const arrived = await page
    .waitForFunction(
      ([selector, wanted, step]) => {
        const [[shown], right] = [window.check.all(selector), window.check.bytes(wanted)];
        if (shown.length !== right.length) return false;
        const distances = right.map((value, place) => Math.abs(value - shown[place]));
        return distances.every((distance) => distance <= step) && distances.filter(Boolean).length < right.length / 100;
      },
      [selector, wanted, await page.evaluate(() => window.check.levelStep())],
      { timeout: 10_000 },
    )
    .catch(() => null);
  expect(arrived, complaint);
}
