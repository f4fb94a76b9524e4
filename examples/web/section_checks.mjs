/**
 * Checks the page's sections: the grid, interpolation, directions, sampling and credits.
 *
 * Each check throws an error if the page is wrong, and returns its result as a text.
 * @module
 */

import { GRID_CANVASES, MODEL_TIMEOUT, expect, waitForGrid, waitForPixels } from "./browser_helpers.mjs";

/** @typedef {import("playwright-core").Page} Page */

const NOISE_IMAGES = 16;

/** Checks that the page loads the model, and says so while it does. @param {Page} page @returns {Promise<string>} */
export async function checkLoading(page) {
  await waitForGrid(page);
  const [milliseconds, texts] = await page.evaluate(() => [performance.now(), window.check.loadTexts]);
  const isStarting = texts.some((text) => text?.startsWith("Starting the model"));
  expect(isStarting, `while it loads the page says “${texts.at(-1)}”`);
  return `the grid is there after ${Math.round(milliseconds)} ms`;
}

/**
 * Checks the switched pictures, the labels of the rows, and the verdict while other pictures are computed.
 * @param {Page} page
 * @returns {Promise<string>}
 */
export async function checkSwap(page) {
  const seen = await page.evaluate(async (selector) => {
    const { areEqual, encodeBase64, readCanvases } = window.check;
    const { colours } = await (await fetch("model/config.json")).json();
    const [a, bWithA, aWithB, b] = readCanvases(selector);
    const rows = [...document.querySelectorAll("#grid .row")].map((row) => row.textContent);
    const [examples] = document.querySelectorAll(".examples");
    examples.children[2].click();
    while (areEqual(readCanvases(selector)[0], a)) await new Promise((resolve) => setTimeout(resolve, 1));
    const verdictMeanwhile = document.querySelector("#verdict").textContent;
    examples.children[0].click();
    return {
      rows,
      expectedRows: ["A", "B"].map((letter) => `${colours ? "colours" : "z"} of ${letter}`),
      isSwitched: [bWithA, aWithB].every((picture) => !areEqual(picture, a) && !areEqual(picture, b)),
      a: encodeBase64(a),
      verdictMeanwhile,
    };
  }, GRID_CANVASES);
  expect(seen.isSwitched, "the switched pictures do not differ from A and B");
  expect(String(seen.rows) === String(seen.expectedRows), `the rows are called ${seen.rows}, not ${seen.expectedRows}`);
  const { verdictMeanwhile } = seen;
  expect(!verdictMeanwhile.includes("xact"), `while new pictures are computed the page says “${verdictMeanwhile}”`);
  await waitForPixels(page, GRID_CANVASES, seen.a, "the first example is not shown again");
  await waitForGrid(page);
  return `${seen.rows.join(", ")}; “${await page.textContent("#verdict")}”`;
}

/** Checks that noise and the pictures of the grid are decoded exactly. @param {Page} page @returns {Promise<string>} */
export async function checkRoundTrip(page) {
  const { images, different } = await page.evaluate(
    async ([count, selector]) => {
      const { drawNoise, fetchBinSize, fetchConfig, readCanvases, roundToBins } = window.check;
      const { image_shape: [size] } = await fetchConfig();
      const images = Array.from({ length: count }, () => drawNoise(size * size * 3));
      images.push(...readCanvases(selector));
      let different = 0;
      for (const pixels of images) {
        const image = roundToBins(pixels, await fetchBinSize());
        const { z, v } = await window.tfdecouple.encode(image, 1);
        const decoded = await window.tfdecouple.decode(z, v, 1);
        different += image.filter((value, index) => value !== decoded[index]).length;
      }
      return { images: images.length, different };
    },
    [NOISE_IMAGES, GRID_CANVASES],
  );
  expect(different === 0, `${different} values of ${images} images differ`);
  return `${NOISE_IMAGES} noise images and the four of the grid are decoded exactly`;
}

/**
 * Checks mouse and keys, and that z is interpolated on the line and v on the arc between A and B.
 * @param {Page} page
 * @returns {Promise<string>}
 */
export async function checkInterpolation(page) {
  const waitForPicture = (expected, complaint) =>
    waitForPixels(page, "#walk-picture canvas.model", expected, complaint, 0.01);
  await page.locator("#map").scrollIntoViewIfNeeded();
  const track = await page.locator("#track").boundingBox();
  await page.mouse.move(track.x + track.width / 2, track.y + track.height / 2);
  await page.mouse.down();
  await page.mouse.move(track.x + track.width, track.y, { steps: 20 });
  await page.mouse.up();
  const switched = await page.evaluate((selector) => {
    const { encodeBase64, readCanvases } = window.check;
    return encodeBase64(readCanvases(selector)[1]);
  }, GRID_CANVASES);
  await waitForPicture(switched, "the picture in the corner of the map is not the switched one");
  await page.locator("#walk-z").focus();
  for (const key of ["Home", "ArrowDown", "ArrowDown"]) await page.keyboard.press(key);
  const text = await page.getAttribute("#walk-z", "aria-valuetext");
  expect(text === "2 % from B", `two arrow keys lead to: ${text}`);
  await page.locator("#walk-z").fill("0.25");
  await page.locator("#walk-v").fill("0.6");
  const expected = await page.evaluate(async (selector) => {
    const { encode, decode } = window.tfdecouple;
    const [imageA, , , imageB] = window.check.readCanvases(selector);
    const [a, b] = [await encode(imageA, 1), await encode(imageB, 1)];
    const computeProduct = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
    const [lengthA, lengthB] = [a.v, b.v].map((v) => Math.sqrt(computeProduct(v, v)));
    const angle = Math.acos(computeProduct(a.v, b.v) / (lengthA * lengthB));
    const scale = (0.4 * lengthA + 0.6 * lengthB) / Math.sin(angle);
    const [weightA, weightB] = [(Math.sin(0.4 * angle) * scale) / lengthA, (Math.sin(0.6 * angle) * scale) / lengthB];
    const z = a.z.map((value, index) => 0.75 * value + 0.25 * b.z[index]);
    const v = a.v.map((value, index) => weightA * value + weightB * b.v[index]);
    return window.check.encodeBase64(await decode(z, v, 1));
  }, GRID_CANVASES);
  await waitForPicture(expected, "the picture is not that of z at 25 % and v at 60 %");
  return "by mouse and keys; at z 25 % and v 60 % the picture has z on the line and v on the arc";
}

/** Checks the sliders for directions in z, alone and together. @param {Page} page @returns {Promise<string>} */
export async function checkDirections(page) {
  const { directions = [] } = await page.evaluate(() => window.check.fetchConfig());
  const sliders = page.locator("#steer-sliders input");
  const count = await sliders.count();
  expect(count === directions.length, `${count} sliders for ${directions.length} directions`);
  if (directions.length === 0) {
    expect(await page.locator("#steer").isHidden(), "the model has no directions, and the page shows their section");
    return "this model has none, and the page hides the section";
  }
  const waitForSteps = async (cell, amounts, complaint) => {
    const steps = amounts.map((amount, index) => [amount, directions[index].vector]);
    const expected = await page.evaluate(
      async ([selector, cell, steps]) => {
        const { z, v } = await window.tfdecouple.encode(window.check.readCanvases(selector)[cell], 1);
        for (const [amount, vector] of steps) {
          vector.forEach((value, index) => (z[index] += Math.fround(amount * Math.fround(value))));
        }
        return window.check.encodeBase64(await window.tfdecouple.decode(z, v, 1));
      },
      [GRID_CANVASES, cell, steps],
    );
    await waitForPixels(page, "#steer-picture canvas.model", expected, complaint, 0.01);
  };
  await waitForSteps(0, [], "with all sliders at 0 the picture is not A");
  await sliders.first().focus();
  await page.keyboard.press("End");
  await waitForSteps(0, [1], "the picture is not that of the first slider at its end");
  if (directions.length > 1) {
    await sliders.nth(1).fill("-0.5");
    await waitForSteps(0, [1, -0.5], "the second slider does not add to the first");
  }
  await page.locator("#steer-b").check();
  await page.locator("#steer-reset").click();
  await waitForSteps(3, [], "after the reset the picture is not B");
  await page.locator("#steer-a").check();
  return `${directions.length} directions, by keys and together; at 0 nothing changes`;
}

/** Checks that samples depend on seed and temperature alone. @param {Page} page @returns {Promise<string>} */
export async function checkSampling(page) {
  const isSampled = () => document.querySelectorAll("#samples .save:not([hidden])").length === 8;
  const sampleAfter = async (action) => {
    await page.evaluate(() => document.querySelectorAll("#samples .save").forEach((save) => (save.hidden = true)));
    await action();
    await page.waitForFunction(isSampled, null, MODEL_TIMEOUT);
    return page.evaluate(() => window.check.readCanvases("#samples canvas.model").map(window.check.encodeBase64).join());
  };
  const fillField = (id, value) => sampleAfter(() => page.locator(id).fill(value));
  const isProgressShown = () => document.querySelector("#sample-load").checkVisibility();
  const progress = page.waitForFunction(isProgressShown, null, { polling: 5 });
  const first = await sampleAfter(() => page.click("#sample"));
  await progress;
  expect(await page.locator("#sample-load").isHidden(), "the progress of the sampler stays");
  const second = await sampleAfter(() => page.click("#sample"));
  const cooler = await fillField("#temperature", "0.4");
  await fillField("#seed", "1");
  const again = await fillField("#temperature", "0.8");
  expect(new Set(first.split(",")).size === 8, "there are not eight different samples");
  expect(first === again, "the same seed and temperature give other samples");
  expect(first !== second && second !== cooler, "the seed or the temperature changes nothing");
  return "progress at the first start; same seed, same pictures; temperature and seed change them";
}

/** Checks that the page credits the examples and links to the paper. @param {Page} page @returns {Promise<string>} */
export async function checkCredits(page) {
  const { examples } = await page.evaluate(() => window.check.fetchConfig());
  const credits = await page.textContent("#credits");
  const parts = examples.flatMap(({ title, author, licence }) => [title, author, licence]);
  const missing = parts.filter((part) => !credits.includes(part));
  expect(missing.length === 0, `“${credits}” does not say ${missing.join(", ")}`);
  const links = await page.locator("footer a").evaluateAll((found) => found.map((link) => link.getAttribute("href")));
  expect(String(links) === "https://arxiv.org/abs/2004.11820", `the links are ${links}`);
  return `“${credits.slice(0, 60)} …”`;
}
