"""Verifies exported files, each format in a new process: before publication, and later by `--verify`."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import LOG
from export.export_folder import EDITABLE, JSON_NAME, MOST_BYTES, VECTORS, load_manifest
from export.formats.runtimes import Report
from export.verification.comparison import REPORT
from tfdecouple.data.image_formats import describe_cropping
from tfdecouple.errors import EXIT_FAILED, UserError, make_printable, one_line
from tfdecouple.registry import FORMATS
from tfdecouple.storage.files import Facts, read_bytes, read_json
from tfdecouple.system.process import run_module

# Seconds without a line of progress after which a process is ended, as with files that have an endless loop.
PATIENCE = 1800
# The largest count of problems that an error message lists.
_LISTED = 5


class RefusedError(UserError):
    """Raised if exported files do not pass the verification; then nothing is published."""

    status = EXIT_FAILED


def join_problems(problems: Sequence[str]) -> str:
    """Joins problems into one line: a single problem as it is; for several, their count and the first five."""
    if len(problems) == 1:
        return make_printable(problems[0])
    listed = [f"({number}) {make_printable(text)}" for number, text in enumerate(problems[:_LISTED], 1)]
    more = [f"and {len(problems) - _LISTED} more"] if problems[_LISTED:] else []
    return f"{len(problems)} problems: " + "; ".join([*listed, *more])


def require_no_problems(problems: Iterable[str]) -> None:
    """Raises RefusedError if exported files have `problems`, texts of one line each."""
    if found := [*problems]:
        raise RefusedError(f"not published: {join_problems(found)}")


def compare_in_process(runtime: str, folder: pathlib.Path, vectors: pathlib.Path, options: Facts) -> Report:
    """Runs `comparison.compare_files` in a process that does not load the Keras model, and returns its report.

    `options` has further arguments of `compare_files`. If the process fails, the failure is the only problem.
    """
    found = []

    def read_line(line: str) -> None:
        if line.startswith(REPORT):
            found.append(Report(**json.loads(line.removeprefix(REPORT))))
        else:
            LOG.info("%s", line)

    arguments = [runtime, str(folder), str(vectors), json.dumps(options)]
    status, last = run_module("export.verification.comparison", *arguments, on_line=read_line, limit=PATIENCE)
    if status is None:
        last = "no progress for too long, as with an endless loop in the files"
    if status != 0 or not found:
        return Report(problems=[f"the verification of {runtime} ended with status {status}: {last}"])
    return found[0]


def verify_folder(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """Verifies an export folder without the run; returns the problems, and the names of parts that could not be run.

    ONNX files are run with every execution provider of ONNX Runtime that is installed. UserError is raised if the
    folder has no manifest, or the manifest is damaged.
    """
    manifest = load_manifest(folder)
    problems: list[str] = []
    not_compared: list[str] = []
    changes = [*manifest.find_changes(folder)]
    changed = {name for _, name in changes}
    for change, name in changes:
        if change == "changed" and name in EDITABLE:
            LOG.info("changed: %s (settings of a server, which are yours to edit)", name)
        else:
            problems.append(f"{change}: {name}")
    LOG.info("%s of %s files are as they were exported", len({*manifest.files} - changed), len(manifest.files))
    if not manifest.parts:
        problems.append("the manifest names nothing that could be checked")
    try:
        card = read_json(folder / JSON_NAME, MOST_BYTES)
        problems += check_settings(folder, card)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problems.append(f"model card or settings cannot be read: {one_line(error)}")
    for name, names in manifest.parts.items():
        if VECTORS not in manifest.files or any(path.startswith((f"{name}/", VECTORS)) for path in changed):
            problems.append(f"{name}: its answers were not checked, since files of it are not as they were exported")
            continue
        unavailable, compared = [], False
        kind = FORMATS[name.partition("/")[0]]()
        paths = (folder / name / kind.inside).resolve(), (folder / VECTORS).resolve()
        for runtime, options in kind.list_runtimes():
            LOG.info("%s: %s", name, runtime)
            found = compare_in_process(kind.name, *paths, {"names": names, **options})
            if found.notes.get("unavailable"):
                LOG.info("%s: %s is installed but cannot be started here: not checked", name, runtime)
                unavailable.append(f"{name} by {runtime}")
            else:
                compared = True
            problems += [f"{name}: {runtime}: {problem}" for problem in found.problems]
        not_compared += unavailable if compared else [name]
    return problems, not_compared


def check_settings(folder: pathlib.Path, card: Facts) -> Iterator[str]:
    """Yields a problem if `models.config` or `web/` in an export folder differs from the model card `card`."""
    path = folder / "models.config"
    if path.is_file():
        try:
            settings = text_format.Parse(read_bytes(path, MOST_BYTES), ModelServerConfig())
            names = [served.name for served in settings.model_config_list.config]
        except (text_format.ParseError, ValueError) as error:
            yield f"models.config cannot be read: {one_line(error)}"
        else:
            if card["name"] not in names:
                yield f"models.config names {', '.join(names)} and not the model {card['name']}"
    path = folder / "web" / "model" / "config.json"
    page = read_json(path, MOST_BYTES) if path.is_file() else {}
    if page:
        page["crop"] = describe_cropping(page["image_shape"], page["centre_crop"])
    for key, right in {"name": card["name"], "crop": card["crop"], **card["architecture"]}.items():
        if page.get(key, right) != right:
            yield f"web/model/config.json has {key} = {page[key]}; expected {right}"
