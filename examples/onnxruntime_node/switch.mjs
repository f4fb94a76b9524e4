/**
 * Switches the global codes of two images with ONNX Runtime: `node switch.mjs FOLDER a.jpg b.jpg`.
 *
 * It shares modules with the web page: how images are resized, and the filter for photographs at their own size.
 * @module
 */

import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";
import { interpolateLinearly, matchZ } from "../../export/page/code_arithmetic.js";
import { applyColourMaps, fitColourMaps, shrinkToSquare } from "../../export/page/guided_filter.js";
import { resizeSquare } from "../../export/page/resize.js";

/** The execution providers that ONNX Runtime tries in this order. docs/export.md says how to add a GPU. */
const EXECUTION_PROVIDERS = ["cpu"];
const CHANNELS = 3;
const TEST_IMAGES = 16;
const USAGE =
  "usage: node switch.mjs FOLDER A B [--crop N | --own-size [--strength X]], or node switch.mjs FOLDER --check, " +
  "where FOLDER has encoder.onnx and decoder.onnx, and A, B are images";

/** The accepted formats. Sharp would also render SVG, which can refer to other files. */
const FORMATS = ["gif", "jpeg", "png", "tiff", "webp"];
/** The most pixels that an image may have. A small file can have very many pixels. */
const MOST_PIXELS = 2 ** 26;

/** An error that is printed as one line. */
class Problem extends Error {}

/**
 * Runs an action, and throws a Problem if it fails.
 * @template T
 * @param {string} description Names the action in the error message, such as "read a.jpg".
 * @param {() => Promise<T>} action
 * @returns {Promise<T>} The result of the action.
 */
async function explainErrors(description, action) {
  try {
    return await action();
  } catch (error) {
    throw new Problem(`cannot ${description}: ${error.message.replace(/\s+/g, " ").trim()}`, { cause: error });
  }
}

/**
 * Opens an image file, and rotates the image according to its EXIF data.
 * @param {string} path
 * @param {boolean} ignoreIcc Whether to ignore the colour profile; otherwise colours are converted to sRGB.
 * @returns {Promise<sharp.Sharp>}
 */
async function openImage(path, ignoreIcc) {
  // Reading a pipe could block forever.
  if (!(await stat(path)).isFile()) throw new Error("it is no regular file");
  const image = sharp(path, { ignoreIcc, failOn: "error", limitInputPixels: MOST_PIXELS });
  const { format } = await image.metadata();
  if (!FORMATS.includes(format)) throw new Error(`it is ${format}, none of ${FORMATS.join(", ")}`);
  return image.autoOrient();
}

/**
 * Reads the centre square of an image with the same bytes as in training.
 * @param {string} path
 * @param {number} size Side of the result in pixels.
 * @param {number} crop Side of the centre square in pixels. 0, or a square that does not fit, means the largest one.
 * @returns {Promise<Uint8Array>} RGB, `size * size * 3` values.
 */
async function readSquare(path, size, crop) {
  // Training ignores colour profiles, so the model expects pixels without them.
  const image = await openImage(path, true);
  const { data, info } = await image
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
 * Reads a complete image.
 * @param {string} path
 * @returns {Promise<{width: number, height: number, rgba: Uint8ClampedArray}>}
 */
async function readPhotograph(path) {
  const image = await openImage(path, false);
  const { data, info } = await image.toColourspace("srgb").ensureAlpha().raw().toBuffer({ resolveWithObject: true });
  return { width: info.width, height: info.height, rgba: Uint8ClampedArray.from(data) };
}

/**
 * Finds a number in the metadata of a model. ONNX Runtime for Node.js cannot read metadata, so this function searches the
 * bytes of the file.
 * @param {Buffer} file Content of an ONNX file.
 * @param {string} name
 * @returns {number | null} The number, if the metadata have it and it has one digit.
 */
function findDigit(file, name) {
  const entry = Buffer.from(`\n${String.fromCharCode(name.length)}${name}\x12\x01`);
  const start = file.lastIndexOf(entry);
  return start < 0 ? null : Number(String.fromCharCode(file[start + entry.length]));
}

/**
 * Rounds pixels down, in place, to the lowest value of their bin. A model of fewer than 8 bits decodes to these values.
 * @param {Uint8Array} pixels
 * @param {number} binSize
 */
function roundToBins(pixels, binSize) {
  for (let index = 0; index < pixels.length; index++) pixels[index] -= pixels[index] % binSize;
}

/**
 * Makes images of smooth colour waves. All clients use these images for their check.
 * @param {number} size Side of the images in pixels.
 * @returns {Uint8Array} RGB, `[16, size, size, 3]`.
 */
function makeTestImages(size) {
  const images = new Uint8Array(TEST_IMAGES * size * size * CHANNELS);
  let index = 0;
  for (let number = 0; number < TEST_IMAGES; number++) {
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const wave = Math.floor((256 * (((number % 4) + 1) * x + (Math.floor(number / 4) + 1) * y)) / size);
        for (let channel = 0; channel < CHANNELS; channel++) {
          images[index++] = Math.min(Math.abs(((wave + 85 * channel) % 512) - 256), 255);
        }
      }
    }
  }
  return images;
}

/**
 * Counts for each image how many of its values differ after decoding.
 * @param {Uint8Array} images
 * @param {Uint8Array} decoded
 * @param {number} count How many images both batches have.
 * @returns {number[]}
 */
function countDifferences(images, decoded, count) {
  const length = images.length / count;
  return Array.from({ length: count }, (_, index) => {
    const first = index * length;
    return images.subarray(first, first + length).filter((value, i) => value !== decoded[first + i]).length;
  });
}

/**
 * Swaps the two entries of a batch.
 * @param {Tensor} pair
 * @returns {Tensor}
 */
function swapEntries({ type, data, dims }) {
  const half = data.length / 2;
  const result = data.slice();
  result.copyWithin(0, half);
  result.set(data.subarray(0, half), half);
  return new Tensor(type, result, dims);
}

/** The encoder and the decoder in a folder of ONNX files. */
class Models {
  /**
   * Opens both files. Throws a Problem unless the encoder takes square RGB images and nothing else.
   * @param {string} folder
   * @returns {Promise<Models>}
   */
  static async openFolder(folder) {
    const models = new Models();
    models.paths = ["encoder.onnx", "decoder.onnx"].map((name) => join(folder, name));
    const options = { executionProviders: EXECUTION_PROVIDERS };
    const createSession = (path) => explainErrors(`open the model ${path}`, () => InferenceSession.create(path, options));
    [models.encoder, models.decoder] = [await createSession(models.paths[0]), await createSession(models.paths[1])];
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
    const file = await explainErrors(`read ${models.paths[0]}`, () => readFile(models.paths[0]));
    // The difference between neighbouring pixel values of the model.
    models.binSize = 256 >> (findDigit(file, "n_bits") ?? 8);
    models.colours = findDigit(file, "colours") ?? 0;
    return models;
  }

  /**
   * Encodes a batch of images.
   * @param {Uint8Array} images RGB, `[count, size, size, 3]`.
   * @param {number} count
   * @returns {Promise<Record<string, Tensor>>} The codes by name: z and v, or v alone.
   */
  encode(images, count) {
    const inputs = { images: new Tensor("uint8", images, [count, this.size, this.size, CHANNELS]) };
    return explainErrors(`encode with ${this.paths[0]}`, () => this.encoder.run(inputs));
  }

  /**
   * Decodes a batch of codes.
   * @param {Record<string, Tensor>} codes The result of `encode`.
   * @returns {Promise<Uint8Array>} RGB, `[count, size, size, 3]`.
   */
  async decode(codes) {
    return (await explainErrors(`decode with ${this.paths[1]}`, () => this.decoder.run(codes))).images.data;
  }
}

/**
 * Prints how many test images are decoded exactly. Sets the exit status to 5 unless all are.
 * @param {Models} models
 */
async function checkExactness(models) {
  const images = makeTestImages(models.size);
  roundToBins(images, models.binSize);
  const decoded = await models.decode(await models.encode(images, TEST_IMAGES));
  const exact = countDifferences(images, decoded, TEST_IMAGES).filter((count) => count === 0).length;
  console.log(`${exact} of ${TEST_IMAGES} test images decode exactly`);
  process.exitCode = exact === TEST_IMAGES ? 0 : 5;
}

/**
 * Writes ab.png (z of the first image, v of the second) and ba.png, and prints whether the images are decoded exactly.
 * @param {Models} models
 * @param {string[]} paths Paths of the two images.
 * @param {number} crop Side of the centre square in pixels, or 0 for the largest one.
 */
async function switchImages(models, paths, crop) {
  const { size } = models;
  const length = size * size * CHANNELS;
  const pixels = new Uint8Array(2 * length);
  for (const [index, path] of paths.entries()) {
    pixels.set(await explainErrors(`read the image ${path}`, () => readSquare(path, size, crop)), index * length);
  }

  roundToBins(pixels, models.binSize);
  const { z, v } = await models.encode(pixels, 2);
  for (const [index, count] of countDifferences(pixels, await models.decode({ z, v }), 2).entries()) {
    const outcome = count ? `${count} of ${length} values differ` : "exactly the same";
    console.log(`${paths[index]}: ${outcome} after decoding`);
  }

  const switched = await models.decode({ z, v: swapEntries(v) });
  for (const [index, name] of ["ab.png", "ba.png"].entries()) {
    const image = switched.subarray(index * length, (index + 1) * length);
    const raw = { width: size, height: size, channels: CHANNELS };
    await explainErrors(`write ${name}`, () => sharp(image, { raw }).png().toFile(name));
    console.log(`${name}: z of ${paths[index]}, v of ${paths[1 - index]}`);
  }
}

/**
 * Writes ba.png, the first photograph with z of the second, and ab.png, the reverse, each at the photograph's own size.
 * The model changes small copies, and the guided filter applies the change of colours to the photographs.
 * @param {Models} models
 * @param {string[]} paths Paths of the two photographs.
 * @param {number} strength How far z moves: 0 is the photograph's own z, 1 the other one's.
 */
async function switchPhotographs(models, paths, strength) {
  const { size } = models;
  const length = size * size * CHANNELS;
  const [photographs, before] = [[], new Uint8Array(2 * length)];
  for (const [index, path] of paths.entries()) {
    const photograph = await explainErrors(`read the image ${path}`, () => readPhotograph(path));
    photographs.push(photograph);
    before.set(shrinkToSquare(photograph.rgba, photograph.width, photograph.height, size), index * length);
  }
  roundToBins(before, models.binSize);
  const { z, v } = await models.encode(before, 2);
  const changedZ = interpolateLinearly(z.data, swapEntries(z).data, strength);
  for (const [index, name] of ["ba.png", "ab.png"].entries()) {
    const { width, height, rgba } = photographs[index];
    const [first, end] = [index * length, (index + 1) * length];
    const codes = { v: new Tensor("float32", v.data.slice(first, end), [1, size, size, CHANNELS]) };
    const decode = (code) => models.decode({ ...codes, z: new Tensor("float32", code, [1, code.length]) });
    const wanted = changedZ.slice((index * changedZ.length) / 2, ((index + 1) * changedZ.length) / 2);
    const measureZ = async (code) => (await models.encode(await decode(code), 1)).z.data;
    const matched = await matchZ(wanted, models.colours, measureZ);
    const maps = fitColourMaps(before.subarray(first, end), await decode(matched), size);
    const result = new Uint8ClampedArray(rgba.length);
    applyColourMaps(maps, size, photographs[index], result, 0, height);
    const raw = { width, height, channels: 4 };
    await explainErrors(`write ${name}`, () => sharp(result, { raw }).png().toFile(name));
    console.log(`${name}: z of ${paths[1 - index]}, v of ${paths[index]}, ${width} x ${height} pixels`);
  }
}

/** @returns {{folder: string, paths: string[], [option: string]: any}} The command line's arguments. */
function readArguments() {
  const options = {
    crop: { type: "string", default: "0" },
    check: { type: "boolean", default: false },
    "own-size": { type: "boolean", default: false },
    strength: { type: "string", default: "0.9" },
  };
  let parsed;
  try {
    parsed = parseArgs({ allowPositionals: true, options });
  } catch (error) {
    throw new Problem(`${error.message}; ${USAGE}`);
  }
  const { values, positionals } = parsed;
  const [folder, ...paths] = positionals;
  if (!folder || paths.length !== (values.check ? 0 : 2)) throw new Problem(USAGE);
  if (!/^\d+$/.test(values.crop)) throw new Problem(`--crop is ${values.crop}; it must be a whole number; ${USAGE}`);
  const strength = Number(values.strength);
  if (!(strength >= 0 && strength <= 1)) {
    throw new Problem(`--strength is ${values.strength}; it must be a number from 0 to 1; ${USAGE}`);
  }
  return { folder, paths, crop: Number(values.crop), check: values.check, ownSize: values["own-size"], strength };
}

try {
  const options = readArguments();
  const models = await Models.openFolder(options.folder);
  if (options.check) await checkExactness(models);
  else {
    if (models.encoder.outputNames.join() !== "z,v") {
      throw new Problem(`${models.paths[0]} does not encode to z and v: without z there is nothing to switch`);
    }
    if (options.ownSize) await switchPhotographs(models, options.paths, options.strength);
    else await switchImages(models, options.paths, options.crop);
  }
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
