"""`.ci/install-tools`: without a registry or the right to install it fails with a line, nothing is half done."""

import pathlib
import shutil
import subprocess

import pytest
from helpers.places import ROOT

# What the script itself runs; nothing else of this machine can be found.
BORROWED = ("bash", "cat", "cmp", "cp", "dirname", "mkdir", "mktemp", "mv", "rm", "tail")
TOOLS = ("cc", "g++", "make", "dot", "node", "npm", "chromium")
EXAMPLES = ("onnxruntime_node", "web")
# The script looks for them where it runs, for they are no program.
HEADERS = "" if pathlib.Path("/usr/include/onnxruntime/onnxruntime_cxx_api.h").exists() else " libonnxruntime-dev"
UNREACHABLE = "echo 'E: the registry cannot be reached' >&2; exit 100"


@pytest.fixture
def install(tmp_path):
    """Runs a copy of the script among programs that are made up, and returns its status, its output and its errors.

    `install(missing=(), **scripts)`: tools that are not there, and programs by name as scripts of the shell. The others
    do nothing, and succeed; `id` says that root calls.
    """
    folder, programs = tmp_path / "project", tmp_path / "bin"
    (folder / ".ci").mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci" / "install-tools", folder / ".ci")
    for name in EXAMPLES:
        (folder / "examples" / name).mkdir(parents=True)
        shutil.copy(ROOT / "examples" / name / "package.json", folder / "examples" / name)
    programs.mkdir()
    for name in BORROWED:
        (programs / name).symlink_to(shutil.which(name))

    def run(missing=(), **scripts):
        made = {**dict.fromkeys(TOOLS, ""), "apt-get": "", "id": "echo 0"}
        made |= {name.replace("_", "-"): text for name, text in scripts.items()}
        for name in made.keys() - set(missing):
            (programs / name).write_text(f"#!{programs}/bash\n{made[name]}\n")
            (programs / name).chmod(0o755)
        environment = {"PATH": str(programs), "TMPDIR": str(tmp_path)}
        command = [programs / "bash", script]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    run.npm = folder / ".venv" / "npm"
    return run


def test_packages_of_the_examples_are_installed_once(install):
    status, out, err = install(npm="mkdir node_modules")
    assert (status, err) == (0, "") and out.count("Installing the npm packages") == len(EXAMPLES)
    assert {path.name for path in install.npm.iterdir()} == set(EXAMPLES)
    status, out, err = install(npm=UNREACHABLE)
    assert (status, err) == (0, "") and "npm" not in out


def test_npm_registry_that_is_missing_fails_it(install):
    status, _, err = install(npm=UNREACHABLE)
    assert status == 1 and err.splitlines() == [
        "E: the registry cannot be reached",
        "error: npm cannot install the packages of examples/onnxruntime_node: see above; is there an npm registry?",
    ]
    # What is half installed would be taken for whole.
    assert not (install.npm / "onnxruntime_node").exists()


def test_package_mirror_that_is_missing_fails_it(install):
    status, _, err = install(missing=["chromium"], apt_get=UNREACHABLE)
    seen, line = err.splitlines()
    assert status == 1 and seen == "E: the registry cannot be reached"
    assert line.startswith("error: apt-get cannot install ")
    assert line.endswith(" chromium: see above; is there a package mirror?")
    assert not install.npm.exists()


@pytest.mark.parametrize(
    ("missing", "scripts", "says"),
    [
        (["cc", "npm"], {"id": "echo 1000"}, "please run: sudo apt-get update && sudo apt-get install gcc libc6-dev "),
        (["g++", "apt-get"], {}, f"and Graphviz; please install them (in Debian's names: g++{HEADERS})"),
    ],
    ids=["not root", "no Debian"],
)
def test_programs_that_it_cannot_install_fail_it(install, missing, scripts, says):
    status, _, err = install(missing=missing, **scripts)
    assert status == 1 and err.startswith("error: the long tests need ") and err.count("\n") == 1 and says in err
    assert not install.npm.exists()
