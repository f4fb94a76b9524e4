/**
 * Photographs at their own size, changed as the model changed small copies of them: the guided filter of
 * `tfdecouple/visualization/full_size.py`, without a browser.
 * @module
 */

const CHANNELS = 3;
/** Numbers of a colour map: three gains and an offset for each channel of the result. */
const NUMBERS = 12;
const LUMINANCE = [0.299, 0.587, 0.114];
/** What these three mean stands in the Python module. */
const REACH = 4;
const EVENNESS = 0.01;
const LEAST_CONTRAST = 0.8;

/**
 * Shrinks a whole picture, of any proportions, to a square as `shrink_images` in Python does: each pixel is the mean of
 * the area that it covers, first of the columns, then of the rows, rounded each time.
 * @param {Uint8ClampedArray} rgba
 * @param {number} width
 * @param {number} height
 * @param {number} size
 * @returns {Uint8Array} RGB.
 */
export function shrink(rgba, width, height, size) {
  const rgb = new Uint8Array(width * height * CHANNELS);
  for (let from = 0, to = 0; from < rgba.length; from += 4) for (let k = 0; k < CHANNELS; k++) rgb[to++] = rgba[from + k];
  const narrow = average(rgb, 1, height, width * CHANNELS, size);
  return average(narrow, size, width, CHANNELS, size);
}

/** @param {Uint8Array} values `[count, from, step]`. @returns {Uint8Array} `[count, to, step]`. */
function average(values, count, from, step, to) {
  const out = new Uint8Array(count * to * step);
  for (let row = 0; row < count; row++) {
    for (let place = 0; place < to; place++) {
      // Old pixels are `to` units long and new ones `from` units.
      const [start, end] = [place * from, (place + 1) * from];
      for (let k = 0; k < step; k++) {
        let sum = 0;
        for (let old = Math.floor(start / to); old * to < end; old++) {
          const shared = Math.min((old + 1) * to, end) - Math.max(old * to, start);
          sum += shared * values[(row * from + old) * step + k];
        }
        out[(row * to + place) * step + k] = Math.floor((2 * sum + from) / (2 * from));
      }
    }
  }
  return out;
}

/**
 * Fits affine maps that turn the colours of one small picture into those of another around each of its pixels.
 * @param {Uint8Array} before RGB, `size * size * 3` values.
 * @param {Uint8Array} after Likewise.
 * @param {number} size
 * @returns {Float32Array} `size * size * 12` numbers, for colours from 0 to 1.
 */
export function fitColourMaps(before, after, size) {
  const [source, target] = [before, after].map((pixels) => Float64Array.from(pixels, (value) => value / 255));
  const places = Array.from({ length: size }, (_, k) => k);
  const whole = fit(source, target, size, places, places, 1e-3, [1, 0, 0, 0, 1, 0, 0, 0, 1]);
  const windows = places.map((k) => Array.from({ length: 2 * REACH + 1 }, (_, j) => reflect(k + j - REACH, size)));
  const maps = new Float64Array(size * size * NUMBERS);
  for (const y of places) {
    for (const x of places) {
      maps.set(fit(source, target, size, windows[y], windows[x], EVENNESS, gainsOf(whole)), (y * size + x) * NUMBERS);
    }
  }
  const smooth = new Float32Array(maps.length);
  for (const y of places) {
    for (const x of places) {
      for (let k = 0; k < NUMBERS; k++) {
        let sum = 0;
        for (const row of windows[y]) for (const column of windows[x]) sum += maps[(row * size + column) * NUMBERS + k];
        smooth[(y * size + x) * NUMBERS + k] = sum / windows[y].length ** 2;
      }
    }
  }
  return smooth;
}

/** @param {number} place @param {number} size @returns {number} The place mirrored at the border, as often as needed. */
function reflect(place, size) {
  const period = ((place % (2 * size)) + 2 * size) % (2 * size);
  return Math.min(period, 2 * size - 1 - period);
}

/** @param {number[]} map @returns {number[]} Its gains, row by row. */
function gainsOf(map) {
  return map.filter((_, k) => k % 4 !== 3);
}

/**
 * @param {Float64Array} source
 * @param {Float64Array} target
 * @param {number} size
 * @param {number[]} rows Of the pixels that count.
 * @param {number[]} columns Likewise.
 * @param {number} ridge How much the gains are drawn to `usual`.
 * @param {number[]} usual
 * @returns {number[]} The map of least squares: for each channel three gains and an offset.
 */
function fit(source, target, size, rows, columns, ridge, usual) {
  const count = rows.length * columns.length;
  const [from, to] = [new Float64Array(3), new Float64Array(3)];
  const [covariance, joint] = [new Float64Array(9), new Float64Array(9)];
  for (const row of rows) {
    for (const column of columns) {
      const place = (row * size + column) * CHANNELS;
      for (let i = 0; i < CHANNELS; i++) {
        from[i] += source[place + i];
        to[i] += target[place + i];
        for (let j = 0; j < CHANNELS; j++) {
          covariance[3 * i + j] += source[place + i] * source[place + j];
          joint[3 * i + j] += target[place + i] * source[place + j];
        }
      }
    }
  }
  for (let i = 0; i < CHANNELS; i++) [from[i], to[i]] = [from[i] / count, to[i] / count];
  for (let k = 0; k < 9; k++) {
    const [i, j] = [Math.floor(k / 3), k % 3];
    covariance[k] = covariance[k] / count - from[i] * from[j] + (i === j ? ridge : 0);
    joint[k] = joint[k] / count - to[i] * from[j] + ridge * usual[k];
  }
  const gains = multiply(joint, invert(covariance));
  const contrast = gains.reduce((sum, gain, k) => sum + LUMINANCE[Math.floor(k / 3)] * gain, 0);
  for (const k of [0, 4, 8]) gains[k] += Math.max(0, LEAST_CONTRAST - contrast);
  return [0, 1, 2].flatMap((i) => {
    const row = gains.slice(3 * i, 3 * i + 3);
    return [...row, to[i] - row.reduce((sum, gain, j) => sum + gain * from[j], 0)];
  });
}

/** @param {Float64Array} a @param {number[]} b @returns {number[]} The product of two matrices of 3 x 3. */
function multiply(a, b) {
  return Array.from({ length: 9 }, (_, k) => {
    const [i, j] = [Math.floor(k / 3), k % 3];
    return a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  });
}

/** @param {Float64Array} m @returns {number[]} The inverse of a matrix of 3 x 3. */
function invert([a, b, c, d, e, f, g, h, i]) {
  const [x, y, z] = [e * i - f * h, f * g - d * i, d * h - e * g];
  const determinant = a * x + b * y + c * z;
  const adjugate = [x, c * h - b * i, b * f - c * e, y, a * i - c * g, c * d - a * f, z, b * g - a * h, a * e - b * d];
  return adjugate.map((value) => value / determinant);
}

/**
 * Applies colour maps, interpolated between small pixels, to some rows of a photograph.
 * @param {Float32Array} maps
 * @param {number} size Of the small pictures.
 * @param {{width: number, height: number, rgba: Uint8ClampedArray}} photograph
 * @param {Uint8ClampedArray} result RGBA of the whole photograph; transparency stays as it is.
 * @param {number} first Row.
 * @param {number} end Row behind the last one.
 */
export function applyColourMaps(maps, size, { width, height, rgba }, result, first, end) {
  const across = Array.from({ length: width }, (_, x) => between(x, width, size));
  const line = new Float32Array(size * NUMBERS);
  for (let y = first; y < end; y++) {
    const [upper, lower, down] = between(y, height, size);
    for (let k = 0; k < line.length; k++) {
      line[k] = (1 - down) * maps[upper * line.length + k] + down * maps[lower * line.length + k];
    }
    for (let x = 0; x < width; x++) {
      const [left, right, share] = across[x];
      const place = (y * width + x) * 4;
      for (let channel = 0; channel < CHANNELS; channel++) {
        const [a, b] = [left * NUMBERS + 4 * channel, right * NUMBERS + 4 * channel];
        let value = (line[a + 3] + share * (line[b + 3] - line[a + 3])) * 255;
        for (let k = 0; k < CHANNELS; k++) value += (line[a + k] + share * (line[b + k] - line[a + k])) * rgba[place + k];
        result[place + channel] = value;
      }
      result[place + 3] = rgba[place + 3];
    }
  }
}

/** @param {number} place @param {number} count @param {number} size @returns {[number, number, number]} Two neighbours. */
function between(place, count, size) {
  const position = Math.min(Math.max(((place + 0.5) / count) * size - 0.5, 0), size - 1);
  const before = Math.floor(position);
  return [before, Math.min(before + 1, size - 1), position - before];
}
