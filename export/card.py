"""Makes the model card of an export: facts on the model, results of its verification, and example code."""

import math
import os
import pathlib
import platform
import string
from collections.abc import Iterator, Sequence

from export.endpoints import Endpoint
from export.provenance import Provenance
from tfdecouple.data.image_formats import PILLOW_MODES, describe_channels
from tfdecouple.runs.publishing import make_model_card_head
from tfdecouple.storage.files import Facts

# The folder of the Markdown templates, at most one for each format, with code that runs the exported files.
_CALLS = pathlib.Path(__file__).parent / "calls"
# The template of the model card after its head, below which the examples follow.
_TEMPLATE = pathlib.Path(__file__).parent / "card.md"


def make_model_card(
    provenance: Provenance,
    endpoints: Sequence[Endpoint],
    images: str,
    formats: Facts,
    any_size: bool = False,
) -> Facts:
    """Returns the model card of an export, facts about the exported model, as a dict for JSON.

    `images` says in words with which real images the files were verified. `formats` is {exported format: a dict of its
    files and of the results of its verification}, such as "parity" and "round_trip" (`comparison.Report`).
    """
    model = provenance.config.model
    described = {
        endpoint.name: {
            "summary": endpoint.summary,
            "inputs": [array.to_dict() for array in endpoint.inputs],
            "outputs": [array.to_dict() for array in endpoint.outputs],
            "onnx": f"onnx/{endpoint.onnx}.onnx" if endpoint.onnx and "onnx" in formats else None,
        }
        for endpoint in endpoints
    }
    return {
        "name": provenance.name,
        "paper": "Decoupling Global and Local Representations via Invertible Generative Flows, arXiv:2004.11820",
        **provenance.metadata,
        "any_size": any_size,
        "architecture": {
            "image_shape": list(model.image_shape),
            "n_bits": model.n_bits,
            "latent_dim": model.latent_dim if model.has_latent else None,
            "conditioning": model.conditioning,
            "dequantization": model.dequantization,
            "prior": model.prior if model.has_latent else None,
            "labels": list(provenance.label_names),
            "steps": model.steps,
            "hidden_channels": model.hidden_channels,
            "transform": model.transform,
            "alpha": model.bound_of_scales,
            "parameters": provenance.parameters,
        },
        "data": {"source": provenance.data, "licence": provenance.rights},
        "bits_per_dim": provenance.bits_per_dim,
        "exact": judge_exactness(model.bound_of_scales, model.n_bits, formats),
        "endpoints": described,
        "checked": {
            "real_images": images,
            "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}",
        },
        "formats": dict(formats),
    }


def judge_exactness(alpha: float | None, n_bits: int, formats: Facts) -> Facts:
    """Returns {"promised": whether the model card promises exact decoding, "meaning": a text on this promise}.

    Decoding is exact if an encoded image decodes to the very same pixels. The model card promises this, for images like
    the real images of the verification, on two conditions. All images of the verification decoded exactly, and `alpha`,
    which bounds the scales of couplings to (1 - alpha, 1 + alpha), is below 1 or None (all couplings are additive).
    `formats` is {exported format: its entry in the model card}, with the counts of images that decoded exactly.
    """
    tried = {name: entry["round_trip"] for name, entry in formats.items() if entry.get("round_trip")}
    inexact = sorted({name for trips in tried.values() for name, e in trips.items() if e["identical"] < e["images"]})
    promised = bool(tried) and not inexact and (alpha is None or alpha < 1)
    counts = "; ".join(
        f"{name} {sum(e['identical'] for e in trips.values())} of {sum(e['images'] for e in trips.values())}"
        for name, trips in tried.items()
    )
    parts = [f"Images that decode exactly from their codes: {counts}."]
    if not tried:
        parts = ["Not measured: no format has files that both encode and decode."]
    elif promised:
        parts.append(
            "Promised for images like the test images, within one runtime that computes in float32; an artificial "
            "image may decode inexactly."
        )
    elif inexact:
        parts.append(f"Not promised: images of these types do not all decode exactly: {', '.join(inexact)}.")
    else:
        parts.append(f"Not promised for other images: alpha is {alpha:g}, so that scales have no lower bound.")
    if n_bits < 8:
        parts.append(f"Pixels of images must be multiples of {256 // 2**n_bits}.")
    for name, entry in formats.items():
        if "round_trip" not in entry:
            parts.append(f"{name}: {entry['checked']}.")
        elif tried and not entry["round_trip"]:
            parts.append(f"{name}: not tried, since its endpoints do not both encode and decode.")
    return {"promised": promised, "meaning": " ".join(parts)}


def render_model_card(card: Facts) -> str:
    """Returns the model card, a dict from `make_model_card`, as Markdown text."""
    architecture, shape = card["architecture"], card["architecture"]["image_shape"]
    latent_dim = architecture["latent_dim"]
    sides, named, is_usual = f"{shape[0]} x {shape[1]}", describe_channels(shape[-1]), shape[-1] in PILLOW_MODES
    names = architecture["labels"]
    what = "z a function of the label" if architecture["prior"] == "classes" else "a prior over z with a part each"
    parts = [
        f"{sides} {named if is_usual else f'with {named}'}",
        f"{architecture['n_bits']} bits",
        "no z (an unconditional flow)" if latent_dim is None else f"z of {latent_dim} numbers",
        f"v of the image's size, {architecture['parameters']:,} parameters",
        "additive couplings" if architecture["alpha"] is None else f"alpha {architecture['alpha']}",
    ]
    if architecture["dequantization"] == "flow":
        parts.append("u in the bins of pixels drawn from a learned q(u|x) (u_noise of `score` is standard normal)")
    labels = f"; {len(names)} labels, {what}: {', '.join(f'{number} {name}' for number, name in enumerate(names))}"
    rows = {
        "architecture": ", ".join(parts) + (labels if names else ""),
        "weights": f"run {card['run']}, step {card['step']}" + (", averaged" if card["averaged"] == "true" else ""),
        "trained on": card["data"]["source"],
        "rights in the images": card["data"]["licence"],
        "bits per dimension": _describe_bits_per_dim(card["bits_per_dim"]),
        "exactness": card["exact"]["meaning"],
        "images": "turned upright as their EXIF data say, "
        + (f"{named} without transparency" if is_usual else f"with exactly {named}")
        + f", cropped to the {card['crop']}, resized to {sides} {card['resize']}"
        + ("; or at their own size, to which decoded images must be cropped" if card["any_size"] else ""),
        "checked": f"on {card['checked']['real_images']}; {card['checked']['machine']}",
    }
    endpoints, results = [], []
    for name, endpoint in card["endpoints"].items():
        takes, returns = (
            ", ".join(f"{array['name']} {array['dtype']} [{', '.join(map(str, array['shape']))}]" for array in arrays)
            for arrays in (endpoint["inputs"], endpoint["outputs"])
        )
        endpoints.append(f"| `{name}` | {takes} | {returns} | {endpoint['onnx'] or ''} |")
    for name, entry in card["formats"].items():
        results += _list_verification_results(name, entry)
    head = make_model_card_head(card["name"], shape, architecture["n_bits"], latent_dim, rows)
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    body = template.substitute(endpoints="\n".join(endpoints), results="\n".join(results).strip())
    return "\n".join([*head, "", body, *_list_example_calls(card)]) + "\n"


def _describe_bits_per_dim(bits: Facts | None) -> str:
    if not bits:
        return "not recorded for these weights"
    parts = []
    if "test" in bits:
        parts.append(f"{bits['test']:.3f} on {bits['test_images']} test images")
    if "validation" in bits:
        parts.append(f"{bits['validation']:.3f} on validation images")
    return ", ".join(parts) + " (ELBO)"


def _list_verification_results(name: str, entry: Facts) -> list[str]:
    lines = [f"### {name}", "", f"Files: {', '.join(entry['files'])}", ""]
    if "signatures" in entry:
        lines += [f"Signatures: {', '.join(entry['signatures'])}", ""]
    if "parity" not in entry:
        return [*lines, f"Checked: {entry['checked']}.", ""]
    lines += ["| endpoint | output | largest difference from the Keras model | mean |", "| --- | --- | --- | --- |"]
    for endpoint, outputs in entry["parity"].items():
        for output, change in outputs.items():
            most, mean = f"{change['max']:.1e} of the largest value", f"{change['mean']:.1e}"
            if "differing" in change:
                most = f"{change['max']:.0f} of 255, {change['differing']:.4%} of subpixels differ"
                mean = f"{change['mean']:.2g} of 255"
            lines.append(f"| {endpoint} | {output} | {most} | {mean} |")
    trips = []
    for image_type, counts in entry["round_trip"].items():
        of_model = "" if counts["model"] == counts["images"] else f" (the Keras model keeps {counts['model']})"
        trips.append(f"{image_type} {counts['identical']} of {counts['images']}{of_model}")
    identical = f"Images identical after encode and decode through these files alone: {', '.join(trips)}."
    return [*lines, "", *([identical, ""] if trips else [])]


def _list_example_calls(card: Facts) -> list[str]:
    formats, image_shape = card["formats"], card["architecture"]["image_shape"]

    def list_inputs(endpoint: str) -> Iterator[tuple[str, str, list[int]]]:
        for array in card["endpoints"][endpoint]["inputs"]:
            # Axes of any size have names. In examples, images have the size of the model's images.
            sizes = enumerate(array["shape"][1:])
            sides = [size if isinstance(size, int) else image_shape[axis] for axis, size in sizes]
            yield array["name"], array["dtype"], sides

    def write_json_zeros(dtype: str, sides: list[int]) -> str:
        value = "0.0" if dtype == "float32" else "0"
        for size in reversed(sides):
            value = f"[{value}] * {size}"
        return value

    inputs, codes = [*list_inputs("encode")], [name for name, _, _ in list_inputs("decode")]
    signature = formats.get("savedmodel", {}).get("signatures", ["encode"])[0]
    values = {
        "name": card["name"],
        "codes": ", ".join(codes),
        "code_items": ", ".join(f'"{name}": {name}' for name in codes),
        "inputs": ", ".join(f'"{name}": np.zeros({(1, *sides)}, np.{dtype})' for name, dtype, sides in inputs),
        "js_inputs": ", ".join(
            f'{name}: new ort.Tensor("{dtype}", new {dtype.capitalize()}Array({math.prod(sides)}), {[1, *sides]})'
            for name, dtype, sides in inputs
        ),
        "signature": signature,
        "json_inputs": ", ".join(
            f'"{name}": {write_json_zeros(dtype, sides)}' for name, dtype, sides in list_inputs(signature)
        ),
        "megabytes": f"{formats.get('web', {}).get('bytes', 0) / 1e6:.1f}",
    }
    templates = [path for name in formats if (path := _CALLS / f"{name}.md").is_file()]
    return "\n".join(string.Template(path.read_text("utf-8")).substitute(values) for path in templates).splitlines()
