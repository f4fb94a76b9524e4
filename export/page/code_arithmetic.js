/**
 * Arithmetic on codes and pixels, without a browser.
 * @module
 */

/**
 * @typedef {object} Code The two codes of one image.
 * @property {Float32Array} z Global, `latent_dim` numbers.
 * @property {Float32Array} v Local, as many numbers as the image has.
 */

/** Two vectors with a smaller sine of the angle between them have no single arc between them. */
const SMALLEST_SINE = 1e-6;

/**
 * @template {Uint8Array | Float32Array} T
 * @param {T[]} parts Equally long.
 * @returns {T} One batch.
 */
export function joinBatch(parts) {
  const Values = /** @type {{new (length: number): T}} */ (parts[0].constructor);
  const batch = new Values(parts.length * parts[0].length);
  parts.forEach((part, index) => batch.set(part, index * part.length));
  return batch;
}

/**
 * @template {Uint8Array | Float32Array} T
 * @param {T} batch
 * @param {number} count
 * @returns {T[]} Its `count` parts.
 */
export function splitBatch(batch, count) {
  const length = batch.length / count;
  return Array.from({ length: count }, (_, k) => /** @type {T} */ (batch.slice(k * length, (k + 1) * length)));
}

/**
 * The point on the line from a to b. Each step rounds to float32 as Python does, so that both give the same codes.
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} share 0 gives exactly a, 1 exactly b.
 * @returns {Float32Array}
 */
export function interpolateLinearly(a, b, share) {
  return mix(a, b, Math.fround(1 - Math.fround(share)), Math.fround(share));
}

/**
 * The point on the arc around the origin from a to b, as `slerp` in Python: the direction turns at an even speed, the
 * length changes evenly. On the line where there is no single arc.
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} share 0 gives exactly a, 1 exactly b.
 * @returns {Float32Array}
 */
export function interpolateOnArc(a, b, share) {
  const [lengthA, lengthB] = [Math.sqrt(dotProduct(a, a)), Math.sqrt(dotProduct(b, b))];
  const lengths = lengthA * lengthB;
  const angle = Math.acos(Math.min(1, Math.max(-1, lengths > 0 ? dotProduct(a, b) / lengths : 0)));
  const sine = Math.sin(angle);
  if (!(lengths > 0 && sine > SMALLEST_SINE)) return interpolateLinearly(a, b, share);
  const length = (1 - share) * lengthA + share * lengthB;
  const factorA = ((length / lengthA) * Math.sin((1 - share) * angle)) / sine;
  const factorB = ((length / lengthB) * Math.sin(share * angle)) / sine;
  return mix(a, b, Math.fround(factorA), Math.fround(factorB));
}

/** @param {Float32Array} a @param {Float32Array} b @param {number} factorA @param {number} factorB */
function mix(a, b, factorA, factorB) {
  return a.map((value, index) => Math.fround(factorA * value) + Math.fround(factorB * b[index]));
}

/** @param {Float32Array} a @param {Float32Array} b */
function dotProduct(a, b) {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}

/**
 * Moves z along directions. Each step rounds to float32 as Python does.
 * @param {Float32Array} z
 * @param {{amount: number, vector: Float32Array}[]} steps
 * @returns {Float32Array}
 */
export function moveAlong(z, steps) {
  const moved = z.slice();
  for (const { amount, vector } of steps) {
    vector.forEach((value, index) => (moved[index] += Math.fround(Math.fround(amount) * value)));
  }
  return moved;
}

/**
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 * @returns {number} How many values differ.
 */
export function countDifferences(a, b) {
  return a.reduce((count, value, index) => count + Number(value !== b[index]), 0);
}

/**
 * Whether a picture has the colours of another rather than its own: mean and standard deviation of red, green and blue
 * are at least twice as near to the other's.
 * @param {Uint8Array} picture
 * @param {Uint8Array} own
 * @param {Uint8Array} other
 */
export function hasColoursOf(picture, own, other) {
  const [found, before, wanted] = [picture, own, other].map(measureColours);
  const distanceTo = (/** @type {number[]} */ colours) => Math.hypot(...found.map((value, k) => value - colours[k]));
  return 2 * distanceTo(wanted) <= distanceTo(before);
}

/** @param {Uint8Array} pixels RGB. @returns {number[]} Mean and standard deviation of each channel. */
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
