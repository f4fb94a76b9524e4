"""Measures how long an export takes, how large it is, and how fast each runtime is compared with the Keras model.

    python benchmarks/export.py --preset cifar10
    python benchmarks/export.py --run runs/quickstart
    python benchmarks/export.py --exported exported/quickstart --runtimes onnx openvino --openvino-python ENV/bin/python

The program exports a run, or a preset with random weights, or takes an export folder. Then it encodes and decodes with
the Keras model, the SavedModel, ONNX Runtime and the requested runtimes. Each runtime has a process of its own with the
same number of threads, and the runtimes take turns call by call, so that rates compare even on a busy machine. It
prints a JSON line for the export, and one for each runtime, endpoint and batch: median wall and CPU time of a call.

OpenVINO runs the ONNX files in float32 (`INFERENCE_PRECISION_HINT=f32`); its interpreter needs only numpy and openvino.
`litert` needs an export folder with LiteRT files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.export_worker import OTHERS, RUNTIMES  # noqa: E402
from tfdecouple.config import Config, load_preset  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runs.run_folder import find_run, load_config  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

WORKER = ROOT / "benchmarks" / "export_worker.py"


def main() -> int:
    """Reads the command line and runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=pathlib.Path, help="run folder")
    what.add_argument("--preset", help="a preset, with random weights")
    what.add_argument("--exported", type=pathlib.Path, help="a folder that was exported before")
    parser.add_argument("--runtimes", nargs="+", choices=[*RUNTIMES, *OTHERS], help="default: the first three")
    parser.add_argument("--openvino-python", default=sys.executable, help="an interpreter that has openvino")
    parser.add_argument("--threads", type=int, default=2, help="of each runtime (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="calls of each kind (default 7)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    return run_program(lambda: benchmark(options))


def benchmark(options: argparse.Namespace) -> int:
    """Exports if a run or preset is given, measures, and returns the exit status.

    Raises:
        UserError: if an argument is out of range, the run or export is missing, or its z is a function of the label.
    """
    for name in ("threads", "rounds", "batches"):
        if min(np.atleast_1d(getattr(options, name))) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        if options.exported:
            runtimes = options.runtimes or [name for name in RUNTIMES if name != "keras"]
            if "keras" in runtimes:
                raise UserError("--exported has no run, so that there is no Keras model to measure")
            exported = options.exported.resolve()
            if not exported.is_dir():
                raise UserError(f"there is no export folder {options.exported}")
            measure(exported, exported, runtimes, options)
            return 0
        config = load_config(options.run) if options.run else load_preset(options.preset)
        if config.model.has_class_codes:
            raise UserError("z of this model is a function of the label, which these calls have not; take another")
        run = find_run(options.run).resolve() if options.run else random_run(config, scratch / options.preset)
        exported = scratch / "exported"
        runtimes = options.runtimes or list(RUNTIMES)
        extra = ["litert"] if "litert" in runtimes else []
        print(json.dumps(export(run, exported, extra)), flush=True)
        measure(run, exported, runtimes, options)
    return 0


def export(run: pathlib.Path, to: pathlib.Path, extra: list[str]) -> dict[str, object]:
    """Returns how many seconds the export command takes in all and for each format, and the sizes of the files."""
    process = subprocess.Popen(
        [sys.executable, "-m", "export", "--run", str(run), "--to", str(to)]
        + ["--format", "savedmodel", "onnx", *extra],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    begun, marks = time.monotonic(), []
    for line in process.stdout:
        marks.append((time.monotonic() - begun, line.strip()))
    if process.wait():
        raise UserError("the export failed, as it says above")
    total = time.monotonic() - begun

    def first(text: str) -> float:
        return next(seconds for seconds, line in marks if text in line)

    sizes = {path.name: path.stat().st_size for path in sorted((to / "onnx").iterdir())}
    return {
        "what": "export",
        "run": run.name,
        "total_s": round(total, 1),
        "savedmodel_s": round(first("verifying the SavedModel") - first("SavedModel: "), 1),
        "onnx_s": round(first("verifying the onnx files") - first("ONNX: "), 1),
        "onnx_bytes": sizes,
        "savedmodel_bytes": sum(p.stat().st_size for p in (to / "savedmodel").rglob("*") if p.is_file()),
    }


def random_run(config: Config, folder: pathlib.Path) -> pathlib.Path:
    """Returns a new run folder with random weights, perturbed so that each of them changes the results."""
    start_tensorflow()
    from tfdecouple.model import DecoupledModel
    from tfdecouple.storage.checkpoints import CheckpointFolder
    from tfdecouple.storage.files import write_text

    model = DecoupledModel(config.model)
    rng = np.random.default_rng(0)
    model.initialize(rng.integers(0, 256, (32, *config.model.image_shape), dtype=np.uint8))
    for variable in model.trainable_variables:
        variable.assign_add(0.02 * rng.standard_normal(tuple(variable.shape)).astype(np.float32))
    write_text(folder / "config.json", config.to_json())
    variables = model.named_variables()
    # A loaded run takes the "best" checkpoint, which holds averaged weights if the preset averages them.
    CheckpointFolder(folder / "checkpoints").write_checkpoint("best", 1, {"model": variables})
    return folder


def measure(run: pathlib.Path, exported: pathlib.Path, runtimes: list[str], options: argparse.Namespace) -> None:
    """Measures the runtimes in turn and prints a JSON line for each runtime, endpoint and batch."""
    pythons = {"openvino": options.openvino_python}
    workers = {
        runtime: subprocess.Popen(
            [pythons.get(runtime, sys.executable), str(WORKER), runtime, str(run), str(exported)]
            + [str(options.threads), str(max(options.batches))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for runtime in runtimes
    }

    def ask(runtime: str, endpoint: str, batch: int) -> tuple[float, float]:
        worker = workers[runtime]
        with contextlib.suppress(BrokenPipeError):  # The worker has ended and printed its error.
            worker.stdin.write(f"{endpoint} {batch}\n")
            worker.stdin.flush()
        if not (answer := worker.stdout.readline()):
            raise UserError(f"{runtime} cannot {endpoint} {batch} images of {exported}, as it says above")
        wall, cpu = map(float, answer.split())
        return wall, cpu

    for endpoint in ("encode", "decode"):
        for batch in options.batches:
            times: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in runtimes}
            for number in range(options.rounds + 2):
                for runtime in runtimes:
                    taken = ask(runtime, endpoint, batch)
                    # The first two calls trace, allocate and choose algorithms.
                    if number >= 2:
                        times[runtime].append(taken)
            walls = {runtime: [wall for wall, _ in times[runtime]] for runtime in runtimes}
            for runtime in runtimes:
                median, best = statistics.median(walls[runtime]), min(walls[runtime])
                row = {
                    "what": endpoint,
                    "runtime": runtime,
                    "batch": batch,
                    "images_per_s": round(batch / median, 2),
                    "best_images_per_s": round(batch / best, 2),
                    "ms": round(1000 * median, 2),
                    "cpu_ms": round(1000 * statistics.median(cpu for _, cpu in times[runtime]), 2),
                    f"beside_{runtimes[0]}": round(statistics.median(walls[runtimes[0]]) / median, 2),
                }
                print(json.dumps(row), flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
