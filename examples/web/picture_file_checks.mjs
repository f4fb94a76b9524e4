/**
 * Picture files that go into the page, and come out of it.
 * @module
 */

import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { CELLS, PATIENT, expect, waitForPixels } from "./browser_helpers.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** @param {Page} page */
export async function checkBadFiles(page) {
  const problem = page.locator(".chooser .problem").first();
  const says = async (name, mimeType, buffer, pattern) => {
    await page.locator(".chooser input").first().setInputFiles({ name, mimeType, buffer });
    await page.waitForFunction((text) => document.querySelector(".chooser .problem").textContent.includes(text), pattern);
    return problem.textContent();
  };
  const text = await says("notes.txt", "text/plain", Buffer.from("no picture"), "notes.txt is not an image");
  await says("torn.png", "image/png", Buffer.from("\x89PNG torn"), "torn.png cannot be decoded");
  await says("void.png", "image/png", Buffer.alloc(0), "void.png is empty");
  return `“${text}”`;
}

/** @param {Page} page */
export async function checkExactFile(page) {
  const file = await page.evaluate(async () => {
    const { base64, config, noise, png, round, step } = window.check;
    const { image_shape: [size] } = await config();
    const values = noise(size * size * 3);
    const data = new ImageData(size, size);
    data.data.fill(255);
    values.forEach((value, index) => (data.data[index + Math.floor(index / 3)] = value));
    const bytes = await png(size, size, (context) => context.putImageData(data, 0, 0));
    return { png: base64(bytes), pixels: base64(round(values, await step())) };
  });
  const buffer = Buffer.from(file.png, "base64");
  await page.locator(".chooser input").first().setInputFiles({ name: "exact.png", mimeType: "image/png", buffer });
  await waitForPixels(page, CELLS, file.pixels, "the page does not show the pixels of the file");
  await page.waitForFunction(() => document.querySelector("#verdict").textContent.startsWith("Exact"));
  return "a PNG of the model’s size keeps its pixels, and comes back from its codes";
}

/** @param {Page} page */
export async function checkDropAndPaste(page) {
  const shown = await page.evaluate(async (cells) => {
    const makeTransfer = async (colour) => {
      const bytes = await window.check.png(300, 200, (context) => {
        context.fillRect(0, 0, 300, 200);
        context.fillStyle = colour;
        // Only the middle square is to be kept.
        context.fillRect(50, 0, 200, 200);
      });
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], "wide.png", { type: "image/png" }));
      return transfer;
    };
    const isUniform = async (cell, colour) => {
      const wanted = window.check.round(colour, await window.check.step());
      for (let tries = 0; tries < 200; tries++) {
        if (window.check.all(cells)[cell].every((value, place) => value === wanted[place % 3])) return true;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      return false;
    };
    const drop = { dataTransfer: await makeTransfer("#f00"), bubbles: true, cancelable: true };
    document.querySelectorAll(cells)[3].dispatchEvent(new DragEvent("drop", drop));
    const dropped = await isUniform(3, [255, 0, 0]);
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: await makeTransfer("#00f"), bubbles: true }));
    return { dropped, pasted: await isUniform(0, [0, 0, 255]) };
  }, CELLS);
  expect(shown.dropped, "a dropped file is not shown as its middle square");
  expect(shown.pasted, "a pasted file is not shown as its middle square");
  return "a wide picture is cropped to its middle square and shrunk, dropped or pasted";
}

/** @param {Page} page */
export async function checkSave(page) {
  await page.locator("#grid .picture").nth(1).hover();
  const [saved] = await Promise.all([page.waitForEvent("download"), page.locator("#grid .save").nth(1).click()]);
  const bytes = await readFile(await saved.path());
  expect(bytes.subarray(1, 4).toString() === "PNG", "the saved file is no PNG");
  return `${saved.suggestedFilename()}, ${bytes.length} bytes`;
}

/** That photographs come back at their own size, with the model's pixels a click away. @param {Page} page */
export async function checkOwnSize(page) {
  const sizes = [
    [300, 200],
    [150, 400],
  ];
  for (const [index, [width, height]] of sizes.entries()) {
    const file = await page.evaluate(async ([width, height]) => {
      const bytes = await window.check.png(width, height, (context) => {
        const gradient = context.createLinearGradient(0, 0, width, height);
        [`hsl(${width} 60% 30%)`, "#eee"].forEach((colour, stop) => gradient.addColorStop(stop, colour));
        context.fillStyle = gradient;
        context.fillRect(0, 0, width, height);
      });
      return window.check.base64(bytes);
    }, [width, height]);
    const buffer = Buffer.from(file, "base64");
    await page.locator(".chooser input").nth(index).setInputFiles({ name: `own-${index}.png`, mimeType: "image/png", buffer });
  }
  const wanted = [sizes[0], sizes[1], sizes[0], sizes[1]];
  const arrived = page.waitForFunction(
    (wanted) => {
      const canvases = [...document.querySelectorAll("#grid canvas.own")];
      return String(canvases.map((one) => (one.hidden ? "hidden" : [one.width, one.height]))) === wanted;
    },
    String(wanted),
    PATIENT,
  );
  expect(await arrived.catch(() => null), "the four pictures do not come at the photographs’ own size");
  const saved = async () => {
    await page.locator("#grid .picture").nth(1).hover();
    const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#grid .save").nth(1).click()]);
    const bytes = await readFile(await download.path());
    return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
  };
  expect(String(await saved()) === String(sizes[1]), "the saved file has not the size of the photograph");
  await page.locator("#view-model").check();
  expect((await page.locator("#grid canvas.own:visible").count()) === 0, "the model’s pixels are not shown");
  const { image_shape: [side] } = await page.evaluate(() => window.check.config());
  expect(String(await saved()) === String([side, side]), "the saved file has not the model’s size");
  await page.locator("#view-own").check();
  return `photographs of ${sizes.map((size) => size.join(" x ")).join(" and ")} pixels come back at these sizes`;
}

/**
 * Switches the images of a folder.
 * @param {Page} page
 * @param {string} folder With inputs.json: `{"a": …, "b": …}`, each the base64 of uint8 `[count, size, size, 3]`.
 * @returns {Promise<{ab: string, ba: string}>} z of a with v of b, and the reverse, in base64.
 */
export async function switchPairs(page, folder) {
  return page.evaluate(async (inputs) => {
    const { base64, bytes, config } = window.check;
    const { image_shape: [size] } = await config();
    const [a, b] = [bytes(inputs.a), bytes(inputs.b)];
    const count = a.length / (size * size * 3);
    const { encode, decode } = window.tfdecouple;
    const [codeA, codeB] = [await encode(a, count), await encode(b, count)];
    return { ab: base64(await decode(codeA.z, codeB.v, count)), ba: base64(await decode(codeB.z, codeA.v, count)) };
  }, JSON.parse(await readFile(join(folder, "inputs.json"), "utf8")));
}

/**
 * Reads picture files as the page reads them.
 * @param {Page} page
 * @param {string} folder
 * @returns {Promise<Record<string, string>>} The pixels of each file in base64, of the model's size; or "refused: " and
 *   what the page says of it.
 */
export async function readFiles(page, folder) {
  const found = {};
  for (const name of (await readdir(folder)).sort()) {
    const content = (await readFile(join(folder, name))).toString("base64");
    found[name] = await page.evaluate(
      async ([name, content]) => {
        const { readImage } = await import(new URL("image_files.js", location.href));
        const { image_shape: [size], centre_crop: crop } = await window.check.config();
        const blob = new Blob([window.check.bytes(content)]);
        return readImage(blob, name, size, crop).then(window.check.base64, (error) => `refused: ${error.message}`);
      },
      [name, content],
    );
  }
  return found;
}
