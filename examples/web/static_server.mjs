/**
 * A small static file server, about as unhelpful as a real one may be: it serves from a sub-path, and knows neither
 * .wasm nor .mjs.
 * @module
 */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png" };
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Where the page lies; without its decoder; where its worker finds no WebAssembly, or gives codes that are not finite. */
export const PATHS = {
  page: "/some/sub/path/",
  noDecoder: "/no-decoder/",
  noWebAssembly: "/no-webassembly/",
  notFinite: "/not-finite/",
};
/** What the worker of some of these runs first. */
const PRELUDES = {
  [PATHS.noWebAssembly]: "delete globalThis.WebAssembly;",
  [PATHS.notFinite]: `const post = self.postMessage.bind(self);
    self.postMessage = (message) => {
      if (message.result?.v) message.result.v[0] = NaN;
      post(message);
    };`,
};

/**
 * @param {string} folder
 * @param {boolean} isolated Whether pages may use threads.
 * @returns {Promise<{origin: string, close: () => void}>}
 */
export async function serve(folder, isolated) {
  const server = createServer(async ({ url }, response) => {
    try {
      const { pathname } = new URL(url, "http://localhost");
      const start = Object.values(PATHS).find((prefix) => pathname.startsWith(prefix));
      const path = normalize(pathname.slice(start.length) || "index.html");
      if (path.startsWith("..") || (start === PATHS.noDecoder && path.endsWith("decoder.onnx"))) throw new Error(path);
      const prelude = path === "model_worker.js" ? (PRELUDES[start] ?? "") : "";
      const bytes = Buffer.concat([Buffer.from(prelude), await readFile(join(folder, path))]);
      const type = TYPES[extname(path)] ?? "application/octet-stream";
      response.writeHead(200, { "Content-Type": type, ...(isolated ? ISOLATION : {}) }).end(bytes);
    } catch {
      response.writeHead(404).end("not found");
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { origin: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}
