/**
 * Takes transparency and values of 16 bits out of picture files, so that every browser decodes the same colours as training.
 *
 * Browsers multiply colours by alpha, which rounds the colours of transparent pixels, and round 16 bits in their own ways.
 * Training ignores alpha, and takes the upper 8 bits.
 * @module
 */

const PNG_START = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** Chunks of a PNG file that describe alpha, that have another form without alpha, or that belong to an animation. */
const DROPPED_CHUNKS = ["tRNS", "bKGD", "sBIT", "acTL", "fcTL", "fdAT"];
/** {colour type of a PNG file: the type without alpha, the number of channels, and how many of them are colours}. */
const COLOUR_TYPES = { 0: [0, 1, 1], 2: [2, 3, 3], 3: [3, 1, 1], 4: [0, 2, 1], 6: [2, 4, 3] };
/** First column, first row, and the steps between columns and rows of each pass of an interlaced PNG file. */
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/**
 * Returns a picture file without transparency and with at most 8 bits for each value.
 * @param {Blob} blob
 * @returns {Promise<Blob>} The blob itself if it has another format than PNG, GIF and WebP, or is damaged.
 */
export async function makeOpaque(blob) {
  try {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const start = readText(bytes, 0, 4);
    if (PNG_START.every((byte, index) => bytes[index] === byte)) return await makeOpaquePng(bytes, blob);
    if (start === "GIF8") return new Blob([makeOpaqueGif(bytes)], { type: blob.type });
    if (start === "RIFF" && readText(bytes, 8, 4) === "WEBP") return new Blob(makeOpaqueWebp(bytes), { type: blob.type });
    return blob;
  } catch {
    return blob;
  }
}

/** @param {Uint8Array} bytes @param {number} start @param {number} length @returns {string} The bytes as Latin-1 text. */
function readText(bytes, start, length) {
  return String.fromCharCode(...bytes.subarray(start, start + length));
}

/**
 * Splits the part of a file that consists of chunks.
 * @param {Uint8Array} bytes
 * @param {number} position Where the first chunk begins.
 * @param {boolean} isPng Whether the length stands before the name, in the other byte order, and a checksum at the end.
 * @returns {{name: string, content: Uint8Array}[]}
 */
function splitChunks(bytes, position, isPng) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const chunks = [];
  while (position + 8 <= bytes.length) {
    const length = view.getUint32(position + (isPng ? 0 : 4), !isPng);
    const content = bytes.subarray(position + 8, position + 8 + length);
    chunks.push({ name: readText(bytes, position + (isPng ? 4 : 0), 4), content });
    position += 8 + length + (isPng ? 4 : length % 2);
  }
  return chunks;
}

/**
 * Reduces a PNG file. Its filters predict each byte of a pixel from the same byte of other pixels, so alpha and lower bytes
 * can be cut out of the filtered rows.
 * @param {Uint8Array} bytes
 * @param {Blob} blob The file itself, which is returned if there is nothing to cut.
 * @returns {Promise<Blob>}
 */
async function makeOpaquePng(bytes, blob) {
  const chunks = splitChunks(bytes, PNG_START.length, true);
  const header = chunks[0].content.slice();
  const [depth, type, interlaced] = [header[8], header[9], header[12]];
  const [opaqueType, channels, colours] = COLOUR_TYPES[type];
  const needsCut = channels > colours || depth === 16;
  if (!needsCut && !chunks.some(({ name }) => name === "tRNS")) return blob;
  const kept = chunks.filter(({ name }) => !DROPPED_CHUNKS.includes(name) && !(needsCut && name === "IDAT"));
  if (needsCut) {
    [header[8], header[9]] = [8, opaqueType];
    kept[0] = { name: "IHDR", content: header };
    const view = new DataView(header.buffer);
    const [width, height] = [view.getUint32(0), view.getUint32(4)];
    const data = chunks.filter(({ name }) => name === "IDAT").map(({ content }) => content);
    const passes = interlaced ? PASSES : [[0, 0, 1, 1]];
    const sizes = passes
      .map(([x, y, dx, dy]) => [Math.ceil((width - x) / dx), Math.ceil((height - y) / dy)])
      .filter(([columns]) => columns > 0);
    const length = sizes.reduce((sum, [columns, rows]) => sum + rows * (1 + (columns * channels * depth) / 8), 0);
    const rows = await pipeBytes(data, new DecompressionStream("deflate"), length);
    const opaque = cutRows(rows, sizes, channels, colours, depth / 8);
    const content = await pipeBytes([opaque], new CompressionStream("deflate"));
    kept.splice(kept.findIndex(({ name }) => name === "IEND"), 0, { name: "IDAT", content });
  }
  return new Blob([Uint8Array.from(PNG_START), ...kept.map(writePngChunk)], { type: "image/png" });
}

/**
 * Cuts alpha and lower bytes out of the filtered rows of a PNG file.
 * @param {Uint8Array} rows Each row begins with a byte that names its filter.
 * @param {number[][]} sizes Width and height of each pass that has pixels.
 * @param {number} channels How many values a pixel has.
 * @param {number} colours How many of them are kept.
 * @param {number} depth Bytes of a value, of which the first one is kept.
 * @returns {Uint8Array}
 */
function cutRows(rows, sizes, channels, colours, depth) {
  const out = new Uint8Array(rows.length);
  let [from, to] = [0, 0];
  for (const [width, height] of sizes) {
    for (let row = 0; row < height; row++) {
      out[to++] = rows[from++];
      for (let column = 0; column < width; column++, from += channels * depth) {
        for (let k = 0; k < colours; k++) out[to++] = rows[from + k * depth];
      }
    }
  }
  return out.subarray(0, to);
}

/**
 * Sends bytes through a stream that compresses or decompresses.
 * @param {Uint8Array[]} parts
 * @param {any} stream
 * @param {number} [most] How many bytes the result may have. A small file can decompress to very many.
 * @returns {Promise<Uint8Array>}
 */
async function pipeBytes(parts, stream, most = Infinity) {
  const reader = new Blob(/** @type {any} */ (parts)).stream().pipeThrough(stream).getReader();
  const results = [];
  for (let length = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    results.push(value);
    length += value.length;
    if (length > most) throw new Error("the file is larger than it says");
  }
  return new Uint8Array(await new Blob(results).arrayBuffer());
}

/** @param {{name: string, content: Uint8Array}} chunk @returns {Uint8Array<ArrayBuffer>} The bytes of a chunk of a PNG file. */
function writePngChunk({ name, content }) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  for (let k = 0; k < 4; k++) bytes[4 + k] = name.charCodeAt(k);
  bytes.set(content, 8);
  const end = content.length + 8;
  let crc = 0xffffffff;
  for (let k = 4; k < end; k++) crc = CRC_TABLE[(crc ^ bytes[k]) & 255] ^ (crc >>> 8);
  view.setUint32(end, ~crc);
  return bytes;
}

/** @param {Uint8Array} bytes A GIF file. @returns {Uint8Array<ArrayBuffer>} The file, whose pictures have no transparent colour. */
function makeOpaqueGif(bytes) {
  const out = Uint8Array.from(bytes);
  let position = 13 + (out[10] & 0x80 ? 3 << ((out[10] & 7) + 1) : 0);
  // The extensions before the first picture. The page shows no other.
  while (out[position] === 0x21) {
    // The lowest bit of the flags in a graphic control extension says that a colour is transparent.
    if (out[position + 1] === 0xf9) out[position + 3] &= 0xfe;
    position += 2;
    while (out[position]) position += out[position] + 1;
    position++;
  }
  return out;
}

/** @param {Uint8Array} bytes A WebP file. @returns {Uint8Array<ArrayBuffer>[]} The parts of a file that has its colours alone. */
function makeOpaqueWebp(bytes) {
  const parts = [];
  for (const { name, content } of splitChunks(bytes, 12, false)) {
    if (name === "ANIM") return [Uint8Array.from(bytes)];
    if (name === "ALPH") continue;
    const part = Uint8Array.from([...new TextEncoder().encode(name), 0, 0, 0, 0]);
    new DataView(part.buffer).setUint32(4, content.length, true);
    const own = Uint8Array.from(content);
    // Flags of a file with further chunks, and of a lossless picture, say whether there is alpha.
    if (name === "VP8X") own[0] &= ~0x10;
    if (name === "VP8L") own[4] &= ~0x10;
    parts.push(part, own, new Uint8Array(content.length % 2));
  }
  const header = Uint8Array.from(bytes.subarray(0, 12));
  new DataView(header.buffer).setUint32(4, parts.reduce((sum, part) => sum + part.length, 4), true);
  return [header, ...parts];
}
