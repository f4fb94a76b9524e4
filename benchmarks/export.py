"""Measures how fast exported files are in each runtime, compared with the Keras model.

    python benchmarks/export.py --run runs/quickstart
    python benchmarks/export.py --exported exported/quickstart --runtimes onnx openvino --openvino-python ENV/bin/python

The program exports a run, or uses an existing export folder. Then it encodes and decodes with the Keras model, the
SavedModel, ONNX Runtime and the requested runtimes. Each runtime has its own process with the same number of threads,
and the runtimes take turns call by call, so that their rates can be compared even on a busy machine. The program prints
a JSON line for each runtime, endpoint ("encode" or "decode") and batch size, with the median wall and CPU times of a
call.

OpenVINO runs the ONNX files in float32 (`INFERENCE_PRECISION_HINT=f32`); its interpreter needs only numpy and openvino.
`litert` needs an export folder with LiteRT files.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, run_text
from benchmarks.export_worker import OTHERS, RUNTIMES
from tfdecouple.errors import UserError
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.system.process import run_program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=pathlib.Path, help="run folder, or the name of bundled weights")
    model.add_argument("--exported", type=pathlib.Path, help="an existing export folder")
    parser.add_argument("--runtimes", nargs="+", choices=[*RUNTIMES, *OTHERS], help="default keras savedmodel onnx")
    parser.add_argument("--openvino-python", default=sys.executable, help="a Python interpreter that has openvino")
    parser.add_argument("--threads", type=int, default=2, help="threads of each runtime (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each endpoint and batch size (default 7)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="batch sizes (default 1 16)")
    options = parser.parse_args()
    if options.exported:
        if not options.exported.is_dir():
            raise UserError(f"there is no export folder {options.exported}")
        runtimes = options.runtimes or [name for name in RUNTIMES if name != "keras"]
        measure_runtimes(options.exported.resolve(), options.exported.resolve(), runtimes, options)
        return 0
    if RunFolder(options.run).read_config().model.has_label_codes:
        raise UserError("z of this model is a function of the label, and the benchmark has no labels")
    with tempfile.TemporaryDirectory() as folder:
        run, exported = RunFolder(options.run).path.resolve(), pathlib.Path(folder) / "exported"
        runtimes = options.runtimes or [*RUNTIMES]
        command = [sys.executable, "-m", "tfdecouple", "export", "--run", str(run), "--to", str(exported)]
        formats = ["savedmodel", "onnx", *(["litert"] if "litert" in runtimes else [])]
        run_text([*command, "--format", *formats], ROOT)
        measure_runtimes(run, exported, runtimes, options)
    return 0


def measure_runtimes(
    run: pathlib.Path, exported: pathlib.Path, runtimes: list[str], options: argparse.Namespace
) -> None:
    """Times encoding and decoding in each runtime, such as "onnx"; prints JSON lines, one for each of --batches."""
    pythons = {"openvino": options.openvino_python}
    program = str(ROOT / "benchmarks" / "export_worker.py")
    arguments = [str(run), str(exported), str(options.threads), str(max(options.batches))]
    workers: dict[str, Any] = {}
    for runtime in runtimes:
        command = [pythons.get(runtime, sys.executable), program, runtime, *arguments]
        pipe = subprocess.PIPE
        workers[runtime] = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def time_call(runtime: str, endpoint: str, batch: int) -> tuple[float, float]:
        worker = workers[runtime]
        # A worker process that fails closes its pipes; then the missing answer below raises the error.
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(f"{endpoint} {batch}\n")
            worker.stdin.flush()
        if not (answer := worker.stdout.readline()):
            raise UserError(f"{runtime} cannot {endpoint} {batch} images of {exported}; its error is above")
        wall, cpu = map(float, answer.split())
        return wall, cpu

    for endpoint in ("encode", "decode"):
        for batch in options.batches:
            times: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in runtimes}
            for number in range(options.rounds + 2):
                for runtime in runtimes:
                    seconds = time_call(runtime, endpoint, batch)
                    # The first two calls are not timed: in them, runtimes trace, allocate and choose algorithms.
                    if number >= 2:
                        times[runtime].append(seconds)
            walls = {runtime: [wall for wall, _ in times[runtime]] for runtime in runtimes}
            for runtime in runtimes:
                median = statistics.median(walls[runtime])
                row = {
                    "what": endpoint,
                    "runtime": runtime,
                    "batch": batch,
                    "images_per_s": round(batch / median, 2),
                    "ms": round(1000 * median, 2),
                    "cpu_ms": round(1000 * statistics.median(cpu for _, cpu in times[runtime]), 2),
                    f"beside_{runtimes[0]}": round(statistics.median(walls[runtimes[0]]) / median, 2),
                }
                print(json.dumps(row), flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    sys.exit(run_program(main))
