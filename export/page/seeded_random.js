/**
 * Normal noise from a seed: the same seed gives the same noise.
 * @module
 */

/**
 * @param {number} seed A whole number.
 * @param {number} stream Streams of one seed are independent of each other.
 * @param {number} count
 * @returns {Float32Array} Standard normal values.
 */
export function drawNormals(seed, stream, count) {
  const uniform = makeUniform(seed, stream);
  const values = new Float32Array(count + (count % 2));
  for (let index = 0; index < values.length; index += 2) {
    [values[index], values[index + 1]] = boxMuller(uniform(), uniform());
  }
  return values.subarray(0, count);
}

/**
 * @param {number} seed A whole number.
 * @param {number} stream Streams of one seed are independent of each other.
 * @param {number[]} shares How often each number from 0 on is to come, up to a common factor.
 * @returns {number} One of these numbers.
 */
export function drawInteger(seed, stream, shares) {
  let left = makeUniform(seed, stream)() * shares.reduce((sum, share) => sum + share, 0);
  const found = shares.findIndex((share) => (left -= share) < 0);
  return found < 0 ? shares.length - 1 : found;
}

/**
 * @param {number} first In [0, 1).
 * @param {number} second In [0, 1).
 * @returns {[number, number]} Two independent standard normal values.
 */
function boxMuller(first, second) {
  // 1 - first is never 0, whose logarithm is not finite.
  const radius = Math.sqrt(-2 * Math.log(1 - first));
  return [radius * Math.cos(2 * Math.PI * second), radius * Math.sin(2 * Math.PI * second)];
}

/** sfc32, its state filled by splitmix32. @param {number} seed @param {number} stream @returns {() => number} */
function makeUniform(seed, stream) {
  const mix = splitmix32((seed ^ Math.imul(stream + 1, 0x9e3779b1)) >>> 0);
  let [a, b, c, counter] = [mix(), mix(), mix(), 1];
  const next = () => {
    const result = (a + b + counter++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + result;
    return (result >>> 0) / 2 ** 32;
  };
  for (let round = 0; round < 12; round++) next();
  return next;
}

/** @param {number} state @returns {() => number} */
function splitmix32(state) {
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) | 0;
  };
}
