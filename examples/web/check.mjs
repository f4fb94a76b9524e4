/**
 * Checks the web page of an exported model in a real browser.
 *
 *     node check.mjs SITE [--json FILE] [--screenshots DIR] [--pairs DIR] [--read DIR] [--isolated] [--card]
 *         [--browser FILE]
 *
 * Prints one line a check and exits with 1 if any failed. README.md says what it looks at.
 * @module
 */

import { accessSync, constants } from "node:fs";
import { writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { cardFlags, checkBrokenCard, checkCard, checkTakingOver } from "./card.mjs";
import { checkBadFiles, checkDropAndPaste, checkExactFile, checkSave, readFiles, switchPairs } from "./files.mjs";
import { DEVICES, checkAccessibility, checkLayout, takeScreenshot } from "./looks.mjs";
import { Report, expect } from "./report.mjs";
import { DISGUISED_CARD_PATH, NOT_FINITE_PATH, NO_DECODER_PATH, NO_WEBASSEMBLY_PATH, SUB_PATH, serve } from "./server.mjs";
import { PATIENT, waitForNear, waitForPicture, waitForShown } from "./waiting.mjs";
import { checkCaptions, checkCredits } from "./words.mjs";

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--enable-unsafe-swiftshader",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const NOISE_IMAGES = 16;
const DRAG_MS = 3000;

/** @typedef {import("playwright-core").Page} Page */

/** Notes everything that a page must not do. */
class Watch {
  problems = [];

  /** @param {Page} page @param {string} origin */
  constructor(page, origin) {
    page.on("console", (message) => message.type() === "error" && this.problems.push(`console: ${message.text()}`));
    page.on("pageerror", (error) => this.problems.push(`uncaught: ${error.message}`));
    page.on("requestfailed", (request) => this.problems.push(`failed request: ${request.url()}`));
    page.on(
      "response",
      (response) => response.status() >= 400 && this.problems.push(`HTTP ${response.status()}: ${response.url()}`),
    );
    page.on("request", (request) => {
      const own = [origin, "blob:", "data:"].some((start) => request.url().startsWith(start));
      if (!own) this.problems.push(`foreign request: ${request.url()}`);
    });
  }
}

/** Functions that every page gets: the checks run them inside the browser. And what it said while it was loading. */
function pageTools() {
  const saidOfLoading = [];
  new MutationObserver((changes) => {
    const said = changes.filter(({ target }) => target.id === "load-text").flatMap(({ addedNodes }) => [...addedNodes]);
    saidOfLoading.push(...said.map((node) => node.textContent));
  }).observe(document, { childList: true, subtree: true });
  window.check = {
    saidOfLoading,
    base64: (bytes) => {
      let text = "";
      for (const byte of bytes) text += String.fromCharCode(byte);
      return btoa(text);
    },
    bytes: (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)),
    same: (a, b) => a.length === b.length && a.every((value, index) => value === b[index]),
    pixels: (canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Uint8Array(data.filter((_, index) => index % 4 !== 3));
    },
    all: (selector) => [...document.querySelectorAll(selector)].map((canvas) => window.check.pixels(canvas)),
    config: async () => (await fetch("model/config.json")).json(),
    // What neighbouring levels differ by: a model of fewer than 8 bits knows multiples of it alone.
    levelStep: async () => 256 >> ((await window.check.config()).n_bits ?? 8),
    toLevels: (pixels, step) => pixels.map((value) => value - (value % step)),
    runsOn: () => {
      const rows = [...document.querySelectorAll("#facts div")];
      return rows.find((row) => row.textContent.startsWith("Runs on"))?.textContent ?? "";
    },
    noise: (length) => {
      const bytes = new Uint8Array(length);
      for (let start = 0; start < length; start += 65536) crypto.getRandomValues(bytes.subarray(start, start + 65536));
      return bytes;
    },
    png: async (width, height, paint) => {
      const canvas = new OffscreenCanvas(width, height);
      paint(canvas.getContext("2d"));
      return new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer());
    },
  };
}

/** @param {string | undefined} given @returns {string} */
function findBrowser(given) {
  if (given) return given;
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

/** @param {Page} page @param {Report} report */
async function checkFirstPicture(page, report) {
  await waitForPicture(page);
  report.measured.firstPictureMs = await page.evaluate(() => window.tfdecouple.timing.firstPicture);
  const said = await page.evaluate(() => window.check.saidOfLoading);
  expect(said.at(-1)?.startsWith("Starting the model"), `the page ends loading with “${said.at(-1)}”`);
  return `after ${Math.round(report.measured.firstPictureMs)} ms`;
}

/** @param {Page} page */
async function checkSwitch(page) {
  const seen = await page.evaluate(() => {
    const { all, same } = window.check;
    const [[a, b], cells] = [all(".slot .picture canvas"), all(".grid .picture canvas")];
    return {
      verdict: document.querySelector("#verdict").textContent,
      diagonal: same(a, cells[0]) && same(b, cells[3]),
      switched: [1, 2].every((index) => !same(cells[index], a) && !same(cells[index], b)),
    };
  });
  expect(seen.diagonal, "the pictures on the diagonal are not A and B");
  expect(seen.switched, "the switched pictures do not differ from A and B");
  expect(seen.verdict.startsWith("Exact"), `the page says: ${seen.verdict}`);
  return seen.verdict;
}

/**
 * That the picture on the way has z on the line and v on the arc between A and B.
 * @param {Page} page
 */
async function checkBetween(page) {
  await page.locator("#alpha").fill("0.25");
  await page.locator("#beta").fill("0.6");
  const wanted = await page.evaluate(async () => {
    const { all, base64 } = window.check;
    const [a, b] = await Promise.all(all(".slot .picture canvas").map((image) => window.tfdecouple.encode(image, 1)));
    const product = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
    const [lengthA, lengthB] = [a.v, b.v].map((v) => Math.sqrt(product(v, v)));
    const angle = Math.acos(product(a.v, b.v) / (lengthA * lengthB));
    const scale = (0.4 * lengthA + 0.6 * lengthB) / Math.sin(angle);
    const mixed = (one, other, ofOne, ofOther) => one.map((value, index) => ofOne * value + ofOther * other[index]);
    const z = mixed(a.z, b.z, 0.75, 0.25);
    const [ofA, ofB] = [(Math.sin(0.4 * angle) * scale) / lengthA, (Math.sin(0.6 * angle) * scale) / lengthB];
    const v = mixed(a.v, b.v, ofA, ofB);
    return base64(await window.tfdecouple.decode(z, v, 1));
  });
  await waitForNear(page, "#between-picture canvas", wanted, "the picture is not that of z at 25 % and v at 60 %");
  return "at z 25 % and v 60 % the picture has z on the line and v on the arc";
}

/** @param {Page} page @param {Report} report */
async function checkRoundTrip(page, report) {
  const outcome = await page.evaluate(async (count) => {
    const { noise, pixels, config, levelStep, toLevels } = window.check;
    const { image_size: size, examples } = await config();
    const step = await levelStep();
    const length = size * size * 3;
    const images = new Uint8Array((count + examples.length) * length);
    images.set(noise(count * length));
    for (const [index, { file }] of examples.entries()) {
      const bitmap = await createImageBitmap(await (await fetch(file)).blob());
      const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      images.set(pixels(canvas), (count + index) * length);
    }
    let different = 0;
    for (let start = 0; start < images.length; start += length) {
      const image = toLevels(images.slice(start, start + length), step);
      const { z, v } = await window.tfdecouple.encode(image, 1);
      const back = await window.tfdecouple.decode(z, v, 1);
      different += image.reduce((sum, value, index) => sum + (value !== back[index]), 0);
    }
    return { noise: count, examples: examples.length, values: images.length, different };
  }, NOISE_IMAGES);
  report.measured.roundTrip = outcome;
  expect(outcome.different === 0, `${outcome.different} of ${outcome.values} values differ`);
  return `${outcome.noise} noise images and ${outcome.examples} examples, all ${outcome.values} values identical`;
}

/** @param {Page} page @param {Report} report */
async function checkDrag(page, report) {
  await page.locator("#pad").scrollIntoViewIfNeeded();
  const box = await page.locator("#pad-track").boundingBox();
  const at = (x, y) => [box.x + x * box.width, box.y + y * box.height];
  await watchAnimationFrames(page);
  await page.mouse.move(...at(0.1, 0.1));
  await page.mouse.down();
  const moves = await circle(page, at);
  report.measured.framesPerSecond = await page.evaluate(() => window.tfdecouple.timing.framesPerSecond());
  await page.mouse.move(...at(1, 0));
  await page.mouse.up();
  report.measured.longestFrameMs = await page.evaluate(() => window.check.longestFrame);
  const last = await page
    .waitForFunction(
      () => {
        const [shown] = window.check.all("#between-picture canvas");
        return window.check.same(shown, window.check.all(".grid .picture canvas")[1]);
      },
      null,
      { timeout: 5000 },
    )
    .catch(() => null);
  expect(last, "after a drag to the corner the picture is not the switched one");
  expect(report.measured.framesPerSecond > 0, "no frames were counted");
  report.measured.dragMoves = moves;
  const { framesPerSecond, longestFrameMs } = report.measured;
  return (
    `${framesPerSecond.toFixed(1)} pictures per second in ${moves} moves; the page never paused longer than ` +
    `${Math.round(longestFrameMs)} ms; the last picture is that of the last place`
  );
}

/** @param {Page} page */
function watchAnimationFrames(page) {
  return page.evaluate(() => {
    let before = performance.now();
    window.check.longestFrame = 0;
    const step = () => {
      // The frame's own time stamp would not show a late start.
      const now = performance.now();
      window.check.longestFrame = Math.max(window.check.longestFrame, now - before);
      before = now;
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  });
}

/** @param {Page} page @param {(x: number, y: number) => [number, number]} at @returns {Promise<number>} Moves made. */
async function circle(page, at) {
  const start = Date.now();
  let moves = 0;
  for (; Date.now() - start < DRAG_MS; moves++) {
    const angle = (Date.now() - start) / 300;
    await page.mouse.move(...at(0.5 + 0.4 * Math.cos(angle), 0.5 + 0.4 * Math.sin(angle)));
  }
  return moves;
}

/** @param {Page} page */
async function checkKeyboard(page) {
  await page.locator("#slots input").first().focus();
  const reached = await tabTo(page, "pad-thumb");
  expect(reached, "Tab does not reach the point");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  expect(outline !== "none", "the focused point has no visible outline");
  const text = () => page.getAttribute("#pad-thumb", "aria-valuetext");
  for (const key of ["Home", "PageUp"]) await page.keyboard.press(key);
  const start = await text();
  for (const key of ["ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowRight"]) await page.keyboard.press(key);
  const end = await text();
  expect(start === "z 0 % from B, v 0 % from B", `Home and PageUp lead to: ${start}`);
  expect(end === "z 10 % from B, v 6 % from B", `four arrow keys lead to: ${end}`);
  return `from “${start}” to “${end}” with four keys`;
}

/** @param {Page} page @param {string} id */
async function tabTo(page, id) {
  for (let step = 0; step < 60; step++) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((wanted) => document.activeElement.id === wanted, id)) return true;
  }
  return false;
}

/** @param {Page} page @param {Report} report */
async function checkSampling(page, report) {
  const sampled = async (action) => {
    const before = await page.textContent("#sample-text");
    await page.evaluate(() => (document.querySelector("#sample-text").textContent = ""));
    await action();
    await page
      .waitForFunction(() => / pictures in /.test(document.querySelector("#sample-text").textContent), null, PATIENT)
      .catch(async () =>
        expect(false, `sampling ends with “${await page.textContent("#sample-text")}” after “${before}”`),
      );
    return page.evaluate(() => window.check.all("#samples canvas").map(window.check.base64).join());
  };
  const temperature = (value) => () => page.locator("#temperature").fill(value);
  const first = await sampled(() => page.click("#sample"));
  const again = await sampled(() => page.click("#sample"));
  report.measured.sampling = await page.textContent("#sample-text");
  const cooler = await sampled(temperature("0.4"));
  const other = await sampled(() => page.click("#next-seed"));
  await sampled(temperature("0.8"));
  await page.fill("#seed", "1");
  const back = await sampled(() => page.click("#sample"));
  expect(
    first.split(",").length === 8 && new Set(first.split(",")).size === 8,
    "there are not eight different samples",
  );
  expect(first === again && first === back, "the same seed and temperature give other samples");
  expect(first !== cooler, "the temperature changes nothing");
  expect(cooler !== other, "the seed changes nothing");
  return `same seed, same pictures; temperature and seed change them. ${report.measured.sampling}`;
}

/**
 * Waits until the picture of the section of directions is what picture A gives with its z moved so far.
 * @param {Page} page
 * @param {Record<number, number>} amounts By the number of the slider.
 */
async function waitForSteered(page, amounts) {
  const wanted = await page.evaluate(async (amounts) => {
    const { all, config, base64 } = window.check;
    const { directions } = await config();
    const { z, v } = await window.tfdecouple.encode(all(".slot .picture canvas")[0], 1);
    for (const [index, amount] of Object.entries(amounts)) {
      const vector = Float32Array.from(directions[index].vector);
      vector.forEach((value, place) => (z[place] += Math.fround(Math.fround(amount) * value)));
    }
    return base64(await window.tfdecouple.decode(z, v, 1));
  }, amounts);
  const arrived = await page
    .waitForFunction(
      ([wanted, step]) => {
        const { all, bytes } = window.check;
        const [[shown], [before], right] = [all("#steer-picture canvas"), all(".slot .picture canvas"), bytes(wanted)];
        const distances = right.map((value, place) => Math.abs(value - shown[place]));
        // A value on the border of two levels may fall either way: the page encodes A and B together.
        const near =
          distances.every((distance) => distance <= step) && distances.filter(Boolean).length < right.length / 100;
        return near && !window.check.same(shown, before);
      },
      [wanted, await page.evaluate(() => window.check.levelStep())],
      { timeout: 10_000 },
    )
    .catch(() => null);
  expect(arrived, `the picture is not that of the sliders at ${JSON.stringify(amounts)}`);
}

/** @param {Page} page @returns {Promise<number>} */
function firstAmount(page) {
  return page.locator("#steer-sliders input").first().evaluate((input) => input.valueAsNumber);
}

/** The slider of a direction by mouse, keyboard and touch. @param {Page} page */
async function checkSteering(page) {
  const count = (await page.evaluate(() => window.check.config())).directions?.length ?? 0;
  if (count === 0) {
    expect(await page.locator("#steer").isHidden(), "there are no directions, and yet their section");
    return "this model has none, and no section for them";
  }
  const sliders = page.locator("#steer-sliders input");
  expect((await sliders.count()) === count, `there are ${await sliders.count()} sliders for ${count} directions`);
  const verdict = () => page.textContent("#steer-verdict");
  const [imageA] = await page.evaluate(() => window.check.all(".slot .picture canvas").map(window.check.base64));
  await waitForShown(page, 0, imageA, "#steer-picture canvas");
  expect((await verdict()).startsWith("Exact"), `at 0 the page says: ${await verdict()}`);

  await sliders.first().scrollIntoViewIfNeeded();
  const box = await sliders.first().boundingBox();
  const at = (share) => [box.x + share * box.width, box.y + box.height / 2];
  await page.mouse.move(...at(0.5));
  await page.mouse.down();
  await page.mouse.move(...at(0.8), { steps: 8 });
  // While the button is still down.
  const during = await firstAmount(page);
  expect(during > 0.5, `dragging to the right leads to ${during}`);
  await waitForSteered(page, { 0: during });
  await page.mouse.move(...at(1.2), { steps: 4 });
  await page.mouse.up();
  expect((await firstAmount(page)) === 2, `dragging beyond the end leads to ${await firstAmount(page)}`);
  await waitForSteered(page, { 0: 2 });

  await page.locator("#steer-reset").click();
  await waitForShown(page, 0, imageA, "#steer-picture canvas");
  expect((await verdict()).startsWith("Exact"), `after the reset the page says: ${await verdict()}`);

  await page.locator("#steer-reset").focus();
  expect(await tabTo(page, "steer-0"), "Tab does not reach the slider");
  for (const key of ["ArrowRight", "ArrowUp", "ArrowRight"]) await page.keyboard.press(key);
  const byKeys = await firstAmount(page);
  expect(Math.abs(byKeys - 0.15) < 1e-9, `three arrow keys lead to ${byKeys}`);
  await waitForSteered(page, { 0: byKeys });
  await page.keyboard.press("Home");
  expect((await firstAmount(page)) === -2, `Home leads to ${await firstAmount(page)}`);
  const text = await page.getAttribute("#steer-0", "aria-valuetext");
  expect(text === "−2.00", `a screen reader hears: ${text}`);
  await page.locator("#steer-reset").click();

  const byTouch = await touchSlider(page, at);
  await waitForSteered(page, { 0: byTouch });
  // The others add to it, and the other picture follows the same sliders.
  if (count > 1) {
    await sliders.nth(1).fill("1");
    await waitForSteered(page, { 0: byTouch, 1: 1 });
  }
  await page.locator("#steer-reset").click();
  await waitForShown(page, 0, imageA, "#steer-picture canvas");
  const imageB = await page.evaluate(() => window.check.base64(window.check.all(".slot .picture canvas")[1]));
  await page.locator("#steer-b").check();
  await waitForShown(page, 0, imageB, "#steer-picture canvas");
  await page.locator("#steer-a").check();
  return `${count} directions; mouse to +2.00, keys to +0.15, a finger to ${byTouch.toFixed(2)}; exact at 0`;
}

/** @param {Page} page @param {(share: number) => [number, number]} at @returns {Promise<number>} Where a finger led. */
async function touchSlider(page, at) {
  const session = await page.context().newCDPSession(page);
  await session.send("Emulation.setTouchEmulationEnabled", { enabled: true });
  const touch = (type, share) => {
    const [x, y] = at(share);
    return session.send("Input.dispatchTouchEvent", { type, touchPoints: type === "touchEnd" ? [] : [{ x, y }] });
  };
  await touch("touchStart", 0.5);
  for (let share = 0.48; share > 0.25; share -= 0.02) await touch("touchMove", share);
  const during = await firstAmount(page);
  await touch("touchEnd", 0.25);
  await session.send("Emulation.setTouchEmulationEnabled", { enabled: false });
  await session.detach();
  const amount = await firstAmount(page);
  expect(during < -0.3 && amount < -0.3, `a finger that moves to the left leads to ${during}, then ${amount}`);
  return amount;
}

/** @param {Page} page */
async function checkNarrow(page) {
  const before = page.viewportSize();
  await page.setViewportSize({ width: 320, height: 640 });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  await page.setViewportSize(before);
  expect(width <= 320, `the page is ${width} px wide in a window of 320 px`);
  return "no horizontal overflow";
}

/**
 * Opens a variant of the page that has something wrong, and looks for what it says of it.
 * @param {import("playwright-core").Browser} browser
 * @param {string} address
 * @param {string} selector
 * @param {string[]} parts
 */
async function checkComplaint(browser, address, selector, parts) {
  const page = await browser.newPage();
  try {
    await page.goto(address);
    await page.waitForFunction((where) => document.querySelector(where)?.textContent, selector, { timeout: 20_000 });
    const text = await page.textContent(selector);
    expect(
      parts.every((part) => text.includes(part)),
      `the page says “${text}”`,
    );
    return `“${text}”`;
  } finally {
    await page.close();
  }
}

function readArguments() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      json: { type: "string" },
      screenshots: { type: "string" },
      pairs: { type: "string" },
      read: { type: "string" },
      browser: { type: "string" },
      isolated: { type: "boolean", default: false },
      card: { type: "boolean", default: false },
    },
  });
  if (positionals.length !== 1) {
    console.error(
      "usage: node check.mjs SITE [--json FILE] [--screenshots DIR] [--pairs DIR] [--read DIR] [--isolated] " +
        "[--card] [--browser FILE]",
    );
    process.exit(2);
  }
  return { site: positionals[0], ...values };
}

/** @param {ReturnType<typeof readArguments>} options @param {Report} report @param {string} origin */
async function checkAll(options, report, origin) {
  const browser = await chromium.launch({ executablePath: findBrowser(options.browser), args: FLAGS });
  try {
    report.measured.browser = browser.version();
    const page = await browser.newPage({ ...DEVICES.web_page, colorScheme: "light" });
    const watch = new Watch(page, origin);
    await page.addInitScript(pageTools);
    await page.goto(origin + SUB_PATH);
    await checkPage(page, options, report);
    await report.check("clean load", async () => {
      expect(watch.problems.length === 0, watch.problems.join("; "));
      return "no console errors, no failed and no foreign requests, before and during all of the above";
    });
    await checkPhone(browser, origin + SUB_PATH, options, report);
    const complaint = (name, path, selector, parts) =>
      report.check(name, () => checkComplaint(browser, origin + path, selector, parts));
    await complaint("missing model", NO_DECODER_PATH, "#load-error p", ["model/decoder.onnx", "HTTP 404"]);
    await complaint("no WebAssembly", NO_WEBASSEMBLY_PATH, "#load-error p", ["no WebAssembly"]);
    await report.check("broken card", () => checkBrokenCard(browser, origin + SUB_PATH, pageTools));
    await report.check("taking over", () => checkTakingOver(browser, origin + DISGUISED_CARD_PATH, pageTools));
    if (options.card) {
      const card = await chromium.launch({ executablePath: findBrowser(options.browser), args: cardFlags(FLAGS) });
      await report.check("card", () => checkCard(card, origin + SUB_PATH, pageTools));
      await card.close();
    }
    await complaint("not finite", NOT_FINITE_PATH, ".slot .problem", ["no finite codes"]);
  } finally {
    await browser.close();
  }
}

/** @param {Page} page @param {ReturnType<typeof readArguments>} options @param {Report} report */
async function checkPage(page, options, report) {
  await report.check("first picture", () => checkFirstPicture(page, report));
  await report.check("switch", () => checkSwitch(page));
  await report.check("captions", () => checkCaptions(page));
  await report.check("credits", () => checkCredits(page));
  await report.check("round trip", () => checkRoundTrip(page, report));
  await report.check("drag", () => checkDrag(page, report));
  await report.check("keyboard", () => checkKeyboard(page));
  await report.check("on the way", () => checkBetween(page));
  await report.check("directions", () => checkSteering(page));
  await report.check("sampling", () => checkSampling(page, report));
  await report.check("save", () => checkSave(page));
  await report.check("320 px", () => checkNarrow(page));
  await checkLooks(page, "web_page", options, report);
  await report.check("not an image", () => checkBadFiles(page));
  await report.check("exact file", () => checkExactFile(page));
  await report.check("drop and paste", () => checkDropAndPaste(page));
  if (options.pairs) {
    await report.check("pairs", async () => {
      report.pairs = await switchPairs(page, options.pairs);
      expect(report.pairs.identical, "a pair did not come back from its own codes");
      return `${report.pairs.count} pairs switched`;
    });
  }
  if (options.read) {
    await report.check("reading", async () => {
      report.read = await readFiles(page, options.read);
      return `${Object.keys(report.read).length} files`;
    });
  }
  report.measured.isolated = await page.evaluate(() => crossOriginIsolated);
}

/**
 * Layout, accessibility and screenshot of an open page with samples.
 * @param {Page} page
 * @param {string} name Of the screenshot.
 * @param {ReturnType<typeof readArguments>} options
 * @param {Report} report
 */
async function checkLooks(page, name, options, report) {
  const { width, height } = page.viewportSize();
  await report.check(`layout of ${width} x ${height}`, () => checkLayout(page, name));
  await report.check(`accessibility of ${width} x ${height}`, () => checkAccessibility(page));
  if (options.screenshots) await takeScreenshot(page, options.screenshots, name);
}

/**
 * The page on a phone.
 * @param {import("playwright-core").Browser} browser
 * @param {string} address
 * @param {ReturnType<typeof readArguments>} options
 * @param {Report} report
 */
async function checkPhone(browser, address, options, report) {
  const page = await browser.newPage({ ...DEVICES.web_page_phone, colorScheme: "light" });
  try {
    await page.goto(address);
    await waitForPicture(page);
    await page.tap("#sample");
    await page.waitForFunction(() => document.querySelectorAll("#samples .save:not([hidden])").length === 8, null, PATIENT);
    await checkLooks(page, "web_page_phone", options, report);
  } finally {
    await page.close();
  }
}

async function main() {
  const options = readArguments();
  const report = new Report();
  const server = await serve(options.site, options.isolated);
  try {
    await checkAll(options, report, server.origin);
  } finally {
    server.close();
  }
  if (options.json) {
    const { results, measured, pairs, read } = report;
    await writeFile(options.json, `${JSON.stringify({ measured, results, pairs, read }, null, 2)}\n`);
  }
  console.log(`${report.results.length - report.failed} passed, ${report.failed} failed`);
  process.exitCode = report.failed ? 1 : 0;
}

await main();
