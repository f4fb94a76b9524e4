"""The Dockerfiles copy, install, run and set only what exists. No image is built here."""

import configparser
import json
import re

from helpers.documents import check_command
from helpers.places import ROOT

from export.formats.saved_model import write_serving_files

TRAIN, SERVE = (ROOT / "docker" / f"{name}.Dockerfile" for name in ("train", "serve"))


def instructions(path):
    """The instructions of a Dockerfile, as pairs of a word and its arguments."""
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def arguments_of(path, word):
    return [rest for found, rest in instructions(path) if found == word]


def test_training_image_copies_existing_files_that_the_build_context_includes():
    sources = [source for rest in arguments_of(TRAIN, "COPY") for source in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored and let_in == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    # Everything that the package is built from.
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert {"pyproject.toml", "setup.cfg", config["metadata"]["license_files"], "README.md"} <= set(sources)
    packages = {line.partition(".")[0] for line in config["options.packages.find"]["include"].split()}
    assert packages <= set(sources)


def test_training_image_installs_known_extras_and_starts_a_known_command():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    given = dict(rest.split("=") for rest in arguments_of(TRAIN, "ARG"))
    assert set(given["EXTRAS"].split(",")) <= set(config["options.extras_require"])
    assert f"Programming Language :: Python :: {given['PYTHON']}" in config["metadata"]["classifiers"]
    (entry,), (command,) = (json.loads(arguments_of(TRAIN, word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert entry in config["options.entry_points"]["console_scripts"]
    check_command(f"{entry} {command}")


def test_serving_image_starts_as_the_compose_file_of_an_export(tmp_path):
    write_serving_files(tmp_path, "NAME")
    compose = (tmp_path / "docker-compose.yml").read_text(encoding="utf-8")
    (command,) = (json.loads(rest) for rest in arguments_of(SERVE, "CMD"))
    assert command == re.findall(r'^ +- "(--[^"]+)"$', compose, re.M)
    # The image copies what the compose file mounts, to the same places.
    mounted = dict(re.findall(r'- "\./([^:]+):([^:]+):ro"', compose))
    places = {}
    for rest in arguments_of(SERVE, "COPY"):
        *sources, target = rest.replace("${NAME}", "NAME").split()
        places |= {source: target + source if target.endswith("/") else target for source in sources}
    assert places == mounted
    assert arguments_of(SERVE, "EXPOSE") == ["8500 8501"] and '"127.0.0.1:8500:8500"' in compose
    assert "NVIDIA_TF32_OVERRIDE=0" in arguments_of(SERVE, "ENV")
    assert arguments_of(SERVE, "FROM")[0].partition(":")[0] in compose
