"""The model card: what was exported, what it was measured to do, how to call it. Once as JSON, once to be read."""

from __future__ import annotations

import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from export.endpoints import Endpoint
from export.origin import Origin
from tfdecouple.config import DataConfig

JSON_NAME = "model_card.json"
TEXT_NAME = "MODEL_CARD.md"

# What is known of the rights in the images; the weights carry no licence of their own beyond it.
_LICENCES = {
    "photographs": (
        "Photographs that come with scikit-image and scikit-learn: public domain, CC0, CC BY 2.0 (china and flower, by "
        "danielbuechele), and one of the Middlebury 2014 stereo benchmark without a stated licence."
    ),
    "cifar10": "CIFAR-10: its authors state no licence; they ask to cite Krizhevsky, 2009.",
    "downsampled_imagenet": "ImageNet: its terms allow non-commercial research and education; the images have owners.",
    "lsun": "LSUN: its authors state no licence; the images have owners.",
    "celeb_a_hq": "CelebA-HQ: for non-commercial research only; the images have owners.",
}


def licence_of(data: DataConfig) -> str:
    """Returns what is known of the rights in a run's images."""
    name = data.source.removeprefix("tfds:").partition("/")[0]
    if name.startswith("folder:"):
        return "Images from a folder: their rights are known to whoever trained on them, and not recorded here."
    return _LICENCES.get(name, f"Images of the TFDS data set {name}: see its own page for their licence.")


def make_card(
    origin: Origin, endpoints: tuple[Endpoint, ...], checked_on: str, formats: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the card's values.

    Args:
        origin: of the weights.
        endpoints: all that the model has; a SavedModel may offer fewer, and some have an ONNX file.
        checked_on: which real images the gate used.
        formats: for each exported format its files and what its gate measured.
    """
    model = origin.config.model
    promised = model.alpha < 1 and all(
        trip["identical"] == trip["images"] for entry in formats.values() for trip in entry["round_trip"].values()
    )
    return {
        "name": origin.name,
        "paper": "Decoupling Global and Local Representations via Invertible Generative Flows, arXiv:2004.11820",
        **origin.metadata(),
        "architecture": {
            "image_size": model.image_size,
            "n_bits": model.n_bits,
            "latent_dim": model.latent_dim if model.has_latent else None,
            "conditioning": model.conditioning,
            "steps": model.steps,
            "hidden_channels": model.hidden_channels,
            "transform": model.transform,
            "alpha": model.alpha,
            "parameters": origin.parameters,
        },
        "data": {"source": origin.data, "licence": licence_of(origin.config.data)},
        "bits_per_dim": origin.bits_per_dim,
        "exact": {
            "promised": promised,
            "meaning": "decode(encode(image)) returns the very same pixels"
            + (
                ", of every image that was tried"
                if promised
                else "; an extreme image can be lost: see round_trip for what was tried"
            )
            + ("" if model.n_bits == 8 else f", of images whose pixels are multiples of {256 // model.n_bins}"),
        },
        "endpoints": {
            endpoint.name: {
                "summary": endpoint.summary,
                "inputs": [array.plain() for array in endpoint.inputs],
                "outputs": [array.plain() for array in endpoint.outputs],
                "onnx": f"onnx/{endpoint.onnx}.onnx" if endpoint.onnx else None,
            }
            for endpoint in endpoints
        },
        "checked": {"real_images": checked_on, "machine": _machine()},
        "formats": dict(formats),
    }


def merged(card: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Returns a card that also keeps the formats which an earlier export put into the folder and this one does not."""
    try:
        before = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))["formats"]
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    return {**card, "formats": {**before, **card["formats"]}}


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"


def card_text(card: Mapping[str, Any]) -> str:
    """Returns the card for readers, as Markdown."""
    architecture, size = card["architecture"], card["architecture"]["image_size"]
    with_z = architecture["latent_dim"] is not None
    bits = card["bits_per_dim"]
    lines = [
        f"# {card['name']}",
        "",
        "A model that decouples what an image is globally (z) from its local detail (v), exported by tfdecouple.",
        "",
        f"- **Architecture:** {size} x {size} RGB, {architecture['n_bits']} bits, "
        + (f"z of {architecture['latent_dim']} numbers, " if with_z else "no z (an unconditional flow), ")
        + f"v of the image's size, {architecture['parameters']:,} parameters, alpha {architecture['alpha']}",
        f"- **Weights:** run {card['run']}, step {card['step']}" + (", averaged" if card["averaged"] == "true" else ""),
        f"- **Data:** {card['data']['source']}. {card['data']['licence']}",
        f"- **Bits per dimension:** {_bits(bits)}",
        f"- **Exactness:** {card['exact']['meaning']}. Promised for float32 files, within one runtime.",
        f"- **Checked** on {card['checked']['real_images']}; {card['checked']['machine']}",
        "",
        "## Endpoints",
        "",
        "The batch is the first axis of every array. Noise is an input, so that the caller decides what is random.",
        "",
        "| endpoint | takes | returns | ONNX |",
        "| --- | --- | --- | --- |",
    ]
    for name, endpoint in card["endpoints"].items():
        takes = ", ".join(map(_array, endpoint["inputs"]))
        returns = ", ".join(map(_array, endpoint["outputs"]))
        lines.append(f"| `{name}` | {takes} | {returns} | {endpoint['onnx'] or ''} |")
    lines += ["", "## Measured before publication", ""]
    for name, entry in card["formats"].items():
        lines += _measured(name, entry)
    lines += ["## Calling it", "", *_calls(card)]
    return "\n".join(lines) + "\n"


def _bits(bits: Mapping[str, Any] | None) -> str:
    if not bits:
        return "not recorded for these weights"
    parts = []
    if "test" in bits:
        parts.append(f"{bits['test']:.3f} on {bits['test_images']} test images")
    if "validation" in bits:
        parts.append(f"{bits['validation']:.3f} on validation images")
    return ", ".join(parts) + " (ELBO)"


def _array(array: Mapping[str, Any]) -> str:
    return f"{array['name']} {array['dtype']} [{', '.join(map(str, array['shape']))}]"


def _measured(name: str, entry: Mapping[str, Any]) -> list[str]:
    lines = [f"### {name}", "", f"From run {entry['run']}, step {entry['step']}: {', '.join(entry['files'])}", ""]
    if "signatures" in entry:
        lines += [f"Signatures: {', '.join(entry['signatures'])}", ""]
    lines += ["| endpoint | output | largest difference from the Keras model | mean |", "| --- | --- | --- | --- |"]
    for endpoint, outputs in entry["parity"].items():
        for output, figures in outputs.items():
            if "differing" in figures:
                unit = f" levels, {figures['differing']:.4%} of subpixels differ"
                lines.append(f"| {endpoint} | {output} | {figures['max']:.0f}{unit} | {figures['mean']:.2g} levels |")
            else:
                lines.append(
                    f"| {endpoint} | {output} | {figures['max']:.1e} of the largest value | {figures['mean']:.1e} |"
                )
    trips = ", ".join(f"{kind} {e['identical']} of {e['images']}" for kind, e in entry["round_trip"].items())
    lines += ["", f"Images identical after encode and decode through these files alone: {trips}.", ""]
    times = [
        f"{endpoint} {', '.join(f'{ms:.3g} ms at batch {batch}' for batch, ms in batches.items())}"
        for endpoint, batches in entry["latency_ms"].items()
    ]
    lines += [f"Median time of a call: {'; '.join(times)}.", ""]
    for precision, variant in entry.get("variants", {}).items():
        own, foreign = variant["round_trip"], variant["decoding_float32_codes"]
        lines += [
            f"The {precision} files ({sum(variant['bytes'].values()) / 1e6:.1f} MB in all) encode and decode "
            f"{variant['images']} images with {own['differing']:.4%} of the subpixels wrong, by up to {own['max']:.0f} "
            f"levels; given the codes of the float32 encoder, the decoder is off by {foreign['mean']:.2g} levels in "
            f"the mean and up to {foreign['max']:.0f}. Codes of one precision are not for the decoder of another.",
            "",
        ]
    return lines


def _calls(card: Mapping[str, Any]) -> list[str]:
    size, name = card["architecture"]["image_size"], card["name"]
    with_z = card["architecture"]["latent_dim"] is not None
    codes = "z, v" if with_z else "(v,)"
    feeds = '{"z": z, "v": v}' if with_z else '{"v": v}'
    js_feeds = "{ z, v }" if with_z else "{ v }"
    blank = f"[[{', '.join(['[0, 0, 0]'] * 2)}, ...], ...]"
    return [
        "Python, with numpy and onnxruntime:",
        "",
        "```python",
        "import numpy as np, onnxruntime",
        'encoder = onnxruntime.InferenceSession("onnx/encoder.onnx")',
        'decoder = onnxruntime.InferenceSession("onnx/decoder.onnx")',
        f"images = np.zeros((1, {size}, {size}, 3), np.uint8)",
        f'{codes} = encoder.run(None, {{"images": images}})',
        f"same = decoder.run(None, {feeds})[0]",
        "```",
        "",
        "curl, with TensorFlow Serving (`docker compose up` in this folder):",
        "",
        "```sh",
        f'curl -d \'{{"signature_name": "encode", "instances": [{{"images": {blank}}}]}}\' \\',
        f"    localhost:8501/v1/models/{name}:predict",
        "```",
        "",
        "JavaScript, with onnxruntime-node, or onnxruntime-web in a browser:",
        "",
        "```js",
        'import * as ort from "onnxruntime-node";',
        'const encoder = await ort.InferenceSession.create("onnx/encoder.onnx");',
        'const decoder = await ort.InferenceSession.create("onnx/decoder.onnx");',
        f'const images = new ort.Tensor("uint8", new Uint8Array({size * size * 3}), [1, {size}, {size}, 3]);',
        f"const {js_feeds} = await encoder.run({{ images }});",
        f"const same = (await decoder.run({js_feeds})).images;",
        "```",
    ]
