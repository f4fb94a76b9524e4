/**
 * Checks the web page's modules in Node.js, without a browser. The document shows nothing, workers run in this thread,
 * and the runtime returns the image as v, and v as the image.
 *
 *     node page_checks.mjs FOLDER CHECK
 *
 * FOLDER is a copy of export/page/, into which this program writes files. CHECK names one of `checks`, which throws an
 * error if the page is wrong.
 * @module
 */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, check] = process.argv.slice(2);
const page = new URL(`${pathToFileURL(folder)}/`);
const config = { image_shape: [2, 2, 3], latent_dim: 2, n_bits: 8, web_gpu: true };
const valuesPerImage = config.image_shape.reduce((product, side) => product * side);

/** Replaces elements of the page: stores what the page sets, and draws nothing. */
class FakeElement {
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
  set valueAsNumber(number) {
    this.value = String(number);
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
  prepend(...nodes) {
    this.children.unshift(...nodes);
  }
  replaceChildren() {}
  addEventListener(type, listener) {
    this.listeners[type] = listener;
  }
}

const elements = new Map();
/** Returns the element with this id, which is created on the first call. */
function getElement(id) {
  if (!elements.has(id)) elements.set(id, new FakeElement());
  return elements.get(id);
}

/** Replaces `Worker`: runs the script of the page's worker in this thread. */
class SameThreadWorker {
  static workers = [];

  constructor(url) {
    const number = SameThreadWorker.workers.push(this) - 1;
    this.self = {};
    this.postMessage = (data) => this.ready.then(() => this.self.onmessage({ data }));
    this.answer = (data) => setImmediate(() => this.onmessage({ data }));
    const globals = "const { self, answer: postMessage } = globalThis.Worker.workers";
    const file = new URL(`worker-${number}.js`, page);
    const worker = readFileSync(url, "utf-8").replace("await import(makeModuleUrl(entry))", "globalThis.runtimes[provider]");
    writeFileSync(file, `${globals}[${number}];\n${worker}`);
    this.ready = import(file.href);
  }
  terminate() {}
}

/** Returns a runtime whose decoder takes this many milliseconds. It cannot start a model file with the text "broken". */
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
  Worker: SameThreadWorker,
  runtimes,
  ImageData: class {
    data = [];
  },
  document: { getElementById: getElement, createElement: () => new FakeElement() },
  fetch: async (url) => (existsSync(url) ? new Response(readFileSync(url)) : new Response("", { status: 404 })),
});
const navigatorWithGpu = { gpu: { requestAdapter: async () => ({}) } };
Object.defineProperty(globalThis, "navigator", { value: navigatorWithGpu, configurable: true });
/** The clock advances only while the runtime computes, so that the speed of this machine does not matter. */
Object.defineProperty(globalThis, "performance", { value: { now: () => clock }, configurable: true });

const RUNTIME_FILES = ["ort.wasm.min.mjs", "ort.webgpu.min.mjs"];
for (const glue of ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"]) {
  RUNTIME_FILES.push(`${glue}.mjs`, `${glue}.wasm`);
}
for (const name of ["runtime", "model"]) mkdirSync(new URL(name, page), { recursive: true });
for (const file of RUNTIME_FILES) writeFileSync(new URL(`runtime/${file}`, page), "//");
for (const name of ["encoder", "decoder", "sampler"]) writeFileSync(new URL(`model/${name}.onnx`, page), name);

/** Replaces the photographs: shows none. */
const photographs = { connectPicture: () => () => {} };

/** Returns a loaded model, with changes to its config. */
async function loadModel(changes = {}) {
  const { Model } = await import(new URL("model.js", page));
  const model = new Model(() => {});
  await model.load(Promise.resolve({ ...config, ...changes }));
  return model;
}

const checks = {
  async exact_and_faster_card_takes_over() {
    const model = await loadModel();
    await model.tryWebGpu();
    assert.equal(model.provider, "webgpu", model.describeDevice());
    writeFileSync(new URL("model/sampler.onnx", page), "broken");
    const noise = Float32Array.from({ length: valuesPerImage }, (_, index) => index);
    const sample = () => model.sample(new Float32Array(2), noise, Float32Array.of(1), 1);
    await assert.rejects(sample, /it is broken/);
    assert.equal(model.provider, "wasm");
    writeFileSync(new URL("model/sampler.onnx", page), "sampler");
    assert.deepEqual(await sample(), Uint8Array.from(noise));
  },

  async card_is_left_alone_unless_exact_and_faster() {
    runtimes.webgpu = makeRuntime(9);
    const slower = await loadModel();
    // The map of interpolated pictures keeps the processor busy during the trial. Requests that wait behind others must
    // not count as slow.
    let going = true;
    const others = Array.from({ length: 30 }, async () => {
      while (going) await slower.decode(new Float32Array(2), new Float32Array(valuesPerImage), 1);
    });
    await slower.tryWebGpu();
    going = false;
    await Promise.all(others);
    assert.equal(slower.provider, "wasm", slower.describeDevice());
    runtimes.webgpu = Object.assign(makeRuntime(1), { error: 1 });
    const inexact = await loadModel();
    await inexact.tryWebGpu();
    assert.equal(inexact.provider, "wasm", inexact.describeDevice());
    const workers = SameThreadWorker.workers.length;
    await (await loadModel({ web_gpu: false })).tryWebGpu();
    assert.equal(SameThreadWorker.workers.length, workers + 1, "a worker for the graphics card was started without its runtime");
  },

  async new_pictures_take_verdict_and_pictures_away() {
    const { SwapGrid } = await import(new URL("swap_grid.js", page));
    const waiting = [];
    const model = {
      encode: () => new Promise((resolve) => waiting.push((v) => resolve({ z: new Float32Array(4), v }))),
      decode: async (z, v, count) => new Uint8Array(count * valuesPerImage),
    };
    const codes = [];
    const grid = new SwapGrid(model, photographs, (pair) => codes.push(pair));
    const waitForRequests = async (count) => {
      while (waiting.length < count) await new Promise(setImmediate);
    };
    const [a, mixed] = getElement("grid").children.filter((node) => node.class === "picture");
    const makeImage = () => new Uint8Array(valuesPerImage);
    [0, 1].forEach((index) => grid.setImage(index, makeImage()));
    grid.enable();
    await waitForRequests(1);
    waiting[0](new Float32Array(2 * valuesPerImage));
    while (!codes.at(-1)) await new Promise(setImmediate);
    // The photographs above the verdict can be larger than the pixels that were decoded.
    assert.match(getElement("verdict").textContent, /^Exact at the model’s 2 × 2 pixels/);
    assert(!mixed.classes.has("stale"));
    // While a new picture is encoded, the page must not call the pictures of the last one exact.
    grid.setImage(0, makeImage());
    await waitForRequests(2);
    assert.doesNotMatch(getElement("verdict").textContent + getElement("verdict").className, /Exact|good/);
    assert(mixed.classes.has("stale") && !a.classes.has("stale"));
    assert.equal(codes.at(-1), null);
    // The page must not show the problem of a picture that was replaced meanwhile.
    grid.setImage(1, makeImage());
    waiting[1](new Float32Array(2 * valuesPerImage).fill(NaN));
    await waitForRequests(3);
    assert.doesNotMatch(getElement("verdict").textContent, /not finite/);
    waiting[2](new Float32Array(2 * valuesPerImage));
    while (!codes.at(-1)) await new Promise(setImmediate);
    assert.match(getElement("verdict").textContent, /^Exact/);
    assert(!mixed.classes.has("stale"));
  },

  async pictures_of_the_map_have_names() {
    const { InterpolationSection } = await import(new URL("interpolation_section.js", page));
    new InterpolationSection({}, photographs);
    const cells = getElement("map").children;
    assert(cells.every((cell) => cell.role === "img"));
    assert.equal(new Set(cells.map((cell) => cell["aria-label"])).size, 25);
    assert.equal(cells[1]["aria-label"], "z 0 %, v 25 % from B");
  },

  async key_moves_the_thumb_of_a_slider_where_its_arrow_points() {
    const { InterpolationSection } = await import(new URL("interpolation_section.js", page));
    const slider = Object.assign(getElement("walk-z"), { value: "0.5" });
    new InterpolationSection({}, photographs);
    const press = (key, modifiers = {}) => {
      let prevented = false;
      slider.listeners.keydown({ key, preventDefault: () => (prevented = true), ...modifiers });
      return [Math.round(100 * slider.value) / 100, prevented];
    };
    // The smallest value is at the top of the vertical slider.
    assert.deepEqual(press("ArrowDown"), [0.51, true]);
    assert.deepEqual(press("ArrowUp"), [0.5, true]);
    assert.deepEqual(press("PageDown"), [0.6, true]);
    assert(press("End")[0] >= 1 && press("Home")[0] <= 0.6);
    const value = Math.round(100 * slider.value) / 100;
    assert.deepEqual(press("ArrowLeft", { altKey: true }), [value, false]);
    assert.deepEqual(press("Tab"), [value, false]);
  },

  async first_start_of_the_sampler_shows_progress() {
    const [text, progress] = [new FakeElement(), new FakeElement()];
    getElement("sample-load").children = [text, progress];
    getElement("sample-load").hidden = true;
    const { SamplingSection } = await import(new URL("sampling_section.js", page));
    let answer;
    const section = new SamplingSection({ sample: () => new Promise((resolve) => (answer = resolve)) });
    section.enable(config);
    section.loadBar.setSizes({ sampler: 2e6 });
    getElement("sample-form").listeners.submit({ preventDefault() {} });
    assert.equal(getElement("sample-load").hidden, false);
    section.loadBar.showProgress({ file: "sampler", loaded: 1e6 });
    assert.match(text.textContent, /1\.0 of 2\.0 MB/);
    assert.equal(progress.value, 0.5);
    section.loadBar.showProgress({ file: "sampler", loaded: 2e6 });
    assert.match(text.textContent, /^Starting/);
    answer(new Uint8Array(valuesPerImage));
    while (!getElement("sample-load").hidden) await new Promise(setImmediate);
  },
};

// If a check waits for a promise that never resolves, Node.js ends with an error.
await checks[check]();
