/**
 * Picture files to square pixels, and pixels to canvases and PNG files.
 * @module
 */

const CHANNELS = 3;
/** Lanczos over a longer side would be slow on a phone, and some browsers allow no canvas of a whole photograph. */
const LONGEST_SIDE = 2048;
const LANCZOS_LOBES = 3;

/** A file that is no usable picture. The message is written for the reader of the page. */
export class ImageError extends Error {}

/**
 * Reads a picture, crops its middle to a square and shrinks it. A picture of just that size keeps its pixels.
 * @param {Blob} blob
 * @param {string} name How messages call it.
 * @param {number} size Side of the result.
 * @returns {Promise<Uint8Array>} `size * size * 3` values, RGB.
 */
export async function readImage(blob, name, size) {
  const bitmap = await decoded(blob, name);
  if (bitmap.width === size && bitmap.height === size) return unchanged(blob, name, size);
  const square = middleSquare(bitmap, Math.max(LONGEST_SIDE, 4 * size));
  return resized(square, size);
}

/**
 * @param {Blob} blob
 * @param {string} name
 * @param {ImageBitmapOptions} [options]
 * @returns {Promise<ImageBitmap>}
 */
async function decoded(blob, name, options = {}) {
  if (blob.size === 0) throw new ImageError(`${name} is empty.`);
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image", ...options });
  } catch {
    throw new ImageError(whyNot(blob, name));
  }
}

/** @param {Blob} blob @param {string} name @returns {string} */
function whyNot(blob, name) {
  if (blob.type.startsWith("image/")) {
    return `${name} cannot be decoded: it is damaged, or this browser does not know its format (${blob.type}).`;
  }
  return `${name} is not an image${blob.type ? ` (${blob.type})` : ""}. Try a PNG, JPEG or WebP file.`;
}

/**
 * A colour profile would change pixels that already fit.
 * @param {Blob} blob
 * @param {string} name
 * @param {number} size
 */
async function unchanged(blob, name, size) {
  const bitmap = await decoded(blob, name, { colorSpaceConversion: "none" });
  return withoutAlpha(context(bitmap, 0, 0, size, size).getImageData(0, 0, size, size).data);
}

/**
 * @param {ImageBitmap} bitmap
 * @param {number} longest
 * @returns {ImageData} The middle square, halved until no longer than that.
 */
function middleSquare(bitmap, longest) {
  const whole = Math.min(bitmap.width, bitmap.height);
  const [left, top] = [Math.floor((bitmap.width - whole) / 2), Math.floor((bitmap.height - whole) / 2)];
  let side = whole > longest ? Math.ceil(whole / 2) : whole;
  let drawn = context(bitmap, left, top, whole, side);
  while (side > longest) {
    const half = Math.ceil(side / 2);
    drawn = context(drawn.canvas, 0, 0, side, half);
    side = half;
  }
  return drawn.getImageData(0, 0, side, side);
}

/**
 * Draws a square part of a source onto a new square canvas, over white where it is transparent.
 * @param {CanvasImageSource} source
 * @param {number} left
 * @param {number} top
 * @param {number} from Side of the part.
 * @param {number} to Side of the canvas.
 * @returns {CanvasRenderingContext2D}
 */
function context(source, left, top, from, to) {
  const drawn = newCanvas(to).getContext("2d", { willReadFrequently: true });
  drawn.imageSmoothingQuality = "high";
  drawn.fillStyle = "#fff";
  drawn.fillRect(0, 0, to, to);
  drawn.drawImage(source, left, top, from, from, 0, 0, to, to);
  return drawn;
}

/** @param {number} size @returns {HTMLCanvasElement} */
function newCanvas(size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  return canvas;
}

/**
 * Lanczos, as the training crops were shrunk: an ordinary canvas blurs or aliases at such ratios, and each browser in
 * its own way.
 * @param {ImageData} square
 * @param {number} size
 * @returns {Uint8Array}
 */
function resized(square, size) {
  const taps = lanczosTaps(square.width, size);
  const narrow = filterRows(withoutAlpha(square.data), square.width, square.width, taps);
  const across = transposed(narrow, square.width, size);
  const small = filterRows(across, square.width, size, taps);
  return Uint8Array.from(transposed(small, size, size));
}

/**
 * @param {number} from
 * @param {number} to
 * @returns {{start: number, weights: Float64Array}[]} Where the inputs of each output place start, and
 *   what they weigh.
 */
function lanczosTaps(from, to) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.round(centre - LANCZOS_LOBES * stretch));
    const end = Math.min(from, Math.round(centre + LANCZOS_LOBES * stretch));
    const weights = Float64Array.from({ length: end - start }, (_, k) => lanczos((start + k + 0.5 - centre) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

/** @param {number} x @returns {number} */
function lanczos(x) {
  return Math.abs(x) < LANCZOS_LOBES ? sinc(x) * sinc(x / LANCZOS_LOBES) : 0;
}

/** @param {number} x @returns {number} */
function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/**
 * @param {Uint8Array | Uint8ClampedArray} pixels RGB.
 * @param {number} width
 * @param {number} height
 * @param {{start: number, weights: Float64Array}[]} taps
 * @returns {Uint8ClampedArray} Each row filtered to as many pixels as there are taps.
 */
function filterRows(pixels, width, height, taps) {
  const out = new Uint8ClampedArray(taps.length * height * CHANNELS);
  let place = 0;
  for (let y = 0; y < height; y++) {
    for (const { start, weights } of taps) {
      let [red, green, blue] = [0, 0, 0];
      let from = (y * width + start) * CHANNELS;
      for (const weight of weights) {
        red += weight * pixels[from++];
        green += weight * pixels[from++];
        blue += weight * pixels[from++];
      }
      out[place++] = red;
      out[place++] = green;
      out[place++] = blue;
    }
  }
  return out;
}

/** @param {Uint8ClampedArray} pixels @param {number} height @param {number} width @returns {Uint8ClampedArray} */
function transposed(pixels, height, width) {
  const out = new Uint8ClampedArray(pixels.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [(y * width + x) * CHANNELS, (x * height + y) * CHANNELS];
      for (let channel = 0; channel < CHANNELS; channel++) out[to + channel] = pixels[from + channel];
    }
  }
  return out;
}

/** @param {Uint8ClampedArray} rgba @returns {Uint8Array} */
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
 * Whether canvases give back the pixels drawn on them. Browsers that resist fingerprinting may change them.
 * @returns {boolean}
 */
export function canvasKeepsPixels() {
  const side = 16;
  const pixels = Uint8Array.from({ length: side * side * CHANNELS }, (_, index) => (index * 37) % 256);
  const canvas = newCanvas(side);
  draw(canvas, pixels, side);
  const back = withoutAlpha(canvas.getContext("2d").getImageData(0, 0, side, side).data);
  return back.every((value, index) => value === pixels[index]);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Uint8Array} pixels RGB.
 * @param {number} size
 */
export function draw(canvas, pixels, size) {
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
 * @param {number} size
 * @param {string} fileName
 */
export async function savePng(pixels, size, fileName) {
  const canvas = newCanvas(size);
  draw(canvas, pixels, size);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = fileName;
  link.click();
  // The download has its own hold on the blob by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
