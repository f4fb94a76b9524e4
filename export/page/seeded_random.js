/**
 * Draws random numbers that depend on a seed and a stream alone. Different streams of a seed are independent.
 * @module
 */

/**
 * Draws standard normal numbers.
 * @param {number} seed A whole number.
 * @param {number} stream A whole number.
 * @param {number} count How many numbers are drawn.
 * @returns {Float32Array}
 */
export function drawNormals(seed, stream, count) {
  const drawUniform = makeUniformGenerator(seed, stream);
  const values = new Float32Array(count + (count % 2));
  for (let index = 0; index < values.length; index += 2) {
    [values[index], values[index + 1]] = convertToNormals(drawUniform(), drawUniform());
  }
  return values.subarray(0, count);
}

/**
 * Draws a whole number from 0 to `shares.length - 1`.
 * @param {number} seed A whole number.
 * @param {number} stream A whole number.
 * @param {number[]} shares The probability of each number, up to a common factor.
 * @returns {number}
 */
export function drawInteger(seed, stream, shares) {
  let rest = makeUniformGenerator(seed, stream)() * shares.reduce((sum, share) => sum + share, 0);
  const drawn = shares.findIndex((share) => (rest -= share) < 0);
  // Rounding can leave a rest of 0 behind the last share.
  return drawn < 0 ? shares.length - 1 : drawn;
}

/**
 * Converts two uniform numbers to two independent standard normal ones, by the method of Box and Muller.
 * @param {number} first In [0, 1).
 * @param {number} second In [0, 1).
 * @returns {[number, number]}
 */
function convertToNormals(first, second) {
  // The logarithm of 0 is not finite; `first` can be 0, but `1 - first` cannot.
  const radius = Math.sqrt(-2 * Math.log(1 - first));
  return [radius * Math.cos(2 * Math.PI * second), radius * Math.sin(2 * Math.PI * second)];
}

/**
 * Returns a generator of uniform numbers in [0, 1): sfc32, whose state splitmix32 fills.
 * @param {number} seed
 * @param {number} stream
 * @returns {() => number}
 */
function makeUniformGenerator(seed, stream) {
  const drawState = makeSplitmix32((seed ^ Math.imul(stream + 1, 0x9e3779b1)) >>> 0);
  let [a, b, c, counter] = [drawState(), drawState(), drawState(), 1];
  const drawUniform = () => {
    const result = (a + b + counter++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + result;
    return (result >>> 0) / 2 ** 32;
  };
  // The first numbers of similar seeds resemble each other, so they are dropped.
  for (let round = 0; round < 12; round++) drawUniform();
  return drawUniform;
}

/** Returns a generator of 32-bit integers: splitmix32. @param {number} state @returns {() => number} */
function makeSplitmix32(state) {
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return (mixed ^ (mixed >>> 15)) | 0;
  };
}
