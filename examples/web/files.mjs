/**
 * Picture files that go into the page, and come out of it.
 * @module
 */

import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "./report.mjs";
import { waitForShown } from "./waiting.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** @param {Page} page */
export async function checkBadFiles(page) {
  const input = page.locator(".slot input").first();
  const message = page.locator(".slot .problem").first();
  const says = async (file, pattern) => {
    await input.setInputFiles(file);
    await page
      .waitForFunction(
        (source) => new RegExp(source).test(document.querySelector(".slot .problem").textContent),
        pattern,
        { timeout: 5000 },
      )
      .catch(async () => expect(false, `for ${file.name} the page says “${await message.textContent()}”`));
  };
  await says(
    { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no picture") },
    "notes.txt is not an image",
  );
  const text = await message.textContent();
  await says(
    { name: "torn.png", mimeType: "image/png", buffer: Buffer.from("\x89PNG torn") },
    "torn.png cannot be decoded",
  );
  await says({ name: "void.png", mimeType: "image/png", buffer: Buffer.alloc(0) }, "void.png is empty");
  return `“${text}”`;
}

/** @param {Page} page */
export async function checkExactFile(page) {
  const file = await page.evaluate(async () => {
    const { image_size: size } = await window.check.config();
    const values = window.check.noise(size * size * 3);
    const data = new ImageData(size, size);
    values.forEach((value, index) => (data.data[index + Math.floor(index / 3)] = value));
    for (let index = 3; index < data.data.length; index += 4) data.data[index] = 255;
    const png = await window.check.png(size, size, (context) => context.putImageData(data, 0, 0));
    const shown = window.check.toLevels(values, await window.check.levelStep());
    return { png: window.check.base64(png), values: window.check.base64(shown) };
  });
  await page
    .locator(".slot input")
    .first()
    .setInputFiles({ name: "exact.png", mimeType: "image/png", buffer: Buffer.from(file.png, "base64") });
  await waitForShown(page, 0, file.values);
  await waitForShown(page, 0, file.values, ".grid .picture canvas");
  return "a PNG of the model’s size keeps its pixels, and comes back from its codes";
}

/** @param {Page} page */
export async function checkDropAndPaste(page) {
  const shown = await page.evaluate(async () => {
    const half = async (colour) => {
      const bytes = await window.check.png(300, 200, (context) => {
        context.fillStyle = "#000";
        context.fillRect(0, 0, 300, 200);
        context.fillStyle = colour;
        // Only the middle square is to be kept.
        context.fillRect(50, 0, 200, 200);
      });
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], "wide.png", { type: "image/png" }));
      return transfer;
    };
    const step = await window.check.levelStep();
    const uniform = async (index, colour) => {
      const end = Date.now() + 5000;
      while (Date.now() < end) {
        const pixels = window.check.all(".slot .picture canvas")[index];
        if (pixels.every((value, place) => value === colour[place % 3] - (colour[place % 3] % step))) return true;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      return false;
    };
    const slot = document.querySelectorAll(".slot")[1];
    slot.dispatchEvent(new DragEvent("drop", { dataTransfer: await half("#f00"), bubbles: true, cancelable: true }));
    const dropped = await uniform(1, [255, 0, 0]);
    document.activeElement.blur();
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: await half("#00f"), bubbles: true }));
    return { dropped, pasted: await uniform(0, [0, 0, 255]) };
  });
  expect(shown.dropped, "a dropped file is not shown as its middle square");
  expect(shown.pasted, "a pasted file is not shown as its middle square");
  return "a wide picture is cropped to its middle square and shrunk, dropped or pasted";
}

/** @param {Page} page */
export async function checkSave(page) {
  await page.locator(".grid .picture").nth(1).hover();
  const [saved] = await Promise.all([
    page.waitForEvent("download", { timeout: 5000 }),
    page.locator(".grid .save").nth(1).click(),
  ]);
  const bytes = await readFile(await saved.path());
  expect(bytes.subarray(1, 4).toString() === "PNG", "the saved file is no PNG");
  return `${saved.suggestedFilename()}, ${bytes.length} bytes`;
}

/** @param {Page} page @param {string} folder */
export async function switchPairs(page, folder) {
  const { a, b } = JSON.parse(await readFile(join(folder, "inputs.json"), "utf8"));
  return page.evaluate(
    async (inputs) => {
      const { base64, bytes, same, config, levelStep, toLevels } = window.check;
      const { image_size: size } = await config();
      const step = await levelStep();
      const [imagesA, imagesB] = [inputs.a, inputs.b].map((images) => toLevels(bytes(images), step));
      const count = imagesA.length / (size * size * 3);
      const { encode, decode } = window.tfdecouple;
      const [codeA, codeB] = [await encode(imagesA, count), await encode(imagesB, count)];
      return {
        count,
        ab: base64(await decode(codeA.z, codeB.v, count)),
        ba: base64(await decode(codeB.z, codeA.v, count)),
        identical:
          same(await decode(codeA.z, codeA.v, count), imagesA) && same(await decode(codeB.z, codeB.v, count), imagesB),
      };
    },
    { a, b },
  );
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
        const { readImage } = await import(new URL("images.js", location.href));
        const { image_size: size, centre_crop: crop } = await window.check.config();
        const blob = new Blob([window.check.bytes(content)]);
        try {
          return window.check.base64(await readImage(blob, name, size, crop));
        } catch (error) {
          return `refused: ${error.message}`;
        }
      },
      [name, content],
    );
  }
  return found;
}
