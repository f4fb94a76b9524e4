/**
 * Reads picture files into pixels, draws pixels on canvases, and saves canvases as PNG files.
 * @module
 */

import { makeOpaque } from "./opaque_files.js";
import { computeTaps, filterColumns, filterRows } from "./resize.js";

const CHANNELS = 3;
/** How many pixels are read at a time, because some browsers allow no canvas as large as a photograph. */
const STRIP_PIXELS = 2 ** 20;

/** The most pixels that a picture may have. The browser decodes all pixels, and a small file can have very many. */
const MOST_PIXELS = 2 ** 26;

/** Says, in a sentence for the reader of the page, why a file cannot be used as a picture. */
export class ImageError extends Error {}

/**
 * Reads a picture with the same bytes as in training: turned upright, without transparency and colour profile, cropped to
 * its middle square and resized. A picture that already has the model's size keeps its pixels.
 * @param {Blob} blob
 * @param {string} name What error messages call the picture.
 * @param {number} size Side of the result in pixels.
 * @param {number} [crop] Side of the middle square in pixels. 0, or a square that does not fit, means the largest one.
 * @returns {Promise<Uint8Array>} RGB, `size * size * 3` values.
 */
export async function readSquareImage(blob, name, size, crop = 0) {
  const bitmap = await decodeBitmap(blob, name);
  try {
    const side = Math.min(bitmap.width, bitmap.height, crop || Infinity);
    const [left, top] = [Math.floor((bitmap.width - side) / 2), Math.floor((bitmap.height - side) / 2)];
    const taps = side === size ? null : computeTaps(side, size);
    const resizedRows = new Uint8Array(side * size * CHANNELS);
    const rows = Math.max(1, Math.floor(STRIP_PIXELS / side));
    for (let y = 0; y < side; y += rows) {
      const rgba = readPixels(bitmap, left, top + y, side, Math.min(rows, side - y), false);
      resizedRows.set(taps ? filterRows(rgba, side, 4, taps) : removeAlpha(rgba), y * size * CHANNELS);
    }
    return taps ? filterColumns(resizedRows, taps) : resizedRows;
  } finally {
    bitmap.close();
  }
}

/**
 * Reads a whole picture of any proportions, turned upright.
 * @param {Blob} blob
 * @param {string} name What error messages call the picture.
 * @param {number} longestSide The largest width or height of the result in pixels. A larger picture is shrunk.
 * @returns {Promise<{width: number, height: number, rgba: Uint8ClampedArray}>}
 */
export async function readPhotograph(blob, name, longestSide) {
  const bitmap = await decodeBitmap(blob, name, longestSide);
  const { width, height } = bitmap;
  const rgba = readPixels(bitmap, 0, 0, width, height, true);
  bitmap.close();
  return { width, height, rgba };
}

/**
 * Rounds pixels down to the lowest value of their bin. A model of fewer than 8 bits decodes to these values.
 * @param {Uint8Array} pixels
 * @param {number} [bits] Bits per colour value of the model.
 * @returns {Uint8Array}
 */
export function roundToBins(pixels, bits = 8) {
  const binSize = 256 >> bits;
  return pixels.map((value) => value - (value % binSize));
}

/**
 * Decodes a picture file.
 * @param {Blob} blob
 * @param {string} name What error messages call the picture.
 * @param {number} [longestSide] The largest width or height of the result in pixels. With a limit, a larger picture is
 *   shrunk and colours are converted to the screen's; without one, pixels have the values of the file.
 * @returns {Promise<ImageBitmap>}
 */
async function decodeBitmap(blob, name, longestSide = Infinity) {
  if (blob.size === 0) throw new ImageError(`${name} is empty.`);
  const { naturalWidth: width, naturalHeight: height } = await loadImageElement(blob);
  if (width * height > MOST_PIXELS) {
    throw new ImageError(`${name} has ${width} x ${height} pixels. This page takes pictures of ${MOST_PIXELS} at most.`);
  }
  const exact = longestSide === Infinity;
  const scale = Math.min(1, longestSide / Math.max(width, height));
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  try {
    return await createImageBitmap(exact ? await makeOpaque(blob) : blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: exact ? "none" : "default",
      ...(scale < 1 && { resizeWidth, resizeHeight, resizeQuality: "high" }),
    });
  } catch {
    throw new ImageError(describeUnreadableFile(blob, name));
  }
}

/**
 * Loads a file into an element that is never shown. Browsers decode the pixels of an image element only when they show
 * it, so this tells the size of a huge picture without decoding it.
 * @param {Blob} blob
 * @returns {Promise<HTMLImageElement>} Its size is 0 x 0 if the file is no picture.
 */
async function loadImageElement(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  await new Promise((resolve) => (image.onload = image.onerror = resolve));
  URL.revokeObjectURL(image.src);
  return image;
}

/** @param {Blob} blob @param {string} name @returns {string} A sentence that says why a file cannot be decoded. */
function describeUnreadableFile(blob, name) {
  if (blob.type.startsWith("image/")) {
    return `${name} cannot be decoded: it is damaged, or this browser does not know its format (${blob.type}).`;
  }
  return `${name} is not an image${blob.type ? ` (${blob.type})` : ""}. Try a PNG, JPEG or WebP file.`;
}

/**
 * Reads a rectangle of a picture through a canvas.
 * @param {ImageBitmap} bitmap
 * @param {number} left
 * @param {number} top
 * @param {number} width
 * @param {number} height
 * @param {boolean} alpha Whether to read transparency. Chromium keeps alpha in the pixels of some opaque pictures.
 * @returns {Uint8ClampedArray} RGBA.
 */
function readPixels(bitmap, left, top, width, height, alpha) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha });
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/** @param {Uint8Array | Uint8ClampedArray} rgba @returns {Uint8Array} RGB, three values for each pixel. */
function removeAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * CHANNELS);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

/** Draws a square image on a canvas of its size. @param {HTMLCanvasElement} canvas @param {Uint8Array} pixels RGB. */
export function drawPixels(canvas, pixels) {
  const size = Math.sqrt(pixels.length / CHANNELS);
  if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
  const data = new ImageData(size, size);
  for (let from = 0, to = 0; from < pixels.length; to += 4) {
    data.data[to] = pixels[from++];
    data.data[to + 1] = pixels[from++];
    data.data[to + 2] = pixels[from++];
    data.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
}

/**
 * Saves a square image as a PNG file of its size, which the page reads again with the same pixels.
 * @param {Uint8Array} pixels RGB.
 * @param {string} fileName
 */
export async function savePixels(pixels, fileName) {
  const canvas = document.createElement("canvas");
  drawPixels(canvas, pixels);
  await saveCanvas(canvas, fileName);
}

/** Saves a canvas as a PNG file. @param {HTMLCanvasElement} canvas @param {string} fileName */
export async function saveCanvas(canvas, fileName) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = fileName;
  link.click();
  // The browser starts the download after the click returns, and needs the URL until then.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
