/**
 * Puts the page together.
 * @module
 */

import { Codes, loadConfig } from "./codes.js";
import { Slot, byId, element } from "./elements.js";
import { canvasKeepsPixels, readImage, toLevels } from "./images.js";
import { Meter, megabytes, progressText, showProgress } from "./loading.js";
import { Pair } from "./pair.js";
import { Samples } from "./samples.js";
import { Steering } from "./steer.js";

/** @typedef {import("./codes.js").Config} Config */
/** @typedef {import("./codes.js").Example} Example */
/** @typedef {import("./codes.js").Progress} Progress */

const LETTERS = /** @type {const} */ (["A", "B"]);

const meter = new Meter(["runtimeEntry", "runtimeGlue", "runtime", "encoder", "decoder"]);
const codes = new Codes(noteProgress);
const samples = new Samples(codes);
const steering = new Steering(codes);
const slots = LETTERS.map(
  (letter, index) =>
    new Slot(
      letter,
      (blob, name) => open(index, blob, name),
      (example) => openExample(index, example),
    ),
);
const pair = new Pair(
  codes,
  (index, text) => slots[index].complain(text),
  noteFirstPicture,
  (images, ofBoth, size) => steering.use(images, ofBoth, size),
);
const config = loadConfig();
const ready = codes.load(config).then(() => {});

/** Whether the model runs. */
let started = false;

/** @type {(Uint8Array | null)[]} The pixels of A and B. */
const images = [null, null];
/** How often each slot was given a file: of two that are being read the later one wins. */
const turns = [0, 0];
/** Where the next file goes that is pasted while no slot has the focus. */
let nextPaste = 0;

/**
 * For tests and curious readers. Batches are flat arrays, one image after the other; codes are as `encode` gives them.
 * @namespace
 * @property {Promise<void>} ready Settles when the model is loaded, or fails with the reason that the page shows.
 * @property {(images: Uint8Array, count: number) => Promise<{z: Float32Array, v: Float32Array}>} encode
 * @property {(z: Float32Array, v: Float32Array, count: number) => Promise<Uint8Array>} decode
 * @property {(zNoise: Float32Array, vNoise: Float32Array, temperature: number | Float32Array, count: number,
 *   labels?: Int32Array) => Promise<Uint8Array>} sample Labels where config.json has `label_shares`.
 * @property {() => "wasm" | "webgpu"} provider What computes: the processor, or the graphics card.
 * @property {{firstPicture: number | null, framesPerSecond: () => number | null}} timing Milliseconds from the start of
 *   navigation to the first decoded picture, and the pictures per second of the most recent drag.
 */
const api = {
  ready,
  encode: (batch, count) => codes.encode(batch, count),
  decode: (z, v, count) => codes.decode(z, v, count),
  sample: (zNoise, vNoise, temperature, count, labels) => codes.sample(zNoise, vNoise, temperature, count, labels),
  provider: () => codes.provider,
  timing: { firstPicture: null, framesPerSecond: () => pair.rate.value() },
};
/** @type {any} */ (window).tfdecouple = api;

start();

async function start() {
  byId("slots").append(...slots.map((slot) => slot.element));
  listenForFiles();
  if (!canvasKeepsPixels()) warnOfNoise();
  // Pictures show at once; the model may take a while longer.
  config.then(showConfig).catch(() => {});
  try {
    samples.enable((await Promise.all([config, ready]))[0]);
    byId("load").hidden = true;
    started = true;
    showFacts(await config);
    codes.onChange = async () => showFacts(await config);
    // Whatever becomes of it, the page works meanwhile.
    await codes.useCard();
    codes.onChange();
  } catch (error) {
    showLoadError(error);
  }
}

/** @param {Config} known */
async function showConfig(known) {
  meter.expect(known.sizes ?? {});
  showFacts(known);
  steering.offer(known.directions ?? []);
  const examples = known.examples ?? [];
  slots.forEach((slot) => slot.offer(examples));
  showCredits(examples);
  if (examples.length === 0) return;
  await Promise.all([openExample(0, examples[0]), openExample(1, examples[1 % examples.length])]);
}

/** @param {Progress} progress */
function noteProgress(progress) {
  if (progress.file === "sampler") return samples.noteProgress(progress);
  meter.note(progress);
  byId("load-text").textContent = progressText("the model", meter.sum());
  showProgress(byId("load-bar"), meter.sum());
}

function noteFirstPicture() {
  api.timing.firstPicture ??= performance.now();
}

/** @param {Error} error */
function showLoadError(error) {
  byId("load").hidden = true;
  const again = element("button", { type: "button" }, ["Try again"]);
  again.addEventListener("click", () => location.reload());
  byId("load-error").replaceChildren(element("p", {}, [`The model could not be loaded. ${error.message}`]), again);
  byId("load-error").hidden = false;
}

/** @param {number} index @param {Example} example */
async function openExample(index, example) {
  const turn = ++turns[index];
  const { file } = example;
  try {
    const response = await fetch(new URL(file, import.meta.url));
    if (!response.ok) throw new Error(`${file} could not be fetched: HTTP ${response.status}.`);
    await read(index, turn, await response.blob(), example.title, example);
  } catch (error) {
    if (turn === turns[index]) slots[index].complain(error.message);
  }
}

/** @param {number} index @param {Blob} blob @param {string} name */
async function open(index, blob, name) {
  const turn = ++turns[index];
  try {
    await read(index, turn, blob, name, null);
  } catch (error) {
    if (turn === turns[index]) slots[index].complain(error.message);
  }
}

/** @param {number} index @param {number} turn @param {Blob} blob @param {string} name @param {Example | null} example */
async function read(index, turn, blob, name, example) {
  const { image_size: size, centre_crop: crop, n_bits: bits } = await config;
  // As the model sees it: so it comes back.
  const pixels = toLevels(await readImage(blob, name, size, crop), bits);
  if (turn !== turns[index]) return;
  images[index] = pixels;
  slots[index].complain("");
  slots[index].mark(name, example);
  slots[index].picture.show(pixels, size);
  // Where the model cannot be loaded, the page says so already.
  ready.then(
    () => showPair(size),
    () => {},
  );
}

/** Shows what A and B give, once there are both. @param {number} size */
function showPair(size) {
  const [a, b] = images;
  if (a && b) pair.show({ a, b }, size);
}

function listenForFiles() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    // The browser would leave the page to show the file.
    event.preventDefault();
    receive(event.dataTransfer, Math.max(0, slotAt(event.target)));
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    const focused = slotAt(document.activeElement);
    const index = focused >= 0 ? focused : nextPaste;
    nextPaste = 1 - index;
    receive(event.clipboardData, index);
  });
}

/** @param {EventTarget | null} target @returns {number} -1 for none. */
function slotAt(target) {
  return slots.findIndex((slot) => slot.element.contains(/** @type {Node | null} */ (target)));
}

/** Two files fill both slots. @param {DataTransfer} transfer @param {number} index */
function receive(transfer, index) {
  const files = [...transfer.files].slice(0, LETTERS.length);
  if (files.length === 0)
    slots[index].complain("That was not a file. Save the picture first, then drop its file here.");
  files.forEach((file, offset) => open((index + offset) % LETTERS.length, file, file.name));
}

function warnOfNoise() {
  const text = "This browser changes the pixels that pages read, against fingerprinting: pictures will look noisy.";
  byId("slots").after(element("p", { class: "problem" }, [text]));
}

/** Who made the example pictures, and whether the model has seen them. @param {Example[]} examples */
function showCredits(examples) {
  const seen = new Map([
    [true, "The model was trained on crops of it."],
    [false, "The model was not trained on it."],
    [null, "Whether the model was trained on it is not known."],
  ]);
  byId("credits").hidden = examples.length === 0;
  const rows = examples.map(({ title, author, licence, seen: known }) =>
    element("li", {}, [element("b", {}, [title]), `, ${author} (${licence}). ${seen.get(known ?? null)}`]),
  );
  byId("credits-list").replaceChildren(...rows);
}

/** @param {Config} known */
function showFacts(known) {
  const { name, image_size: size, latent_dim: latentDim, bits_per_dim: bits, data } = known;
  const [values, levels] = [(size * size * 3).toLocaleString("en"), 2 ** (known.n_bits ?? 8)];
  byId("z-length").textContent = ` of ${latentDim} numbers`;
  for (const place of document.querySelectorAll(".side")) place.textContent = `${size} × ${size} pixels`;
  const facts = [
    ["Model", name],
    ["Pictures", `${size} × ${size} pixels${levels < 256 ? `, ${levels} levels of each colour` : ""}`],
    ["Codes", `z ${latentDim}, v ${values} numbers`],
  ];
  if (bits != null) facts.push(["Bits per dimension", bits.toFixed(2)]);
  if (known.sizes) facts.push(["Model files", `${megabytes(sum(Object.values(known.sizes)))} MB`]);
  if (data) facts.push(["Trained on", data]);
  if (started) facts.push(["Runs on", codes.runsOn]);
  const rows = facts.map(([term, text]) => element("div", {}, [element("dt", {}, [term]), element("dd", {}, [text])]));
  byId("facts").replaceChildren(...rows);
  if (known.project) byId("project").replaceChildren(element("a", { href: known.project }, ["tfdecouple"]));
}

/** @param {number[]} numbers */
function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}
