/**
 * The page where there is a graphics card, or a browser that only says so.
 * @module
 */

import { expect } from "./report.mjs";
import { PATIENT, waitForPicture } from "./waiting.mjs";

/** @typedef {import("playwright-core").Browser} Browser */
/** @typedef {import("playwright-core").Page} Page */

/**
 * WebGPU as Chromium computes it on the processor, where there is no card.
 * @param {string[]} flags Those of the other checks.
 */
export function cardFlags(flags) {
  return [
    ...flags.filter((flag) => flag !== "--disable-gpu"),
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
  ];
}

/**
 * Opens the page with `?runtime=webgpu` and waits for the outcome.
 * @param {Page} page
 * @param {string} address
 * @returns {Promise<{told: string, provider: string, verdict: string}>}
 */
async function openForCard(page, address) {
  await page.goto(`${address}?runtime=webgpu`);
  await waitForPicture(page);
  // What became of the trial stands behind a colon.
  await page.waitForFunction(() => window.check.runsOn().includes(": "), null, PATIENT);
  return page.evaluate(() => ({
    told: window.check.runsOn(),
    provider: window.tfdecouple.provider(),
    verdict: document.querySelector("#verdict").textContent,
  }));
}

/**
 * A browser that promises a graphics card and has none: the processor goes on.
 * @param {Browser} browser
 * @param {string} address
 * @param {() => void} tools What every page gets.
 */
export async function checkBrokenCard(browser, address, tools) {
  const page = await browser.newPage();
  try {
    await page.addInitScript(tools);
    await page.addInitScript(() => {
      Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({}) }, configurable: true });
    });
    const { told, provider, verdict } = await openForCard(page, address);
    expect(told.includes("the processor") && told.includes("graphics card was tried"), `the page says “${told}”`);
    expect(provider === "wasm", "the card computes all the same");
    expect(verdict.startsWith("Exact"), `the page says: ${verdict}`);
    return `“${told}”`;
  } finally {
    await page.close();
  }
}

/**
 * A card that gives every picture back takes over; where it fails later the processor goes on.
 * @param {Browser} browser
 * @param {string} address Where the card is the processor in disguise.
 * @param {() => void} tools
 */
export async function checkTakingOver(browser, address, tools) {
  const page = await browser.newPage();
  try {
    await page.addInitScript(tools);
    await page.addInitScript(() => {
      Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => ({}) }, configurable: true });
    });
    const { told, provider } = await openForCard(page, address);
    expect(provider === "webgpu" && told.includes("16 of 16 known pictures"), `with ${provider} the page says “${told}”`);
    await page.click("#sample");
    await page.waitForFunction(() => / pictures in /.test(document.querySelector("#sample-text").textContent), null, PATIENT);
    const after = await page.evaluate(() => window.tfdecouple.provider());
    expect(after === "wasm", "a card that failed goes on");
    const says = await page.evaluate(() => window.check.runsOn());
    expect(says.includes("the graphics card failed: lost"), `afterwards the page says “${says}”`);
    return `“${told}”, then “${says}”`;
  } finally {
    await page.close();
  }
}

/**
 * The card as Chromium computes it: either it gives every known picture back and takes over, or the processor goes on.
 * @param {Browser} browser
 * @param {string} address
 * @param {() => void} tools
 */
export async function checkCard(browser, address, tools) {
  const page = await browser.newPage();
  await page.addInitScript(tools);
  const { told, provider, verdict } = await openForCard(page, address);
  const exact = told.includes("16 of 16 known pictures came back exactly");
  expect((provider === "webgpu") === exact, `with ${provider} the page says “${told}”`);
  expect(verdict.startsWith("Exact"), `the page says: ${verdict}`);
  return `${provider}: “${told}”`;
}
