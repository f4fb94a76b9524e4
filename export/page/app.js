/**
 * Puts the page together.
 * @module
 */

import { Chooser, fetchBlob } from "./picture_chooser.js";
import { Codes } from "./model.js";
import { LoadBar, byId, megabytes } from "./page_elements.js";
import { readImage, toLevels } from "./image_files.js";
import { OwnSize } from "./full_size_pictures.js";
import { Samples } from "./sampling_section.js";
import { Steering } from "./directions_section.js";
import { Swap } from "./swap_grid.js";
import { Walk } from "./interpolation_section.js";

/** @typedef {import("./model.js").Config} Config */

const SAMPLER = "model/sampler.onnx";
const LETTERS = /** @type {const} */ (["A", "B"]);

const bar = new LoadBar("load", "model");
const codes = new Codes((progress) => (progress.file === SAMPLER ? samples.bar : bar).note(progress));
const samples = new Samples(codes);
const steering = new Steering(codes);
const walk = new Walk(codes);
const swap = new Swap(codes, (pair, decoded, milliseconds) => {
  walk.use(pair, decoded, milliseconds);
  steering.use(pair);
  if (pair) ownSize.start();
});
const choosers = LETTERS.map((letter, index) => new Chooser(letter, (blob, name) => choose(index, blob, name)));
/** How often each of A and B was chosen: of two files that are being read the later one wins. */
const turns = [0, 0];
/** Where the next pasted file goes. */
let nextPaste = 0;

/** @type {Promise<Config>} */
const config = fetchBlob("model/config.json").then(async (blob) => JSON.parse(await blob.text()));
const ready = codes.load(config);
const ownSize = new OwnSize(codes, swap, config);

/**
 * For tests and curious readers. Batches are flat arrays, one image after the other.
 * @namespace
 * @property {Promise<void>} ready Settles when the model is loaded, or fails with the reason that the page shows.
 * @property {(images: Uint8Array, count: number) => Promise<{z: Float32Array, v: Float32Array}>} encode
 * @property {(z: Float32Array, v: Float32Array, count: number) => Promise<Uint8Array>} decode
 * @property {(zNoise: Float32Array, vNoise: Float32Array, temperature: Float32Array, count: number,
 *   labels?: Int32Array) => Promise<Uint8Array>} sample Labels where config.json has `label_shares`.
 * @property {() => "wasm" | "webgpu"} provider What computes: the processor, or the graphics card.
 */
/** @type {any} */ (window).tfdecouple = {
  ready,
  encode: codes.encode.bind(codes),
  decode: codes.decode.bind(codes),
  sample: codes.sample.bind(codes),
  provider: () => codes.provider,
};

start();

async function start() {
  byId("choosers").prepend(...choosers.map((chooser) => chooser.element));
  listenForFiles();
  try {
    // The pictures show at once; the model takes a while longer.
    const known = await config;
    showConfig(known);
    await ready;
    byId("load").hidden = true;
    swap.start();
    samples.enable(known);
    codes.onChange = () => (byId("device").textContent = `runs on ${codes.device}`);
    codes.onChange();
    // Whatever becomes of it, the page works meanwhile.
    await codes.tryCard();
  } catch (error) {
    byId("load").hidden = true;
    byId("load-error").textContent = `The model could not be loaded. ${error.message} Reload the page to try again.`;
  }
}

/** @param {Config} known */
function showConfig(known) {
  const { [SAMPLER]: sampler, ...sizes } = known.sizes;
  bar.expect(sizes);
  samples.bar.expect({ [SAMPLER]: sampler });
  steering.offer(known.directions ?? []);
  showFacts(known);
  choosers.forEach((chooser, index) => {
    chooser.offer(known.examples);
    choose(index, fetchBlob(known.examples[index].file), known.examples[index].title);
  });
}

/** @param {number} index @param {Blob | Promise<Blob>} blob @param {string} name */
async function choose(index, blob, name) {
  const turn = ++turns[index];
  try {
    const { image_shape: [size], centre_crop: crop, n_bits: bits } = await config;
    // As the model sees it: so it comes back.
    const pixels = toLevels(await readImage(await blob, name, size, crop), bits);
    if (turn !== turns[index]) return;
    ownSize.put(index, await blob, name);
    choosers[index].mark(name);
    swap.put(index, pixels);
  } catch (error) {
    if (turn === turns[index]) choosers[index].complain(error.message);
  }
}

function listenForFiles() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    // The browser would leave the page to show the file.
    event.preventDefault();
    const slot = /** @type {any} */ (event.target).closest("[data-slot]");
    receive(event.dataTransfer.files, Number(slot?.dataset.slot === "B"));
  });
  document.addEventListener("paste", ({ clipboardData: { files } }) => {
    receive(files, nextPaste);
    nextPaste = (nextPaste + files.length) % 2;
  });
}

/** Two files fill A and B. @param {FileList} files @param {number} index Where the first one goes. */
function receive(files, index) {
  [...files].slice(0, 2).forEach((file, offset) => choose((index + offset) % 2, file, file.name));
}

/** @param {Config} known */
function showFacts(known) {
  const { name, data, image_shape: [size], latent_dim: latentDim, n_bits: colourBits, bits_per_dim: bits } = known;
  const { examples, sizes } = known;
  byId("z-length").textContent = `${latentDim} numbers`;
  for (const id of ["side", "view-side"]) byId(id).textContent = `${size}\u00a0×\u00a0${size}`;
  const facts = [
    name,
    `trained on ${data}`,
    colourBits < 8 && `${2 ** colourBits} levels of each colour`,
    bits != null && `${bits.toFixed(2)} bits per dimension`,
    `${megabytes(Object.values(sizes).reduce((sum, one) => sum + one, 0))} MB`,
  ];
  byId("facts").textContent = facts.filter(Boolean).join(" · ");
  const credits = examples.map(({ title, author, licence }) => `${title}, ${author} (${licence})`);
  byId("credits").textContent = `Pictures: ${credits.join("; ")}. ${describeTraining(examples)}`;
}

/** @param {Config["examples"]} examples */
function describeTraining(examples) {
  if (examples[0].seen === null) return "Whether the model was trained on them is not known.";
  const seen = examples.filter((example) => example.seen).map(({ title }) => title);
  return seen.length ? `The model was trained on crops of ${seen.join(", ")}.` : "The model was trained on none of them.";
}
