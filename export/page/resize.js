/**
 * Resizes square pictures to the byte as the training images were: the filter BILINEAR of Pillow, in its own integers.
 *
 * Each output pixel is a weighted mean under a triangle as wide as two pixels of the smaller of the two pictures, first
 * along the rows, then along the columns, rounded to 8 bits each time.
 * @module
 */

const CHANNELS = 3;
/** Weights are whole multiples of 2 ** -22, so that a sum of them times 255 fits into 31 bits. */
const BITS = 22;
const HALF = 2 ** (BITS - 1);

/** @typedef {{start: number, weights: Int32Array}} Tap Where the inputs of an output begin, and what they weigh. */

/**
 * @param {Uint8Array | Uint8ClampedArray} pixels RGB, `side * side * 3` values.
 * @param {number} side
 * @param {number} size Side of the result.
 * @returns {Uint8Array} `size * size * 3` values; a picture of the right size as it is.
 */
export function resizeSquare(pixels, side, size) {
  if (side === size) return Uint8Array.from(pixels);
  const taps = bilinearTaps(side, size);
  return filterColumns(filterRows(pixels, side, CHANNELS, taps), taps);
}

/**
 * @param {number} from Side of the input.
 * @param {number} to Side of the output.
 * @returns {Tap[]} One for each output.
 */
export function bilinearTaps(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const shares = Float64Array.from({ length: end - start }, (_, k) =>
      Math.max(0, 1 - Math.abs((start + k - centre + 0.5) * (1 / reach))),
    );
    const sum = shares.reduce((total, share) => total + share, 0);
    return { start, weights: Int32Array.from(shares, (share) => 0.5 + (share / sum) * 2 ** BITS) };
  });
}

/**
 * Filters along the rows. A large picture can come in strips, some rows at a time.
 * @param {Uint8Array | Uint8ClampedArray} pixels Whole rows.
 * @param {number} width Pixels in a row.
 * @param {number} channels 3, or 4 of which the last is left out.
 * @param {Tap[]} taps
 * @returns {Uint8Array} RGB, as many rows, each of as many pixels as there are taps.
 */
export function filterRows(pixels, width, channels, taps) {
  const height = pixels.length / (width * channels);
  const out = new Uint8Array(height * taps.length * CHANNELS);
  let place = 0;
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
      out[place++] = red >> BITS;
      out[place++] = green >> BITS;
      out[place++] = blue >> BITS;
    }
  }
  return out;
}

/**
 * Filters along the columns.
 * @param {Uint8Array} pixels RGB, each row of as many pixels as there are taps.
 * @param {Tap[]} taps
 * @returns {Uint8Array} RGB, as many rows as there are taps.
 */
export function filterColumns(pixels, taps) {
  const row = taps.length * CHANNELS;
  const out = new Uint8Array(taps.length * row);
  let to = 0;
  for (const { start, weights } of taps) {
    for (let place = 0; place < row; place++) {
      let sum = HALF;
      let from = start * row + place;
      for (const weight of weights) {
        sum += weight * pixels[from];
        from += row;
      }
      out[to++] = sum >> BITS;
    }
  }
  return out;
}
