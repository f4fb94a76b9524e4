/**
 * What the page looks like, in a window on a desk and on a phone, and what axe says of its accessibility.
 * @module
 */

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { expect } from "./report.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** What a page is opened with, by the name of its screenshot. */
export const DEVICES = {
  web_page: { viewport: { width: 1280, height: 900 } },
  web_page_phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true },
};

/** Of a picture, that a save button may cover. */
const MOST_COVERED = 1 / 8;
/** Of the rules of axe: all of the guidelines up to level AA, and what is good practice besides. */
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

/**
 * That the swap is in sight without scrolling, examples lie in one row, save buttons are small and round, and hints fit
 * the device. All samples are there.
 * @param {Page} page
 * @param {keyof typeof DEVICES} device
 * @returns {Promise<string>}
 */
export async function checkLayout(page, device) {
  const seen = await page.evaluate(() => {
    scrollTo(0, 0);
    const box = (node) => node.getBoundingClientRect();
    const saves = [...document.querySelectorAll(".save:not([hidden])")].filter((save) => box(save).width > 0);
    return {
      bottom: box(document.querySelector("#switch-grid")).bottom,
      height: innerHeight,
      width: document.documentElement.scrollWidth - innerWidth,
      rows: [...document.querySelectorAll(".examples")].map(
        (group) => new Set([...group.children].map((one) => Math.round(box(one).top))).size,
      ),
      saves: saves.map((save) => {
        const [{ width, height }, picture] = [box(save), box(save.closest(".picture"))];
        const round = getComputedStyle(save).borderRadius === "50%" && Math.abs(width - height) < 0.5;
        return { round, covered: (Math.PI * width * height) / 4 / (picture.width * picture.height) };
      }),
      touched: matchMedia("(hover: none) and (pointer: coarse)").matches,
      hints: [...document.querySelectorAll(".hint")].map((hint) => hint.innerText).join(" "),
    };
  });
  expect(seen.bottom <= seen.height, `the swap ends at ${Math.round(seen.bottom)} of ${seen.height} px`);
  expect(seen.width <= 0, `the page is ${seen.width} px too wide`);
  expect(seen.rows.length === 2 && seen.rows.every((rows) => rows === 1), `examples take ${seen.rows} rows`);
  expect(seen.touched === Boolean(DEVICES[device].hasTouch), `the page takes ${device} for another device`);
  const covered = Math.max(...seen.saves.map((save) => save.covered));
  expect(seen.saves.length >= 15, `there are ${seen.saves.length} save buttons`);
  expect(
    seen.saves.every(({ round }) => round),
    "not all save buttons are round",
  );
  expect(covered <= MOST_COVERED, `a save button covers ${percent(covered)} of its picture`);
  for (const words of ["arrow keys", "drop or paste"]) {
    expect(seen.hints.includes(words) !== seen.touched, `hints ${seen.touched ? "" : "do not "}speak of ${words}`);
  }
  return (
    `the swap ends at ${Math.round(seen.bottom)} of ${seen.height} px, examples lie in one row, ` +
    `${seen.saves.length} round save buttons cover at most ${percent(covered)}, hints for ${seen.touched ? "a finger" : "a mouse"}`
  );
}

/** @param {number} share */
function percent(share) {
  return `${(100 * share).toFixed(0)} %`;
}

/**
 * That axe finds nothing to object to, in light and in dark, and that who speaks to the device may say what can be seen.
 * @param {Page} page
 * @returns {Promise<string>}
 */
export async function checkAccessibility(page) {
  const source = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  // The page lets no script in but its own: this way goes round it.
  await page.evaluate(source);
  let passed = 0;
  for (const colorScheme of ["dark", "light"]) {
    await page.emulateMedia({ colorScheme });
    const found = await page.evaluate(async (rules) => {
      const { violations, passes } = await window.axe.run(document, { runOnly: rules });
      const said = violations.map(({ id, help, nodes }) => `${id} (${help}): ${nodes.map((n) => n.target).join(" ")}`);
      return { said, passed: passes.length };
    }, RULES);
    expect(found.said.length === 0, `${colorScheme}: ${found.said.join("; ")}`);
    passed = found.passed;
  }
  // Axe does not look at fields within their labels.
  const unlike = await page.evaluate(() =>
    [...document.querySelectorAll("input[aria-label], button[aria-label]")]
      .map((node) => [node.ariaLabel, (node.closest("label") ?? node).innerText.trim()])
      .filter(([name, text]) => !name.toLowerCase().includes(text.toLowerCase()))
      .map(([name, text]) => `“${text}” is called “${name}”`),
  );
  expect(unlike.length === 0, unlike.join("; "));
  return `no violation, in dark and light; ${passed} rules passed`;
}

/**
 * What can be seen without scrolling.
 * @param {Page} page
 * @param {string} folder
 * @param {string} name
 */
export async function takeScreenshot(page, folder, name) {
  // What the mouse was on would still be fading.
  await page.emulateMedia({ reducedMotion: "reduce" });
  await page.mouse.move(0, 0);
  await page.evaluate(() => {
    document.activeElement.blur();
    scrollTo(0, 0);
  });
  await page.screenshot({ path: join(folder, `${name}.png`) });
}
