/**
 * Switches the global codes of two images with ONNX Runtime: `node switch.mjs FOLDER a.jpg b.jpg`.
 * @module
 */

import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";

/** What a graphics card offers comes first: see README.md. */
const EXECUTION_PROVIDERS = ["cpu"];
const CHANNELS = 3;

/** Something that the user can mend: printed as one line. */
class UserError extends Error {}

/**
 * @param {string} what
 * @param {unknown} error
 * @returns {UserError}
 */
function because(what, error) {
  return new UserError(`error: ${what}: ${String(error?.message ?? error).replace(/\s+/g, " ").trim()}`);
}

/**
 * @param {string} path
 * @returns {Promise<InferenceSession>}
 */
async function load(path) {
  try {
    return await InferenceSession.create(path, { executionProviders: EXECUTION_PROVIDERS });
  } catch (error) {
    throw because(`cannot open the model ${path}`, error);
  }
}

/**
 * Reads the largest centre square of an image; a square of the right size as it is.
 * @param {string} path
 * @param {number} size Side of the result.
 * @returns {Promise<Uint8Array>} `size * size * 3` values, RGB.
 */
async function readSquare(path, size) {
  try {
    // Decoded first and cut afterwards: while transparency is there, sharp would blend with it as it resizes.
    const { data, info } = await sharp(path, { ignoreIcc: true, failOn: "error" })
      .autoOrient()
      .removeAlpha()
      .toColourspace("srgb")
      .raw()
      .toBuffer({ resolveWithObject: true });
    const side = Math.min(info.width, info.height);
    const left = Math.floor((info.width - side) / 2);
    const top = Math.floor((info.height - side) / 2);
    return await sharp(data, { raw: { width: info.width, height: info.height, channels: info.channels } })
      .extract({ left, top, width: side, height: side })
      .resize(size, size, { kernel: "lanczos3" })
      .raw()
      .toBuffer();
  } catch (error) {
    throw because(`cannot read the image ${path}`, error);
  }
}

/**
 * @param {Tensor} pair Two values along the batch axis.
 * @returns {Tensor} The same two, the second first.
 */
function swapped({ type, data, dims }) {
  const half = data.length / 2;
  const result = new data.constructor(data.length);
  result.set(data.subarray(half));
  result.set(data.subarray(0, half), half);
  return new Tensor(type, result, dims);
}

/**
 * @param {readonly InferenceSession.ValueMetadata[]} arrays
 * @returns {string} Names and shapes, to compare.
 */
const described = (arrays) => JSON.stringify(arrays.map(({ name, shape }) => [name, shape]));

/**
 * @param {string[]} args The command line's arguments.
 * @returns {Promise<void>}
 */
async function main(args) {
  if (args.length !== 3) {
    throw new UserError("usage: node switch.mjs FOLDER IMAGE IMAGE (FOLDER has encoder.onnx and decoder.onnx)");
  }
  const [folder, ...paths] = args;
  const encoder = await load(join(folder, "encoder.onnx"));
  const decoder = await load(join(folder, "decoder.onnx"));
  if (encoder.outputNames.join() !== "z,v") {
    const path = join(folder, "encoder.onnx");
    throw new UserError(`error: ${path} is no model with z, and there is nothing to switch without z`);
  }
  if (described(encoder.outputMetadata) !== described(decoder.inputMetadata)) {
    throw new UserError(`error: the encoder and the decoder in ${folder} are not of the same model`);
  }
  const [, size] = encoder.inputMetadata[0].shape;

  const pixels = new Uint8Array(2 * size * size * CHANNELS);
  const half = pixels.length / 2;
  for (const [index, path] of paths.entries()) pixels.set(await readSquare(path, size), index * half);
  const { z, v } = await encoder.run({ images: new Tensor("uint8", pixels, [2, size, size, CHANNELS]) });
  const { images: back } = await decoder.run({ z, v });
  for (const [index, path] of paths.entries()) {
    let lost = 0;
    for (let i = index * half; i < (index + 1) * half; i++) lost += back.data[i] !== pixels[i];
    console.log(lost ? `${path}: ${lost} of ${half} values lost` : `${path}: comes back exactly from its codes`);
  }

  const { images } = await decoder.run({ z, v: swapped(v) });
  for (const [index, name] of ["ab.png", "ba.png"].entries()) {
    const raw = { width: size, height: size, channels: CHANNELS };
    await sharp(images.data.slice(index * half, (index + 1) * half), { raw }).png().toFile(name);
  }
  console.log(`ab.png: z of ${paths[0]}, v of ${paths[1]}\nba.png: z of ${paths[1]}, v of ${paths[0]}`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
