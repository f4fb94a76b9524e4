import configparser
import json
import re

import pytest
from helpers.documents import check_command
from helpers.places import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from export.formats.saved_model import write_serving_files
from tfdecouple.runtime.requirements import EXTRAS

# The last version of each package with a known hole; see SECURITY.md.
HOLES = {"keras": "3.13.1", "onnx": "1.20.1", "pyarrow": "23.0.0", "pillow": "12.2.0", "torch": "2.5.1"}
# Extras that are not part of `all`.
APART = {"beam", "litert", "loggers", "wolf"}
PYTHONS = ("3.11", "3.12", "3.13")


def requirements(text: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def declared() -> dict[str, Requirement]:
    """The requirements of an installation with the extra `all`."""
    config = setup()
    (ours,) = requirements(config["options.extras_require"]["all"])
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in ours.extras)]
    return {canonicalize_name(requirement.name): requirement for text in texts for requirement in requirements(text)}


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def pinned(name: str, python: str) -> dict[str, Version]:
    """The versions that a file of constraints pins for a version of Python."""
    entries = requirements((ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8"))
    chosen = [entry for entry in entries if entry.marker is None or entry.marker.evaluate({"python_version": python})]
    versions = {}
    for entry in chosen:
        (specifier,) = entry.specifier
        assert specifier.operator == "==" and canonicalize_name(entry.name) not in versions
        versions[canonicalize_name(entry.name)] = Version(specifier.version)
    return versions


TRAIN, SERVE = (ROOT / "docker" / f"{name}.Dockerfile" for name in ("train", "serve"))


def arguments_of(path, word):
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    return re.findall(rf"^{word}\s+(.*?)\s*$", text, re.M)


class TestRequirements:
    def test_extra_named_for_a_missing_package_installs_it(self):
        config, distributions = setup(), {"tensorflow_serving": "tensorflow-serving-api"}
        extras, base = config["options.extras_require"], requirements(config["options"]["install_requires"])
        for module, extra in EXTRAS.items():
            name = distributions.get(module, canonicalize_name(module))
            assert name in {canonicalize_name(requirement.name) for requirement in requirements(extras[extra])}, module
            assert name not in {canonicalize_name(requirement.name) for requirement in base}, module
        (ours,) = requirements(extras["all"])
        assert ours.extras == set(EXTRAS.values()) - APART

    @pytest.mark.parametrize("python", PYTHONS)
    @pytest.mark.parametrize("name", ["lowest", "newest"])
    def test_constraints_pin_each_declared_package_within_its_range(self, name, python):
        versions, wanted = pinned(name, python), declared()
        assert versions.keys() == wanted.keys()
        for package, version in versions.items():
            assert wanted[package].specifier.contains(version), package
            # 0.25.* begins with 0.25.0.
            limits = [limit for limit in wanted[package].specifier if limit.operator in (">=", "~=", "==")]
            lowest = [Version(limit.version.removesuffix(".*")) for limit in limits]
            assert name != "lowest" or max(lowest) == version, package

    @pytest.mark.parametrize("package", HOLES)
    def test_no_requirement_admits_a_vulnerable_version(self, package):
        config = setup()
        places = {"install_requires": config["options"]["install_requires"], **config["options.extras_require"]}
        places |= {path: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*/requirements.txt")}
        places |= {path: path.read_text(encoding="utf-8") for path in (ROOT / "constraints").glob("*.txt")}
        named = [(place, requirement) for place, text in places.items() for requirement in requirements(text)]
        named = [(place, requirement) for place, requirement in named if canonicalize_name(requirement.name) == package]
        assert named and [place for place, requirement in named if requirement.specifier.contains(HOLES[package])] == []

    def test_docker_image_for_training_copies_the_package_and_starts_a_known_command(self):
        sources = {source for arguments in arguments_of(TRAIN, "COPY") for source in arguments.split()[:-1]}
        ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == sources
        assert all((ROOT / source).exists() for source in sources)
        config = setup()
        packages = {line.partition(".")[0] for line in config["options.packages.find"]["include"].split()}
        assert packages | {"pyproject.toml", "setup.cfg", config["metadata"]["license_files"], "README.md"} <= sources
        given = dict(arguments.split("=") for arguments in arguments_of(TRAIN, "ARG"))
        assert set(given["EXTRAS"].split(",")) <= set(config["options.extras_require"])
        assert f"Programming Language :: Python :: {given['PYTHON']}" in config["metadata"]["classifiers"]
        (entry,), (command,) = (json.loads(arguments_of(TRAIN, word)[0]) for word in ("ENTRYPOINT", "CMD"))
        assert entry in config["options.entry_points"]["console_scripts"]
        check_command(f"{entry} {command}")

    def test_docker_image_for_serving_starts_as_the_compose_file_of_an_export(self, tmp_path):
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
