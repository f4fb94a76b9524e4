"""Publishing the weights of a run: a folder with card and manifest, here or on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from tfdecouple.config import Config, DataConfig
from tfdecouple.data.sources import find_kind, images_at, rights_in
from tfdecouple.errors import UserError, one_line
from tfdecouple.runs.model_card import card_head
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.pretrained import BUNDLED, CARD, HUB, Address, Published, upload
from tfdecouple.runs.run_folder import (
    CHECKPOINTS,
    CONFIG,
    LABELS,
    SUMMARY,
    figures_of_test,
    find_run,
    images_known,
    read_summary,
    unknown_data,
    write_label_names,
)
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.storage.files import write_json, write_text

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_TAGS = ["tfdecouple", "tensorflow", "keras", "normalizing-flow", "vae", "representation-learning"]
_TASK = "unconditional-image-generation"
# What data sets of TFDS are called on the Hub. The others that are known here do not lie there.
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
    say: Callable[[str], Any] = print,
) -> str:
    """Publishes the best weights of a run, without what is of the machine alone: paths, and the state of training.

    Args:
        run: a run folder, or weights that were trained already.
        to: a folder, new or empty; or `hf://OWNER/NAME[@BRANCH]`, a repository that is made where there is none.
        licence: of the weights, as the Hub names it ("apache-2.0"); None for that of weights that have one.
        name: of the model; None for the last part of `to`.
        private: whether a new repository is.
        say: is told what is left out.

    Returns:
        Where they lie: the folder, or the address of the commit.

    Raises:
        UserError: for an impossible licence or address, a folder that holds something, a run without weights, or a Hub
            that refuses.
    """
    licence = licence or _licence_of(run)
    if not _LICENCE.fullmatch(licence):
        raise UserError(f"the licence is {licence!r}; name it as the Hub does, such as apache-2.0, cc-by-4.0 or other")
    on_hub = to.startswith(HUB)
    called = name or (Address.parsed(to).repository.rpartition("/")[2] if on_hub else pathlib.Path(to).absolute().name)
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
            comes_along = target.parent == BUNDLED
            _write(opened, folder, called, licence, to if on_hub else called if comes_along else None, say)
            if on_hub:
                return upload(folder, to, private=private, message=f"{called}, update {opened.step}")
            os.replace(folder, target)
            return to
    except OSError as error:
        raise UserError(f"cannot publish to {to}: {error.strerror or error}") from error


def _licence_of(run: str) -> str:
    """Returns the licence that the card of published weights states.

    Raises:
        UserError: where there is none.
    """
    card = find_run(run) / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r'^license: "?([^"\n]+)"?$', text, re.M)
    if found is None:
        raise UserError("publish needs --licence, that of the weights as the Hub names it, such as apache-2.0")
    return found[1]


def _write(
    opened: Run, folder: pathlib.Path, name: str, licence: str, address: str | None, say: Callable[[str], Any]
) -> None:
    """Writes all files of a folder of published weights."""
    config = _public(opened.config)
    directions = opened.directions() if config.model.has_latent else None
    found_in = (one.figures.get("source") for one in directions or ())
    folders = _folders(opened.config.data.source, *found_in)
    write_text(folder / CONFIG, config.to_json())
    CheckpointFolder(folder / CHECKPOINTS).write("best", opened.step, {"model": opened.model.named_variables()})
    try:
        summary = read_summary(opened.path)
    except ValueError as error:
        summary = None
        say(f"{SUMMARY} cannot be read and is left out: {one_line(error)}")
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
    write_text(folder / CARD, card(opened, name, licence, summary or {}, address))
    Published.of(folder).write(folder)


def _public(config: Config) -> Config:
    """Returns a config without the paths of this machine."""
    option, folder = images_at(config.data) or ("", "")
    prefix = config.data.source.partition(":")[0]
    source = f"{prefix}:{pathlib.Path(folder).name}" if option == "data.source" else config.data.source
    data = dataclasses.replace(config.data, source=source, data_dir=None)
    training = dataclasses.replace(config.training, init_from=None, init_partial=False)
    return dataclasses.replace(config, data=data, training=training)


def _folders(*sources: Any) -> list[str]:
    """Returns the folders that sources of images name, as files have them, the longest first: one may lie in another.

    >>> _folders("folder:/faces/", "cifar10", None, "folder:~/faces/young", "folder:.")[1:]
    ['~/faces/young', '/faces']
    """
    folders: set[str] = set()
    for source in sources:
        kind = find_kind(source) if isinstance(source, str) else None
        if kind is None:
            continue
        option, whole = kind.images_at(DataConfig(source=source)) or ("", "")
        if option == "data.source":
            folders |= {source.removeprefix(kind.prefix).rstrip("/"), whole.rstrip("/"), str(pathlib.Path(whole))}
    # Of the folder at hand, ".", and of the root there is no name that could stand for it.
    return sorted((folder for folder in folders if pathlib.Path(folder).name), key=len, reverse=True)


def _without_paths(values: Any, folders: Sequence[str]) -> Any:
    """Returns plain values with folders of images by their last part, and likewise the file that was imported."""
    if isinstance(values, dict) and "imported_from" in values:
        values = {**values, "imported_from": re.split(r"[/\\]", values["imported_from"])[-1]}
    text = json.dumps(values)
    for folder in folders:
        text = text.replace(json.dumps(folder)[1:-1], json.dumps(pathlib.Path(folder).name)[1:-1])
    return json.loads(text)


def _on_hub(source: str) -> str | None:
    """Returns what a data set is called on the Hub; None for images that do not lie there.

    >>> [_on_hub(source) for source in ("cifar10", "tfds:mnist:3.0.1", "folder:mnist")]
    ['uoft-cs/cifar10', 'ylecun/mnist', None]
    """
    return _ON_HUB.get(re.split("[:/]", source.removeprefix("tfds:"))[0])


def card(opened: Run, name: str, licence: str, summary: dict[str, Any], address: str | None = None) -> str:
    """Returns the card of a model: the Hub's header in YAML, and what a reader wants to know.

    Args:
        opened: the run.
        name: of the model.
        licence: of the weights, as the Hub names it.
        summary: how the training ended; {} where nobody knows.
        address: by which it is loaded, on the Hub or in the installation; None for a folder.
    """
    config, model = opened.config, opened.config.model
    stated = images_known(summary, opened.step)
    told = summary.get("data") or config.data.source if stated else unknown_data(config)
    data = _without_paths(told, _folders(config.data.source))
    rights = rights_in(_public(config).data) if stated else "nobody stated what images they are"
    test = figures_of_test(summary, opened.step) if stated else None
    header: dict[str, Any] = {
        "license": licence,
        "library_name": "tfdecouple",
        "pipeline_tag": _TASK,
        "tags": _TAGS,
        "metrics": ["bits_per_dim"],
    }
    on_hub = _on_hub(config.data.source) if stated else None
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
    known = address or f"path/to/{name}"
    load = f'tfdecouple.load_pretrained("{address}")' if address else f'tfdecouple.load_model("{known}")'
    counted = opened.model.parameter_count()["total"]
    facts = {
        "licence of the weights": licence,
        "trained on": f"{data}{f', {opened.step:,} updates' if opened.step else ''}",
        "rights in the images": rights,
        "weights": f"{counted:,} float32{', averaged over the training' if opened.averaged else ''}",
    }
    if model.has_latent:
        facts["exactness"] = f"z and v give the very same {'pixels' if model.n_bits == 8 else 'levels'} back"
    if test:
        facts["bits per dimension"] = f"{test['bits_per_dim']:.3f} on {test['images']} test images (ELBO)"
    if "reconstruction" in summary:
        facts["after encode and decode"] = summary["reconstruction"]
    lines = [
        "---",
        # JSON is YAML.
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        "---",
        "",
        *card_head(name, model.image_shape, model.n_bits, model.latent_dim if model.has_latent else None, facts),
        "",
        "```python",
        "import tfdecouple",
        "",
        f"model = {load}",
        "new = model.sample(16, temperature=0.8, seed=0)  # uint8",
        "```",
        "",
        # Pictures have no labels, by which some models have their z.
        *([f"    tfdecouple switch --run {known} a.jpg b.jpg", ""] if model.has_encoder else []),
        "`manifest.json` has the SHA-256 of every file. `load_pretrained` compares them, fetches config and weights "
        "alone (JSON and numbers), and runs nothing that lies beside them.",
    ]
    return "\n".join(lines) + "\n"
