/**
 * Picture files to square pixels, and pixels to canvases and PNG files.
 * @module
 */

import { bilinearTaps, filterColumns, filterRows } from "./resize.js";

const CHANNELS = 3;
/** Pixels that are read from a picture at a time: some browsers allow no canvas of a whole photograph. */
const STRIP_PIXELS = 2 ** 20;

/** Pixels that a picture may have: a small file can claim any number, and all of them are decoded. */
const MOST_PIXELS = 2 ** 27;

/** A file that is no usable picture. The message is written for the reader of the page. */
export class ImageError extends Error {}

/**
 * Reads a picture as the training images were read: turned upright, without transparency and colour profile, its middle
 * square resized. A picture of just that size keeps its pixels.
 * @param {Blob} blob
 * @param {string} name How messages call it.
 * @param {number} size Side of the result.
 * @param {number} [crop] Side of the square to keep; the largest one where it is 0 or does not fit.
 * @returns {Promise<Uint8Array>} `size * size * 3` values, RGB.
 */
export async function readImage(blob, name, size, crop = 0) {
  const bitmap = await decoded(blob, name);
  try {
    const side = Math.min(bitmap.width, bitmap.height, crop || Infinity);
    const [left, top] = [Math.floor((bitmap.width - side) / 2), Math.floor((bitmap.height - side) / 2)];
    const taps = side === size ? null : bilinearTaps(side, size);
    let read = drawn;
    const narrow = new Uint8Array(side * size * CHANNELS);
    const rows = Math.max(1, Math.floor(STRIP_PIXELS / side));
    for (let y = 0; y < side; y += rows) {
      const strip = /** @type {const} */ ([left, top + y, side, Math.min(rows, side - y)]);
      let rgba = read(bitmap, ...strip);
      if (read === drawn && isTransparent(rgba)) {
        read = straight(bitmap) ?? drawn;
        rgba = read(bitmap, ...strip);
      }
      narrow.set(taps ? filterRows(rgba, side, 4, taps) : withoutAlpha(rgba), y * size * CHANNELS);
    }
    return taps ? filterColumns(narrow, taps) : narrow;
  } finally {
    bitmap.close();
  }
}

/**
 * Reads a picture of any proportions, turned upright.
 * @param {Blob} blob
 * @param {string} name How messages call it.
 * @param {number} longest A larger picture is shrunk until neither side has more pixels.
 * @returns {Promise<{width: number, height: number, rgba: Uint8ClampedArray}>}
 */
export async function readPhotograph(blob, name, longest) {
  const bitmap = await decoded(blob, name, longest);
  const { width, height } = bitmap;
  const rgba = drawn(bitmap, 0, 0, width, height);
  bitmap.close();
  return { width, height, rgba };
}

/**
 * Pixels as a model of so many bits sees them and gives them back: rounded down to its levels.
 * @param {Uint8Array} pixels
 * @param {number} [bits]
 * @returns {Uint8Array}
 */
export function toLevels(pixels, bits = 8) {
  const step = 256 >> bits;
  return pixels.map((value) => value - (value % step));
}

/**
 * @param {Blob} blob
 * @param {string} name
 * @param {number} [longest] Side, in pixels: a larger picture is shrunk, and its colours become those of the screen.
 * @returns {Promise<ImageBitmap>}
 */
async function decoded(blob, name, longest = Infinity) {
  if (blob.size === 0) throw new ImageError(`${name} is empty.`);
  const { naturalWidth: width, naturalHeight: height } = await header(blob);
  if (width * height > MOST_PIXELS) {
    throw new ImageError(`${name} has ${width} x ${height} pixels. This page takes pictures of ${MOST_PIXELS} at most.`);
  }
  const exact = longest === Infinity;
  const scale = Math.min(1, longest / Math.max(width, height));
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  try {
    return await createImageBitmap(blob, {
      imageOrientation: "from-image",
      premultiplyAlpha: exact ? "none" : "default",
      colorSpaceConversion: exact ? "none" : "default",
      ...(scale < 1 && { resizeWidth, resizeHeight, resizeQuality: "high" }),
    });
  } catch {
    throw new ImageError(whyNot(blob, name));
  }
}

/**
 * @param {Blob} blob
 * @returns {Promise<HTMLImageElement>} An element that knows the picture's size, and decodes it when it is shown: never.
 *   Of a file that is no picture it has the size 0.
 */
async function header(blob) {
  const element = new Image();
  element.src = URL.createObjectURL(blob);
  await new Promise((resolve) => (element.onload = element.onerror = resolve));
  URL.revokeObjectURL(element.src);
  return element;
}

/** @param {Blob} blob @param {string} name @returns {string} */
function whyNot(blob, name) {
  if (blob.type.startsWith("image/")) {
    return `${name} cannot be decoded: it is damaged, or this browser does not know its format (${blob.type}).`;
  }
  return `${name} is not an image${blob.type ? ` (${blob.type})` : ""}. Try a PNG, JPEG or WebP file.`;
}

/**
 * Reads part of a picture. Transparent pixels lose digits, since a canvas multiplies them by their alpha.
 * @param {ImageBitmap} bitmap
 * @param {number} left
 * @param {number} top
 * @param {number} width
 * @param {number} height
 * @returns {Uint8ClampedArray} RGBA.
 */
function drawn(bitmap, left, top, width, height) {
  const canvas = newCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/** @param {Uint8ClampedArray} rgba @returns {boolean} Whether any pixel is. */
function isTransparent(rgba) {
  for (let alpha = 3; alpha < rgba.length; alpha += 4) if (rgba[alpha] < 255) return true;
  return false;
}

/**
 * @param {ImageBitmap} bitmap Not multiplied by its alpha.
 * @returns {typeof drawn | null} Reads part of the picture through WebGL, which leaves transparent pixels their colours;
 *   null where that cannot be.
 */
function straight(bitmap) {
  const gl = newCanvas(1, 1).getContext("webgl");
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) return null;
  return (_, left, top, width, height) => {
    const rgba = new Uint8Array(width * height * 4);
    gl.readPixels(left, top, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    return rgba;
  };
}

/** @param {number} width @param {number} height @returns {HTMLCanvasElement} */
function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

/** @param {Uint8Array | Uint8ClampedArray} rgba @returns {Uint8Array} */
function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * CHANNELS);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Uint8Array} pixels RGB, of a square.
 */
export function draw(canvas, pixels) {
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
 * Saves pixels as a PNG file of their own size, so that the file can be opened here again without a loss.
 * @param {Uint8Array} pixels
 * @param {string} fileName
 */
export async function savePng(pixels, fileName) {
  const canvas = document.createElement("canvas");
  draw(canvas, pixels);
  await saveCanvas(canvas, fileName);
}

/** @param {HTMLCanvasElement} canvas @param {string} fileName Of the PNG file that the browser saves. */
export async function saveCanvas(canvas, fileName) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = fileName;
  link.click();
  // The download has its own hold on the blob by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
