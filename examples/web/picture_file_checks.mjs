/**
 * Checks that the page reads and saves picture files correctly, and reads or switches the images of a folder.
 * @module
 */

import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { GRID_CANVASES, MODEL_TIMEOUT, expect, waitForPixels } from "./browser_helpers.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** Checks that the page says what is wrong with an unusable file. @param {Page} page @returns {Promise<string>} */
export async function checkBadFiles(page) {
  const problem = page.locator(".chooser .problem").first();
  const waitForProblem = async (name, mimeType, buffer, expected) => {
    await page.locator(".chooser input").first().setInputFiles({ name, mimeType, buffer });
    const isShown = (expected) => document.querySelector(".chooser .problem").textContent.includes(expected);
    await page.waitForFunction(isShown, expected);
    return problem.textContent();
  };
  const text = await waitForProblem("notes.txt", "text/plain", Buffer.from("no picture"), "notes.txt is not an image");
  await waitForProblem("torn.png", "image/png", Buffer.from("\x89PNG torn"), "torn.png cannot be decoded");
  await waitForProblem("void.png", "image/png", Buffer.alloc(0), "void.png is empty");
  return `“${text}”`;
}

/** Checks that the page shows a PNG file of the model's size unchanged. @param {Page} page @returns {Promise<string>} */
export async function checkExactFile(page) {
  const file = await page.evaluate(async () => {
    const { drawNoise, encodeBase64, fetchBinSize, fetchConfig, makePng, roundToBins } = window.check;
    const { image_shape: [size] } = await fetchConfig();
    const values = drawNoise(size * size * 3);
    const data = new ImageData(size, size);
    data.data.fill(255);
    values.forEach((value, index) => (data.data[index + Math.floor(index / 3)] = value));
    const bytes = await makePng(size, size, (context) => context.putImageData(data, 0, 0));
    return { png: encodeBase64(bytes), pixels: encodeBase64(roundToBins(values, await fetchBinSize())) };
  });
  const buffer = Buffer.from(file.png, "base64");
  await page.locator(".chooser input").first().setInputFiles({ name: "exact.png", mimeType: "image/png", buffer });
  await waitForPixels(page, GRID_CANVASES, file.pixels, "the page does not show the pixels of the file");
  await page.waitForFunction(() => document.querySelector("#verdict").textContent.startsWith("Exact"));
  return "a PNG of the model’s size keeps its pixels, and is decoded exactly";
}

/** Checks that dropped and pasted files are cropped to the middle square. @param {Page} page @returns {Promise<string>} */
export async function checkDropAndPaste(page) {
  const shown = await page.evaluate(async (cells) => {
    const makeTransfer = async (colour) => {
      const bytes = await window.check.makePng(300, 200, (context) => {
        context.fillRect(0, 0, 300, 200);
        context.fillStyle = colour;
        // Only the middle square has the colour, so the page must crop the picture to it.
        context.fillRect(50, 0, 200, 200);
      });
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], "wide.png", { type: "image/png" }));
      return transfer;
    };
    const becomesUniform = async (cell, colour) => {
      const expected = window.check.roundToBins(colour, await window.check.fetchBinSize());
      for (let tries = 0; tries < 200; tries++) {
        if (window.check.readCanvases(cells)[cell].every((value, index) => value === expected[index % 3])) return true;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      return false;
    };
    const drop = { dataTransfer: await makeTransfer("#f00"), bubbles: true, cancelable: true };
    document.querySelectorAll(cells)[3].dispatchEvent(new DragEvent("drop", drop));
    const dropped = await becomesUniform(3, [255, 0, 0]);
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: await makeTransfer("#00f"), bubbles: true }));
    return { dropped, pasted: await becomesUniform(0, [0, 0, 255]) };
  }, GRID_CANVASES);
  expect(shown.dropped, "a dropped file is not shown as its middle square");
  expect(shown.pasted, "a pasted file is not shown as its middle square");
  return "a wide picture is cropped to its middle square and shrunk, dropped or pasted";
}

/** Checks that the page saves a picture as a PNG file. @param {Page} page @returns {Promise<string>} */
export async function checkSave(page) {
  await page.locator("#grid .picture").nth(1).hover();
  const [saved] = await Promise.all([page.waitForEvent("download"), page.locator("#grid .save").nth(1).click()]);
  const bytes = await readFile(await saved.path());
  expect(bytes.subarray(1, 4).toString() === "PNG", "the saved file is no PNG");
  return `${saved.suggestedFilename()}, ${bytes.length} bytes`;
}

/**
 * Checks that the grid shows and saves pictures at the size of the photographs, or of the model if the reader selects it.
 * @param {Page} page
 * @returns {Promise<string>}
 */
export async function checkFullSize(page) {
  const sizes = [
    [300, 200],
    [150, 400],
  ];
  for (const [index, [width, height]] of sizes.entries()) {
    const file = await page.evaluate(async ([width, height]) => {
      const bytes = await window.check.makePng(width, height, (context) => {
        const gradient = context.createLinearGradient(0, 0, width, height);
        [`hsl(${width} 60% 30%)`, "#eee"].forEach((colour, stop) => gradient.addColorStop(stop, colour));
        context.fillStyle = gradient;
        context.fillRect(0, 0, width, height);
      });
      return window.check.encodeBase64(bytes);
    }, [width, height]);
    const buffer = Buffer.from(file, "base64");
    const upload = { name: `photograph-${index}.png`, mimeType: "image/png", buffer };
    await page.locator(".chooser input").nth(index).setInputFiles(upload);
  }
  const expected = [sizes[0], sizes[1], sizes[0], sizes[1]];
  const arrived = page.waitForFunction(
    (expected) => {
      const canvases = [...document.querySelectorAll("#grid canvas.full-size")];
      return String(canvases.map((one) => (one.hidden ? "hidden" : [one.width, one.height]))) === expected;
    },
    String(expected),
    MODEL_TIMEOUT,
  );
  expect(await arrived.catch(() => null), "the four pictures are not shown at the sizes of the photographs");
  const saveSize = async () => {
    await page.locator("#grid .picture").nth(1).hover();
    const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#grid .save").nth(1).click()]);
    const bytes = await readFile(await download.path());
    return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
  };
  expect(String(await saveSize()) === String(sizes[1]), "the saved file does not have the size of the photograph");
  await page.locator("#view-model").check();
  expect((await page.locator("#grid canvas.full-size:visible").count()) === 0, "the model’s pixels are not shown");
  const { image_shape: [side] } = await page.evaluate(() => window.check.fetchConfig());
  expect(String(await saveSize()) === String([side, side]), "the saved file does not have the model’s size");
  await page.locator("#view-full-size").check();
  await checkChangesAtFullSize(page, sizes);
  return `photographs of ${sizes.map((size) => size.join(" x ")).join(" and ")} pixels are shown at these sizes`;
}

/**
 * Checks that the strength slider changes the switched photographs, and that the sections show photographs.
 * @param {Page} page
 * @param {number[][]} sizes Width and height of A and of B.
 */
async function checkChangesAtFullSize(page, sizes) {
  /** Returns the selected canvas as a data URL once it is not hidden and not `previous`. */
  const waitForChange = async (selector, previous, complaint) => {
    const changed = page.waitForFunction(
      ([selector, previous]) => {
        const canvas = document.querySelector(selector);
        const url = canvas.hidden ? previous : canvas.toDataURL();
        return url !== previous && url;
      },
      [selector, previous],
      MODEL_TIMEOUT,
    );
    return (await changed.catch(() => expect(false, complaint))).jsonValue();
  };
  const setSlider = (selector, value) =>
    page.locator(selector).first().evaluate((slider, value) => {
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
    }, value);
  const readSize = (selector) =>
    page.evaluate((selector) => {
      const { width, height, hidden } = document.querySelector(selector);
      return hidden ? null : [width, height];
    }, selector);
  const grid = "#grid .picture:nth-of-type(2) canvas.full-size";
  const switched = await waitForChange(grid, null, "the switched photograph is not shown");
  await setSlider("#strength", "0");
  const original = await waitForChange(grid, switched, "the strength slider changes nothing");
  await setSlider("#strength", "0.9");
  await waitForChange(grid, original, "the strength slider changes nothing");
  const walk = "#walk-picture canvas.full-size";
  await setSlider("#walk-v", "1");
  await setSlider("#walk-z", "0");
  const atA = await waitForChange(walk, null, "the walk shows no photograph");
  await setSlider("#walk-z", "1");
  await waitForChange(walk, atA, "the walk in z does not change the photograph");
  expect(String(await readSize(walk)) === String(sizes[1]), "with v of B, the walk does not show photograph B");
  await setSlider("#walk-v", "0.5");
  const isHidden = (selector) => document.querySelector(selector).hidden;
  await page.waitForFunction(isHidden, walk, MODEL_TIMEOUT);
  if (await page.locator("#steer").isHidden()) return;
  const steer = "#steer-picture canvas.full-size";
  const unchanged = await waitForChange(steer, null, "the directions show no photograph");
  await setSlider("#steer-sliders input", "1");
  await waitForChange(steer, unchanged, "a direction does not change the photograph");
  expect(String(await readSize(steer)) === String(sizes[0]), "the directions do not show photograph A");
}

/**
 * Switches two batches of images with the page's model.
 * @param {Page} page
 * @param {string} folder Contains inputs.json, `{"a": …, "b": …}`: uint8 `[count, size, size, 3]` in base64.
 * @returns {Promise<{ab: string, ba: string}>} The images with z of a and v of b, and the reverse, in base64.
 */
export async function switchPairs(page, folder) {
  return page.evaluate(async (inputs) => {
    const { decodeBase64, encodeBase64, fetchConfig } = window.check;
    const { image_shape: [size] } = await fetchConfig();
    const [a, b] = [decodeBase64(inputs.a), decodeBase64(inputs.b)];
    const count = a.length / (size * size * 3);
    const { encode, decode } = window.tfdecouple;
    const [codeA, codeB] = [await encode(a, count), await encode(b, count)];
    const [ab, ba] = [await decode(codeA.z, codeB.v, count), await decode(codeB.z, codeA.v, count)];
    return { ab: encodeBase64(ab), ba: encodeBase64(ba) };
  }, JSON.parse(await readFile(join(folder, "inputs.json"), "utf8")));
}

/**
 * Reads each picture file of a folder with the page's function.
 * @param {Page} page
 * @param {string} folder
 * @returns {Promise<Record<string, string>>} By file name, the RGB values of the image of the model's size in base64, or
 *   "refused: " and the page's error message.
 */
export async function readPictureFiles(page, folder) {
  const results = {};
  for (const name of (await readdir(folder)).sort()) {
    const content = (await readFile(join(folder, name))).toString("base64");
    results[name] = await page.evaluate(
      async ([name, content]) => {
        const { readSquareImage } = await import(new URL("image_files.js", location.href));
        const { image_shape: [size], centre_crop: crop } = await window.check.fetchConfig();
        const { decodeBase64, encodeBase64 } = window.check;
        const image = readSquareImage(new Blob([decodeBase64(content)]), name, size, crop);
        return image.then(encodeBase64, (error) => `refused: ${error.message}`);
      },
      [name, content],
    );
  }
  return results;
}
