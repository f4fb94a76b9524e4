/**
 * Whose colours a picture has.
 * @module
 */

const CHANNELS = 3;

/**
 * Whether a picture has the colours of another one rather than its own: mean and spread of each channel are at least
 * twice as near to the other's.
 * @param {Uint8Array} picture
 * @param {Uint8Array} own
 * @param {Uint8Array} other
 * @returns {boolean}
 */
export function hasColoursOf(picture, own, other) {
  const [found, before, wanted] = [picture, own, other].map(colours);
  const [toOwn, toOther] = [distance(found, before), distance(found, wanted)];
  return toOwn > 0 && 2 * toOther <= toOwn;
}

/** @param {Uint8Array} pixels RGB. @returns {number[]} Mean and standard deviation of each channel, in levels. */
export function colours(pixels) {
  const [sums, squares] = [new Float64Array(CHANNELS), new Float64Array(CHANNELS)];
  pixels.forEach((value, index) => {
    sums[index % CHANNELS] += value;
    squares[index % CHANNELS] += value * value;
  });
  const count = pixels.length / CHANNELS;
  const means = Array.from(sums, (sum) => sum / count);
  const spreads = means.map((mean, channel) => Math.sqrt(Math.max(0, squares[channel] / count - mean * mean)));
  return [...means, ...spreads];
}

/** @param {number[]} a @param {number[]} b */
function distance(a, b) {
  return Math.hypot(...a.map((value, index) => value - b[index]));
}
