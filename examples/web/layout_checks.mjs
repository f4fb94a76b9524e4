/**
 * Checks the page's layout and accessibility, and takes screenshots, on a desktop screen and on a phone.
 * @module
 */

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { expect } from "./browser_helpers.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** Playwright's options of each device, by the name of the screenshot. */
export const DEVICES = {
  web_page: { viewport: { width: 1280, height: 900 } },
  web_page_phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true },
};
/** The rules of axe that are checked: WCAG up to level AA, and good practice. */
const AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

/**
 * Checks that the grid is visible without scrolling, and that nothing is wider than the window, also at 320 pixels.
 * @param {Page} page
 * @returns {Promise<string>} The result as a text.
 */
export async function checkLayout(page) {
  const size = page.viewportSize();
  const bottom = await page.evaluate(() => {
    scrollTo(0, 0);
    return document.querySelector("#grid").getBoundingClientRect().bottom;
  });
  expect(bottom <= size.height, `the grid ends at ${Math.round(bottom)} of ${size.height} px`);
  for (const width of [size.width, 320]) {
    await page.setViewportSize({ ...size, width });
    const needed = await page.evaluate(() => document.documentElement.scrollWidth);
    expect(needed <= width, `the page is ${needed} px wide in a window of ${width} px`);
  }
  await page.setViewportSize(size);
  return `the grid ends at ${Math.round(bottom)} of ${size.height} px; nothing overflows, at 320 px neither`;
}

/**
 * Checks that axe finds no violation, in the dark and in the light colour scheme.
 * @param {Page} page
 * @returns {Promise<string>} The result as a text.
 */
export async function checkAccessibility(page) {
  // The page's policy blocks foreign script elements; code that Playwright evaluates is not subject to the policy.
  await page.evaluate(await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
  let passed = 0;
  for (const colorScheme of ["dark", "light"]) {
    await page.emulateMedia({ colorScheme });
    const { passes, violations } = await page.evaluate((rules) => window.axe.run(document, { runOnly: rules }), AXE_RULES);
    const problems = violations.map(({ id, help, nodes }) => `${id} (${help}): ${nodes.map((n) => n.target).join(" ")}`);
    expect(problems.length === 0, `${colorScheme}: ${problems.join("; ")}`);
    passed = passes.length;
  }
  return `no violation, in dark and light; ${passed} rules passed`;
}

/** Saves a screenshot of the top of the page as PNG. @param {Page} page @param {string} folder @param {string} name */
export async function takeScreenshot(page, folder, name) {
  await page.mouse.move(0, 0);
  await page.evaluate(() => {
    document.activeElement.blur();
    scrollTo(0, 0);
  });
  await page.screenshot({ path: join(folder, `${name}.png`) });
}
