import ast
import os
import re
import subprocess

import pytest
from helpers.places import ROOT, run_python

import tfdecouple

PACKAGE = ROOT / "tfdecouple"
EXPORT = ROOT / "export"
# Each module, or each sub-package as a whole, may import only what stands before it.
ORDER = [
    "errors", "arguments", "randomness", "tensorflow_internals", "numerics", "runtime", "storage", "bijectors",
    "transforms", "loggers", "config", "layers", "networks", "runtime.execution", "model", "data", "runs", "interop",
    "visualization", "metrics", "corpus", "training", "doctor", "cli", "__main__",
]  # fmt: skip
# The client imports nothing, because exports copy it.
EXPORT_ORDER = [
    "client", "folding", "exported_model", "endpoints", "provenance", "formats", "export_folder", "card",
    "verification", "pipeline", "cli", "__main__",
]  # fmt: skip


def modules(package):
    """{dotted name: file} of every module of a package."""
    files = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        files[".".join(part for part in parts if part != "__init__")] = file
    return files


PRODUCT, EXPORTS = modules(PACKAGE), modules(EXPORT)
MODULES = PRODUCT | EXPORTS


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


def section(module, order):
    """The place of a module in an order: its dotted name below the package, or the first part of it."""
    below = module.partition(".")[2]
    return below if below in order else below.split(".")[0]


class TestImports:
    @pytest.mark.parametrize(("package", "order"), [("tfdecouple", ORDER), ("export", EXPORT_ORDER)])
    def test_imports_of_a_package_point_one_way(self, package, order):
        for module in MODULES:
            if not module.startswith(f"{package}."):
                continue
            part = section(module, order)
            assert part in order, f"{part} has no place in the order of this test"
            inside = {section(name, order) for name in IMPORTS[module] if name.startswith(f"{package}.")}
            assert inside <= {part, *order[: order.index(part)]}, module

    def test_layers_networks_and_objective_import_nothing_of_runtime(self):
        alone = ("tfdecouple.layers", "tfdecouple.networks", "tfdecouple.bijectors", "tfdecouple.model.objective")
        # The architecture asks how much memory the machine has.
        for module in (module for module in PRODUCT if module.startswith(alone) and "architecture" not in module):
            assert not [name for name in IMPORTS[module] if name.startswith("tfdecouple.runtime")], module


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


class TestImporting:
    def test_help_configs_and_verification_load_no_tensorflow_and_print_nothing(self):
        heavy = ("tensorflow", "keras", "tensorflow_probability", "tf_keras", "tensorflow_datasets", "tf2onnx")
        light = "cli, tfdecouple.networks.architecture, export.cli, export.endpoints, export.verification.comparison"
        code = f"import sys, tfdecouple.{light}; tfdecouple.preset_config('cifar10')"
        code += f"; print([name for name in {heavy} if name in sys.modules])"
        assert run_python("-c", code).stdout == "[]\n"


class TestPublicNames:
    @pytest.mark.parametrize("name", tfdecouple.__all__)
    def test_public_name_resolves_and_its_docstring_has_an_example(self, name):
        value = getattr(tfdecouple, name)
        assert value.__name__ == name and value.__module__.startswith("tfdecouple.")
        assert isinstance(value, type) and issubclass(value, Exception) or ">>> " in value.__doc__


# Texts with which a module starts Python or forks.
STARTS = (
    r"\b(executable|ProcessPoolExecutor|multiprocessing|runpy|pty)\b|\b(fork|spawn|posix_spawn|exec[lv])\w*\("
    r"|/python3?[\"']|[\"']python3"
)


def test_python_is_started_by_one_function_only():
    """`runtime.process.make_python_command` starts Python with -P, which imports no module of the working folder."""
    files = [ROOT / "train.py", *PACKAGE.rglob("*.py"), *EXPORT.rglob("*.py")]
    starters = [file for file in files if re.search(STARTS, file.read_text(encoding="utf-8"))]
    assert starters == [PACKAGE / "runtime" / "process.py"]


def test_no_tracked_file_points_outside_the_repository():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    outside = (os.pardir + "/" + "shared").encode()
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert [str(file) for file in files if file.is_file() and outside in file.read_bytes()] == []
