/**
 * Connects the parts of the page: loads the model, reads the chosen pictures, and hands them to the sections.
 * @module
 */

import { DirectionsSection } from "./directions_section.js";
import { readSquareImage, roundToBins } from "./image_files.js";
import { InterpolationSection } from "./interpolation_section.js";
import { Model } from "./model.js";
import { LoadBar, formatMegabytes, getElement } from "./page_elements.js";
import { Photographs } from "./photographs.js";
import { PictureChooser, fetchBlob } from "./picture_chooser.js";
import { SamplingSection } from "./sampling_section.js";
import { SwapGrid } from "./swap_grid.js";

/** @typedef {import("./model.js").Config} Config */

const SAMPLER_FILE = "model/sampler.onnx";
const LETTERS = /** @type {const} */ (["A", "B"]);

const loadBar = new LoadBar("load", "model");
const model = new Model((progress) =>
  (progress.file === SAMPLER_FILE ? samplingSection.loadBar : loadBar).showProgress(progress),
);
/** @type {Promise<Config>} */
const configPromise = fetchBlob("model/config.json").then(async (blob) => JSON.parse(await blob.text()));
const photographs = new Photographs(model, configPromise);
const samplingSection = new SamplingSection(model);
const directionsSection = new DirectionsSection(model, photographs);
const interpolationSection = new InterpolationSection(model, photographs);
const swapGrid = new SwapGrid(model, photographs, (codes, decoded, milliseconds) => {
  interpolationSection.setCodes(codes, decoded, milliseconds);
  directionsSection.setCodes(codes);
});
const choosers = LETTERS.map(
  (letter, index) => new PictureChooser(letter, (blob, name) => choosePicture(index, blob, name)),
);
/** How many pictures were chosen for A and for B. A file is dropped if a newer one was chosen while it was read. */
const choiceCounts = [0, 0];
/** The picture that the next pasted file replaces: 0 for A, 1 for B. */
let nextPasteIndex = 0;

const ready = model.load(configPromise);

/**
 * The model's functions, for tests and for scripts. A batch of images, codes or noise is one flat array, in which one
 * image follows the other.
 * @namespace
 * @property {Promise<void>} ready Resolves when the model is loaded, or rejects with the error that the page shows.
 * @property {(images: Uint8Array, count: number) => Promise<{z: Float32Array, v: Float32Array}>} encode
 *   Returns the codes of `count` RGB images of the model's size.
 * @property {(z: Float32Array, v: Float32Array, count: number) => Promise<Uint8Array>} decode
 *   Returns `count` RGB images.
 * @property {(zNoise: Float32Array, vNoise: Float32Array, temperature: Float32Array, count: number,
 *   labels?: Int32Array) => Promise<Uint8Array>} sample
 *   Returns `count` new RGB images, made of standard normal noise. A model whose config.json has `label_shares` needs
 *   `labels`.
 * @property {() => "wasm" | "webgpu"} provider Returns what runs the model: WebAssembly, or the graphics card.
 */
/** @type {any} */ (window).tfdecouple = {
  ready,
  encode: model.encode.bind(model),
  decode: model.decode.bind(model),
  sample: model.sample.bind(model),
  provider: () => model.provider,
};

startPage();

/** Shows the examples, then waits for the model and lets the reader use it. */
async function startPage() {
  getElement("choosers").prepend(...choosers.map((chooser) => chooser.element));
  listenForFiles();
  try {
    // The example pictures need only config.json, so the page shows them while the model is still loading.
    const config = await configPromise;
    showConfig(config);
    await ready;
    getElement("load").hidden = true;
    swapGrid.enable();
    samplingSection.enable(config);
    model.onDeviceChange = () => (getElement("device").textContent = `runs on ${model.describeDevice()}`);
    model.onDeviceChange();
    await model.tryWebGpu();
  } catch (error) {
    getElement("load").hidden = true;
    const problem = `The model could not be loaded. ${error.message} Reload the page to try again.`;
    getElement("load-error").textContent = problem;
  }
}

/** Shows everything that depends on config.json alone. @param {Config} config */
function showConfig(config) {
  const { [SAMPLER_FILE]: samplerSize, ...modelSizes } = config.sizes;
  loadBar.setSizes(modelSizes);
  samplingSection.loadBar.setSizes({ [SAMPLER_FILE]: samplerSize });
  directionsSection.addSliders(config.directions ?? []);
  showModelFacts(config);
  swapGrid.labelPictures(config.colours > 0);
  choosers.forEach((chooser, index) => {
    chooser.addExamples(config.examples);
    choosePicture(index, fetchBlob(config.examples[index].file), config.examples[index].title);
  });
}

/**
 * Reads a picture and shows it as A or B, unless the reader chooses another picture meanwhile.
 * @param {number} index The picture to replace: 0 for A, 1 for B.
 * @param {Blob | Promise<Blob>} blob
 * @param {string} name What the page calls the picture.
 */
async function choosePicture(index, blob, name) {
  const choice = ++choiceCounts[index];
  try {
    const { image_shape: [size], centre_crop: crop, n_bits: bits } = await configPromise;
    // Decoding gives rounded values, so an exact model reproduces these pixels and not those of the file.
    const pixels = roundToBins(await readSquareImage(await blob, name, size, crop), bits);
    if (choice !== choiceCounts[index]) return;
    photographs.setFile(index, await blob, name);
    choosers[index].markChosen(name);
    swapGrid.setImage(index, pixels);
  } catch (error) {
    if (choice === choiceCounts[index]) choosers[index].showProblem(error.message);
  }
}

/** Lets the reader drop files on the page, and paste them. */
function listenForFiles() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    // Without this the browser leaves the page and opens the dropped file.
    event.preventDefault();
    const slot = /** @type {any} */ (event.target).closest("[data-slot]");
    chooseFiles(event.dataTransfer.files, Number(slot?.dataset.slot === "B"));
  });
  document.addEventListener("paste", ({ clipboardData: { files } }) => {
    chooseFiles(files, nextPasteIndex);
    nextPasteIndex = (nextPasteIndex + files.length) % 2;
  });
}

/**
 * Replaces picture A or B by one file, or both pictures by two files.
 * @param {FileList} files
 * @param {number} index The picture that the first file replaces: 0 for A, 1 for B.
 */
function chooseFiles(files, index) {
  [...files].slice(0, 2).forEach((file, offset) => choosePicture((index + offset) % 2, file, file.name));
}

/** Writes the model's properties and the authors of the example pictures into the page. @param {Config} config */
function showModelFacts(config) {
  const { name, data, image_shape: [size], latent_dim: latentDim, n_bits: colourBits, bits_per_dim: bits } = config;
  const { examples, sizes } = config;
  getElement("z-length").textContent = `${latentDim} numbers`;
  for (const id of ["side", "view-side"]) getElement(id).textContent = `${size}\u00a0×\u00a0${size}`;
  const facts = [
    name,
    `trained on ${data}`,
    colourBits < 8 && `${2 ** colourBits} levels of each colour`,
    bits != null && `${bits.toFixed(2)} bits per dimension`,
    `${formatMegabytes(Object.values(sizes).reduce((sum, one) => sum + one, 0))} MB`,
  ];
  getElement("facts").textContent = facts.filter(Boolean).join(" · ");
  const credits = examples.map(({ title, author, licence }) => `${title}, ${author} (${licence})`);
  getElement("credits").textContent = `Pictures: ${credits.join("; ")}. ${describeTraining(examples)}`;
}

/** @param {Config["examples"]} examples @returns {string} A sentence that names the examples among the training images. */
function describeTraining(examples) {
  if (examples[0].seen === null) return "Whether the model was trained on these pictures is not known.";
  const seen = examples.filter((example) => example.seen).map(({ title }) => title);
  return seen.length
    ? `The model was trained on crops of ${seen.join(", ")}.`
    : "The model was trained on none of these pictures.";
}
