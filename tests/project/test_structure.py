import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.places import ROOT, read_output, run_python
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import tfdecouple
from tfdecouple.system.requirements import EXTRAS

PACKAGE = ROOT / "tfdecouple"
EXPORT = ROOT / "export"
# Each module or folder of the package, and the folder export, may import only those that stand before it.
ORDER = [
    "errors", "registry", "arguments", "randomness", "tensorflow_internals", "numerics", "system", "storage",
    "bijectors", "config", "loggers", "layers", "networks", "execution", "model", "data", "runs",
    "interop", "visualization", "metrics", "direction_finding", "corpus", "training", "doctor", "export",
    "cli", "__main__",
]  # fmt: skip
# The same for the modules and folders of export. The client imports nothing, because exports copy it.
EXPORT_ORDER = [
    "client", "folding", "endpoint_functions", "endpoints", "exported_model", "provenance", "formats", "export_folder",
    "card", "verification", "pipeline",
]  # fmt: skip


FILES = [*sorted(PACKAGE.rglob("*.py")), *sorted(EXPORT.rglob("*.py"))]
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}


def imported_names(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inside}
    return names


IMPORTS = {module: imported_names(file) for module, file in MODULES.items()}


def find_wrong_imports(imports, package, order):
    """Returns texts "module imports name" of imports that point from a part of a package to a later part."""
    # `import tfdecouple` has public names of all parts.
    modules = [name for name in imports if name != "tfdecouple"]
    below = {name: name.removeprefix(f"{package}.").partition(".")[0] for name in modules}
    places = {
        name: order.index(part) for name, part in below.items() if part in order or name.startswith(f"{package}.")
    }
    pairs = [(name, other) for name in places for other in imports[name] if other in places]
    return [f"{name} imports {other}" for name, other in pairs if places[other] > places[name]]


class TestImports:
    @pytest.mark.parametrize(("package", "order"), [("tfdecouple", ORDER), ("export", EXPORT_ORDER)])
    def test_imports_between_folders_point_one_way(self, package, order):
        assert find_wrong_imports(IMPORTS, package, order) == []
        planted = {f"{package}.{order[0]}": {f"{package}.{order[1]}.module"}, f"{package}.{order[1]}.module": set()}
        assert len(find_wrong_imports(planted, package, order)) == 1

    def test_objective_does_not_import_execution(self):
        """Layers and networks stand before the folder `execution` in ORDER."""
        assert not [name for name in IMPORTS["tfdecouple.model.objective"] if name.startswith("tfdecouple.execution")]


def test_lines_quoted_on_the_design_page_are_in_their_functions():
    page, file = (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), ""
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`(.+)` )?\| `(.+)` \|$", page, re.MULTILINE)
    assert rows
    for name, named_file, line in rows:
        file = named_file or file
        found = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        for part in name.split("."):
            found = next(node for node in found.body if getattr(node, "name", "") == part)
        assert ast.unparse(ast.parse(line)) in ast.unparse(found), (name, line)


def test_help_configs_and_verification_load_no_tensorflow_and_print_nothing():
    heavy = ("tensorflow", "keras", "tensorflow_probability", "tf_keras", "tensorflow_datasets", "tf2onnx")
    light = "cli, tfdecouple.networks.architecture, export.endpoints, export.verification.comparison"
    code = f"import sys, tfdecouple.{light}; tfdecouple.preset_config('cifar10')"
    code += f"; print([name for name in {heavy} if name in sys.modules])"
    assert run_python("-c", code).stdout == "[]\n"


def test_public_names_resolve_and_have_examples_in_docstrings_or_pages():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for name in tfdecouple.__all__:
        value = getattr(tfdecouple, name)
        assert value.__name__ == name and value.__module__.startswith("tfdecouple.")
        has_example = ">>> " in value.__doc__ or f"tfdecouple.{name}(" in pages
        assert isinstance(value, type) and issubclass(value, Exception) or has_example, name


# Texts with which a module starts Python or forks.
STARTS = (
    r"\b(executable|ProcessPoolExecutor|multiprocessing|runpy|pty)\b|\b(fork|spawn|posix_spawn|exec[lv])\w*\("
    r"|/python3?[\"']|[\"']python3"
)


def test_python_is_started_by_one_function_only():
    """`system.process.make_python_command` starts Python with -P, which imports no module of the working folder."""
    starters = [file for file in (ROOT / "train.py", *FILES) if re.search(STARTS, file.read_text(encoding="utf-8"))]
    assert starters == [PACKAGE / "system" / "process.py"]


def test_no_tracked_file_points_outside_the_repository():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    outside = (os.pardir + "/" + "shared").encode()
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert [str(file) for file in files if file.is_file() and outside in file.read_bytes()] == []


# The last version of each package with a known hole; see SECURITY.md.
HOLES = {"keras": "3.13.1", "onnx": "1.20.1", "pyarrow": "23.0.0", "pillow": "12.2.0", "torch": "2.5.1"}
# Extras that are not part of `all`.
APART = {"beam", "litert", "loggers", "wolf"}
PYTHONS = ("3.11", "3.12", "3.13")


def list_requirements(text: str) -> list[tuple[str, Requirement]]:
    """Returns (canonical name, requirement) of each line of a text."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [(canonicalize_name(Requirement(line).name), Requirement(line)) for line in lines if line]


SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
BASE, EXTRA_TEXTS = SETUP["options"]["install_requires"], dict(SETUP["options.extras_require"])
((_, ALL),) = list_requirements(EXTRA_TEXTS["all"])


class TestRequirements:
    def test_extra_named_for_a_missing_package_installs_it(self):
        distributions = {"tensorflow_serving": "tensorflow-serving-api"}
        for module, extra in EXTRAS.items():
            name = distributions.get(module, canonicalize_name(module))
            assert name in dict(list_requirements(EXTRA_TEXTS[extra])), module
            assert name not in dict(list_requirements(BASE)), module
        assert ALL.extras == set(EXTRAS.values()) - APART

    @pytest.mark.parametrize("python", PYTHONS)
    @pytest.mark.parametrize("name", ["lowest", "newest"])
    def test_constraints_pin_each_declared_package_within_its_range(self, name, python):
        entries = list_requirements((ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8"))
        pins = [
            (package, entry)
            for package, entry in entries
            if not entry.marker or entry.marker.evaluate({"python_version": python})
        ]
        texts = [BASE, *(EXTRA_TEXTS[extra] for extra in ALL.extras)]
        wanted = {package: entry for text in texts for package, entry in list_requirements(text)}
        assert sorted(package for package, _ in pins) == sorted(wanted)
        for package, entry in pins:
            (pin,) = entry.specifier
            version = Version(pin.version)
            assert pin.operator == "==" and wanted[package].specifier.contains(version), package
            # 0.25.* begins with 0.25.0.
            limits = [limit for limit in wanted[package].specifier if limit.operator in (">=", "~=", "==")]
            lowest = [Version(limit.version.removesuffix(".*")) for limit in limits]
            assert name != "lowest" or max(lowest) == version, package

    @pytest.mark.parametrize("package", HOLES)
    def test_no_requirement_admits_a_vulnerable_version(self, package):
        files = [*ROOT.glob("examples/*/requirements.txt"), *ROOT.glob("constraints/*.txt")]
        texts = [BASE, *EXTRA_TEXTS.values(), *(path.read_text(encoding="utf-8") for path in files)]
        named = [entry for text in texts for name, entry in list_requirements(text) if name == package]
        assert named and [str(entry) for entry in named if entry.specifier.contains(HOLES[package])] == []


@pytest.mark.slow
def test_wheel_has_exactly_the_files_of_both_packages_and_valid_metadata(tmp_path):
    source, archives = tmp_path / "source", tmp_path / "archives"
    for name in ("tfdecouple", "export", "constraints"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    # A checkout also contains folders that must stay out of the wheel, or out of both archives.
    for name in ("docs", "tests", "examples", "benchmarks", ".git", ".venv", "runs"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    for kind, folder in (("sdist", source), ("wheel", tmp_path / f"tfdecouple-{tfdecouple.__version__}")):
        code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        read_output(sys.executable, "-c", code, archives, folder=folder, PYTHONPATH=None)
        if kind == "sdist":
            shutil.unpack_archive(next(archives.iterdir()), tmp_path, filter="data")
            needed = {"LICENSE", "train.py", "Makefile", "docs", "tests", "examples", "constraints"}
            names = {path.name for path in next(tmp_path.glob("tfdecouple-*")).iterdir()}
            assert needed <= names and not {".git", ".venv", "runs"} & names
    names = zipfile.ZipFile(next(archives.glob("*.whl"))).namelist()
    files = [path for package in (PACKAGE, EXPORT) for path in package.rglob("*") if path.is_file()]
    files = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {name for name in names if ".dist-info/" not in name} == files
    assert any(name.endswith("LICENSE") for name in names)
    # Package indexes show the README.
    printed = read_output(sys.executable, "-m", "twine", "check", "--strict", *archives.iterdir(), PYTHONPATH=None)
    assert printed.count("PASSED") == 2
