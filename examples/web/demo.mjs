/**
 * Puts the page, the model of this folder and the runtime into one folder, for any server of static files.
 *
 *     node demo.mjs [FOLDER]
 *
 * @module
 */

import { cp, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const RUNTIME = join(HERE, "node_modules", "onnxruntime-web", "dist");
const RUNTIME_FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

const folder = process.argv[2] ?? join(HERE, "site");
try {
  await mkdir(join(folder, "runtime"), { recursive: true });
  await cp(join(HERE, "..", "..", "export", "page"), folder, { recursive: true });
  await cp(join(HERE, "model"), join(folder, "model"), { recursive: true });
  for (const name of RUNTIME_FILES) await cp(join(RUNTIME, name), join(folder, "runtime", name));
  console.log(`${folder} is ready; serve it, for example with: python3 -m http.server -d ${folder}`);
} catch (error) {
  console.error(`error: ${error.message}${error.message.includes("onnxruntime-web") ? "; run npm install first" : ""}`);
  process.exit(1);
}
