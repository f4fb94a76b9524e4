/**
 * Downloads with progress, and errors that a reader can act on.
 * @module
 */

/** A file that the page needs could not be had. The message is written for the reader of the page. */
export class LoadError extends Error {}

/** It could not be fetched: what computes is not to blame. */
export class DownloadError extends LoadError {}

/**
 * @callback OnBytes
 * @param {number} loaded Bytes so far.
 * @param {number} total Bytes in all, 0 where the server does not say.
 * @returns {void}
 */

/**
 * Fetches a file.
 * @param {URL} url Where it is.
 * @param {string} name How messages call it.
 * @param {OnBytes} [onBytes] Told about each piece that arrives.
 * @returns {Promise<{bytes: Uint8Array<ArrayBuffer>, type: string}>} The bytes, and the MIME type that the server gave.
 */
export async function download(url, name, onBytes = () => {}) {
  const response = await request(url, name);
  const pieces = await readPieces(response, name, onBytes);
  const bytes = joined(pieces);
  if (bytes.length === 0) throw new DownloadError(`${name} arrived empty.`);
  return { bytes, type: response.headers.get("content-type") ?? "" };
}

/** @param {URL} url @param {string} name @returns {Promise<Response>} */
async function request(url, name) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new DownloadError(`${name} could not be fetched: the server did not answer (${error.message}).`);
  }
  if (!response.ok) {
    const status = `HTTP ${response.status} ${response.statusText}`.trim();
    throw new DownloadError(`${name} could not be fetched: ${status}.`);
  }
  return response;
}

/** @param {Response} response @param {string} name @param {OnBytes} onBytes @returns {Promise<Uint8Array[]>} */
async function readPieces(response, name, onBytes) {
  const total = statedLength(response);
  const reader = response.body.getReader();
  const pieces = [];
  let loaded = 0;
  try {
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
      pieces.push(step.value);
      loaded += step.value.length;
      onBytes(loaded, total);
    }
  } catch (error) {
    throw new DownloadError(`${name} broke off after ${loaded} bytes (${error.message}).`);
  }
  return pieces;
}

/**
 * A compressed answer states its compressed length, which says nothing about the bytes that arrive here.
 * @param {Response} response
 * @returns {number}
 */
function statedLength(response) {
  if (response.headers.get("content-encoding")) return 0;
  return Number(response.headers.get("content-length") ?? 0);
}

/** @param {Uint8Array[]} pieces @returns {Uint8Array<ArrayBuffer>} */
function joined(pieces) {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let place = 0;
  for (const piece of pieces) {
    whole.set(piece, place);
    place += piece.length;
  }
  return whole;
}
