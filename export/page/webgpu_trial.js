/**
 * The graphics card instead of the processor, where that is faster and loses no pixel.
 *
 * A card that rounds more than float32 does would lose pictures without a sign. So it takes over only after it has given
 * known pictures back to the last value.
 * @module
 */

import { toLevels } from "./image_files.js";
import { Runner } from "./worker_client.js";

const KNOWN_IMAGES = 16;

/**
 * @param {Runner} processor
 * @param {import("./model.js").Config} config
 * @returns {Promise<{runner: Runner | null, note: string}>} The card's runner where it takes over; what the trial gave,
 *   empty where there was none.
 */
export async function tryCard(processor, config) {
  if (!config.web_gpu || !(await navigator.gpu?.requestAdapter())) return { runner: null, note: "" };
  const images = makeKnownImages(config.image_shape[0]).map((image) => toLevels(image, config.n_bits));
  const card = new Runner("webgpu", processor.onProgress);
  try {
    await card.ask("load", { provider: "webgpu" });
    // The first run of two prepares everything.
    const slow = (await roundTrip(processor, images.slice(0, 2), config)).milliseconds;
    const { exact, milliseconds } = await roundTrip(card, images, config);
    const note = `${exact} of ${KNOWN_IMAGES} known pictures came back exactly`;
    if (exact === KNOWN_IMAGES && milliseconds < slow) return { runner: card, note };
    card.stop();
    return { runner: null, note: `the graphics card was tried: ${note}${exact === KNOWN_IMAGES ? ", slower" : ""}` };
  } catch (error) {
    card.stop();
    return { runner: null, note: `the graphics card was tried: ${error.message}` };
  }
}

/**
 * @param {Runner} runner
 * @param {Uint8Array[]} images
 * @param {import("./model.js").Config} config
 * @returns {Promise<{exact: number, milliseconds: number}>} How many come back, and the time of the last decoding.
 */
async function roundTrip(runner, images, { image_shape: [imageSize], latent_dim: latentDim }) {
  let [exact, milliseconds] = [0, 0];
  for (const image of images) {
    const { z, v } = await runner.ask("encode", { images: image, count: 1, imageSize });
    const decoded = await runner.ask("decode", { z, v, count: 1, imageSize, latentDim });
    // Measured in the worker: elsewhere the wait for other questions would count.
    milliseconds = decoded.milliseconds;
    exact += Number(image.every((value, index) => value === decoded.images[index]));
  }
  return { exact, milliseconds };
}

/** @param {number} size @returns {Uint8Array[]} Smooth colour waves: those of `--check` of the examples. */
function makeKnownImages(size) {
  return Array.from({ length: KNOWN_IMAGES }, (_, number) =>
    Uint8Array.from({ length: size * size * 3 }, (_, place) => {
      const [x, y] = [Math.floor(place / 3) % size, Math.floor(place / 3 / size)];
      const wave = Math.floor((256 * (((number % 4) + 1) * x + (Math.floor(number / 4) + 1) * y)) / size);
      return Math.min(Math.abs(((wave + 85 * (place % 3)) % 512) - 256), 255);
    }),
  );
}
