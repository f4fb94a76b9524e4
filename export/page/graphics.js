/**
 * The graphics card in the place of the processor, where that pays and no pixel is lost.
 *
 * A card that rounds more than float32 does would lose pictures, and nobody would know why. So it is asked beside the
 * processor, and takes over only once it has given known pictures back to the last value.
 * @module
 */

import { toLevels } from "./images.js";
import { Runner } from "./runner.js";

const KNOWN_IMAGES = 16;
/** A model that the processor decodes in fewer milliseconds needs no card, whose runtime is a download of 27 MB. */
const QUICK_MS = 100;

/**
 * @typedef {object} Trial
 * @property {Runner | null} runner That of the card where it takes over.
 * @property {string} told What became of it; empty where there is no card or it was not asked.
 */

/**
 * Tries the card. The page's address can say otherwise: `?runtime=wasm` never asks it, `?runtime=webgpu` takes it
 * whatever the time, but for pictures that are lost.
 * @param {Runner} processor
 * @param {{image_size: number, latent_dim: number, n_bits?: number}} config
 * @returns {Promise<Trial>}
 */
export async function tryCard(processor, config) {
  const wish = new URLSearchParams(location.search).get("runtime");
  if (wish === "wasm" || !(await hasCard())) return { runner: null, told: "" };
  const images = toLevels(knownImages(config.image_size), config.n_bits);
  /** @type {Runner | undefined} */
  let card;
  try {
    // Two, of which the first prepares everything.
    const slow = (await sendThrough(processor, images, 2, config)).milliseconds;
    if (wish !== "webgpu" && slow < QUICK_MS) return { runner: null, told: "" };
    card = new Runner("webgpu", () => {});
    await card.load();
    const { kept, milliseconds } = await sendThrough(card, images, KNOWN_IMAGES, config);
    const told = `${kept} of ${KNOWN_IMAGES} known pictures came back exactly`;
    const exact = kept === KNOWN_IMAGES;
    if (exact && (wish === "webgpu" || milliseconds < slow)) return { runner: card, told };
    card.leave();
    return { runner: null, told: exact ? "the graphics card was tried and is slower" : `of the graphics card ${told}` };
  } catch (error) {
    card?.leave();
    return { runner: null, told: `the graphics card was tried: ${error.message}` };
  }
}

/** Whether the browser offers a graphics card. */
async function hasCard() {
  try {
    return (await navigator.gpu?.requestAdapter()) != null;
  } catch {
    return false;
  }
}

/**
 * @param {Runner} runner
 * @param {Uint8Array} images
 * @param {number} count How many of them.
 * @param {{image_size: number, latent_dim: number}} config
 * @returns {Promise<{kept: number, milliseconds: number}>} How many come back, and the time to decode one.
 */
async function sendThrough(runner, images, count, { image_size: imageSize, latent_dim: latentDim }) {
  const length = images.length / KNOWN_IMAGES;
  let [kept, milliseconds] = [0, 0];
  for (let start = 0; start < count * length; start += length) {
    const image = images.slice(start, start + length);
    const { z, v } = await runner.ask("encode", { images: image.slice(), count: 1, imageSize });
    const back = await runner.ask("decode", { z, v, count: 1, imageSize, latentDim });
    // The last one, which begins with everything prepared.
    milliseconds = back.milliseconds;
    kept += Number(image.every((value, index) => value === back.images[index]));
  }
  return { kept, milliseconds };
}

/**
 * @param {number} size
 * @returns {Uint8Array} Pictures of smooth colour waves, one after the other: those of `--check` of the examples.
 */
function knownImages(size) {
  const images = new Uint8Array(KNOWN_IMAGES * size * size * 3);
  let place = 0;
  for (let number = 0; number < KNOWN_IMAGES; number++) {
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const wave = Math.floor((256 * (((number % 4) + 1) * x + (Math.floor(number / 4) + 1) * y)) / size);
        for (let channel = 0; channel < 3; channel++) {
          images[place++] = Math.min(Math.abs(((wave + 85 * channel) % 512) - 256), 255);
        }
      }
    }
  }
  return images;
}
