"""The writer of the web page: a folder with the page and the model's ONNX files, for any server of static files."""

import io
import json
import pathlib
import shutil
import subprocess

from PIL import Image

from export.exported_model import ExportedModel
from export.formats.onnx import write_onnx_files
from export.provenance import Provenance
from tfdecouple.config import ModelConfig
from tfdecouple.config.shapes import is_square_of_rgb
from tfdecouple.data.image_formats import describe_images
from tfdecouple.data.sample_images import PHOTOGRAPHS, Photograph, open_photograph
from tfdecouple.errors import UserError
from tfdecouple.storage.files import Facts

PAGE = pathlib.Path(__file__).parents[1] / "page"
# The ONNX files that the web page runs in the browser.
PAGE_MODELS = ("encoder", "decoder", "sampler")
RUNTIME_VERSION = "1.30.0"
# Files of the package onnxruntime-web that the page loads: for the processor, and with --web-gpu for graphics cards.
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GPU_FILES = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
# The longer side of an example picture, in pixels.
EXAMPLE_SIDE = 640
# The largest number of directions in z for which the page has a slider.
_MOST_SLIDERS = 100
# {title: photograph}: the page's example pictures, whose licences allow publication. The page opens with the first two.
EXAMPLES = {
    "Chelsea the cat": PHOTOGRAPHS["chelsea"],
    "Astronaut": PHOTOGRAPHS["astronaut"],
    "Coffee": PHOTOGRAPHS["coffee"],
    "Rocket": PHOTOGRAPHS["rocket"],
    "Retina": Photograph("retina", "scikit-image", "skimage/data/retina.jpg", "Mikael Häggström", "CC0"),
    "Deep field": Photograph(
        "hubble_deep_field", "scikit-image", "skimage/data/hubble_deep_field.jpg", "NASA", "public domain"
    ),
}


def write_web_page(
    exported: ExportedModel, provenance: Provenance, folder: pathlib.Path, runtime: pathlib.Path, web_gpu: bool
) -> dict[str, str]:
    """Writes the web page, with ONNX files and files of onnxruntime-web from `runtime`, into the new folder `folder`.

    With `web_gpu` the page also gets the runtime for graphics cards. Returns {endpoint: name of its ONNX file}.
    """
    # Node.js alone, in tests and in an example, needs package.json.
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("package.json"))
    (folder / "model").mkdir()
    (folder / "runtime").mkdir()
    names = write_onnx_files(exported, provenance, folder / "model", PAGE_MODELS)
    for name in RUNTIME_FILES + (GPU_FILES if web_gpu else ()):
        shutil.copyfile(runtime / name, folder / "runtime" / name)
    for path, content in make_example_files().items():
        (folder / path).write_bytes(content)
    loaded = [*(f"model/{name}.onnx" for name in names.values()), *(f"runtime/{name}" for name in RUNTIME_FILES)]
    sizes = {path: (folder / path).stat().st_size for path in loaded}
    facts = {**describe_model(provenance), "web_gpu": web_gpu, "sizes": sizes}
    (folder / "model" / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return names


def require_page_support(model: ModelConfig) -> None:
    """Raises UserError unless the web page can run the model: it needs z, square RGB images, and a z without labels."""
    if not model.has_latent:
        raise UserError("the web page switches z, and this model has none; leave the format web out")
    if not is_square_of_rgb(model.image_shape):
        raise UserError(
            f"the web page needs square RGB images, and this model has {describe_images(model.image_shape)}; leave "
            "the format web out"
        )
    if model.has_label_codes:
        raise UserError(
            "the web page has no labels, and this model encodes an image by its label; leave the format web out, or "
            "train a model whose prior alone knows labels (model.prior=flow)"
        )


def describe_model(provenance: Provenance) -> Facts:
    """Returns facts about the model for the web page, as a dict: shape, bits/dim, labels, directions in z, examples."""
    bits, model, found = provenance.bits_per_dim or {}, provenance.config.model, provenance.directions
    sliders = [
        {"name": entry.name, "vector": entry.vector.tolist(), "description": entry.describe_accuracy()}
        for entry in ([found[name] for name in found.names[:_MOST_SLIDERS]] if found else ())
    ]
    data = provenance.training_data
    seen = data.photographs if data is not None and data.source == "photographs" else None
    return {
        **({"directions": sliders} if sliders else {}),
        **({"label_shares": list(model.label_shares)} if model.has_labels else {}),
        "name": provenance.name,
        "image_shape": list(model.image_shape),
        "n_bits": model.n_bits,
        "centre_crop": provenance.crop,
        "latent_dim": model.latent_dim,
        "colours": model.colour_numbers,
        "bits_per_dim": bits.get("test", bits.get("validation")),
        "data": provenance.data,
        "examples": [
            {
                "file": f"model/{photograph.name}.jpg",
                "title": title,
                "author": photograph.author,
                "licence": photograph.licence,
                # Whether the model was trained on it; None: unknown.
                "seen": None if seen is None else photograph.name in seen,
            }
            for title, photograph in EXAMPLES.items()
        ],
    }


def make_example_files() -> dict[str, bytes]:
    """Returns the example photographs as {path in the page's folder: bytes of a JPEG file}."""
    files = {}
    for photograph in EXAMPLES.values():
        image, buffer = open_photograph(photograph), io.BytesIO()
        image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=90)
        files[f"model/{photograph.name}.jpg"] = buffer.getvalue()
    return files


def find_web_runtime(chosen: pathlib.Path | None, scratch: pathlib.Path, web_gpu: bool) -> pathlib.Path:
    """Returns the folder with the files of onnxruntime-web that the web page needs; UserError without them.

    `chosen` is the folder that the user named; if it is None, npm fetches the files into `scratch`.
    """
    needed = RUNTIME_FILES + (GPU_FILES if web_gpu else ())
    if chosen is not None:
        for folder in (chosen, chosen / "dist", chosen / "node_modules" / "onnxruntime-web" / "dist"):
            if all((folder / name).is_file() for name in needed):
                return folder
        raise UserError(
            f"{chosen} does not hold all of {', '.join(needed)}; give the folder of the npm package onnxruntime-web"
        )
    package = f"onnxruntime-web@{RUNTIME_VERSION}"
    advice = f"install Node.js, or fetch the npm package {package} yourself and pass its folder with --web-runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the web page needs {package}, and there is no npm here; {advice}")
    folders = ["--prefix", str(scratch), "--cache", str(scratch / "cache")]
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *folders, package]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise UserError(f"npm cannot fetch {package} ({lines[0][:200] if lines else 'no message'}); {advice}")
    return find_web_runtime(scratch, scratch, web_gpu)
