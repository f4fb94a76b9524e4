/**
 * The modules of the web page in Node, without a browser: a document that shows nothing, workers in this thread, and a
 * runtime that gives back what it is given.
 *
 *     node page.mjs FOLDER CHECK
 *
 * FOLDER is a copy of export/page/, which is written to. CHECK is one of `checks`, which throws where the page is wrong.
 * @module
 */

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, name] = process.argv.slice(2);
const page = new URL(`${pathToFileURL(folder)}/`);
const config = { image_size: 2, latent_dim: 2 };
const values = config.image_size ** 2 * 3;

class Element {
  style = { setProperty() {} };
  classList = { add() {}, remove() {}, toggle() {} };
  textContent = "";
  get valueAsNumber() {
    return Number(this.value);
  }
  setAttribute(attribute, value) {
    this[attribute] = value;
  }
  getContext() {
    return { putImageData() {}, clearRect() {} };
  }
  append() {}
  prepend() {}
  addEventListener() {}
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
    writeFileSync(file, `${own}[${number}];\n${readFileSync(url, "utf-8")}`);
    this.ready = import(file.href);
  }
  terminate() {}
}

let clock = 0;
Object.assign(globalThis, {
  Worker: ThisThread,
  ImageData: class {
    data = [];
  },
  document: { getElementById: byId, createElement: () => new Element(), createElementNS: () => new Element() },
  location: { search: "" },
  /** Time passes while the runtime computes, and only then. */
  passed: (milliseconds) => (clock += milliseconds),
  fetch: async (url) => {
    const headers = { "content-type": "text/javascript" };
    return existsSync(url) ? new Response(readFileSync(url), { headers }) : new Response("", { status: 404 });
  },
});
const card = { gpu: { requestAdapter: async () => ({}) } };
Object.defineProperty(globalThis, "navigator", { value: card, configurable: true });
Object.defineProperty(globalThis, "performance", { value: { now: () => clock }, configurable: true });

/** A runtime whose decoder takes 5 ms, and which cannot start what says that it is broken. */
const RUNTIME = `
export const env = { wasm: {} };
export class Tensor { constructor(type, data) { this.data = data; } }
export const InferenceSession = {
  create: async (bytes) => {
    const text = new TextDecoder().decode(bytes);
    if (text.startsWith("broken")) throw new Error("it is broken");
    return { run: async (inputs) => {
      if (text === "encoder") {
        const { data } = inputs.images;
        return { z: { data: new Float32Array(2) }, v: { data: Float32Array.from(data) } };
      }
      globalThis.passed(5);
      return { images: { data: Uint8Array.from((inputs.v ?? inputs.v_noise).data) } };
    } };
  },
};`;
mkdirSync(new URL("runtime/", page), { recursive: true });
mkdirSync(new URL("model/", page), { recursive: true });
for (const kind of ["wasm", "webgpu"]) writeFileSync(new URL(`runtime/ort.${kind}.min.mjs`, page), RUNTIME);
for (const glue of ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"]) {
  for (const end of ["mjs", "wasm"]) writeFileSync(new URL(`runtime/${glue}.${end}`, page), "//");
}
for (const part of ["encoder", "decoder"]) writeFileSync(new URL(`model/${part}.onnx`, page), part);
const sampler = new URL("model/sampler.onnx", page);

async function startedCodes() {
  const { Codes } = await import(new URL("codes.js", page));
  const codes = new Codes(() => {});
  await codes.load(Promise.resolve(config));
  return codes;
}

const checks = {
  async trial_times_the_processor_and_not_who_waits_before_it() {
    const codes = await startedCodes();
    let going = true;
    // As the map of the pair does, 30 at a time: 150 ms.
    const others = Array.from({ length: 30 }, async () => {
      while (going) await codes.decode(new Float32Array(2), new Float32Array(values), 1);
    });
    await codes.useCard();
    going = false;
    await Promise.all(others);
    assert.equal(ThisThread.workers.length, 1, "a card was asked, for 5 ms");
  },

  async failed_download_is_no_failed_card() {
    const codes = await startedCodes();
    location.search = "?runtime=webgpu";
    await codes.useCard();
    assert.equal(codes.provider, "webgpu", codes.runsOn);
    const noise = Float32Array.from({ length: values }, (_, index) => index);
    const sample = () => codes.sample(new Float32Array(2), noise, 1, 1);
    await assert.rejects(sample, /sampler\.onnx could not be fetched: HTTP 404/);
    assert.equal(codes.provider, "webgpu", codes.runsOn);
    // What cannot be started the card has failed at.
    writeFileSync(sampler, "broken");
    await assert.rejects(sample, /it is broken/);
    assert.equal(codes.provider, "wasm");
    writeFileSync(sampler, "sampler");
    assert.deepEqual(await sample(), Uint8Array.from(noise));
  },

  async codes_of_pictures_that_were_replaced_are_not_complained_of() {
    const { Pair } = await import(new URL("pair.js", page));
    const waiting = [];
    const codes = {
      encode: () => new Promise((resolve) => waiting.push((v) => resolve({ z: new Float32Array(4), v }))),
      decode: async (z, v, count) => new Uint8Array(count * values),
    };
    const complaints = [];
    const pair = new Pair(
      codes,
      (index, text) => complaints.push(text),
      () => {},
      () => {},
    );
    const pictures = () => ({ a: new Uint8Array(values), b: new Uint8Array(values) });
    const shown = [pair.show(pictures(), config.image_size), pair.show(pictures(), config.image_size)];
    while (waiting.length < 1) await new Promise(setImmediate);
    waiting[0](new Float32Array(2 * values).fill(NaN));
    while (waiting.length < 2) await new Promise(setImmediate);
    waiting[1](new Float32Array(2 * values));
    await Promise.all(shown);
    assert.deepEqual(complaints, []);
    assert.match(byId("verdict").textContent, /^Exact/);
  },

  async picture_that_the_browser_has_kept_chosen_is_changed() {
    byId("steer-b").checked = true;
    const { Steering } = await import(new URL("steer.js", page));
    const decoded = [];
    const decode = async (z, v) => {
      decoded.push(v[0]);
      return new Uint8Array(values);
    };
    const steering = new Steering({ decode });
    steering.offer([{ name: "one", vector: [1, 0] }]);
    const [images, zs] = [[0, 1].map(() => new Uint8Array(values)), [0, 1].map(() => new Float32Array(2))];
    const pair = zs.map((z, index) => ({ z, v: new Float32Array(values).fill(index) }));
    steering.use(images, pair, config.image_size);
    while (!byId("steer-verdict").textContent) await new Promise(setImmediate);
    assert.deepEqual(decoded, [1]);
    assert.match(byId("steer-verdict").textContent, /it is B,/);
  },
};

// A check that waits in vain ends with an error of Node's.
await checks[name]();
