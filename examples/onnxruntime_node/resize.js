/**
 * Resizes square images with the same bytes as in training: Pillow's filter BILINEAR, with its fixed-point weights.
 *
 * Each output pixel is a weighted mean of input pixels, with weights that fall linearly to 0 over one pixel of the
 * smaller image. The rows are filtered first, then the columns, and both results are rounded to 8 bits.
 * @module
 */

const CHANNELS = 3;
/** Weights are whole multiples of 2 ** -22, so that the weighted sum of values up to 255 fits into 31 bits. */
const WEIGHT_BITS = 22;
/** Added to a sum before it is shifted, so that the result is rounded to the nearest integer. */
const HALF = 2 ** (WEIGHT_BITS - 1);

/** @typedef {{start: number, weights: Int32Array}} Tap The first input of an output, and the weights of its inputs. */

/**
 * Resizes a square image.
 * @param {Uint8Array | Uint8ClampedArray} pixels RGB, `side * side * 3` values.
 * @param {number} side Side of the image in pixels.
 * @param {number} size Side of the result in pixels.
 * @returns {Uint8Array} RGB, `size * size * 3` values. An image that already has this size is copied.
 */
export function resizeSquare(pixels, side, size) {
  if (side === size) return Uint8Array.from(pixels);
  const taps = computeTaps(side, size);
  return filterColumns(filterRows(pixels, side, CHANNELS, taps), taps);
}

/**
 * Computes the weights of the filter along one axis.
 * @param {number} from Length of the input in pixels.
 * @param {number} to Length of the output in pixels.
 * @returns {Tap[]} The weights of each output pixel.
 */
export function computeTaps(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const shares = Float64Array.from({ length: end - start }, (_, k) =>
      Math.max(0, 1 - Math.abs((start + k - centre + 0.5) * (1 / reach))),
    );
    const sum = shares.reduce((total, share) => total + share, 0);
    return { start, weights: Int32Array.from(shares, (share) => 0.5 + (share / sum) * 2 ** WEIGHT_BITS) };
  });
}

/**
 * Filters each row. Large images can be filtered in strips of some rows.
 * @param {Uint8Array | Uint8ClampedArray} pixels Whole rows.
 * @param {number} width Length of a row in pixels.
 * @param {number} channels 3 for RGB, or 4 for RGBA, whose alpha is dropped.
 * @param {Tap[]} taps
 * @returns {Uint8Array} RGB, as many rows as `pixels`, of `taps.length` pixels each.
 */
export function filterRows(pixels, width, channels, taps) {
  const height = pixels.length / (width * channels);
  const out = new Uint8Array(height * taps.length * CHANNELS);
  let to = 0;
  for (let y = 0; y < height; y++) {
    for (const { start, weights } of taps) {
      let [red, green, blue] = [HALF, HALF, HALF];
      let from = (y * width + start) * channels;
      for (const weight of weights) {
        red += weight * pixels[from];
        green += weight * pixels[from + 1];
        blue += weight * pixels[from + 2];
        from += channels;
      }
      out[to++] = red >> WEIGHT_BITS;
      out[to++] = green >> WEIGHT_BITS;
      out[to++] = blue >> WEIGHT_BITS;
    }
  }
  return out;
}

/**
 * Filters each column.
 * @param {Uint8Array} pixels RGB, rows of `taps.length` pixels each.
 * @param {Tap[]} taps
 * @returns {Uint8Array} RGB, a square with sides of `taps.length` pixels.
 */
export function filterColumns(pixels, taps) {
  const rowLength = taps.length * CHANNELS;
  const out = new Uint8Array(taps.length * rowLength);
  let to = 0;
  for (const { start, weights } of taps) {
    for (let column = 0; column < rowLength; column++) {
      let sum = HALF;
      let from = start * rowLength + column;
      for (const weight of weights) {
        sum += weight * pixels[from];
        from += rowLength;
      }
      out[to++] = sum >> WEIGHT_BITS;
    }
  }
  return out;
}
