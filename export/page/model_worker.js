/**
 * Runs the model, in a module worker so that the page stays responsive.
 *
 * Messages in: `{id, task: "load" | "encode" | "decode" | "sample", ...}`; "load" comes first and says what computes.
 * Messages out: `{id, result}`, `{id, error}`, and `{progress: {file, loaded}}` during downloads.
 * @module
 */

const MOST_THREADS = 4;
/** The files of ONNX Runtime Web by what computes: entry, glue and binary. */
const RUNTIME = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};
const TASKS = { load, encode, decode, sample };

/** ONNX Runtime Web, once loaded. */
let ort;
/** @type {"wasm" | "webgpu"} */
let provider;
/** Started models by name. */
const sessions = {};
/** @type {Promise<unknown>} One task at a time: the runtime takes no second call during a first. */
let queue = Promise.resolve();

self.onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};

/** @param {any} message */
async function answer({ id, task, ...content }) {
  try {
    postMessage({ id, result: await TASKS[task](content) });
  } catch (error) {
    postMessage({ id, error: error.message || String(error) });
  }
}

/** Loads the runtime, the encoder and the decoder. */
async function load(message) {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, or it is switched off.");
  provider = message.provider;
  const [encoder, decoder] = await Promise.all([
    download("model/encoder.onnx"),
    download("model/decoder.onnx"),
    loadRuntime(),
  ]);
  sessions.encoder = await startModel("encoder", encoder);
  sessions.decoder = await startModel("decoder", decoder);
  return { threads: ort.env.wasm.numThreads };
}

async function loadRuntime() {
  const [entry, glue, binary] = await Promise.all(RUNTIME[provider].map((name) => download(`runtime/${name}`)));
  ort = await import(moduleUrl(entry));
  // As bytes and blobs they work whatever MIME type the server gives .wasm and .mjs.
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: moduleUrl(glue) };
  // Threads need shared memory, which browsers give to cross-origin isolated pages only.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/** @param {Uint8Array<ArrayBuffer>} bytes */
function moduleUrl(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
}

/** @param {string} name @param {Uint8Array} bytes */
async function startModel(name, bytes) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
  } catch (error) {
    throw new Error(`model/${name}.onnx could not be started (${error.message || error}).`);
  }
}

/**
 * Fetches a file, and posts how much of it has arrived.
 * @param {string} path In the page's folder.
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
async function download(path) {
  try {
    const response = await fetch(new URL(path, import.meta.url));
    if (!response.ok) throw new Error(`HTTP ${response.status} ${response.statusText}`.trim());
    const pieces = [];
    let loaded = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      loaded += value.length;
      postMessage({ progress: { file: path, loaded } });
    }
    return new Uint8Array(await new Blob(pieces).arrayBuffer());
  } catch (error) {
    throw new Error(`${path} could not be fetched: ${error.message}.`);
  }
}

/** @param {{images: Uint8Array, count: number, imageSize: number}} message */
async function encode({ images, count, imageSize }) {
  const { z, v } = await sessions.encoder.run({ images: imageTensor("uint8", images, count, imageSize) });
  return { z: z.data, v: v.data };
}

/** @param {{z: Float32Array, v: Float32Array, count: number, imageSize: number, latentDim: number}} message */
async function decode({ z, v, count, imageSize, latentDim }) {
  const start = performance.now();
  const { images } = await sessions.decoder.run({
    z: new ort.Tensor("float32", z, [count, latentDim]),
    v: imageTensor("float32", v, count, imageSize),
  });
  return { images: images.data, milliseconds: performance.now() - start };
}

/**
 * @param {{zNoise: Float32Array, vNoise: Float32Array, temperature: Float32Array, count: number, imageSize: number,
 *   latentDim: number, labels?: Int32Array}} message
 */
async function sample({ zNoise, vNoise, temperature, count, imageSize, latentDim, labels }) {
  sessions.sampler ??= await startModel("sampler", await download("model/sampler.onnx"));
  const { images } = await sessions.sampler.run({
    ...(labels && { labels: new ort.Tensor("int32", labels, [count]) }),
    z_noise: new ort.Tensor("float32", zNoise, [count, latentDim]),
    v_noise: imageTensor("float32", vNoise, count, imageSize),
    temperature: new ort.Tensor("float32", temperature, [count]),
  });
  return { images: images.data };
}

/** @param {"uint8" | "float32"} type @param {Uint8Array | Float32Array} data @param {number} count @param {number} size */
function imageTensor(type, data, count, size) {
  return new ort.Tensor(type, data, [count, size, size, 3]);
}
