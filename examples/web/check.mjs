/**
 * Checks the web page of an exported model in a real browser.
 *
 *     node check.mjs SITE [--json FILE] [--screenshots DIR] [--pairs DIR] [--read DIR] [--isolated] [--browser FILE]
 *
 * Prints one line a check and exits with 1 if any failed. README.md says what the options do.
 * @module
 */

import { accessSync, constants } from "node:fs";
import { writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { checkBadFiles, checkDropAndPaste, checkExactFile, checkOwnSize, checkSave, readFiles, switchPairs } from "./picture_file_checks.mjs";
import { DEVICES, checkAccessibility, checkLayout, takeScreenshot } from "./layout_checks.mjs";
import { PATHS, serve } from "./static_server.mjs";
import { CELLS, PATIENT, addTools, expect, waitForPixels, waitForSwap } from "./browser_helpers.mjs";

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-background-networking"];
const NOISE_IMAGES = 16;

/** @typedef {import("playwright-core").Page} Page */

/** @param {Page} page */
async function checkLoading(page) {
  await waitForSwap(page);
  const [milliseconds, said] = await page.evaluate(() => [performance.now(), window.check.loading]);
  expect(said.some((text) => text?.startsWith("Starting the model")), `while it loads the page says “${said.at(-1)}”`);
  return `the swap is there after ${Math.round(milliseconds)} ms`;
}

/** @param {Page} page */
async function checkSwap(page) {
  const seen = await page.evaluate(async (cells) => {
    const { all, base64, same } = window.check;
    const measure = (pixels) =>
      [0, 1, 2].flatMap((channel) => {
        const values = [...pixels].filter((_, index) => index % 3 === channel);
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        return [mean, Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length)];
      });
    const distance = (one, other) => Math.hypot(...measure(one).map((value, k) => value - measure(other)[k]));
    const [a, bWithA, aWithB, b] = all(cells);
    const rows = [...document.querySelectorAll("#grid .row")].map((row) => row.textContent);
    const [examples] = document.querySelectorAll(".examples");
    examples.children[2].click();
    // Until the new picture's codes are there.
    while (same(all(cells)[0], a)) await new Promise((resolve) => setTimeout(resolve, 1));
    const meanwhile = document.querySelector("#verdict").textContent;
    examples.children[0].click();
    return {
      rows,
      wanted: [
        `${2 * distance(bWithA, a) <= distance(bWithA, b) ? "colours" : "z"} of A`,
        `${2 * distance(aWithB, b) <= distance(aWithB, a) ? "colours" : "z"} of B`,
      ],
      switched: [bWithA, aWithB].every((picture) => !same(picture, a) && !same(picture, b)),
      a: base64(a),
      meanwhile,
    };
  }, CELLS);
  expect(seen.switched, "the switched pictures do not differ from A and B");
  expect(String(seen.rows) === String(seen.wanted), `the rows are called ${seen.rows}, not ${seen.wanted}`);
  expect(!seen.meanwhile.includes("xact"), `while new pictures compute the page says “${seen.meanwhile}”`);
  await waitForPixels(page, CELLS, seen.a, "the first example does not come back");
  await waitForSwap(page);
  return `${seen.rows.join(", ")}; “${await page.textContent("#verdict")}”`;
}

/** @param {Page} page */
async function checkRoundTrip(page) {
  const outcome = await page.evaluate(async (count) => {
    const { all, config, noise, round, step } = window.check;
    const { image_shape: [size] } = await config();
    const images = Array.from({ length: count }, () => noise(size * size * 3));
    images.push(...all("#grid canvas.model"));
    let different = 0;
    for (const pixels of images) {
      const image = round(pixels, await step());
      const { z, v } = await window.tfdecouple.encode(image, 1);
      const decoded = await window.tfdecouple.decode(z, v, 1);
      different += image.filter((value, index) => value !== decoded[index]).length;
    }
    return { images: images.length, different };
  }, NOISE_IMAGES);
  expect(outcome.different === 0, `${outcome.different} values of ${outcome.images} images differ`);
  return `${NOISE_IMAGES} noise images and the four of the swap come back exactly`;
}

/** That the picture on the way has z on the line and v on the arc between A and B. @param {Page} page */
async function checkWalk(page) {
  await page.locator("#map").scrollIntoViewIfNeeded();
  const track = await page.locator("#track").boundingBox();
  await page.mouse.move(track.x + track.width / 2, track.y + track.height / 2);
  await page.mouse.down();
  await page.mouse.move(track.x + track.width, track.y, { steps: 20 });
  await page.mouse.up();
  const switched = await page.evaluate((cells) => window.check.base64(window.check.all(cells)[1]), CELLS);
  await waitForPixels(page, "#walk-picture canvas.model", switched, "dragged to the corner the picture is not the switched one", 0.01);
  await page.locator("#walk-z").focus();
  for (const key of ["Home", "ArrowDown", "ArrowDown"]) await page.keyboard.press(key);
  const text = await page.getAttribute("#walk-z", "aria-valuetext");
  expect(text === "2 % from B", `two arrow keys lead to: ${text}`);
  await page.locator("#walk-z").fill("0.25");
  await page.locator("#walk-v").fill("0.6");
  const wanted = await page.evaluate(async (cells) => {
    const [imageA, , , imageB] = window.check.all(cells);
    const [a, b] = [await window.tfdecouple.encode(imageA, 1), await window.tfdecouple.encode(imageB, 1)];
    const product = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
    const [lengthA, lengthB] = [a.v, b.v].map((v) => Math.sqrt(product(v, v)));
    const angle = Math.acos(product(a.v, b.v) / (lengthA * lengthB));
    const scale = (0.4 * lengthA + 0.6 * lengthB) / Math.sin(angle);
    const mix = (one, other, ofOne, ofOther) => one.map((value, index) => ofOne * value + ofOther * other[index]);
    const [ofA, ofB] = [(Math.sin(0.4 * angle) * scale) / lengthA, (Math.sin(0.6 * angle) * scale) / lengthB];
    return window.check.base64(await window.tfdecouple.decode(mix(a.z, b.z, 0.75, 0.25), mix(a.v, b.v, ofA, ofB), 1));
  }, CELLS);
  await waitForPixels(page, "#walk-picture canvas.model", wanted, "the picture is not that of z at 25 % and v at 60 %", 0.01);
  return "by mouse and keys; at z 25 % and v 60 % the picture has z on the line and v on the arc";
}

/** @param {Page} page */
async function checkSteering(page) {
  const { directions = [] } = await page.evaluate(() => window.check.config());
  const sliders = page.locator("#steer-sliders input");
  expect((await sliders.count()) === directions.length, `${await sliders.count()} sliders for ${directions.length} directions`);
  if (directions.length === 0) {
    expect(await page.locator("#steer").isHidden(), "there are no directions, and yet their section");
    return "this model has none, and no section for them";
  }
  const moved = async (cell, amounts, complaint) => {
    const wanted = await page.evaluate(
      async ([cell, steps]) => {
        const { z, v } = await window.tfdecouple.encode(window.check.all("#grid canvas.model")[cell], 1);
        for (const [amount, vector] of steps) vector.forEach((value, place) => (z[place] += Math.fround(amount * Math.fround(value))));
        return window.check.base64(await window.tfdecouple.decode(z, v, 1));
      },
      [cell, amounts.map((amount, index) => [amount, directions[index].vector])],
    );
    await waitForPixels(page, "#steer-picture canvas.model", wanted, complaint, 0.01);
  };
  await moved(0, [], "with all sliders at 0 the picture is not A");
  await sliders.first().focus();
  await page.keyboard.press("End");
  await moved(0, [2], "the picture is not that of the first slider at its end");
  if (directions.length > 1) {
    await sliders.nth(1).fill("-1");
    await moved(0, [2, -1], "the second slider does not add to the first");
  }
  await page.locator("#steer-b").check();
  await page.locator("#steer-reset").click();
  await moved(3, [], "after the reset the picture is not B");
  await page.locator("#steer-a").check();
  return `${directions.length} directions, by keys and together; at 0 nothing changes`;
}

/** @param {Page} page */
async function checkSampling(page) {
  const sampled = async (action) => {
    await page.evaluate(() => document.querySelectorAll("#samples .save").forEach((save) => (save.hidden = true)));
    await action();
    await page.waitForFunction(() => document.querySelectorAll("#samples .save:not([hidden])").length === 8, null, PATIENT);
    return page.evaluate(() => window.check.all("#samples canvas.model").map(window.check.base64).join());
  };
  const fill = (id, value) => sampled(() => page.locator(id).fill(value));
  const progress = page.waitForFunction(() => document.querySelector("#sample-load").checkVisibility(), null, { polling: 5 });
  const first = await sampled(() => page.click("#sample"));
  await progress;
  expect(await page.locator("#sample-load").isHidden(), "the progress of the sampler stays");
  const second = await sampled(() => page.click("#sample"));
  const cooler = await fill("#temperature", "0.4");
  await fill("#seed", "1");
  const again = await fill("#temperature", "0.8");
  expect(new Set(first.split(",")).size === 8, "there are not eight different samples");
  expect(first === again, "the same seed and temperature give other samples");
  expect(first !== second && second !== cooler, "the seed or the temperature changes nothing");
  return "progress at the first start; same seed, same pictures; temperature and seed change them";
}

/** @param {Page} page */
async function checkCredits(page) {
  const { examples } = await page.evaluate(() => window.check.config());
  const credits = await page.textContent("#credits");
  const missing = examples.flatMap(({ title, author, licence }) => [title, author, licence]).filter((part) => !credits.includes(part));
  expect(missing.length === 0, `“${credits}” does not say ${missing.join(", ")}`);
  const links = await page.locator("footer a").evaluateAll((found) => found.map((link) => link.getAttribute("href")));
  expect(String(links) === "https://arxiv.org/abs/2004.11820", `the links are ${links}`);
  return `“${credits.slice(0, 60)} …”`;
}

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
    console.error("usage: node check.mjs SITE [options]; README.md says which");
    process.exit(2);
  }
  return { site: positionals[0], ...values };
}

/** @returns {string} */
function findBrowser() {
  for (const folder of process.env.PATH.split(delimiter)) {
    for (const name of BROWSERS) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch {
        // The next one, then.
      }
    }
  }
  throw new Error(`No ${BROWSERS.join(", ")} on the PATH; name one with --browser.`);
}

const options = readArguments();
const results = [];

/** @param {string} name @param {() => Promise<string>} body Returns what to say of a passed check. */
async function check(name, body) {
  const [ok, detail] = await body().then(
    (detail) => [true, detail],
    (error) => [false, error.message.split("\n")[0]],
  );
  results.push({ name, ok, detail });
  console.log(`${ok ? "ok    " : "FAILED"} ${name}: ${detail}`);
}

const server = await serve(options.site, options.isolated);
const browser = await chromium.launch({ executablePath: options.browser ?? findBrowser(), args: FLAGS });
/** What the page must not do: errors, failed and foreign requests. */
const problems = [];

/** @param {keyof typeof DEVICES} device */
async function openPage(device) {
  const page = await browser.newPage({ ...DEVICES[device], colorScheme: "light" });
  page.on("console", (message) => message.type() === "error" && problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`uncaught: ${error.message}`));
  page.on("requestfailed", (request) => problems.push(`failed request: ${request.url()}`));
  page.on("request", (request) => {
    const own = [server.origin, "blob:", "data:"].some((start) => request.url().startsWith(start));
    if (!own) problems.push(`foreign request: ${request.url()}`);
  });
  await page.addInitScript(addTools);
  await page.goto(server.origin + PATHS.page);
  return page;
}

/** @param {string} name @param {string} path Of a page that has something wrong. @param {string[]} parts What it says. */
function checkComplaint(name, path, selector, parts) {
  return check(name, async () => {
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
await check("loading", () => checkLoading(page));
await check("swap", () => checkSwap(page));
await check("credits", () => checkCredits(page));
await check("round trip", () => checkRoundTrip(page));
await check("walk", () => checkWalk(page));
await check("directions", () => checkSteering(page));
await check("sampling", () => checkSampling(page));
await check("save", () => checkSave(page));
const phone = await openPage("web_page_phone");
await waitForSwap(phone);
for (const [name, one] of Object.entries({ web_page: page, web_page_phone: phone })) {
  await check(`layout of ${name}`, () => checkLayout(one));
  await check(`accessibility of ${name}`, () => checkAccessibility(one));
  if (options.screenshots) await takeScreenshot(one, options.screenshots, name);
}
await phone.close();
await check("not an image", () => checkBadFiles(page));
await check("exact file", () => checkExactFile(page));
await check("drop and paste", () => checkDropAndPaste(page));
await check("own size", () => checkOwnSize(page));
const pairs = options.pairs && (await switchPairs(page, options.pairs));
const read = options.read && (await readFiles(page, options.read));
await check("clean", async () => {
  expect(problems.length === 0, problems.join("; "));
  return `no errors, no failed and no foreign requests; ${await page.textContent("#device")}`;
});
await checkComplaint("missing model", PATHS.noDecoder, "#load-error", ["model/decoder.onnx", "HTTP 404"]);
await checkComplaint("no WebAssembly", PATHS.noWebAssembly, "#load-error", ["no WebAssembly"]);
await checkComplaint("not finite", PATHS.notFinite, "#verdict", ["not finite"]);
await browser.close();
server.close();
if (options.json) await writeFile(options.json, `${JSON.stringify({ results, pairs, read }, null, 2)}\n`);
const failed = results.filter(({ ok }) => !ok).length;
console.log(`${results.length - failed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
