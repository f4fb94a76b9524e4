/**
 * What the page looks like, on a desk and on a phone, and what axe says of its accessibility.
 * @module
 */

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { expect } from "./browser_helpers.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** What a page is opened with, by the name of its screenshot. */
export const DEVICES = {
  web_page: { viewport: { width: 1280, height: 900 } },
  web_page_phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true },
};
/** Rules of axe: the guidelines up to level AA, and good practice besides. */
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

/** That the swap is in sight without scrolling, and nothing is too wide. @param {Page} page @returns {Promise<string>} */
export async function checkLayout(page) {
  const size = page.viewportSize();
  const bottom = await page.evaluate(() => {
    scrollTo(0, 0);
    return document.querySelector("#grid").getBoundingClientRect().bottom;
  });
  expect(bottom <= size.height, `the swap ends at ${Math.round(bottom)} of ${size.height} px`);
  for (const width of [size.width, 320]) {
    await page.setViewportSize({ ...size, width });
    const needed = await page.evaluate(() => document.documentElement.scrollWidth);
    expect(needed <= width, `the page is ${needed} px wide in a window of ${width} px`);
  }
  await page.setViewportSize(size);
  return `the swap ends at ${Math.round(bottom)} of ${size.height} px; nothing overflows, at 320 px neither`;
}

/** That axe finds nothing to object to, in light and in dark. @param {Page} page @returns {Promise<string>} */
export async function checkAccessibility(page) {
  // The page lets no script in but its own: this way goes round it.
  await page.evaluate(await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
  let passed = 0;
  for (const colorScheme of ["dark", "light"]) {
    await page.emulateMedia({ colorScheme });
    const found = await page.evaluate((rules) => window.axe.run(document, { runOnly: rules }), RULES);
    const problems = found.violations.map(({ id, help, nodes }) => `${id} (${help}): ${nodes.map((n) => n.target).join(" ")}`);
    expect(problems.length === 0, `${colorScheme}: ${problems.join("; ")}`);
    passed = found.passes.length;
  }
  return `no violation, in dark and light; ${passed} rules passed`;
}

/** What can be seen without scrolling. @param {Page} page @param {string} folder @param {string} name */
export async function takeScreenshot(page, folder, name) {
  await page.mouse.move(0, 0);
  await page.evaluate(() => {
    document.activeElement.blur();
    scrollTo(0, 0);
  });
  await page.screenshot({ path: join(folder, `${name}.png`) });
}
