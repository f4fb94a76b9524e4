/**
 * Decides by a trial whether the graphics card runs the model instead of the processor.
 *
 * A graphics card that rounds more than float32 does would decode images inexactly, and nothing would show it. The card
 * is therefore used only if it decodes all test images exactly, and faster than the processor.
 * @module
 */

import { roundToBins } from "./image_files.js";
import { WorkerClient } from "./worker_client.js";

const TEST_IMAGES = 16;

/**
 * Starts the model on the graphics card, and compares the card with the processor on the test images.
 * @param {WorkerClient} cpuWorker
 * @param {import("./model.js").Config} config
 * @returns {Promise<{gpuWorker: WorkerClient | null, note: string}>} The card's worker if the card passed, and the
 *   outcome as a text for the page, which is empty if the browser or the page has no WebGPU.
 */
export async function tryWebGpu(cpuWorker, config) {
  if (!config.web_gpu || !(await navigator.gpu?.requestAdapter())) return { gpuWorker: null, note: "" };
  const images = makeTestImages(config.image_shape[0]).map((image) => roundToBins(image, config.n_bits));
  const gpuWorker = new WorkerClient("webgpu", cpuWorker.onProgress);
  try {
    await gpuWorker.request("load", { provider: "webgpu" });
    // The second of two images is timed, because the first run of a session also allocates its memory.
    const cpuMilliseconds = (await measureRoundTrip(cpuWorker, images.slice(0, 2), config)).milliseconds;
    const { exact, milliseconds } = await measureRoundTrip(gpuWorker, images, config);
    const note = `${exact} of ${TEST_IMAGES} test images were decoded exactly`;
    if (exact === TEST_IMAGES && milliseconds < cpuMilliseconds) return { gpuWorker, note };
    gpuWorker.stop();
    return { gpuWorker: null, note: `the graphics card was tried: ${note}${exact === TEST_IMAGES ? ", slower" : ""}` };
  } catch (error) {
    gpuWorker.stop();
    return { gpuWorker: null, note: `the graphics card was tried: ${error.message}` };
  }
}

/**
 * Encodes and decodes images one by one.
 * @param {WorkerClient} worker
 * @param {Uint8Array[]} images
 * @param {import("./model.js").Config} config
 * @returns {Promise<{exact: number, milliseconds: number}>} How many images were decoded exactly, and how long the
 *   decoder needed for the last one.
 */
async function measureRoundTrip(worker, images, { image_shape: [imageSize], latent_dim: latentDim }) {
  let [exact, milliseconds] = [0, 0];
  for (const image of images) {
    const { z, v } = await worker.request("encode", { images: image, count: 1, imageSize });
    const decoded = await worker.request("decode", { z, v, count: 1, imageSize, latentDim });
    // The worker measures the time, because here the wait behind other requests would count.
    milliseconds = decoded.milliseconds;
    exact += Number(image.every((value, index) => value === decoded.images[index]));
  }
  return { exact, milliseconds };
}

/** @param {number} size Side in pixels. @returns {Uint8Array[]} Colour waves, as in the ONNX Runtime examples. */
function makeTestImages(size) {
  return Array.from({ length: TEST_IMAGES }, (_, number) =>
    Uint8Array.from({ length: size * size * 3 }, (_, index) => {
      const [x, y] = [Math.floor(index / 3) % size, Math.floor(index / 3 / size)];
      const wave = Math.floor((256 * (((number % 4) + 1) * x + (Math.floor(number / 4) + 1) * y)) / size);
      return Math.min(Math.abs(((wave + 85 * (index % 3)) % 512) - 256), 255);
    }),
  );
}
