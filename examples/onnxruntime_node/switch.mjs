/**
 * Switches the global codes of two images with ONNX Runtime: `node switch.mjs FOLDER a.jpg b.jpg`.
 * @module
 */

import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";
import { resizeSquare } from "./resize.js";

/** A GPU's provider goes before it: see README.md. */
const EXECUTION_PROVIDERS = ["cpu"];
const CHANNELS = 3;
const KNOWN_IMAGES = 16;
const USAGE =
  "usage: node switch.mjs FOLDER A B [--crop N], or node switch.mjs FOLDER --check, " +
  "where FOLDER has encoder.onnx and decoder.onnx, and A, B are images";

/** Formats of photographs: sharp would also render SVG, which can name other files. */
const FORMATS = ["gif", "jpeg", "png", "tiff", "webp"];
/** Pixels that a file may have: a small one can claim any number. */
const MOST_PIXELS = 2 ** 27;

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
 * Reads the centre square of an image, made as the training images were. One of the right size passes as it is.
 * @param {string} path
 * @param {number} size Side of the result in pixels.
 * @param {number} crop Side of the square; the largest one where it is 0 or does not fit.
 * @returns {Promise<Uint8Array>} RGB, `size * size * 3` bytes.
 */
async function readSquare(path, size, crop) {
  // A pipe would be waited for without an end.
  if (!(await stat(path)).isFile()) throw new Error("it is no regular file");
  // Colour profiles are ignored, as they were in training.
  const image = sharp(path, { ignoreIcc: true, failOn: "error", limitInputPixels: MOST_PIXELS });
  const { format } = await image.metadata();
  if (!FORMATS.includes(format)) throw new Error(`it is ${format}, none of ${FORMATS.join(", ")}`);
  const { data, info } = await image
    .autoOrient()
    .removeAlpha()
    .toColourspace("srgb")
    .raw()
    .toBuffer({ resolveWithObject: true });
  const { width, height, channels } = info;
  const side = Math.min(width, height, crop || Infinity);
  const square = await sharp(data, { raw: { width, height, channels } })
    .extract({ left: (width - side) >> 1, top: (height - side) >> 1, width: side, height: side })
    .raw()
    .toBuffer();
  return resizeSquare(square, side, size);
}

/**
 * What neighbouring levels differ by as pixels: a model of fewer than 8 bits knows multiples of it alone. ONNX Runtime
 * for Node does not tell what a file says of itself, so that the entry is looked for as it is written.
 * @param {string} path Of a model.
 * @returns {Promise<number>}
 */
async function levelStep(path) {
  const file = await readFile(path);
  const entry = Buffer.from("\n\x06n_bits\x12\x01");
  const start = file.lastIndexOf(entry);
  return start < 0 ? 1 : 256 >> Number(String.fromCharCode(file[start + entry.length]));
}

/** @param {Uint8Array} pixels Rounded down to levels, in place. @param {number} step */
function toLevels(pixels, step) {
  for (let place = 0; place < pixels.length; place++) pixels[place] -= pixels[place] % step;
}

/**
 * @param {number} size
 * @returns {Uint8Array} Images of smooth colour waves, the same for every client and machine.
 */
function knownImages(size) {
  const images = new Uint8Array(KNOWN_IMAGES * size * size * CHANNELS);
  let place = 0;
  for (let number = 0; number < KNOWN_IMAGES; number++) {
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const wave = Math.floor((256 * (((number % 4) + 1) * x + (Math.floor(number / 4) + 1) * y)) / size);
        for (let channel = 0; channel < CHANNELS; channel++) {
          images[place++] = Math.min(Math.abs(((wave + 85 * channel) % 512) - 256), 255);
        }
      }
    }
  }
  return images;
}

/**
 * @param {Uint8Array} images
 * @param {Uint8Array} back The same, decoded.
 * @param {number} count Of images.
 * @returns {number[]} How many values of each differ.
 */
function lostValues(images, back, count) {
  const length = images.length / count;
  return Array.from({ length: count }, (_, index) => {
    const first = index * length;
    return images.subarray(first, first + length).filter((value, i) => value !== back[first + i]).length;
  });
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

/** The two models of a folder. */
class Models {
  /** @param {string} folder Has encoder.onnx and decoder.onnx. */
  static async open(folder) {
    const models = new Models();
    models.paths = ["encoder.onnx", "decoder.onnx"].map((name) => join(folder, name));
    const options = { executionProviders: EXECUTION_PROVIDERS };
    const open = (path) => attempt(`open the model ${path}`, () => InferenceSession.create(path, options));
    [models.encoder, models.decoder] = [await open(models.paths[0]), await open(models.paths[1])];
    const inputs = models.encoder.inputNames;
    if (inputs.join() !== "images") {
      throw new Problem(
        `${models.paths[0]} takes ${inputs.join(", ")}, and this example gives images alone; client.py takes all`,
      );
    }
    const [, ...shape] = models.encoder.inputMetadata[0].shape;
    if (shape[0] !== shape[1] || shape[2] !== CHANNELS) {
      throw new Problem(
        `${models.paths[0]} takes images [${shape.join(", ")}], and this example squares of RGB alone; ` +
          "client.py of the export takes all",
      );
    }
    models.size = shape[0];
    models.step = await attempt(`read ${models.paths[0]}`, () => levelStep(models.paths[0]));
    return models;
  }

  /** @param {Uint8Array} images @param {number} count @returns {Promise<Record<string, Tensor>>} */
  encode(images, count) {
    const inputs = { images: new Tensor("uint8", images, [count, this.size, this.size, CHANNELS]) };
    return attempt(`encode with ${this.paths[0]}`, () => this.encoder.run(inputs));
  }

  /** @param {Record<string, Tensor>} codes @returns {Promise<Uint8Array>} The images, one after the other. */
  async decode(codes) {
    return (await attempt(`decode with ${this.paths[1]}`, () => this.decoder.run(codes))).images.data;
  }
}

/**
 * Says how many known images come back from their codes; the exit status is 1 unless all do.
 * @param {Models} models
 */
async function check(models) {
  const images = knownImages(models.size);
  toLevels(images, models.step);
  const back = await models.decode(await models.encode(images, KNOWN_IMAGES));
  const same = lostValues(images, back, KNOWN_IMAGES).filter((lost) => lost === 0).length;
  console.log(`${same} of ${KNOWN_IMAGES} known images come back exactly`);
  process.exitCode = same === KNOWN_IMAGES ? 0 : 1;
}

/**
 * Writes ab.png (z of the first image, v of the second) and ba.png, and says whether the images come back.
 * @param {Models} models
 * @param {string[]} paths Of the two images.
 * @param {number} crop
 */
async function switchImages(models, paths, crop) {
  if (models.encoder.outputNames.join() !== "z,v") {
    throw new Problem(`${models.paths[0]} does not encode to z and v: without z there is nothing to switch`);
  }
  const { size } = models;
  const length = size * size * CHANNELS;
  const pixels = new Uint8Array(2 * length);
  for (const [index, path] of paths.entries()) {
    pixels.set(await attempt(`read the image ${path}`, () => readSquare(path, size, crop)), index * length);
  }

  toLevels(pixels, models.step);
  const { z, v } = await models.encode(pixels, 2);
  for (const [index, lost] of lostValues(pixels, await models.decode({ z, v }), 2).entries()) {
    const outcome = lost ? `${lost} of ${length} values differ` : "exactly the same";
    console.log(`${paths[index]}: ${outcome} after decoding`);
  }

  const switched = await models.decode({ z, v: swapped(v) });
  for (const [index, name] of ["ab.png", "ba.png"].entries()) {
    const image = switched.subarray(index * length, (index + 1) * length);
    const raw = { width: size, height: size, channels: CHANNELS };
    await attempt(`write ${name}`, () => sharp(image, { raw }).png().toFile(name));
    console.log(`${name}: z of ${paths[index]}, v of ${paths[1 - index]}`);
  }
}

/** @returns {{folder: string, paths: string[], crop: number, check: boolean}} */
function readArguments() {
  const options = { crop: { type: "string", default: "0" }, check: { type: "boolean", default: false } };
  let given;
  try {
    given = parseArgs({ allowPositionals: true, options });
  } catch (error) {
    throw new Problem(`${error.message}; ${USAGE}`);
  }
  const { values, positionals } = given;
  const [folder, ...paths] = positionals;
  if (!folder || paths.length !== (values.check ? 0 : 2)) throw new Problem(USAGE);
  if (!/^\d+$/.test(values.crop)) throw new Problem(`--crop is ${values.crop}; it must be a whole number; ${USAGE}`);
  return { folder, paths, crop: Number(values.crop), check: values.check };
}

try {
  const options = readArguments();
  const models = await Models.open(options.folder);
  if (options.check) await check(models);
  else await switchImages(models, options.paths, options.crop);
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
