/**
 * The modules of the web page in Node, without a browser: a document that shows nothing, workers in this thread, and a
 * runtime that gives back what it is given.
 *
 *     node page_checks.mjs FOLDER CHECK
 *
 * FOLDER is a copy of export/page/, which is written to. CHECK is one of `checks`, which throws where the page is wrong.
 * @module
 */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, name] = process.argv.slice(2);
const page = new URL(`${pathToFileURL(folder)}/`);
const config = { image_shape: [2, 2, 3], latent_dim: 2, n_bits: 8, web_gpu: true };
const values = config.image_shape.reduce((product, side) => product * side);

class Element {
  children = [];
  dataset = {};
  style = { setProperty() {} };
  listeners = {};
  textContent = "";
  value = "1";
  classes = new Set();
  classList = { add: (one) => this.classes.add(one), remove: (one) => this.classes.delete(one) };
  get valueAsNumber() {
    return Number(this.value);
  }
  setAttribute(attribute, value) {
    this[attribute] = value;
  }
  removeAttribute(attribute) {
    delete this[attribute];
  }
  getContext() {
    return { putImageData() {} };
  }
  append(...nodes) {
    this.children.push(...nodes);
  }
  prepend() {}
  replaceChildren() {}
  addEventListener(type, listener) {
    this.listeners[type] = listener;
  }
}

const elements = new Map();
function byId(id) {
  if (!elements.has(id)) elements.set(id, new Element());
  return elements.get(id);
}

/** Runs the page's worker in this thread. */
class ThisThread {
  static workers = [];

  constructor(url) {
    const number = ThisThread.workers.push(this) - 1;
    this.self = {};
    this.postMessage = (data) => this.ready.then(() => this.self.onmessage({ data }));
    this.answer = (data) => setImmediate(() => this.onmessage({ data }));
    const own = "const { self, answer: postMessage } = globalThis.Worker.workers";
    const file = new URL(`worker-${number}.js`, page);
    const worker = readFileSync(url, "utf-8").replace("await import(moduleUrl(entry))", "globalThis.runtimes[provider]");
    writeFileSync(file, `${own}[${number}];\n${worker}`);
    this.ready = import(file.href);
  }
  terminate() {}
}

/** A runtime whose decoder takes so many milliseconds, and which cannot start a model that says "broken". */
function makeRuntime(milliseconds) {
  const create = async (bytes) => {
    const text = new TextDecoder().decode(bytes);
    if (text === "broken") throw new Error("it is broken");
    return {
      run: async (inputs) => {
        if (text === "encoder") return { z: { data: new Float32Array(2) }, v: { data: Float32Array.from(inputs.images.data) } };
        clock += milliseconds;
        return { images: { data: Uint8Array.from((inputs.v ?? inputs.v_noise).data, (value) => value + runtime.error) } };
      },
    };
  };
  const runtime = { env: { wasm: {} }, error: 0, InferenceSession: { create }, Tensor: class { constructor(_, data) { this.data = data; } } };
  return runtime;
}

let clock = 0;
const runtimes = { wasm: makeRuntime(5), webgpu: makeRuntime(1) };
Object.assign(globalThis, {
  Worker: ThisThread,
  runtimes,
  ImageData: class {
    data = [];
  },
  document: { getElementById: byId, createElement: () => new Element() },
  fetch: async (url) => (existsSync(url) ? new Response(readFileSync(url)) : new Response("", { status: 404 })),
});
const card = { gpu: { requestAdapter: async () => ({}) } };
Object.defineProperty(globalThis, "navigator", { value: card, configurable: true });
/** Time passes while the runtime computes, and only then. */
Object.defineProperty(globalThis, "performance", { value: { now: () => clock }, configurable: true });

const RUNTIME_FILES = ["ort.wasm.min.mjs", "ort.webgpu.min.mjs"];
for (const glue of ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"]) {
  RUNTIME_FILES.push(`${glue}.mjs`, `${glue}.wasm`);
}
for (const part of ["runtime", "model"]) mkdirSync(new URL(part, page), { recursive: true });
for (const file of RUNTIME_FILES) writeFileSync(new URL(`runtime/${file}`, page), "//");
for (const part of ["encoder", "decoder", "sampler"]) writeFileSync(new URL(`model/${part}.onnx`, page), part);

async function startCodes(changes = {}) {
  const { Codes } = await import(new URL("model.js", page));
  const codes = new Codes(() => {});
  await codes.load(Promise.resolve({ ...config, ...changes }));
  return codes;
}

const checks = {
  async exact_and_faster_card_takes_over() {
    const codes = await startCodes();
    await codes.tryCard();
    assert.equal(codes.provider, "webgpu", codes.device);
    writeFileSync(new URL("model/sampler.onnx", page), "broken");
    const noise = Float32Array.from({ length: values }, (_, index) => index);
    const sample = () => codes.sample(new Float32Array(2), noise, Float32Array.of(1), 1);
    await assert.rejects(sample, /it is broken/);
    assert.equal(codes.provider, "wasm");
    writeFileSync(new URL("model/sampler.onnx", page), "sampler");
    assert.deepEqual(await sample(), Uint8Array.from(noise));
  },

  async card_is_left_alone_unless_exact_and_faster() {
    runtimes.webgpu = makeRuntime(9);
    const slower = await startCodes();
    // As the map of the walk does, 30 at a time: who waits longer than the card takes is no slower for it.
    let going = true;
    const others = Array.from({ length: 30 }, async () => {
      while (going) await slower.decode(new Float32Array(2), new Float32Array(values), 1);
    });
    await slower.tryCard();
    going = false;
    await Promise.all(others);
    assert.equal(slower.provider, "wasm", slower.device);
    runtimes.webgpu = Object.assign(makeRuntime(1), { error: 1 });
    const inexact = await startCodes();
    await inexact.tryCard();
    assert.equal(inexact.provider, "wasm", inexact.device);
    const workers = ThisThread.workers.length;
    await (await startCodes({ web_gpu: false })).tryCard();
    assert.equal(ThisThread.workers.length, workers + 1, "a card was asked without its runtime");
  },

  async new_pictures_take_verdict_and_pictures_away() {
    const { Swap } = await import(new URL("swap_grid.js", page));
    const waiting = [];
    const codes = {
      encode: () => new Promise((resolve) => waiting.push((v) => resolve({ z: new Float32Array(4), v }))),
      decode: async (z, v, count) => new Uint8Array(count * values),
    };
    const pairs = [];
    const swap = new Swap(codes, (pair) => pairs.push(pair));
    const arrived = async (count) => {
      while (waiting.length < count) await new Promise(setImmediate);
    };
    const [a, mixed] = byId("grid").children.filter((node) => node.class === "picture");
    const picture = () => new Uint8Array(values);
    [0, 1].forEach((index) => swap.put(index, picture()));
    swap.start();
    await arrived(1);
    waiting[0](new Float32Array(2 * values));
    while (!pairs.at(-1)) await new Promise(setImmediate);
    assert.match(byId("verdict").textContent, /^Exact/);
    assert(!mixed.classes.has("stale"));
    // Another picture: until its codes are there, nothing says that what stands there is exact.
    swap.put(0, picture());
    await arrived(2);
    assert.doesNotMatch(byId("verdict").textContent + byId("verdict").className, /Exact|good/);
    assert(mixed.classes.has("stale") && !a.classes.has("stale"));
    assert.equal(pairs.at(-1), null);
    // What was wrong with a picture that is replaced meanwhile is not complained of.
    swap.put(1, picture());
    waiting[1](new Float32Array(2 * values).fill(NaN));
    await arrived(3);
    assert.doesNotMatch(byId("verdict").textContent, /not finite/);
    waiting[2](new Float32Array(2 * values));
    while (!pairs.at(-1)) await new Promise(setImmediate);
    assert.match(byId("verdict").textContent, /^Exact/);
    assert(!mixed.classes.has("stale"));
  },

  async first_start_of_the_sampler_shows_progress() {
    const [text, progress] = [new Element(), new Element()];
    byId("sample-load").children = [text, progress];
    byId("sample-load").hidden = true;
    const { Samples } = await import(new URL("sampling_section.js", page));
    let answer;
    const samples = new Samples({ sample: () => new Promise((resolve) => (answer = resolve)) });
    samples.enable(config);
    samples.bar.expect({ sampler: 2e6 });
    byId("sample-form").listeners.submit({ preventDefault() {} });
    assert.equal(byId("sample-load").hidden, false);
    samples.bar.note({ file: "sampler", loaded: 1e6 });
    assert.match(text.textContent, /1\.0 of 2\.0 MB/);
    assert.equal(progress.value, 0.5);
    samples.bar.note({ file: "sampler", loaded: 2e6 });
    assert.match(text.textContent, /^Starting/);
    answer(new Uint8Array(values));
    while (!byId("sample-load").hidden) await new Promise(setImmediate);
  },
};

// A check that waits in vain ends with an error of Node's.
await checks[name]();
