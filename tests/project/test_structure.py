"""Tests of how the package is laid out: imports point one way, and importing it costs and changes nothing."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys

import pytest
from helpers.places import PATIENCE, ROOT, TESTS

import tfdecouple
from tfdecouple.moved import MOVED

PACKAGE = ROOT / "tfdecouple"
EXPORT = ROOT / "export"
BASE = {"config", "errors"}
# What each module, or each sub-package as a whole, may import of the package beside itself.
MAY_IMPORT = {
    "errors": set(),
    "arguments": {"errors"},
    "randomness": {"errors"},
    "moved": set(),
    "registration": set(),
    "runtime": {"errors"},
    "storage": {"errors"},
    "bijectors": {"errors", "runtime"},
    "transforms": {"bijectors"},
    "step_layers": {"bijectors"},
    "image_shapes": set(),
    "levels": {"image_shapes"},
    "loggers": {"errors", "storage", "runtime"},
    "config": {"errors", "storage", "transforms", "step_layers", "levels", "image_shapes", "loggers"},
    "architecture": BASE | {"transforms", "step_layers", "levels"},
    "parameters": BASE | {"runtime", "architecture"},
    "costs": BASE | {"architecture", "transforms"},
    "layers": BASE | {"runtime", "bijectors", "transforms", "step_layers", "levels", "architecture"},
    "pixels": set(),
    "networks": BASE | {"runtime", "layers", "levels", "architecture", "pixels", "randomness", "arguments"},
    "objective": {"pixels", "networks", "runtime"},
    "gradient": {"objective", "layers", "runtime"},
    "between": {"errors"},
    "draws": {"randomness"},
    "precision_check": {"errors", "layers", "networks"},
    "exactness": {"errors"},
    "distributions": BASE | {"runtime", "networks", "objective", "randomness", "arguments"},
    "keras_training": BASE
    | {"runtime", "networks", "distributions", "gradient", "draws", "precision_check"}
    | {"exactness", "randomness", "arguments"},
    "pretrained": {"errors", "storage", "runtime"},
    "run_folder": BASE | {"architecture", "parameters", "networks", "storage", "pretrained"},
    "model": BASE
    | {"runtime", "networks", "objective", "distributions", "exactness", "randomness", "arguments"}
    | {"between", "keras_training", "pretrained", "run_folder"},
    "outliers": {"objective", "model"},
    "directions": {"errors", "storage"},
    "data": BASE | {"runtime", "image_shapes"},
}
# The rest, in the order of the arrow: each may import what stands before it.
ORDER = [
    *MAY_IMPORT,
    "runs",
    "publishing",
    "interop",
    "visualization",
    "metrics",
    "dataset_encoding",
    "training",
    "doctor",
    "cli",
    "__main__",
]


def section(module):
    """The first part of a dotted name below the package."""
    return module.split(".")[0]


def modules():
    """{dotted name below the package: file} of every module; the package itself is ""."""
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = file
    return names


MODULES = modules()


def imported_names(file):
    """Dotted names of modules that a file imports, anywhere in it; of our two packages each name by itself."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            ours = node.module in ("tfdecouple", "export")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if ours else {node.module}
    return found


def imports(file):
    """Dotted names below the package that a file imports, anywhere in it."""
    inside = {name.removeprefix("tfdecouple.") for name in imported_names(file) if name.startswith("tfdecouple.")}
    return {name for name in inside if section(name) in {section(module) for module in MODULES}}


def modules_in_strings(file):
    """Dotted names of modules of ours that stand in strings of a file, from which they could be imported."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {text for text in strings if re.fullmatch(r"(export|tfdecouple)\.\w[\w.]*(:\w+)?", text)}


def listed_in_design(indent):
    """The names at an indent of the list of docs/design.md that says where things are, in its order."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = text.partition("## Where things are")[2].partition("\nImports point one way")[0]
    rows = re.findall(rf"^ {{{indent}}}(\S.*?)  +\S", block, re.MULTILINE)
    return [name.strip("/") for row in rows for name in row.split(", ")]


def module_graph(package):
    """{module: those that it imports, anywhere in it} of all modules of a package; a folder's `__init__` is one."""
    names = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = file
    graph = {}
    for module, file in names.items():
        needed = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needed |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                needed |= {name if name in names else node.module for name in inside}
        graph[module] = needed & set(names) - {module}
    return graph


class TestImportRule:
    def test_every_module_has_its_place(self):
        assert {section(module) for module in MODULES} - {""} == set(ORDER)

    @pytest.mark.parametrize("module", [module for module in MODULES if module])
    def test_module_imports_nothing_to_its_right(self, module):
        own = section(module)
        before = ORDER[: ORDER.index(own)]
        allowed = MAY_IMPORT.get(own, set(before)) | {own}
        assert {section(name) for name in imports(MODULES[module])} <= allowed
        assert set(allowed) - {own} <= set(before)

    @pytest.mark.parametrize(
        ("folder", "allowed"),
        [
            # Operations; what is done to a net with wide maps, in which precision; what layers compute together; and
            # what AutoGraph leaves alone.
            (
                "layers",
                {
                    "convolution",
                    "gradients",
                    "products",
                    "shapes",
                    "precision",
                    "rematerialization",
                    "prepared",
                    "tf32",
                    "autograph",
                },
            ),
            # Operations, the bases that run a network, batches in shards, and what Keras must be set to.
            ("networks", {"backend", "gradients", "products", "shapes", "shards", "tf32", "prepared", "networks"}),
            ("bijectors", {"products", "shapes"}),
        ],
    )
    def test_the_model_is_defined_apart_from_how_it_is_run(self, folder, allowed):
        found = {name for module, file in MODULES.items() if section(module) == folder for name in imports(file)}
        assert {name.split(".")[1] for name in found if section(name) == "runtime"} == allowed

    def test_the_page_lists_them_in_the_same_order(self):
        assert [*listed_in_design(4), "__main__"] == [*ORDER[:-1], "export", "__main__"]
        assert [*listed_in_design(6), "__main__"] == TestExportPackage.ORDER

    def test_strings_name_nothing_to_the_right_but_the_export(self):
        """As the page says: `doctor` has its files made, and the command line starts it."""
        upward = set()
        for module, file in MODULES.items():
            own = section(module)
            for name in modules_in_strings(file):
                package, _, inside = name.partition(":")[0].partition(".")
                if package == "export" or (own and ORDER.index(section(inside)) > ORDER.index(own)):
                    upward.add((module, name))
        assert upward == {("cli.programs", "export.cli"), ("doctor.exports", "export.verification.runtimes")}
        page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
        assert "Upwards point only strings" in page
        assert all(f"`{module.replace('.', '/')}.py`" in page for module, _ in upward)

    def test_the_rule_sees_imports(self):
        assert {"networks", "objective", "randomness"} <= {section(name) for name in imports(MODULES["model"])}

    def test_no_module_of_the_library_imports_the_programs(self):
        for module, file in MODULES.items():
            if section(module) not in ("cli", "__main__"):
                assert not {"cli", "__main__"} & {section(name) for name in imports(file)}, module
                nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
                names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
                names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
                assert not {name.split(".")[0] for name in names} & {"export", "tests", "train"}, module

    @pytest.mark.parametrize("package", [PACKAGE, EXPORT], ids=lambda path: path.name)
    def test_no_module_imports_itself_by_way_of_others(self, package):
        graph = module_graph(package)
        assert len(graph) > 20 and any(graph.values())
        while graph:
            free = {module for module, needed in graph.items() if not needed & set(graph)}
            assert free, f"a cycle among {sorted(graph)}"
            graph = {module: needed for module, needed in graph.items() if module not in free}


class TestExportPackage:
    # Of `export`, in the order of the arrow: each may import what stands before it.
    ORDER = [
        # Alone, as it is published.
        "client",
        "deployed",
        "endpoint",
        "signatures",
        "origin",
        "formats",
        "staging",
        "manifest",
        "card",
        "verification",
        "request",
        "pipeline",
        "cli",
        "__main__",
    ]

    @staticmethod
    def modules():
        return {
            section(".".join(file.relative_to(EXPORT).with_suffix("").parts)): file for file in EXPORT.rglob("*.py")
        }

    def test_every_module_has_its_place(self):
        assert set(self.modules()) - {"__init__"} == set(self.ORDER)

    def test_imports_point_one_way(self):
        for file in EXPORT.rglob("*.py"):
            own = section(".".join(file.relative_to(EXPORT).with_suffix("").parts))
            if own == "__init__":
                continue
            inside = {
                section(name.removeprefix("export.")) for name in imported_names(file) if name.startswith("export.")
            }
            assert inside <= {own, *self.ORDER[: self.ORDER.index(own)]}, file
            assert not {"tfdecouple.cli", "tfdecouple.training", "tests", "train"} & imported_names(file), file

    def test_the_gate_of_onnx_files_needs_no_tensorflow(self):
        heavy = ("tensorflow", "keras", "tf2onnx")
        printed = run(f"import sys, export.verification.check_onnx; print([m for m in {heavy} if m in sys.modules])")
        assert printed.strip() == "[]"

    @pytest.mark.parametrize("module", ["export.cli", "export.signatures"])
    def test_help_and_the_registry_of_endpoints_need_no_tensorflow(self, module):
        printed = run(f"import sys, {module}; print('tensorflow' in sys.modules)")
        assert printed.strip() == "False"


def run(code):
    """Runs Python in a process of its own and returns what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestImporting:
    @pytest.mark.parametrize(
        "name", ["tfdecouple", "tfdecouple.cli", "tfdecouple.architecture", "tfdecouple.parameters"]
    )
    def test_import_does_not_load_tensorflow(self, name):
        heavy = ("tensorflow", "keras", "tensorflow_probability", "tf_keras", "tensorflow_datasets")
        printed = run(f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])")
        assert printed.strip() == "[]"

    def test_listing_a_preset_does_not_load_tensorflow(self):
        printed = run(
            "import sys, tfdecouple; c = tfdecouple.load_preset('cifar10'); print(c.name, 'tensorflow' in sys.modules)"
        )
        assert printed.split() == ["cifar10", "False"]

    # What is imported before the first look has been imported.
    @pytest.mark.usefixtures("forked")
    @pytest.mark.slow
    def test_importing_every_module_changes_no_setting_of_the_process(self):
        names = [f"tfdecouple.{module}" for module in MODULES if module and module != "__main__"]
        printed = run(
            f"""
import importlib, logging, os, signal, sys, warnings
import keras, numpy, tensorflow as tf, tensorflow_probability
from tensorflow_probability import bijectors, distributions

def state():
    return {{
        "environment": dict(os.environ),
        "optimizer": tf.config.optimizer.get_experimental_options(),
        "jit": tf.config.optimizer.get_jit(),
        "eager functions": tf.config.functions_run_eagerly(),
        "soft placement": tf.config.get_soft_device_placement(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "policy": keras.config.dtype_policy().name,
        "floatx": keras.config.floatx(),
        "image format": keras.config.image_data_format(),
        "logging": [logging.getLogger(name).level for name in ("", "tensorflow", "absl", "tfdecouple")],
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "random": numpy.random.get_state()[1].tolist(),
        "path": list(sys.path),
        "folder": os.getcwd(),
    }}

before = state()
for name in {names}:
    importlib.import_module(name)
after = state()
print(sorted(name for name in before if before[name] != after[name]))
"""
        )
        assert printed.strip().splitlines()[-1] == "[]"

    def test_nothing_is_printed(self):
        assert run("import tfdecouple, tfdecouple.cli") == ""


class TestPublicNames:
    @pytest.mark.parametrize("name", tfdecouple.__all__)
    def test_public_name_resolves_to_what_its_module_calls_so(self, name):
        value = getattr(tfdecouple, name)
        assert value.__name__ == name and value.__module__.startswith("tfdecouple.")

    @pytest.mark.parametrize("name", tfdecouple.__all__)
    def test_public_name_shows_an_example_that_runs(self, name):
        value = getattr(tfdecouple, name)
        assert isinstance(value, type) and issubclass(value, Exception) or ">>> " in value.__doc__

    def test_names_are_sorted_and_each_has_its_home(self):
        assert list(tfdecouple.__all__) == sorted(set(tfdecouple.__all__))
        assert set(tfdecouple.__all__) == set(tfdecouple._HOMES)

    def test_other_names_are_an_attribute_error(self):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = tfdecouple.nothing

    def test_every_folder_of_code_is_a_package(self):
        assert all((file.parent / "__init__.py").is_file() for file in PACKAGE.rglob("*.py"))


class TestOldPaths:
    @pytest.mark.parametrize("old", MOVED)
    def test_gives_the_module_at_the_new_place(self, old):
        module = importlib.import_module(f"tfdecouple.{old}")
        assert module is importlib.import_module(f"tfdecouple.{MOVED[old]}")
        assert module.__name__ == module.__spec__.name == f"tfdecouple.{MOVED[old]}"

    def test_names_within_a_moved_package_are_found(self):
        from tfdecouple.codes.reading import read_codes

        assert read_codes.__module__ == "tfdecouple.dataset_encoding.reading"

    def test_what_never_was_is_missing_as_everywhere(self):
        with pytest.raises(ModuleNotFoundError, match="tfdecouple.nothing"):
            importlib.import_module("tfdecouple.nothing")
        with pytest.raises(ModuleNotFoundError, match="nothing"):
            importlib.import_module("tfdecouple.codes.nothing")


class TestFiles:
    def test_no_tracked_file_points_outside_the_repository(self):
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
        if listing.returncode:
            pytest.skip("not a git checkout")
        outside = (os.pardir + "/" + "shared").encode()
        files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
        assert [str(file) for file in files if file.is_file() and outside in file.read_bytes()] == []

    @pytest.mark.parametrize(("folders", "most"), [((PACKAGE, EXPORT), 420), ((TESTS,), 500)], ids=["code", "tests"])
    def test_no_file_is_long(self, folders, most):
        lines = {
            file: file.read_text(encoding="utf-8").count("\n") for folder in folders for file in folder.rglob("*.py")
        }
        assert len(lines) > 150
        assert {str(file): count for file, count in lines.items() if count > most} == {}
        page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
        assert f"{most} lines" in page

    def test_no_file_of_tests_imports_another(self):
        """What several need is in `tests/helpers` or a conftest.py: each file can be run and moved alone."""
        names = {file.stem for file in TESTS.rglob("test_*.py")} | {"conftest", "tests"}
        assert len(names) > 150
        for file in TESTS.rglob("*.py"):
            parts = {part for name in imported_names(file) for part in name.split(".")}
            assert not parts & names, file

    def test_no_test_waits_for_less_than_patience(self):
        """A limit of a minute fails on a busy machine, where nothing is wrong."""
        limit = re.compile(r"(?:timeout=|\.wait\(|\.join\()\d")
        found = {file.name for file in TESTS.rglob("*.py") if limit.search(file.read_text(encoding="utf-8"))}
        # One that is to run out, and this file.
        assert limit.search("thread.join(60)") and found == {"test_forked.py", "test_structure.py"}
