"""Tests of the Dockerfiles: they copy, install, run and set only what exists. No image is built here."""

import configparser
import json
import re

from helpers.documents import check_command
from helpers.places import ROOT

from export.formats.saved_model import write_serving_files

TRAIN, SERVE = (ROOT / "docker" / f"{name}.Dockerfile" for name in ("train", "serve"))


def arguments_of(path, word):
    """Returns the arguments of all instructions `word`, such as "COPY", of a Dockerfile."""
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    return re.findall(rf"^{word}\s+(.*?)\s*$", text, re.M)


def test_training_image_copies_the_package_installs_known_extras_and_starts_a_known_command():
    sources = {source for arguments in arguments_of(TRAIN, "COPY") for source in arguments.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = {line.partition(".")[0] for line in config["options.packages.find"]["include"].split()}
    assert packages | {"pyproject.toml", "setup.cfg", config["metadata"]["license_files"], "README.md"} <= sources
    given = dict(arguments.split("=") for arguments in arguments_of(TRAIN, "ARG"))
    assert set(given["EXTRAS"].split(",")) <= set(config["options.extras_require"])
    assert f"Programming Language :: Python :: {given['PYTHON']}" in config["metadata"]["classifiers"]
    (entry,), (command,) = (json.loads(arguments_of(TRAIN, word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert entry in config["options.entry_points"]["console_scripts"]
    check_command(f"{entry} {command}")


def test_serving_image_starts_as_the_compose_file_of_an_export(tmp_path):
    write_serving_files(tmp_path, "NAME")
    compose = (tmp_path / "docker-compose.yml").read_text(encoding="utf-8")
    (command,) = map(json.loads, arguments_of(SERVE, "CMD"))
    assert command == re.findall(r'^ +- "(--[^"]+)"$', compose, re.M)
    # The image copies what the compose file mounts, to the same places.
    places = {}
    for arguments in arguments_of(SERVE, "COPY"):
        *sources, target = arguments.replace("${NAME}", "NAME").split()
        places |= {source: target + source if target.endswith("/") else target for source in sources}
    assert places == dict(re.findall(r'- "\./([^:]+):([^:]+):ro"', compose))
    assert arguments_of(SERVE, "EXPOSE") == ["8500 8501"] and '"127.0.0.1:8500:8500"' in compose
    assert "NVIDIA_TF32_OVERRIDE=0" in arguments_of(SERVE, "ENV")
    assert arguments_of(SERVE, "FROM")[0].partition(":")[0] in compose
