/**
 * Changes the colours of a photograph as the model changed the colours of a small copy, with the guided filter of
 * `tfdecouple/visualization/full_size.py`. Each pixel of the small copy gets a colour map, which is an affine map from
 * colours before the change to colours after it.
 * @module
 */

const CHANNELS = 3;
/** How many numbers a colour map has: three gains and an offset for each channel of the result. */
const NUMBERS_PER_MAP = 12;
/** The weights of red, green and blue in the brightness of a pixel. */
const LUMINANCE = [0.299, 0.587, 0.114];
/** The radius of the square windows to which colour maps are fitted, in pixels of the small picture. */
const WINDOW_RADIUS = 4;
/**
 * The ridge penalty of the colour map of a window. If the colours of a window, from 0 to 1, have this variance, its map
 * lies halfway between the fit without a penalty and the map of the whole image.
 */
const WINDOW_RIDGE = 0.01;
/** The ridge penalty of the colour map that is fitted to the whole image. */
const IMAGE_RIDGE = 1e-3;
/** The smallest brightness gain of a colour map, so that a photograph keeps detail that the model lost. */
const LEAST_CONTRAST = 0.8;
/** The distance to black and white, in 8-bit values, in which values that the filter moves towards them are compressed. */
const SHOULDER = 32;

/**
 * Shrinks a whole picture to a square, as `shrink_images` in Python does. Each new pixel is the mean of the area that it
 * covers, averaged along the rows and then along the columns, and rounded each time.
 * @param {Uint8ClampedArray} rgba
 * @param {number} width Width of the picture in pixels.
 * @param {number} height Height of the picture in pixels.
 * @param {number} size Side of the square in pixels.
 * @returns {Uint8Array} RGB, `size * size * 3` values.
 */
export function shrinkToSquare(rgba, width, height, size) {
  const rgb = new Uint8Array(width * height * CHANNELS);
  for (let from = 0, to = 0; from < rgba.length; from += 4) for (let k = 0; k < CHANNELS; k++) rgb[to++] = rgba[from + k];
  const shortened = shrinkAxis(rgb, 1, height, width * CHANNELS, size);
  return shrinkAxis(shortened, size, width, CHANNELS, size);
}

/**
 * Shrinks the middle axis of an array by averaging.
 * @param {Uint8Array} values `[count, from, step]`.
 * @param {number} count
 * @param {number} from
 * @param {number} step
 * @param {number} to
 * @returns {Uint8Array} `[count, to, step]`.
 */
function shrinkAxis(values, count, from, step, to) {
  const out = new Uint8Array(count * to * step);
  for (let row = 0; row < count; row++) {
    for (let index = 0; index < to; index++) {
      // In a common unit of length an old pixel is `to` units long and a new one `from` units.
      const [start, end] = [index * from, (index + 1) * from];
      for (let k = 0; k < step; k++) {
        let sum = 0;
        for (let old = Math.floor(start / to); old * to < end; old++) {
          const overlap = Math.min((old + 1) * to, end) - Math.max(old * to, start);
          sum += overlap * values[(row * from + old) * step + k];
        }
        out[(row * to + index) * step + k] = Math.floor((2 * sum + from) / (2 * from));
      }
    }
  }
  return out;
}

/**
 * Fits a colour map to the window around each pixel, and averages the maps over windows of the same size.
 * @param {Uint8Array} before The small picture before its change, RGB, `size * size * 3` values.
 * @param {Uint8Array} after The small picture after its change, of the same shape.
 * @param {number} size Side of the small picture in pixels.
 * @returns {Float32Array} `size * size * 12` numbers, for colours from 0 to 1.
 */
export function fitColourMaps(before, after, size) {
  const [source, target] = [before, after].map((pixels) => Float64Array.from(pixels, (value) => value / 255));
  const indices = Array.from({ length: size }, (_, k) => k);
  const identity = [1, 0, 0, 0, 1, 0, 0, 0, 1];
  const imageGains = selectGains(fitColourMap(source, target, size, indices, indices, IMAGE_RIDGE, identity, false));
  const windows = indices.map((k) =>
    Array.from({ length: 2 * WINDOW_RADIUS + 1 }, (_, j) => reflectIndex(k + j - WINDOW_RADIUS, size)),
  );
  const maps = new Float64Array(size * size * NUMBERS_PER_MAP);
  for (const y of indices) {
    for (const x of indices) {
      const map = fitColourMap(source, target, size, windows[y], windows[x], WINDOW_RIDGE, imageGains, true);
      maps.set(map, (y * size + x) * NUMBERS_PER_MAP);
    }
  }
  const smooth = new Float32Array(maps.length);
  for (const y of indices) {
    for (const x of indices) {
      for (let k = 0; k < NUMBERS_PER_MAP; k++) {
        let sum = 0;
        for (const row of windows[y]) {
          for (const column of windows[x]) sum += maps[(row * size + column) * NUMBERS_PER_MAP + k];
        }
        smooth[(y * size + x) * NUMBERS_PER_MAP + k] = sum / windows[y].length ** 2;
      }
    }
  }
  return smooth;
}

/**
 * Reflects an index at both borders, as often as needed, until it lies within the picture.
 * @param {number} index
 * @param {number} size
 * @returns {number} From 0 to `size - 1`.
 */
function reflectIndex(index, size) {
  const shifted = ((index % (2 * size)) + 2 * size) % (2 * size);
  return Math.min(shifted, 2 * size - 1 - shifted);
}

/** @param {number[]} map A colour map. @returns {number[]} The gains of the map, a matrix of 3 x 3 row by row. */
function selectGains(map) {
  return map.filter((_, k) => k % 4 !== 3);
}

/**
 * Fits one colour map by least squares with a ridge penalty.
 * @param {Float64Array} source Colours before the change.
 * @param {Float64Array} target Colours after the change.
 * @param {number} size Side of both pictures in pixels.
 * @param {number[]} rows Rows of the pixels that are fitted; a row can occur twice.
 * @param {number[]} columns Columns of the pixels that are fitted; a column can occur twice.
 * @param {number} ridge Strength of the penalty that draws the gains towards `usualGains`.
 * @param {number[]} usualGains
 * @param {boolean} limited Whether differences of colours grow at most twofold, and not at all where colours are equal.
 * @returns {number[]} For each channel of the result three gains and an offset.
 */
function fitColourMap(source, target, size, rows, columns, ridge, usualGains, limited) {
  const count = rows.length * columns.length;
  const [sourceMean, targetMean] = [new Float64Array(3), new Float64Array(3)];
  const [covariance, crossCovariance] = [new Float64Array(9), new Float64Array(9)];
  for (const row of rows) {
    for (const column of columns) {
      const offset = (row * size + column) * CHANNELS;
      for (let i = 0; i < CHANNELS; i++) {
        sourceMean[i] += source[offset + i];
        targetMean[i] += target[offset + i];
        for (let j = 0; j < CHANNELS; j++) {
          covariance[3 * i + j] += source[offset + i] * source[offset + j];
          crossCovariance[3 * i + j] += target[offset + i] * source[offset + j];
        }
      }
    }
  }
  for (let i = 0; i < CHANNELS; i++) [sourceMean[i], targetMean[i]] = [sourceMean[i] / count, targetMean[i] / count];
  for (let k = 0; k < 9; k++) {
    const [i, j] = [Math.floor(k / 3), k % 3];
    covariance[k] = covariance[k] / count - sourceMean[i] * sourceMean[j] + (i === j ? ridge : 0);
    crossCovariance[k] = crossCovariance[k] / count - targetMean[i] * sourceMean[j] + ridge * usualGains[k];
  }
  let gains = multiplyMatrices(crossCovariance, invertMatrix(covariance));
  const contrast = gains.reduce((sum, gain, k) => sum + LUMINANCE[Math.floor(k / 3)] * gain, 0);
  for (const k of [0, 4, 8]) gains[k] += Math.max(0, LEAST_CONTRAST - contrast);
  if (limited) {
    const variance = covariance[0] + covariance[4] + covariance[8] - 3 * ridge;
    gains = limitSingularValues(gains, 1 + variance / (variance + ridge));
  }
  return [0, 1, 2].flatMap((i) => {
    const row = gains.slice(3 * i, 3 * i + 3);
    return [...row, targetMean[i] - row.reduce((sum, gain, j) => sum + gain * sourceMean[j], 0)];
  });
}

/** @param {number[]} matrix 3 x 3. @param {number} most @returns {number[]} `matrix` with singular values up to `most`. */
function limitSingularValues(matrix, most) {
  // Jacobi's rotations of pairs of columns make the columns orthogonal. Their lengths then are the singular values.
  const columns = [0, 1, 2].map((j) => [matrix[j], matrix[3 + j], matrix[6 + j]]);
  const axes = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  for (let rotation = 0; rotation < 24; rotation++) {
    const [p, q] = [[0, 1], [0, 2], [1, 2]][rotation % 3];
    const angle = Math.atan2(2 * dot(columns[p], columns[q]), dot(columns[p], columns[p]) - dot(columns[q], columns[q])) / 2;
    const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
    for (const vectors of [columns, axes]) {
      const [a, b] = [vectors[p], vectors[q]];
      vectors[p] = a.map((value, k) => cosine * value + sine * b[k]);
      vectors[q] = b.map((value, k) => cosine * value - sine * a[k]);
    }
  }
  const factors = columns.map((column) => Math.min(1, most / Math.hypot(...column)));
  return Array.from({ length: 9 }, (_, k) => {
    const [row, column] = [Math.floor(k / 3), k % 3];
    return factors.reduce((sum, factor, j) => sum + factor * columns[j][row] * axes[j][column], 0);
  });
}

/** @param {Float64Array} a @param {number[]} b @returns {number[]} The product of two matrices of 3 x 3. */
function multiplyMatrices(a, b) {
  return Array.from({ length: 9 }, (_, k) => {
    const [i, j] = [Math.floor(k / 3), k % 3];
    return a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  });
}

/** @param {Float64Array} matrix @returns {number[]} The inverse of a matrix of 3 x 3. */
function invertMatrix([a, b, c, d, e, f, g, h, i]) {
  const [x, y, z] = [e * i - f * h, f * g - d * i, d * h - e * g];
  const determinant = a * x + b * y + c * z;
  const adjugate = [x, c * h - b * i, b * f - c * e, y, a * i - c * g, c * d - a * f, z, b * g - a * h, a * e - b * d];
  return adjugate.map((value) => value / determinant);
}

/**
 * Applies colour maps to some rows of a photograph. Between pixels of the small picture the maps are interpolated.
 * @param {Float32Array} maps The result of `fitColourMaps`.
 * @param {number} size Side of the small picture in pixels.
 * @param {{width: number, height: number, rgba: Uint8ClampedArray}} photograph
 * @param {Uint8ClampedArray} result RGBA of the whole photograph, of which the rows are written. Alpha is copied.
 * @param {number} first The first row.
 * @param {number} end The row after the last one.
 */
export function applyColourMaps(maps, size, { width, height, rgba }, result, first, end) {
  const columns = Array.from({ length: width }, (_, x) => findNeighbourPixels(x, width, size));
  // The maps of one row of the photograph, interpolated between two rows of the small picture.
  const rowMaps = new Float32Array(size * NUMBERS_PER_MAP);
  for (let y = first; y < end; y++) {
    const [upper, lower, lowerShare] = findNeighbourPixels(y, height, size);
    for (let k = 0; k < rowMaps.length; k++) {
      rowMaps[k] = (1 - lowerShare) * maps[upper * rowMaps.length + k] + lowerShare * maps[lower * rowMaps.length + k];
    }
    for (let x = 0; x < width; x++) {
      const [left, right, rightShare] = columns[x];
      const offset = (y * width + x) * 4;
      for (let channel = 0; channel < CHANNELS; channel++) {
        const [a, b] = [left * NUMBERS_PER_MAP + 4 * channel, right * NUMBERS_PER_MAP + 4 * channel];
        let value = (rowMaps[a + 3] + rightShare * (rowMaps[b + 3] - rowMaps[a + 3])) * 255;
        for (let k = 0; k < CHANNELS; k++) {
          value += (rowMaps[a + k] + rightShare * (rowMaps[b + k] - rowMaps[a + k])) * rgba[offset + k];
        }
        const old = rgba[offset + channel];
        value = compressHighlight(value, old);
        result[offset + channel] = 255 - compressHighlight(255 - value, 255 - old);
      }
      result[offset + 3] = rgba[offset + 3];
    }
  }
}

/**
 * Compresses what exceeds both the value before the change and the shoulder below 255. Unchanged values stay as they are.
 * @param {number} value A value of the result.
 * @param {number} old The photograph's value.
 * @returns {number}
 */
function compressHighlight(value, old) {
  const knee = Math.max(old, 255 - SHOULDER);
  if (value <= knee) return value;
  return knee + ((value - knee) * (255 - knee)) / Math.hypot(255 - knee, value - knee);
}

/**
 * Finds the two pixels of the small picture between which a pixel of the photograph lies, along one axis.
 * @param {number} index Index of the photograph's pixel.
 * @param {number} count Length of the photograph in pixels.
 * @param {number} size Length of the small picture in pixels.
 * @returns {[number, number, number]} The indices of the two pixels, and the weight of the second one.
 */
function findNeighbourPixels(index, count, size) {
  const position = Math.min(Math.max(((index + 0.5) / count) * size - 0.5, 0), size - 1);
  const before = Math.floor(position);
  return [before, Math.min(before + 1, size - 1), position - before];
}
