/**
 * Checks the web page of an exported model in a real browser.
 *
 *     node check.mjs SITE [--json FILE] [--screenshots DIR] [--pairs DIR] [--read DIR] [--isolated] [--browser FILE]
 *
 * Prints one line per check. The status is 1 if a check failed. docs/export.md describes --json, --screenshots and --browser.
 * --pairs switches the images of a folder, --read reads the picture files of a folder, and --json writes the results of
 * both. With --isolated the page runs with threads.
 * @module
 */

import { accessSync, constants } from "node:fs";
import { writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { defineBrowserFunctions, expect, waitForGrid } from "./browser_helpers.mjs";
import { DEVICES, checkAccessibility, checkLayout, takeScreenshot } from "./layout_checks.mjs";
import {
  checkBadFiles,
  checkDropAndPaste,
  checkExactFile,
  checkFullSize,
  checkSave,
  readPictureFiles,
  switchPairs,
} from "./picture_file_checks.mjs";
import {
  checkCredits,
  checkDirections,
  checkInterpolation,
  checkLoading,
  checkRoundTrip,
  checkSampling,
  checkSwap,
} from "./section_checks.mjs";
import { PATHS, startServer } from "./static_server.mjs";

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];
const BROWSER_FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--enable-unsafe-swiftshader",
  "--disable-background-networking",
];

/** @returns {{site: string, [option: string]: any}} The folder of the page, and the options by name. */
function readArguments() {
  const options = /** @type {const} */ ({
    json: { type: "string" },
    screenshots: { type: "string" },
    pairs: { type: "string" },
    read: { type: "string" },
    browser: { type: "string" },
    isolated: { type: "boolean", default: false },
  });
  const { values, positionals } = parseArgs({ allowPositionals: true, options });
  if (positionals.length !== 1) {
    console.error("usage: node check.mjs SITE [options]; docs/export.md lists the options");
    process.exit(2);
  }
  return { site: positionals[0], ...values };
}

/** @returns {string} The path of the first browser on the PATH. */
function findBrowser() {
  for (const folder of process.env.PATH.split(delimiter)) {
    for (const name of BROWSERS) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch {
        // accessSync throws where there is no such program, so the search goes on.
      }
    }
  }
  throw new Error(`No ${BROWSERS.join(", ")} on the PATH; name one with --browser.`);
}

const options = readArguments();
const results = [];

/** Runs a check, prints its result, and adds it to `results`. @param {string} name @param {() => Promise<string>} body */
async function runCheck(name, body) {
  const [ok, detail] = await body().then(
    (detail) => [true, detail],
    (error) => [false, error.message.split("\n")[0]],
  );
  results.push({ name, ok, detail });
  console.log(`${ok ? "ok    " : "FAILED"} ${name}: ${detail}`);
}

const server = await startServer(options.site, options.isolated);
const browser = await chromium.launch({ executablePath: options.browser ?? findBrowser(), args: BROWSER_FLAGS });
/** Errors of the page, failed requests, and requests to other servers. The page must cause none of these. */
const problems = [];

/** Opens the page on a device, and collects its problems. @param {keyof typeof DEVICES} device */
async function openPage(device) {
  const page = await browser.newPage({ ...DEVICES[device], colorScheme: "light" });
  page.on("console", (message) => message.type() === "error" && problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`uncaught: ${error.message}`));
  page.on("requestfailed", (request) => problems.push(`failed request: ${request.url()}`));
  page.on("request", (request) => {
    const isOwn = [server.origin, "blob:", "data:"].some((start) => request.url().startsWith(start));
    if (!isOwn) problems.push(`foreign request: ${request.url()}`);
  });
  await page.addInitScript(defineBrowserFunctions);
  await page.goto(server.origin + PATHS.page);
  return page;
}

/**
 * Checks that a page with a fault explains it to the reader.
 * @param {string} name
 * @param {string} path One of `PATHS`.
 * @param {string} selector Selects the element that shows the explanation.
 * @param {string[]} parts Texts that the explanation must contain.
 */
function checkFault(name, path, selector, parts) {
  return runCheck(name, async () => {
    const page = await browser.newPage();
    await page.goto(server.origin + path);
    await page.waitForFunction(
      ([selector, parts]) => parts.every((part) => document.querySelector(selector).textContent.includes(part)),
      [selector, parts],
      { timeout: 30_000 },
    );
    const text = await page.textContent(selector);
    await page.close();
    return `“${text}”`;
  });
}

const page = await openPage("web_page");
await runCheck("loading", () => checkLoading(page));
await runCheck("swap", () => checkSwap(page));
await runCheck("credits", () => checkCredits(page));
await runCheck("round trip", () => checkRoundTrip(page));
await runCheck("interpolation", () => checkInterpolation(page));
await runCheck("directions", () => checkDirections(page));
await runCheck("sampling", () => checkSampling(page));
await runCheck("save", () => checkSave(page));
const phone = await openPage("web_page_phone");
await waitForGrid(phone);
for (const [name, one] of Object.entries({ web_page: page, web_page_phone: phone })) {
  await runCheck(`layout of ${name}`, () => checkLayout(one));
  await runCheck(`accessibility of ${name}`, () => checkAccessibility(one));
  if (options.screenshots) await takeScreenshot(one, options.screenshots, name);
}
await phone.close();
await runCheck("not an image", () => checkBadFiles(page));
await runCheck("exact file", () => checkExactFile(page));
await runCheck("drop and paste", () => checkDropAndPaste(page));
await runCheck("full size", () => checkFullSize(page));
const pairs = options.pairs && (await switchPairs(page, options.pairs));
const read = options.read && (await readPictureFiles(page, options.read));
await runCheck("clean", async () => {
  expect(problems.length === 0, problems.join("; "));
  return `no errors, no failed and no foreign requests; ${await page.textContent("#device")}`;
});
await checkFault("missing model", PATHS.noDecoder, "#load-error", ["model/decoder.onnx", "HTTP 404"]);
await checkFault("no WebAssembly", PATHS.noWebAssembly, "#load-error", ["no WebAssembly"]);
await checkFault("not finite", PATHS.notFinite, "#verdict", ["not finite"]);
await browser.close();
server.close();
if (options.json) await writeFile(options.json, `${JSON.stringify({ results, pairs, read }, null, 2)}\n`);
const failed = results.filter(({ ok }) => !ok).length;
console.log(`${results.length - failed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
