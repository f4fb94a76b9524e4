"""The model card: what was exported, what it was measured to do, how to call it. Once as JSON, once to be read."""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from export.endpoints import Endpoint
from export.formats.file_formats import FILE_FORMATS, file_format
from export.manifest import JSON_NAME
from export.origin import Origin
from tfdecouple.config.shapes import PILLOW_MODES, Shape, describe_channels
from tfdecouple.data.sources import rights_in
from tfdecouple.runs.publishing import make_card_head
from tfdecouple.storage.files import read_json

TEXT_NAME = "MODEL_CARD.md"

# What makes each runtime compute in float32, and what else the codes hang on.
_EXACT_RUNTIMES = (
    "ONNX Runtime on a CPU: nothing.",
    "ONNX Runtime on NVIDIA GPUs: the option `use_tf32: 0` of the CUDA provider.",
    "OpenVINO: `INFERENCE_PRECISION_HINT: f32`; a processor with AMX computes in bfloat16 otherwise.",
    "TensorFlow and TensorFlow Serving on NVIDIA GPUs: `NVIDIA_TF32_OVERRIDE=0` in the environment "
    "(`docker compose up tf-serving-gpu` sets it).",
    "All: decode with the runtime, the device and the precision that encoded.",
)

# By which the files of an earlier export are known to be of the same model.
_SAME = ("name", "config_sha256")

# How a page can be checked, by the keys of its entry's `checked`.
_PAGE_CHECKS = {"python": "in Python", "node": "in Node", "browser": "in a browser"}


def licence_of(origin: Origin) -> str:
    """Returns what is known of the rights in a run's images."""
    if not origin.images_known:
        return "No licence is claimed: the weights do not say what images they were trained on."
    return rights_in(origin.config.data)


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
    return {
        "name": origin.name,
        "paper": "Decoupling Global and Local Representations via Invertible Generative Flows, arXiv:2004.11820",
        **origin.metadata(),
        "architecture": {
            "image_shape": list(model.image_shape),
            "n_bits": model.n_bits,
            "latent_dim": model.latent_dim if model.has_latent else None,
            "conditioning": model.conditioning,
            "dequantization": model.dequantization,
            "prior": model.prior if model.has_latent else None,
            "labels": list(origin.label_names),
            "steps": model.steps,
            "hidden_channels": model.hidden_channels,
            "transform": model.transform,
            "alpha": model.bound_of_scales,
            "parameters": origin.parameters,
        },
        "data": {"source": origin.data, "licence": licence_of(origin)},
        "bits_per_dim": origin.bits_per_dim,
        "exact": exactness(model.bound_of_scales, model.n_bits, formats),
        "endpoints": _with_onnx(
            {
                endpoint.name: {
                    "summary": endpoint.summary,
                    "inputs": [array.plain() for array in endpoint.inputs],
                    "outputs": [array.plain() for array in endpoint.outputs],
                    "file": endpoint.onnx,
                }
                for endpoint in endpoints
            },
            formats,
        ),
        "checked": {"real_images": checked_on, "machine": _machine()},
        "formats": dict(formats),
    }


def _with_onnx(endpoints: Mapping[str, Any], formats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns endpoints that name their ONNX files where there are such; `file` is the name without suffix."""
    there = "onnx" in formats
    return {
        name: {**one, "onnx": f"onnx/{one['file']}.onnx" if there and one["file"] else None}
        for name, one in endpoints.items()
    }


def exactness(alpha: float | None, n_bits: int, formats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns whether the very same pixels are promised, and in words what was tried, by the figures of all formats.

    Promised is no more than images like the real ones that were tried, and that only where all came back: of those that
    no camera takes a few kinds are tried, and whatever alpha is there may be others that are lost.

    Args:
        alpha: of the model; at 1 its scales have no lower bound, and nothing is promised. None where it has none.
        n_bits: of the model.
        formats: as in the card.
    """
    tried = {name: entry["round_trip"] for name, entry in formats.items() if entry.get("round_trip")}
    lost = sorted({kind for trips in tried.values() for kind, e in trips.items() if e["identical"] < e["images"]})
    promised = bool(tried) and not lost and (alpha is None or alpha < 1)
    if not tried:
        text = "not measured: decode(encode(image)) was tried with none of these files."
    elif lost:
        kept = "; ".join(f"{name} {sum(e['identical'] for e in trips.values())}" for name, trips in tried.items())
        count = max(sum(e["images"] for e in trips.values()) for trips in tried.values())
        real = "" if "real" in lost else "; all real ones came back"
        text = (
            f"an image can be lost, here of the kinds {', '.join(lost)}: of {count} images decode(encode(image)) "
            f"returned the very same pixels of so many: {kept} (each kind below){real}. Not promised."
        )
    else:
        text = (
            "decode(encode(image)) returned the very same pixels of every image that was tried: "
            f"{'; '.join(_counts(tried))}. "
        )
        text += (
            "Promised for images like the real ones, of float32 files, within one runtime that computes in float32; an "
            "image that no camera takes can be lost."
            if promised
            else f"Not promised for others: alpha is {alpha:g}, with which scales have no lower bound."
        )
    if n_bits < 8:
        text += f" Images are those whose pixels are multiples of {256 // 2**n_bits}."
    for name, entry in formats.items():
        if "round_trip" not in entry:
            text += f" {name}: {_page_checks(entry)}."
        elif tried and not entry["round_trip"]:
            text += f" {name}: not tried, since its endpoints do not both encode and decode."
    return {"promised": promised, "meaning": text}


def _counts(tried: Mapping[str, Any]) -> list[str]:
    """How many images of each kind were tried, and by which formats, those together that tried as many."""
    formats: dict[str, list[str]] = {}
    for name, trips in tried.items():
        said = ", ".join(f"{trip['images']} {kind}" for kind, trip in trips.items())
        formats.setdefault(said, []).append(name)
    return [f"{said} by {', '.join(names)}" for said, names in formats.items()]


def _of_the_model(trip: Mapping[str, int]) -> str:
    """What the model itself does with images of which it loses some, or might, where the gate asked it."""
    if trip.get("model", trip["images"]) == trip["images"]:
        return ""
    return f" (the model itself gives back {trip['model_gives_back']}, surely keeps {trip['model']})"


def _page_checks(entry: Mapping[str, Any]) -> str:
    checked = entry.get("checked", {})
    return "; ".join(f"{how}: {checked.get(key) or 'not run'}" for key, how in _PAGE_CHECKS.items())


def merged(card: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Returns a card of all that lies in the folder: also of what earlier exports put there and this one does not.

    What was exported under another name or of another config is no format of this model: it is under "others".
    """
    try:
        before = read_json(folder / JSON_NAME, 2**24)
        there = {
            name: entry
            for name, entry in {**before.get("others", {}), **before["formats"]}.items()
            if name not in card["formats"] and all((folder / file).exists() for file in entry["files"])
        }
        kept = {name: entry for name, entry in there.items() if all(entry.get(key) == card[key] for key in _SAME)}
        others = {name: entry for name, entry in there.items() if name not in kept}
        formats = {**kept, **card["formats"]}
        exact = exactness(card["architecture"]["alpha"], card["architecture"]["n_bits"], formats)
        named = _with_onnx(card["endpoints"], formats)
        whole = {**card, "endpoints": named, "formats": formats, "exact": exact}
        whole |= {"others": others} if others else {}
        # What cannot be told was damaged.
        card_text(whole)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return dict(card)
    return whole


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"


def card_text(card: Mapping[str, Any]) -> str:
    """Returns the card for readers, as Markdown."""
    architecture, shape = card["architecture"], card["architecture"]["image_shape"]
    latent_dim = architecture["latent_dim"]
    rows = {
        "architecture": f"{_sides(shape)} {_channels(shape)}, {architecture['n_bits']} bits, "
        + ("no z (an unconditional flow), " if latent_dim is None else f"z of {latent_dim} numbers, ")
        + f"v of the image's size, {architecture['parameters']:,} parameters, "
        + ("additive couplings" if architecture["alpha"] is None else f"alpha {architecture['alpha']}")
        + (
            ", u in the bins of pixels drawn from a learned q(u|x) (u_noise of `score` is standard normal)"
            if architecture.get("dequantization") == "flow"
            else ""
        )
        + _labels(architecture),
        "weights": f"run {card['run']}, step {card['step']}" + (", averaged" if card["averaged"] == "true" else ""),
        "trained on": card["data"]["source"],
        "rights in the images": card["data"]["licence"],
        "bits per dimension": _bits(card["bits_per_dim"]),
        "exactness": card["exact"]["meaning"],
        "images": f"turned upright as their EXIF data say, {_kept(shape)}, cropped to the {card['crop']}, resized to "
        f"{_sides(shape)} {card['resize']}",
        "checked": f"on {card['checked']['real_images']}; {card['checked']['machine']}",
    }
    lines = [
        *make_card_head(card["name"], shape, architecture["n_bits"], latent_dim, rows),
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
    for name, entry in card.get("others", {}).items():
        lines += [
            f"### {name}, of another model",
            "",
            f"From run {entry['run']}, step {entry['step']}, exported as {entry.get('name', 'what is not known')}: "
            f"{', '.join(entry['files'])}. What this card promises and calls is not of these files.",
            "",
        ]
    lines += ["## To be exact", "", "Each runtime must compute in float32:", ""]
    lines += [f"- {line}" for line in _EXACT_RUNTIMES]
    lines += ["", "## Calling it", "", *_calls(card)]
    return "\n".join(lines) + "\n"


def _sides(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"


def _channels(shape: Shape) -> str:
    return describe_channels(shape[-1]) if shape[-1] in PILLOW_MODES else f"with {describe_channels(shape[-1])}"


def _kept(shape: Shape) -> str:
    """What becomes of the colours and of the transparency of an image file."""
    said = describe_channels(shape[-1])
    return f"{said} without transparency" if shape[-1] in PILLOW_MODES else f"with exactly {said}"


def _labels(architecture: Mapping[str, Any]) -> str:
    """What is said of the labels that a model knows; "" of one that knows none."""
    names = architecture.get("labels") or []
    if not names:
        return ""
    what = "z a function of the label" if architecture["prior"] == "classes" else "a prior over z with a part each"
    return f"; {len(names)} labels, {what}: {', '.join(f'{number} {name}' for number, name in enumerate(names))}"


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
    if "parity" not in entry:
        return [*lines, f"Checked {_page_checks(entry)}.", ""]
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
    trips = ", ".join(
        f"{kind} {e['identical']} of {e['images']}{_of_the_model(e)}" for kind, e in entry["round_trip"].items()
    )
    said = f"Images identical after encode and decode through these files alone: {trips}."
    if any(map(_of_the_model, entry["round_trip"].values())):
        said += " Surely kept is what comes back also from codes moved by a millionth; the rest the files may lose."
    lines += ["", *([said, ""] if trips else [])]
    if "client" in entry:
        calls = ", ".join(f"`{name}`" for name in entry["client"] if " " not in name)
        lines += [f"{calls} of `client.py` answered alike in a process of its own.", ""]
    times = [
        f"{endpoint} {', '.join(f'{ms:.3g} ms at batch {batch}' for batch, ms in batches.items())}"
        for endpoint, batches in entry["latency_ms"].items()
    ]
    lines += [f"Median time of a call: {'; '.join(times)}.", ""] if times else []
    return lines


def _calls(card: Mapping[str, Any]) -> list[str]:
    """How to call the formats that are there, each a block that runs in the export's folder."""
    name, formats = card["name"], card["formats"]
    lines = []
    for one in (file_format(kind) for kind in FILE_FORMATS if kind in formats):
        lines += one.calls(card["endpoints"])
    if "savedmodel" in formats:
        signature = formats["savedmodel"].get("signatures", ["encode"])[0]
        values = ", ".join(map(_example, card["endpoints"][signature]["inputs"]))
        lines += [
            "curl, with TensorFlow Serving (`docker compose up` in this folder):",
            "",
            "```sh",
            f'python3 -c \'import json; print(json.dumps({{"signature_name": "{signature}", '
            f'"instances": [{{{values}}}]}}))\' |',
            f"    curl --data @- http://localhost:8501/v1/models/{name}:predict",
            "```",
            "",
        ]
    if "web" in formats:
        size = f"{formats['web']['bytes'] / 1e6:.1f} MB"
        lines += [f"A browser, at http://localhost:8000 (`web/` is {size}):", ""]
        lines += ["```sh", "python3 -m http.server -d web", "```", ""]
    return lines[:-1]


def _example(array: Mapping[str, Any]) -> str:
    """A value of an input in Python, without the batch: black, or zero."""
    value = "0.0" if array["dtype"] == "float32" else "0"
    for size in reversed(array["shape"][1:]):
        value = f"[{value}] * {size}"
    return f'"{array["name"]}": {value}'
