"""Publishing of a run's weights: a folder with card and manifest, on this machine or on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfdecouple.config import Config, DataConfig
from tfdecouple.config.shapes import Shape, describe_images
from tfdecouple.data.sources import describe_image_rights, find_kind, locate_images
from tfdecouple.errors import UserError, one_line
from tfdecouple.runs.opened_run import Run, write_run
from tfdecouple.runs.pretrained import BUNDLED, CARD, HUB, Manifest, parse_address, upload_weights
from tfdecouple.runs.run_folder import (
    LABELS,
    SUMMARY,
    are_images_known,
    describe_unknown_data,
    find_run,
    find_test_metrics,
    read_summary,
    write_label_names,
)
from tfdecouple.storage.files import write_json, write_text

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_TAGS = ["tfdecouple", "tensorflow", "keras", "normalizing-flow", "vae", "representation-learning"]
_TASK = "unconditional-image-generation"
# Names on the Hub of data sets, by their names in TFDS.
_ON_HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "svhn_cropped": "ufldl-stanford/svhn",
}


def publish(
    run: str,
    to: str,
    *,
    licence: str | None = None,
    name: str | None = None,
    private: bool = False,
    report: Callable[[str], Any] = print,
) -> str:
    """Returns the folder of the published best weights of a run, or the address of their commit on the Hub.

    Paths of this machine and the state of the training are left out.

    Args:
        run: a run folder, or the name or address of pretrained weights.
        to: a new or empty folder; or `hf://OWNER/NAME[@BRANCH]`, a repository that is made if absent.
        licence: the licence of the weights, as the Hub names it ("apache-2.0"); None where `run` is published weights
            with a licence.
        name: the name of the model; None for the last part of `to`.
        private: whether a new repository is private.
        report: function that receives a message about an unreadable file that is left out.

    Raises:
        UserError: where licence or address are malformed, the folder is not empty, the run has no weights, or the Hub
            refuses the upload.
    """
    licence = licence or _read_licence(run)
    if not _LICENCE.fullmatch(licence):
        raise UserError(f"the licence is {licence!r}; name it as the Hub does, such as apache-2.0, cc-by-4.0 or other")
    on_hub = to.startswith(HUB)
    name = name or (parse_address(to)[0].rpartition("/")[2] if on_hub else pathlib.Path(to).absolute().name)
    target = pathlib.Path(to).absolute()
    if not on_hub and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{to} exists and is no empty folder; name another with --to")
    opened = Run.open(run)
    try:
        if not on_hub:
            target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".publish-", dir=None if on_hub else target.parent) as scratch:
            folder = pathlib.Path(scratch) / "model"
            folder.mkdir()
            is_bundled = target.parent == BUNDLED
            _write_folder(opened, folder, name, licence, to if on_hub else name if is_bundled else None, report)
            if on_hub:
                return upload_weights(folder, to, private=private, message=f"{name}, update {opened.step}")
            os.replace(folder, target)
            return to
    except OSError as error:
        raise UserError(f"cannot publish to {to}: {error.strerror or error}") from error


def _read_licence(run: str) -> str:
    """Returns the licence from the card of published weights; raises UserError where it is missing."""
    card = find_run(run) / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.search(r'^license: "?([^"\n]+)"?$', text, re.M)
    if match is None:
        raise UserError("publish needs --licence, that of the weights as the Hub names it, such as apache-2.0")
    return match[1]


def _write_folder(
    opened: Run, folder: pathlib.Path, name: str, licence: str, address: str | None, report: Callable[[str], Any]
) -> None:
    """Writes all files of a folder of published weights."""
    config = _without_machine_paths(opened.config)
    directions = opened.directions() if config.model.has_latent else None
    sources = (one.figures.get("source") for one in directions or ())
    folders = _source_folders(opened.config.data.source, *sources)
    write_run(folder, opened.model, config, opened.step)
    try:
        summary = read_summary(opened.path)
    except ValueError as error:
        summary = None
        report(f"{SUMMARY} cannot be read and is left out: {one_line(error)}")
    if summary is not None:
        write_json(folder / SUMMARY, _without_paths(summary, folders))
    if config.model.classes and (opened.folder / LABELS).is_file():
        write_label_names(folder, opened.label_names)
    if directions is not None:
        file = dataclasses.replace(directions, about={**directions.about, "run": name}).write(folder)
        write_json(file, _without_paths(json.loads(file.read_text(encoding="utf-8")), folders))
    metrics = opened.folder / "metrics.jsonl"
    if metrics.is_file():
        shutil.copyfile(metrics, folder / metrics.name)
    write_text(folder / CARD, make_card(opened, name, licence, summary or {}, address))
    Manifest.from_folder(folder).write(folder)


def _without_machine_paths(config: Config) -> Config:
    """Returns the config without the paths of this machine."""
    option, folder = locate_images(config.data) or ("", "")
    prefix = config.data.source.partition(":")[0]
    source = f"{prefix}:{pathlib.Path(folder).name}" if option == "data.source" else config.data.source
    data = dataclasses.replace(config.data, source=source, data_dir=None)
    training = dataclasses.replace(config.training, init_from=None)
    return dataclasses.replace(config, data=data, training=training)


def _source_folders(*sources: Any) -> list[str]:
    """Returns all spellings of the folders that data sources name, the longest spelling first.

    >>> _source_folders("folder:/faces/", "cifar10", None, "folder:~/faces/young", "folder:.")[1:]
    ['~/faces/young', '/faces']
    """
    folders: set[str] = set()
    for source in sources:
        kind = find_kind(source) if isinstance(source, str) else None
        if kind is None:
            continue
        option, whole = kind.locate_images(DataConfig(source=source)) or ("", "")
        if option == "data.source":
            folders |= {source.removeprefix(kind.prefix).rstrip("/"), whole.rstrip("/"), str(pathlib.Path(whole))}
    # The working directory, ".", and the root are left out: they have no name to put instead. Longer paths come first
    # because a longer path may contain a shorter one.
    return sorted((folder for folder in folders if pathlib.Path(folder).name), key=len, reverse=True)


def _without_paths(values: Any, folders: Sequence[str]) -> Any:
    """Returns JSON values with the paths of image folders and of an imported file cut to their last part."""
    if isinstance(values, dict) and "imported_from" in values:
        values = {**values, "imported_from": re.split(r"[/\\]", values["imported_from"])[-1]}
    text = json.dumps(values)
    for folder in folders:
        text = text.replace(json.dumps(folder)[1:-1], json.dumps(pathlib.Path(folder).name)[1:-1])
    return json.loads(text)


def _name_on_hub(source: str) -> str | None:
    """Returns the name on the Hub of the data set of a `data.source`; None where the Hub does not have it.

    >>> [_name_on_hub(source) for source in ("cifar10", "tfds:mnist:3.0.1", "folder:mnist")]
    ['uoft-cs/cifar10', 'ylecun/mnist', None]
    """
    return _ON_HUB.get(re.split("[:/]", source.removeprefix("tfds:"))[0])


def make_card(opened: Run, name: str, licence: str, summary: dict[str, Any], address: str | None = None) -> str:
    """Returns the card of a model: the Hub's header in YAML, then Markdown.

    Args:
        opened: the opened run.
        name: the name of the model.
        licence: the licence of the weights, as the Hub names it.
        summary: the summary of the run; {} for a run without a summary.
        address: the address on the Hub, or the name of bundled weights; None for a folder.
    """
    config, model = opened.config, opened.config.model
    known = are_images_known(summary, opened.step)
    trained_on = summary.get("data") or config.data.source if known else describe_unknown_data(config)
    data = _without_paths(trained_on, _source_folders(config.data.source))
    rights = (
        describe_image_rights(_without_machine_paths(config).data) if known else "nobody stated what images they are"
    )
    test = find_test_metrics(summary, opened.step) if known else None
    header: dict[str, Any] = {
        "license": licence,
        "library_name": "tfdecouple",
        "pipeline_tag": _TASK,
        "tags": _TAGS,
        "metrics": ["bits_per_dim"],
    }
    on_hub = _name_on_hub(config.data.source) if known else None
    if on_hub:
        header["datasets"] = [on_hub]
    if test:
        metric = {"type": "bits_per_dim", "name": "bits per dimension, ELBO", "value": round(test["bits_per_dim"], 4)}
        result = {
            "task": {"type": _TASK},
            "dataset": {"type": on_hub or config.data.source.partition(":")[0], "name": data, "split": "test"},
            "metrics": [metric],
        }
        header["model-index"] = [{"name": name, "results": [result]}]
    run = address or f"path/to/{name}"
    load = f'tfdecouple.load_pretrained("{address}")' if address else f'tfdecouple.load_model("{run}")'
    parameters = opened.model.parameter_count()["total"]
    facts = {
        "licence of the weights": licence,
        "trained on": f"{data}{f', {opened.step:,} updates' if opened.step else ''}",
        "rights in the images": rights,
        "weights": f"{parameters:,} float32{', averaged over the training' if opened.averaged else ''}",
    }
    if model.has_latent:
        facts["exactness"] = f"z and v give the very same {'pixels' if model.n_bits == 8 else 'levels'} back"
    if test:
        facts["bits per dimension"] = f"{test['bits_per_dim']:.3f} on {test['images']} test images (ELBO)"
    if "reconstruction" in summary:
        facts["after encode and decode"] = summary["reconstruction"]
    lines = [
        "---",
        # JSON is written into the YAML header, because every JSON value is valid YAML.
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        "---",
        "",
        *make_card_head(name, model.image_shape, model.n_bits, model.latent_dim if model.has_latent else None, facts),
        "",
        "```python",
        "import tfdecouple",
        "",
        f"model = {load}",
        "new = model.sample(16, temperature=0.8, seed=0)  # uint8",
        "```",
        "",
        # Only a model with an encoder gets the example: without one, z comes from labels, which image files lack.
        *([f"    tfdecouple switch --run {run} a.jpg b.jpg", ""] if model.has_encoder else []),
        "`manifest.json` has the SHA-256 of every file. `load_pretrained` compares them, fetches config and weights "
        "alone (JSON and numbers), and runs nothing that lies beside them.",
    ]
    return "\n".join(lines) + "\n"


def make_card_head(name: str, shape: Shape, n_bits: int, latent_dim: int | None, facts: Mapping[str, str]) -> list[str]:
    """Returns the first lines of a model card, of published weights or of an export: a description and a table.

    Args:
        name: the name of the model.
        shape: height, width and channels of the model's images.
        n_bits: bits of each channel.
        latent_dim: number of dimensions of z; None for a model without z.
        facts: the rows of the table, a value by name.
    """
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
        *(f"| {fact} | {value} |" for fact, value in facts.items()),
    ]
