/**
 * A small static file server, about as unhelpful as a real one may be: it serves from a sub-path, and knows neither
 * .wasm nor .mjs.
 * @module
 */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".png": "image/png",
};
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Where the page lies. */
export const SUB_PATH = "/some/sub/path/";
/** Where it lies without its decoder. */
export const NO_DECODER_PATH = "/no-decoder/";
/** Where its worker finds no WebAssembly. */
export const NO_WEBASSEMBLY_PATH = "/no-webassembly/";
/** Where its worker gives codes that are not finite. */
export const NOT_FINITE_PATH = "/not-finite/";

/** Where its graphics card is the processor in disguise, which fails when it is asked for samples. */
export const DISGUISED_CARD_PATH = "/disguised-card/";

/** What the worker of some of these runs first. */
const PRELUDES = {
  [NO_WEBASSEMBLY_PATH]: "delete globalThis.WebAssembly;",
  [NOT_FINITE_PATH]: `const post = self.postMessage.bind(self);
    self.postMessage = (message, buffers) => {
      if (message.result?.v) message.result.v[0] = NaN;
      post(message, buffers);
    };`,
};
const PATHS = [SUB_PATH, NO_DECODER_PATH, NO_WEBASSEMBLY_PATH, NOT_FINITE_PATH, DISGUISED_CARD_PATH];
/** What is replaced in the worker of the disguised card. */
const DISGUISE = [
  [/webgpu: \[.*\]/, "webgpu: null"],
  ["FILES[provider]", "FILES.wasm"],
  ["executionProviders: [provider]", 'executionProviders: ["wasm"]'],
  ["await TASKS[message.task](message)", 'await (provider === "webgpu" ? onCard : TASKS[message.task])(message)'],
  [/$/, 'function onCard(message) { if (message.task === "sample") throw Error("lost"); return TASKS[message.task](message); }'],
];

/**
 * @param {string} folder
 * @param {boolean} isolated Whether pages may use threads.
 * @returns {Promise<{origin: string, close: () => void}>}
 */
export async function serve(folder, isolated) {
  const server = createServer((request, response) => answer(folder, isolated, request, response));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { origin: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/** @param {string} folder @param {boolean} isolated */
async function answer(folder, isolated, request, response) {
  try {
    const { start, path } = parsed(new URL(request.url, "http://localhost").pathname);
    const bytes = await contentOf(folder, start, path);
    const type = TYPES[extname(path)] ?? "application/octet-stream";
    const headers = { "Content-Type": type, "Content-Length": bytes.length, ...(isolated ? ISOLATION : {}) };
    response.writeHead(200, headers).end(bytes);
  } catch {
    response.writeHead(404, { "Content-Type": "text/plain" }).end("not found");
  }
}

/** @param {string} pathname @returns {{start: string, path: string}} */
function parsed(pathname) {
  const start = PATHS.find((prefix) => pathname.startsWith(prefix));
  if (!start) throw new Error("no such file");
  const path = normalize(decodeURIComponent(pathname.slice(start.length)) || "index.html");
  if (path.startsWith("..")) throw new Error("outside of the folder");
  return { start, path };
}

/** @param {string} folder @param {string} start @param {string} path @returns {Promise<Buffer>} */
async function contentOf(folder, start, path) {
  if (start === NO_DECODER_PATH && path.endsWith("decoder.onnx")) throw new Error("no such file");
  const bytes = await readFile(join(folder, path));
  if (path !== "worker.js") return bytes;
  if (start === DISGUISED_CARD_PATH) return Buffer.from(disguised(bytes.toString()));
  return Buffer.concat([Buffer.from(PRELUDES[start] ?? ""), bytes]);
}

/** @param {string} worker @returns {string} */
function disguised(worker) {
  for (const [part, other] of DISGUISE) {
    const changed = worker.replace(part, () => other);
    if (changed === worker) throw new Error(`the worker has no ${part}`);
    worker = changed;
  }
  return worker;
}
