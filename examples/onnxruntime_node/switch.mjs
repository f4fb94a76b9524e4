/**
 * Switches the global codes of two images with ONNX Runtime: `node switch.mjs FOLDER a.jpg b.jpg`.
 * @module
 */

import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";

/** A GPU's provider goes before it: see README.md. */
const EXECUTION_PROVIDERS = ["cpu"];
const CHANNELS = 3;

/** What the user is told, in one line. */
class Problem extends Error {}

/**
 * @template T
 * @param {string} what What is attempted, as "read a.jpg".
 * @param {() => Promise<T>} action
 * @returns {Promise<T>}
 * @throws {Problem} Where the action fails.
 */
async function attempt(what, action) {
  try {
    return await action();
  } catch (error) {
    throw new Problem(`cannot ${what}: ${error.message.replace(/\s+/g, " ").trim()}`, { cause: error });
  }
}

/**
 * Reads the largest centre square of an image; an image of the right size as it is.
 * @param {string} path
 * @param {number} size Side of the result in pixels.
 * @returns {Promise<Buffer>} RGB, `size * size * 3` bytes.
 */
async function readSquare(path, size) {
  // Colour profiles are ignored, because the pixels of an image of the right size shall not change.
  const { data, info } = await sharp(path, { ignoreIcc: true, failOn: "error" })
    .autoOrient()
    .removeAlpha()
    .toColourspace("srgb")
    .raw()
    .toBuffer({ resolveWithObject: true });
  // Resized only now: sharp does that before it removes alpha, which would let transparent pixels count for less.
  const { width, height, channels } = info;
  const side = Math.min(width, height);
  return sharp(data, { raw: { width, height, channels } })
    .extract({ left: (width - side) >> 1, top: (height - side) >> 1, width: side, height: side })
    .resize(size, size, { kernel: "lanczos3" })
    .raw()
    .toBuffer();
}

/**
 * @param {Tensor} pair Two entries along the batch axis.
 * @returns {Tensor} The same, the second first.
 */
function swapped({ type, data, dims }) {
  const half = data.length / 2;
  const result = data.slice();
  result.copyWithin(0, half);
  result.set(data.subarray(0, half), half);
  return new Tensor(type, result, dims);
}

/**
 * @param {string} folder Has encoder.onnx and decoder.onnx.
 * @param {[string, string]} paths Of the images.
 */
async function main(folder, paths) {
  const models = ["encoder.onnx", "decoder.onnx"].map((name) => join(folder, name));
  const options = { executionProviders: EXECUTION_PROVIDERS };
  const open = (model) => attempt(`open the model ${model}`, () => InferenceSession.create(model, options));
  const [encoder, decoder] = [await open(models[0]), await open(models[1])];
  if (encoder.outputNames.join() !== "z,v") {
    throw new Problem(`${models[0]} does not encode to z and v: without z there is nothing to switch`);
  }
  const [, size] = encoder.inputMetadata[0].shape;
  const length = size * size * CHANNELS;
  const pixels = new Uint8Array(2 * length);
  for (const [index, path] of paths.entries()) {
    pixels.set(await attempt(`read the image ${path}`, () => readSquare(path, size)), index * length);
  }

  const { z, v } = await encoder.run({ images: new Tensor("uint8", pixels, [2, size, size, CHANNELS]) });
  const { images: back } = await attempt(`decode with ${models[1]}`, () => decoder.run({ z, v }));
  for (const [index, path] of paths.entries()) {
    const first = index * length;
    const lost = pixels.subarray(first, first + length).filter((value, i) => value !== back.data[first + i]).length;
    console.log(`${path}: ${lost ? `${lost} of ${length} values differ` : "exactly the same"} after decoding`);
  }

  const { images: switched } = await decoder.run({ z, v: swapped(v) });
  for (const [index, name] of ["ab.png", "ba.png"].entries()) {
    const image = switched.data.subarray(index * length, (index + 1) * length);
    const raw = { width: size, height: size, channels: CHANNELS };
    await attempt(`write ${name}`, () => sharp(image, { raw }).png().toFile(name));
    console.log(`${name}: z of ${paths[index]}, v of ${paths[1 - index]}`);
  }
}

try {
  const [folder, ...paths] = process.argv.slice(2);
  if (paths.length !== 2) {
    throw new Problem(
      "usage: node switch.mjs FOLDER A B, where FOLDER has encoder.onnx and decoder.onnx, and A, B are images",
    );
  }
  await main(folder, paths);
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
