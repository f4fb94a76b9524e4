import pathlib
import shutil
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from helpers.models import SMALL_SETTINGS
from helpers.places import ROOT, read_output
from packaging.metadata import Metadata

import tfdecouple

pytestmark = pytest.mark.slow

PACKAGES = ("tfdecouple", "export")
# Makes the packages of the extras impossible to import, except torch: SciPy takes a None in its place for a module.
WITHOUT_EXTRAS = (
    "import sys\nfrom tfdecouple.runtime.requirements import EXTRAS\n"
    "sys.modules |= dict.fromkeys(EXTRAS.keys() - {'torch'})"
)


def run(command, folder):
    return read_output(*command, folder=folder, PYTHONPATH=None)


def files_of(package):
    """The files of a package that belong into a wheel, as names below the root."""
    paths = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "constraints", "docs", "tests", "examples", "benchmarks", ".git", ".venv", "runs"):
        # A checkout also contains folders that must stay out of the distribution.
        ignored = shutil.ignore_patterns("__pycache__")
        if name in (*PACKAGES, "constraints"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            (folder / name).mkdir()
            (folder / name / "__init__.py").touch()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    out = folder / "dist"
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", code, out], folder)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run([sys.executable, "-c", code, folder], unpacked)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of a new environment with the wheel. It sees this environment's packages, but not the repository.

    `make test-wheel` makes one with nothing but the wheel's own requirements.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", folder], ROOT)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = pathlib.Path(sysconfig.get_path("purelib", "venv", scheme))
    shared = [path for path in sys.path if pathlib.Path(path).name in ("site-packages", "dist-packages")]
    # Python searches the paths in this file, but not the .pth files there, so no editable installation is found.
    (site / "shared.pth").write_text("\n".join(shared))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    run([*pip, "--ignore-installed", wheel], folder)
    return python


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
        printed = run([sys.executable, "-m", "twine", "check", "--strict", source, wheel], ROOT)
        assert printed.count("PASSED") == 2


class TestInstalled:
    def test_installed_wheel_imports_and_answers_commands(self, installed, tmp_path):
        code = "import tfdecouple, export; print(tfdecouple.__file__); print(export.__file__)"
        for line in run([installed, "-c", code], tmp_path).splitlines():
            assert pathlib.Path(line).is_relative_to(installed.parents[1])
        lines = run([installed, "-m", "tfdecouple", "presets"], tmp_path).splitlines()
        assert [line.split()[0] for line in lines] == list(tfdecouple.preset_names())
        assert "python -m export --run runs/quickstart" in run([installed, "-m", "export", "--help"], tmp_path)

    def test_installed_wheel_trains_without_any_extra(self, installed, tmp_path):
        changes = [word for setting in (*SMALL_SETTINGS, "training.batch_size=4") for word in ("--set", setting)]
        arguments = ["--steps", "1", "--workdir", tmp_path / "run", *changes]
        code = f"{WITHOUT_EXTRAS}\nfrom tfdecouple.cli import main\nsys.exit(main(['train', *sys.argv[1:]]))"
        printed = run([installed, "-c", code, *arguments], tmp_path)
        assert "model.steps=[1, 1]" in printed and "test: " in printed

    @pytest.mark.parametrize("name", ["export/__init__.py", "export.py"])
    def test_installed_commands_ignore_a_module_export_in_the_working_folder(self, installed, tmp_path, name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong export')")
        program = installed.parent / "tfdecouple"
        assert "export --run runs/quickstart" in run([program, "export", "--help"], tmp_path)
        assert "--preset NAME" in run([program, "train", "--help"], tmp_path)
