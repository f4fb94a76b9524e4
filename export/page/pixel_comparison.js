/**
 * Counts the values in which images differ, and compares the colours of images.
 * @module
 */

/** @param {Uint8Array} a @param {Uint8Array} b @returns {number} How many values of two images differ. */
export function countDifferences(a, b) {
  return a.reduce((count, value, index) => count + Number(value !== b[index]), 0);
}

/**
 * Returns whether a switched picture has the colours of the image that gave z. It has them if mean and standard deviation
 * of red, green and blue are at least twice as near to that image as to the image that gave v.
 * @param {Uint8Array} switched RGB values.
 * @param {Uint8Array} zImage RGB values.
 * @param {Uint8Array} vImage RGB values.
 * @returns {boolean}
 */
export function hasColoursOfZ(switched, zImage, vImage) {
  const [colours, zColours, vColours] = [switched, zImage, vImage].map(measureColours);
  const measureDistance = (/** @type {number[]} */ other) => Math.hypot(...colours.map((value, k) => value - other[k]));
  return 2 * measureDistance(zColours) <= measureDistance(vColours);
}

/** @param {Uint8Array} pixels RGB values. @returns {number[]} The means of the three channels, then their deviations. */
function measureColours(pixels) {
  const [sums, squares] = [new Float64Array(3), new Float64Array(3)];
  pixels.forEach((value, index) => {
    sums[index % 3] += value;
    squares[index % 3] += value * value;
  });
  const means = Array.from(sums, (sum) => (3 * sum) / pixels.length);
  const variances = means.map((mean, k) => (3 * squares[k]) / pixels.length - mean * mean);
  return [...means, ...variances.map((variance) => Math.sqrt(Math.max(0, variance)))];
}
