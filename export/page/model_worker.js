/**
 * Runs the model with ONNX Runtime Web in a module worker, so that the page stays responsive.
 *
 * Messages to the worker are `{id, task: "load" | "encode" | "decode" | "sample", ...}`. The first one must be "load",
 * whose `provider` selects WebAssembly or the graphics card. Messages from the worker are `{id, result}`, `{id, error}`,
 * and `{progress: {file, loaded}}` during downloads.
 * @module
 */

const MOST_THREADS = 4;
/** The files of ONNX Runtime Web for each provider: entry module, glue module and WebAssembly binary. */
const RUNTIME_FILES = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};
const TASKS = { load: loadModel, encode: encodeImages, decode: decodeCodes, sample: sampleImages };

/** The module of ONNX Runtime Web, which `loadRuntime` sets. */
let ort;
/** @type {"wasm" | "webgpu"} */
let provider;
/** The started ONNX models by name. */
const sessions = {};
/** @type {Promise<unknown>} Resolves after the last request. Each request waits, because ONNX Runtime runs only one. */
let queue = Promise.resolve();

self.onmessage = ({ data }) => {
  queue = queue.then(() => answerRequest(data));
};

/** Runs a task and posts its result or its error. @param {any} message */
async function answerRequest({ id, task, ...content }) {
  try {
    postMessage({ id, result: await TASKS[task](content) });
  } catch (error) {
    postMessage({ id, error: error.message || String(error) });
  }
}

/**
 * Loads the runtime, the encoder and the decoder.
 * @param {{provider: "wasm" | "webgpu"}} message
 * @returns {Promise<{threads: number}>} How many threads WebAssembly uses.
 */
async function loadModel(message) {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, or it is switched off.");
  provider = message.provider;
  const [encoder, decoder] = await Promise.all([
    downloadFile("model/encoder.onnx"),
    downloadFile("model/decoder.onnx"),
    loadRuntime(),
  ]);
  sessions.encoder = await createSession("encoder", encoder);
  sessions.decoder = await createSession("decoder", decoder);
  return { threads: ort.env.wasm.numThreads };
}

/** Downloads ONNX Runtime Web and sets `ort`. */
async function loadRuntime() {
  const [entry, glue, binary] = await Promise.all(RUNTIME_FILES[provider].map((name) => downloadFile(`runtime/${name}`)));
  ort = await import(makeModuleUrl(entry));
  // Bytes and blob URLs work with servers that send a wrong MIME type for .wasm and .mjs files.
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: makeModuleUrl(glue) };
  // Threads need shared memory, which browsers give to cross-origin isolated pages only.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/** @param {Uint8Array<ArrayBuffer>} bytes The text of a module. @returns {string} A URL that imports the module. */
function makeModuleUrl(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
}

/** Starts an ONNX model. @param {string} name @param {Uint8Array} bytes @returns {Promise<any>} The inference session. */
async function createSession(name, bytes) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
  } catch (error) {
    throw new Error(`model/${name}.onnx could not be started (${error.message || error}).`);
  }
}

/**
 * Downloads a file, and posts how many bytes have arrived.
 * @param {string} path Path in the folder of the page.
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
async function downloadFile(path) {
  try {
    const response = await fetch(new URL(path, import.meta.url));
    if (!response.ok) throw new Error(`HTTP ${response.status} ${response.statusText}`.trim());
    const chunks = [];
    let loaded = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      loaded += value.length;
      postMessage({ progress: { file: path, loaded } });
    }
    return new Uint8Array(await new Blob(chunks).arrayBuffer());
  } catch (error) {
    throw new Error(`${path} could not be fetched: ${error.message}.`);
  }
}

/**
 * Encodes a batch of images.
 * @param {{images: Uint8Array, count: number, imageSize: number}} message
 * @returns {Promise<{z: Float32Array, v: Float32Array}>}
 */
async function encodeImages({ images, count, imageSize }) {
  const { z, v } = await sessions.encoder.run({ images: makeImageTensor("uint8", images, count, imageSize) });
  return { z: z.data, v: v.data };
}

/**
 * Decodes a batch of codes.
 * @param {{z: Float32Array, v: Float32Array, count: number, imageSize: number, latentDim: number}} message
 * @returns {Promise<{images: Uint8Array, milliseconds: number}>} The images, and how long the decoder needed.
 */
async function decodeCodes({ z, v, count, imageSize, latentDim }) {
  const start = performance.now();
  const { images } = await sessions.decoder.run({
    z: new ort.Tensor("float32", z, [count, latentDim]),
    v: makeImageTensor("float32", v, count, imageSize),
  });
  return { images: images.data, milliseconds: performance.now() - start };
}

/**
 * Samples a batch of images. The first call downloads the sampler.
 * @param {{zNoise: Float32Array, vNoise: Float32Array, temperature: Float32Array, count: number, imageSize: number,
 *   latentDim: number, labels?: Int32Array}} message
 * @returns {Promise<{images: Uint8Array}>}
 */
async function sampleImages({ zNoise, vNoise, temperature, count, imageSize, latentDim, labels }) {
  sessions.sampler ??= await createSession("sampler", await downloadFile("model/sampler.onnx"));
  const { images } = await sessions.sampler.run({
    ...(labels && { labels: new ort.Tensor("int32", labels, [count]) }),
    z_noise: new ort.Tensor("float32", zNoise, [count, latentDim]),
    v_noise: makeImageTensor("float32", vNoise, count, imageSize),
    temperature: new ort.Tensor("float32", temperature, [count]),
  });
  return { images: images.data };
}

/**
 * Makes a tensor `[count, size, size, 3]`.
 * @param {"uint8" | "float32"} type
 * @param {Uint8Array | Float32Array} data
 * @param {number} count
 * @param {number} size
 * @returns {any} A tensor of ONNX Runtime.
 */
function makeImageTensor(type, data, count, size) {
  return new ort.Tensor(type, data, [count, size, size, 3]);
}
