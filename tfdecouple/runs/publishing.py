"""Publishing of a run's weights, with model card and manifest, in a folder or on the Hugging Face Hub."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping

from tfdecouple.config import Config
from tfdecouple.config.shapes import ImageShape
from tfdecouple.data.image_formats import describe_images
from tfdecouple.data.sources import SourceKind, find_source_kind, hide_image_path, replace_source
from tfdecouple.errors import UserError, make_printable, one_line
from tfdecouple.runs.opened_run import Run, write_run
from tfdecouple.runs.pretrained import BUNDLED, CARD, HUB, MANIFEST, WeightsManifest, parse_hub_address, upload_weights
from tfdecouple.runs.run_folder import LABELS, METRICS, METRICS_BYTES, RunFolder, find_test_metrics, find_training_data
from tfdecouple.storage.files import Facts, write_json, write_text

_NO_RIGHTS = "No licence is claimed: the weights do not say what images they were trained on."
_TASK = "unconditional-image-generation"


def publish(
    run: str,
    to: str,
    *,
    licence: str | None = None,
    name: str | None = None,
    data: str | None = None,
    trained_on: str | None = None,
    rights: str | None = None,
    private: bool = False,
) -> str:
    """Publishes the best weights of a run; returns the path of their folder, or the address of their commit on the Hub.

    Paths of this machine and the state of the training are not published. The arguments are the options of the command
    `publish`; without `licence`, that of the model card of `run` is copied. UserError is raised if an argument is
    wrong, the run has no weights, or the Hub refuses the upload, and OSError if the folder cannot be written.
    """
    # This call refuses links out of the run folder before any file in it is read.
    RunFolder(run).read_config()
    licence = licence or _read_licence(run)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence, re.ASCII):
        raise UserError(f"the licence is {licence!r}; name it as the Hub does, such as apache-2.0, cc-by-4.0 or other")
    if data and ((kind := find_source_kind(data)).takes_path or type(kind) is SourceKind):
        raise UserError(f"--data is {data!r}; give a data set that all users have: photographs, or a TFDS name")
    on_hub = to.startswith(HUB)
    name = name or (parse_hub_address(to)[0].rpartition("/")[2] if on_hub else pathlib.Path(to).absolute().name)
    target = pathlib.Path(to).absolute()
    if not on_hub and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{to} exists and is no empty folder; name another with --to")
    opened = Run.open(run)
    if not on_hub:
        target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=None if on_hub else target.parent) as scratch:
        folder = pathlib.Path(scratch) / "model"
        folder.mkdir()
        address = to if on_hub else name if target.parent == BUNDLED else None
        stated = {"data": trained_on, "rights": rights}
        _write_published_files(opened, folder, name, licence, address, data or "", stated)
        if on_hub:
            return upload_weights(folder, to, private=private, message=f"{name}, update {opened.step}")
        os.replace(folder, target)
        return to


def _read_licence(run: str) -> str:
    card, text = RunFolder(run).path / CARD, ""
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as file:
            # The header, which has the licence, ends within so many characters.
            text = file.read(2**16)
    match = re.search(r'^license: "?([^"\n]+)"?$', text, re.M)
    if match is None:
        raise UserError("publish needs --licence, that of the weights as the Hub names it, such as apache-2.0")
    return match[1]


def _write_published_files(
    opened: Run, folder: pathlib.Path, name: str, licence: str, address: str | None, data: str, stated: Facts
) -> None:
    config = opened.config
    directions = opened.directions() if config.model.has_latent else None
    # The published config must not contain private paths of this machine.
    source = hide_image_path(config.data.source, config.data)
    options = dataclasses.replace(replace_source(config.data, data or source), data_dir=None)
    training = dataclasses.replace(config.training, init_from=None)
    try:
        summary = opened.folder.read_summary() or {}
    except ValueError as error:
        print(f"summary.json cannot be read and is left out: {one_line(error)}")
        summary = {}
    if data:
        # If the weights were published before, their summary.json already has the training's data source.
        summary.setdefault("source", source)
    summary |= {name: " ".join(text.split()) for name, text in stated.items() if text}
    if summary.get("data"):
        summary["data"] = hide_image_path(summary["data"], config.data)
    has_labels = (opened.folder.path / LABELS).is_file()
    published = dataclasses.replace(config, data=options, training=training)
    write_run(folder, opened.model, published, opened.step, summary, opened.label_names if has_labels else ())
    if directions is not None:
        for direction in directions:
            # The data set of a direction is not published, because its name may be a private path of this machine.
            direction.figures.pop("data", None)
            direction.figures.pop("source", None)
        dataclasses.replace(directions, about={**directions.about, "run": name}).write(folder)
    if (metrics := opened.folder.path / METRICS).is_file():
        if metrics.stat().st_size <= METRICS_BYTES:
            shutil.copyfile(metrics, folder / METRICS)
        else:
            print(f"{METRICS} has more than {METRICS_BYTES:,} bytes and is left out")
    write_text(folder / CARD, make_weights_card(opened, name, licence, summary, address))
    write_json(folder / MANIFEST, WeightsManifest.from_folder(folder).model_dump())


def describe_training_images(config: Config, summary: Facts, step: int) -> tuple[str, str]:
    """Returns what the weights of `step` were trained on, and the rights in these images: two texts for a model card.

    `summary` is the content of summary.json, or {}.
    """
    training = find_training_data(config, summary, step)
    if training is None:
        data, rights = "data unknown" + (f" ({config.description})" if config.description else ""), _NO_RIGHTS
    else:
        rights = find_source_kind(training).describe_image_rights()
        data = summary.get("data") or training.source
    return hide_image_path(data, config.data), summary.get("rights", rights)


def make_weights_card(opened: Run, name: str, licence: str, summary: Facts, address: str | None = None) -> str:
    """Returns the text of the model card of published weights: a YAML header for the Hub, then Markdown.

    `address` is an address on the Hub, the name of bundled weights, or None for a folder.
    """
    config, model = opened.config, opened.config.model
    data, rights = describe_training_images(config, summary, opened.step)
    training = find_training_data(config, summary, opened.step)
    test = find_test_metrics(summary, opened.step) if training else None
    header: Facts = {"license": licence, "library_name": "tfdecouple", "pipeline_tag": _TASK}
    header["tags"] = ["tfdecouple", "tensorflow", "keras", "normalizing-flow", "vae", "representation-learning"]
    header["metrics"] = ["bits_per_dim"]
    if training and test:
        metric = {"type": "bits_per_dim", "name": "bits per dimension, ELBO", "value": round(test["bits_per_dim"], 4)}
        dataset = {"type": training.source.partition(":")[0], "name": data, "split": "test"}
        result = {"task": {"type": _TASK}, "dataset": dataset, "metrics": [metric]}
        header["model-index"] = [{"name": name, "results": [result]}]
    run, latent_dim = address or f"path/to/{name}", model.latent_dim if model.has_latent else None
    parameters = opened.model.parameter_count()["total"]
    facts = {
        "licence of the weights": licence,
        "trained on": f"{data}{f', {opened.step:,} updates' if opened.step else ''}",
        "rights in the images": rights,
        "weights": f"{parameters:,} float32{', averaged over the training' if opened.averaged else ''}",
    }
    if model.has_latent:
        facts["exactness"] = f"z and v decode to identical {'pixels' if model.n_bits == 8 else 'levels'}"
    if test:
        facts["bits per dimension"] = f"{test['bits_per_dim']:.3f} on {test['images']} test images (ELBO)"
    if "reconstruction" in summary:
        facts["after encode and decode"] = summary["reconstruction"]
    lines = [
        "---",
        # The values in the YAML header are written as JSON, because every JSON value is valid YAML.
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        "---",
        "",
        *make_model_card_head(name, model.image_shape, model.n_bits, latent_dim, facts),
        "",
        "```python",
        "import tfdecouple",
        "",
        f'model = tfdecouple.load_model("{run}")',
        "new = model.sample(16, temperature=0.8, seed=0)  # uint8",
        "```",
        "",
        # The command `switch` encodes image files, so the card of a model without an encoder leaves it out.
        *([f"    tfdecouple switch --run {run} a.jpg b.jpg", ""] if model.has_encoder else []),
        "`manifest.json` has the SHA-256 of every file. `load_model` compares them, fetches config and weights "
        "alone (JSON and numbers), and runs nothing that lies beside them.",
    ]
    return "\n".join(lines) + "\n"


def make_model_card_head(
    name: str, shape: ImageShape, n_bits: int, latent_dim: int | None, facts: Mapping[str, str]
) -> list[str]:
    """Returns the first lines of a model card: a description and a table of `facts`; `latent_dim` is None without z."""
    images = describe_images(shape) + (f" in {2**n_bits} levels of each channel" if n_bits < 8 else "")
    return [
        f"# {name}",
        "",
        f"A flow of {images}, without a global code."
        if latent_dim is None
        else f"A model of {images} that decouples what an image is globally (z, {latent_dim} numbers) "
        "from its local detail (v, of the image's size).",
        "It was made with tfdecouple, after *Decoupling Global and Local Representations via Invertible Generative "
        "Flows* (Ma, Kong, Zhang and Hovy, [arXiv:2004.11820](https://arxiv.org/abs/2004.11820)).",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {fact} | {_escape_markdown(value)} |" for fact, value in facts.items()),
    ]


def _escape_markdown(text: str) -> str:
    r"""Returns an untrusted text as one line of a table's cell, in which no HTML, link or other cell begins.

    >>> _escape_markdown("mine |\n# <img src=x> [y](z)")
    'mine \\| # \\<img src=x\\> \\[y](z)'
    """
    return re.sub(r"[\\<>\[|]", r"\\\g<0>", make_printable(text, 2**14))
