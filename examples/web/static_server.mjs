/**
 * Serves the page in the way that is hardest for it: from a sub-path, and without MIME types for .wasm and .mjs files, as
 * some real servers do.
 * @module
 */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const MIME_TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png" };
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** The paths under which the server offers the page: once as it is, and three times with a fault. */
export const PATHS = {
  page: "/some/sub/path/",
  noDecoder: "/no-decoder/",
  noWebAssembly: "/no-webassembly/",
  notFinite: "/not-finite/",
};
/** Code that causes a fault. The server puts it in front of the worker's script. */
const FAULTS = {
  [PATHS.noWebAssembly]: "delete globalThis.WebAssembly;",
  [PATHS.notFinite]: `const post = self.postMessage.bind(self);
    self.postMessage = (message) => {
      if (message.result?.v) message.result.v[0] = NaN;
      post(message);
    };`,
};

/**
 * Starts the server on a free port.
 * @param {string} folder The folder of the page.
 * @param {boolean} isolated Whether the server sends the headers that let the page use threads.
 * @returns {Promise<{origin: string, close: () => void}>} The URL without a path, and a function that stops the server.
 */
export async function startServer(folder, isolated) {
  const server = createServer(async ({ url }, response) => {
    try {
      const { pathname } = new URL(url, "http://localhost");
      const start = Object.values(PATHS).find((prefix) => pathname.startsWith(prefix));
      const path = normalize(pathname.slice(start.length) || "index.html");
      if (path.startsWith("..") || (start === PATHS.noDecoder && path.endsWith("decoder.onnx"))) throw new Error(path);
      const fault = path === "model_worker.js" ? (FAULTS[start] ?? "") : "";
      const bytes = Buffer.concat([Buffer.from(fault), await readFile(join(folder, path))]);
      const type = MIME_TYPES[extname(path)] ?? "application/octet-stream";
      response.writeHead(200, { "Content-Type": type, ...(isolated ? ISOLATION : {}) }).end(bytes);
    } catch {
      response.writeHead(404).end("not found");
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { origin: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}
