import shutil
import sys
import tarfile
import zipfile

import pytest
from helpers.places import ROOT, read_output
from packaging.metadata import Metadata

import tfdecouple

pytestmark = pytest.mark.slow

PACKAGES = ("tfdecouple", "export")


def files_of(package):
    """The files of a package that belong into a wheel, as names below the root."""
    paths = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def build(kind, to, folder):
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    read_output(sys.executable, "-c", code, to, folder=folder, PYTHONPATH=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "constraints"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    # A checkout also contains folders that must stay out of the distribution.
    for name in ("docs", "tests", "examples", "benchmarks", ".git", ".venv", "runs"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    out = folder / "dist"
    build("sdist", out, folder)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    build("wheel", folder, unpacked)
    (built,) = folder.glob("*.whl")
    return built


class TestContents:
    def test_wheel_has_exactly_the_files_of_both_packages(self, wheel):
        names = set(zipfile.ZipFile(wheel).namelist())
        metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        assert names - metadata == files_of("tfdecouple") | files_of("export")
        assert any(name.endswith("LICENSE") for name in metadata)

    def test_source_distribution_has_licence_build_files_and_documentation(self, source):
        with tarfile.open(source) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml", "tfdecouple/model/decoupled_model.py"} <= names
        assert {"train.py", "Makefile", "docs/__init__.py", "tests/__init__.py"} <= names
        assert {"examples/__init__.py", "constraints/lowest.txt"} <= names
        assert not any(name.startswith((".venv", "runs", ".git/")) for name in names)

    def test_package_indexes_would_accept_the_metadata_of_the_wheel(self, source, wheel):
        with zipfile.ZipFile(wheel) as archive:
            (text,) = (archive.read(name) for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = Metadata.from_email(text, validate=True)
        assert (metadata.name, str(metadata.version)) == ("tfdecouple", tfdecouple.__version__)
        assert metadata.description_content_type == "text/markdown" and metadata.license_files == ["LICENSE"]
        # The README is the long description.
        assert "Decoupling Global and Local Representations via Invertible" in " ".join(metadata.description.split())
        printed = read_output(sys.executable, "-m", "twine", "check", "--strict", source, wheel, PYTHONPATH=None)
        assert printed.count("PASSED") == 2
