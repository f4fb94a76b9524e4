/**
 * Runs the model, in a module worker so that the page stays responsive.
 *
 * Messages in: `{id, task: "load" | "encode" | "decode" | "sample", ...}`; "load" comes first and says what computes.
 * Messages out: `{id, result}`, `{id, error, download}`, where `download` says whether one failed, and
 * `{progress: {file, loaded, total}}` during downloads.
 * @module
 */

import { DownloadError, LoadError, download } from "./download.js";

const RUNTIME = new URL("runtime/", import.meta.url);
const MODEL = new URL("model/", import.meta.url);
const MOST_THREADS = 4;
/** The files of ONNX Runtime Web by what computes. */
const FILES = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};

/** ONNX Runtime Web, once loaded. */
let ort;
/** @type {"wasm" | "webgpu"} The processor, or the graphics card. */
let provider = "wasm";
/** @type {Map<string, Promise<object>>} */
const sessions = new Map();
/** @type {Promise<unknown>} One session at a time is made: more the runtime refuses on a graphics card. */
let making = Promise.resolve();
/** @type {Promise<unknown>} One task at a time: the runtime takes no second call during a first. */
let queue = Promise.resolve();

const TASKS = { load, encode, decode, sample };

self.onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};

/** @param {any} message */
async function answer(message) {
  try {
    const result = await TASKS[message.task](message);
    postMessage({ id: message.id, result }, buffersOf(result));
  } catch (error) {
    const failed = error instanceof DownloadError;
    postMessage({ id: message.id, error: error.message || String(error), download: failed });
  }
}

/** @param {object} result @returns {any[]} */
function buffersOf(result) {
  return Object.values(result)
    .filter(ArrayBuffer.isView)
    .map((view) => view.buffer);
}

/** Loads the runtime, the encoder and the decoder. @param {{provider: "wasm" | "webgpu"}} message */
async function load(message) {
  provider = message.provider;
  requireWebAssembly();
  const runtime = loadRuntime();
  // The models download beside the runtime; their sessions wait for it.
  await Promise.all([runtime, session("encoder", runtime), session("decoder", runtime)]);
  return { threads: ort.env.wasm.numThreads };
}

function requireWebAssembly() {
  if (typeof WebAssembly !== "object") {
    throw new LoadError("This browser has no WebAssembly, or it is switched off. The model needs it.");
  }
}

async function loadRuntime() {
  const [entryName, glueName, binaryName] = FILES[provider];
  const [entry, glue, binary] = await Promise.all([
    tracked(entryName, RUNTIME, "runtimeEntry"),
    tracked(glueName, RUNTIME, "runtimeGlue"),
    tracked(binaryName, RUNTIME, "runtime"),
  ]);
  ort = await importRuntime(moduleUrl(entry, entryName));
  // Handed over as bytes, the binary works whatever MIME type the server gives it.
  ort.env.wasm.wasmBinary = binary.bytes;
  ort.env.wasm.wasmPaths = { mjs: moduleUrl(glue, glueName) };
  ort.env.wasm.numThreads = threadCount();
  ort.env.logLevel = "error";
}

/** @param {string} url */
async function importRuntime(url) {
  try {
    return await import(url);
  } catch (error) {
    throw new LoadError(`The runtime could not be started (${error.message}).`);
  }
}

/** @param {string} path @param {URL} folder @param {string} file The name under which progress is reported. */
function tracked(path, folder, file) {
  const name = `${folder.pathname.split("/").at(-2)}/${path}`;
  return download(new URL(path, folder), name, (loaded, total) => postMessage({ progress: { file, loaded, total } }));
}

/**
 * Some servers do not know .mjs, and browsers import no module that is not served as JavaScript.
 * @param {{bytes: Uint8Array<ArrayBuffer>, type: string}} file
 * @param {string} path
 * @returns {string}
 */
function moduleUrl(file, path) {
  if (/\b(java|ecma)script\b/i.test(file.type)) return new URL(path, RUNTIME).href;
  return URL.createObjectURL(new Blob([file.bytes], { type: "text/javascript" }));
}

/** Threads need shared memory, which browsers give to cross-origin isolated pages only. */
function threadCount() {
  return self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/**
 * The session of a model file, made at the first call. A failed one is forgotten, so that it can be tried again.
 * @param {"encoder" | "decoder" | "sampler"} name
 * @param {Promise<void>} [runtime]
 */
function session(name, runtime = Promise.resolve()) {
  if (!sessions.has(name)) {
    const made = createSession(name, runtime);
    sessions.set(name, made);
    made.catch(() => sessions.delete(name));
  }
  return sessions.get(name);
}

/** @param {string} name @param {Promise<void>} runtime */
async function createSession(name, runtime) {
  const [{ bytes }] = await Promise.all([tracked(`${name}.onnx`, MODEL, name), runtime]);
  const made = making.then(() => ort.InferenceSession.create(bytes, { executionProviders: [provider] }));
  making = made.catch(() => {});
  try {
    return await made;
  } catch (error) {
    throw new LoadError(`model/${name}.onnx could not be started (${error.message || error}).`);
  }
}

/** @param {{images: Uint8Array, count: number, imageSize: number}} message */
async function encode({ images, count, imageSize }) {
  const outputs = await run("encoder", { images: imageTensor("uint8", images, count, imageSize) });
  return { z: outputs.z.data, v: outputs.v.data };
}

/** @param {{z: Float32Array, v: Float32Array, count: number, imageSize: number, latentDim: number}} message */
async function decode({ z, v, count, imageSize, latentDim }) {
  // Taken here: on its way a question may wait for others.
  const begun = performance.now();
  const outputs = await run("decoder", {
    z: new ort.Tensor("float32", z, [count, latentDim]),
    v: imageTensor("float32", v, count, imageSize),
  });
  return { images: outputs.images.data, milliseconds: performance.now() - begun };
}

/**
 * @param {{zNoise: Float32Array, vNoise: Float32Array, temperature: Float32Array, count: number, imageSize: number,
 *   latentDim: number, labels?: Int32Array}} message
 */
async function sample({ zNoise, vNoise, temperature, count, imageSize, latentDim, labels }) {
  const outputs = await run("sampler", {
    ...(labels && { labels: new ort.Tensor("int32", labels, [count]) }),
    z_noise: new ort.Tensor("float32", zNoise, [count, latentDim]),
    v_noise: imageTensor("float32", vNoise, count, imageSize),
    temperature: new ort.Tensor("float32", temperature, [count]),
  });
  return { images: outputs.images.data };
}

/** @param {"encoder" | "decoder" | "sampler"} name @param {Record<string, object>} inputs */
async function run(name, inputs) {
  return (await session(name)).run(inputs);
}

/**
 * @param {"uint8" | "float32"} type
 * @param {Uint8Array | Float32Array} data
 * @param {number} count
 * @param {number} size
 */
function imageTensor(type, data, count, size) {
  return new ort.Tensor(type, data, [count, size, size, 3]);
}
