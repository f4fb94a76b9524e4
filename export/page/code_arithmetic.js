/**
 * Joins and splits batches, interpolates codes, and moves z along directions. All arrays are flat.
 * @module
 */

/**
 * @typedef {object} Code The codes of one image.
 * @property {Float32Array} z The global code, `latent_dim` numbers.
 * @property {Float32Array} v The local code, as many numbers as the image has values.
 */

/** Below this sine of the angle between two vectors, the arc from one to the other is treated as not unique. */
const SMALLEST_SINE = 1e-6;
/** How often `matchZ` changes z. */
const ROUNDS = 8;

/**
 * Concatenates the images or codes of several pictures into one batch.
 * @template {Uint8Array | Float32Array} T
 * @param {T[]} parts Arrays of one length.
 * @returns {T}
 */
export function joinBatch(parts) {
  const Values = /** @type {{new (length: number): T}} */ (parts[0].constructor);
  const batch = new Values(parts.length * parts[0].length);
  parts.forEach((part, index) => batch.set(part, index * part.length));
  return batch;
}

/**
 * Splits a batch into the arrays of its `count` pictures.
 * @template {Uint8Array | Float32Array} T
 * @param {T} batch
 * @param {number} count
 * @returns {T[]}
 */
export function splitBatch(batch, count) {
  const length = batch.length / count;
  return Array.from({ length: count }, (_, k) => /** @type {T} */ (batch.slice(k * length, (k + 1) * length)));
}

/**
 * Returns a point on the line from a to b. Each operation rounds to float32, so that Python gives the same codes.
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} share Position on the line: 0 gives exactly a, 1 gives exactly b.
 * @returns {Float32Array}
 */
export function interpolateLinearly(a, b, share) {
  return addWeightedCodes(a, b, Math.fround(1 - Math.fround(share)), Math.fround(share));
}

/**
 * Changes z so that the image decoded from it and from v encodes to nearly the given z, as `match_z` in Python.
 * @param {Float32Array} wanted z of one image.
 * @param {number} colours How many numbers at the beginning of z are colours, which alone are matched; 0 to match all of z.
 * @param {(z: Float32Array) => Promise<Float32Array>} measureZ Decodes z and v, and returns z of the decoded image.
 * @returns {Promise<Float32Array>}
 */
export async function matchZ(wanted, colours, measureZ) {
  let [z, nearest, least] = [wanted, wanted, Infinity];
  for (let round = 0; round <= ROUNDS; round++) {
    const own = await measureZ(z);
    const lacking = wanted.map((value, k) => (k < (colours || wanted.length) ? value - own[k] : 0));
    const distance = lacking.reduce((sum, value) => sum + value ** 2, 0);
    if (distance < least) [nearest, least] = [z, distance];
    z = z.map((value, k) => value + lacking[k]);
  }
  return nearest;
}

/**
 * Returns a point on the arc around the origin from a to b, as `slerp` in Python: angle and length change linearly with
 * the share. Where the arc is not unique, the point lies on the line from a to b.
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} share Position on the arc: 0 gives exactly a, 1 gives exactly b.
 * @returns {Float32Array}
 */
export function interpolateOnArc(a, b, share) {
  const [lengthA, lengthB] = [Math.sqrt(computeDotProduct(a, a)), Math.sqrt(computeDotProduct(b, b))];
  const lengths = lengthA * lengthB;
  const angle = Math.acos(Math.min(1, Math.max(-1, lengths > 0 ? computeDotProduct(a, b) / lengths : 0)));
  const sine = Math.sin(angle);
  if (!(lengths > 0 && sine > SMALLEST_SINE)) return interpolateLinearly(a, b, share);
  const length = (1 - share) * lengthA + share * lengthB;
  const factorA = ((length / lengthA) * Math.sin((1 - share) * angle)) / sine;
  const factorB = ((length / lengthB) * Math.sin(share * angle)) / sine;
  return addWeightedCodes(a, b, Math.fround(factorA), Math.fround(factorB));
}

/**
 * Returns `factorA * a + factorB * b`, with both products rounded to float32.
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} factorA
 * @param {number} factorB
 * @returns {Float32Array}
 */
function addWeightedCodes(a, b, factorA, factorB) {
  return a.map((value, index) => Math.fround(factorA * value) + Math.fround(factorB * b[index]));
}

/** @param {Float32Array} a @param {Float32Array} b @returns {number} The dot product, summed in float64. */
function computeDotProduct(a, b) {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}

/**
 * Returns z moved along directions: z plus the sum of `amount * vector` over all steps. Each operation rounds to float32,
 * so that Python gives the same codes.
 * @param {Float32Array} z
 * @param {{amount: number, vector: Float32Array}[]} steps
 * @returns {Float32Array}
 */
export function addDirections(z, steps) {
  const sum = z.slice();
  for (const { amount, vector } of steps) {
    vector.forEach((value, index) => (sum[index] += Math.fround(Math.fround(amount) * value)));
  }
  return sum;
}
