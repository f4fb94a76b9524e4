"""Tests of how the package is laid out: imports point one way, and importing it costs and changes nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest
from helpers.places import PATIENCE, ROOT, TESTS

import tfdecouple

PACKAGE = ROOT / "tfdecouple"
EXPORT = ROOT / "export"
# Each module, or each sub-package as a whole, may import only what stands before it.
ORDER = [
    "errors",
    "arguments",
    "randomness",
    "runtime",
    "storage",
    "bijectors",
    "transforms",
    "image_shapes",
    "loggers",
    "config",
    "layers",
    "networks",
    "runs.pretrained",
    "runs.run_folder",
    "model",
    "runs.latent_directions",
    "data",
    "runs",
    "interop",
    "visualization",
    "metrics",
    "corpus",
    "training",
    "doctor",
    "cli",
    "__main__",
]
EXPORT_ORDER = [
    # Alone, as it is published.
    "client",
    "deployed",
    "endpoints",
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


def section(module):
    """What stands in the order for a dotted name below the package: itself, or its first part."""
    return module if module in ORDER else module.split(".")[0]


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
    @pytest.mark.parametrize("module", [module for module in MODULES if module])
    def test_module_imports_nothing_to_its_right(self, module):
        own = section(module)
        assert own in ORDER, f"{own} has no place in ORDER of this test"
        assert {section(name) for name in imports(MODULES[module])} <= {own, *ORDER[: ORDER.index(own)]}

    def test_no_module_of_the_library_imports_the_programs(self):
        for module, file in MODULES.items():
            if section(module) not in ("cli", "__main__"):
                assert not {name.split(".")[0] for name in imported_names(file)} & {"export", "tests", "train"}, module

    @pytest.mark.parametrize("package", [PACKAGE, EXPORT], ids=lambda path: path.name)
    def test_no_module_imports_itself_by_way_of_others(self, package):
        graph = module_graph(package)
        assert len(graph) > 20 and any(graph.values())
        while graph:
            free = {module for module, needed in graph.items() if not needed & set(graph)}
            assert free, f"a cycle among {sorted(graph)}"
            graph = {module: needed for module, needed in graph.items() if module not in free}


class TestExportPackage:
    def test_imports_point_one_way(self):
        for file in EXPORT.rglob("*.py"):
            own = section(".".join(file.relative_to(EXPORT).with_suffix("").parts))
            if own == "__init__":
                continue
            assert own in EXPORT_ORDER, f"{own} has no place in EXPORT_ORDER of this test"
            inside = {
                section(name.removeprefix("export.")) for name in imported_names(file) if name.startswith("export.")
            }
            assert inside <= {own, *EXPORT_ORDER[: EXPORT_ORDER.index(own)]}, file
            assert not {"tfdecouple.cli", "tfdecouple.training", "tests", "train"} & imported_names(file), file

    def test_the_gate_of_onnx_files_needs_no_tensorflow(self):
        heavy = ("tensorflow", "keras", "tf2onnx")
        printed = run(f"import sys, export.verification.check; print([m for m in {heavy} if m in sys.modules])")
        assert printed.strip() == "[]"

    @pytest.mark.parametrize("module", ["export.cli", "export.endpoints"])
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
    @pytest.mark.parametrize("name", ["tfdecouple", "tfdecouple.cli", "tfdecouple.networks.costs"])
    def test_import_does_not_load_tensorflow(self, name):
        heavy = ("tensorflow", "keras", "tensorflow_probability", "tf_keras", "tensorflow_datasets")
        printed = run(f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])")
        assert printed.strip() == "[]"

    def test_a_run_opens_without_what_posix_alone_has(self):
        modules = [f"tfdecouple.{module}" for module in MODULES if module and module != "__main__"]
        code = f"""
import importlib, sys, tfdecouple
import tensorflow, keras, tensorflow_probability, scipy, sklearn, skimage, filelock, tensorflow_datasets
try:
    import apache_beam
except ImportError:
    pass
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in {modules}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # An extra that is not installed.
        if error.name != "apache_beam":
            raise
print(tfdecouple.load_pretrained("photographs").config.latent_dim)
"""
        assert run(code).strip().isdigit()

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
import keras, numpy, PIL.Image, sklearn, tensorflow as tf, tensorflow_probability
try:
    import apache_beam
except ImportError:
    pass
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
        "blocks of Pillow": PIL.Image.core.get_block_size(),
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


# Names with which a program starts another Python, or another process of itself.
STARTS = r"executable|ProcessPoolExecutor|fork(pty)?|(posix_)?spawn\w*|exec[lv]p?e?|multiprocessing|runpy|pty"


def starts_of_python(file):
    """Where a file starts a Python, as (file, line); calls of `python_process` aside."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [getattr(node, name, None) for name in ("attr", "id", "module", "name")]
        text = str(node.value) if isinstance(node, ast.Constant) else ""
        if re.match(r"(.*/python|python3)[0-9.]*$", text) or any(re.fullmatch(STARTS, str(name)) for name in names):
            yield str(file.relative_to(ROOT)), getattr(node, "lineno", 0)


def test_every_python_is_started_in_one_way():
    """With `-P`, so that it runs nothing that lies in the working folder: by `runtime.process.python_process`."""
    files = [ROOT / "train.py", *PACKAGE.rglob("*.py"), *EXPORT.rglob("*.py")]
    found = [place for file in files for place in starts_of_python(file)]
    assert {file for file, _ in found} == {"tfdecouple/runtime/process.py"}, found


class TestFiles:
    def test_no_tracked_file_points_outside_the_repository(self):
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
        if listing.returncode:
            pytest.skip("not a git checkout")
        outside = (os.pardir + "/" + "shared").encode()
        files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
        assert [str(file) for file in files if file.is_file() and outside in file.read_bytes()] == []

    def test_no_file_of_tests_imports_another(self):
        """What several need is in `tests/helpers` or a conftest.py: each file can be run and moved alone."""
        names = {file.stem for file in TESTS.rglob("test_*.py")} | {"conftest", "tests"}
        for file in TESTS.rglob("*.py"):
            parts = {part for name in imported_names(file) for part in name.split(".")}
            assert not parts & names, file
