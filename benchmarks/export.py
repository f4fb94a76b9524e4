"""How long an export takes, how large it is, and how fast what comes out of it runs, beside the Keras model.

    python benchmarks/export.py --preset cifar10
    python benchmarks/export.py --run runs/quickstart
    python benchmarks/export.py --exported exported/quickstart --runtimes onnx openvino --openvino-python ENV/bin/python

Exports (a preset with random weights), or takes what lies in a folder, then encodes and decodes with the Keras model,
the SavedModel, ONNX Runtime and whatever else is asked for, each in a process of its own with the same number of
threads, call by call in turn: a rate compares with its neighbours even on a busy machine. One JSON line for the export
and one for each runtime, endpoint and batch: wall and CPU time (user + sys) of a call, medians.

OpenVINO runs the ONNX files in float32 (`INFERENCE_PRECISION_HINT=f32`); its interpreter needs numpy and openvino
alone. `litert` takes a folder that was exported with that format.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
RUNTIMES = ("keras", "savedmodel", "onnx")
OTHERS = ("openvino", "litert")


def main() -> None:
    """Runs the benchmark."""
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
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], *map(pathlib.Path, options.worker[1:]), threads=options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        if options.exported:
            runtimes = options.runtimes or [name for name in RUNTIMES if name != "keras"]
            if "keras" in runtimes:
                parser.error("--exported has no run, so that there is no Keras model to measure")
            measure(options.exported, options.exported, runtimes, options)
            return
        run = options.run or random_run(options.preset, scratch / options.preset)
        exported = scratch / "exported"
        runtimes = options.runtimes or list(RUNTIMES)
        extra = ["litert"] if "litert" in runtimes else []
        print(json.dumps(export(run, exported, extra)), flush=True)
        measure(run, exported, runtimes, options)


def export(run: pathlib.Path, to: pathlib.Path, extra: list[str]) -> dict[str, object]:
    """Exports by the command, and says how long each part took."""
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
        sys.exit("the export failed")
    total = time.monotonic() - begun

    def first(text: str) -> float:
        return next(seconds for seconds, line in marks if text in line)

    sizes = {path.name: path.stat().st_size for path in sorted((to / "onnx").iterdir())}
    return {
        "what": "export",
        "run": run.name,
        "total_s": round(total, 1),
        "savedmodel_s": round(first("checking the SavedModel") - first("folding the weights"), 1),
        # Beside the check of the SavedModel, which has the cores to itself only afterwards.
        "onnx_s": round(first("waiting for the check of the SavedModel") - first("ONNX: encoder"), 1),
        "onnx_bytes": sizes,
        "savedmodel_bytes": sum(p.stat().st_size for p in (to / "savedmodel").rglob("*") if p.is_file()),
    }


def random_run(preset: str, folder: pathlib.Path) -> pathlib.Path:
    """Makes a run folder of a preset whose every weight has an effect."""
    from tfdecouple.runtime.process import start_tensorflow

    start_tensorflow()
    from tfdecouple.config import load_preset
    from tfdecouple.model import DecoupledModel
    from tfdecouple.storage.checkpoints import CheckpointFolder
    from tfdecouple.storage.files import write_text

    config = load_preset(preset)
    model = DecoupledModel(config.model)
    rng = np.random.default_rng(0)
    model.initialize(rng.integers(0, 256, (32, *config.model.image_shape), dtype=np.uint8))
    for variable in model.trainable_variables:
        variable.assign_add(0.02 * rng.standard_normal(tuple(variable.shape)).astype(np.float32))
    write_text(folder / "config.json", config.to_json())
    variables = model.named_variables()
    # Averaged weights are written as such, where the preset has them, by being the best ones.
    CheckpointFolder(folder / "checkpoints").write("best", 1, {"model": variables})
    return folder


def measure(run: pathlib.Path, exported: pathlib.Path, runtimes: list[str], options: argparse.Namespace) -> None:
    """Asks the workers in turn and prints their medians."""
    pythons = {"openvino": options.openvino_python}
    workers = {
        runtime: subprocess.Popen(
            [pythons.get(runtime, sys.executable), __file__, "--run", str(run), "--threads", str(options.threads)]
            + ["--worker", runtime, str(run), str(exported)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for runtime in runtimes
    }

    def ask(runtime: str, endpoint: str, batch: int) -> tuple[float, float]:
        worker = workers[runtime]
        worker.stdin.write(f"{endpoint} {batch}\n")
        worker.stdin.flush()
        wall, cpu = map(float, worker.stdout.readline().split())
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


def work(runtime: str, run: pathlib.Path, exported: pathlib.Path, threads: int) -> None:
    """A worker: reads "ENDPOINT BATCH" and answers with the seconds of one call, on the clock and of all cores."""
    opened = {"keras": keras, "savedmodel": saved_model, "onnx": onnx, "openvino": openvino, "litert": litert}[runtime]
    encode, decode, shape, d_z = opened(run, exported, threads)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, *shape), dtype=np.uint8)
    z, v = (0.5 * rng.standard_normal((64, *each)).astype(np.float32) for each in ((d_z,), shape))
    for line in sys.stdin:
        endpoint, batch = line.split()[0], int(line.split()[1])
        begun, before = time.perf_counter(), time.process_time()
        if endpoint == "encode":
            encode(images[:batch])
        else:
            decode(z[:batch], v[:batch])
        print(time.perf_counter() - begun, time.process_time() - before, flush=True)


def tensorflow_with(threads: int):
    """TensorFlow with so many threads."""
    from tfdecouple.runtime.process import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def keras(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """The model as `load_model` gives it."""
    tensorflow_with(threads)
    import tfdecouple

    model = tfdecouple.load_model(run)
    config = model.config
    if config.has_latent:
        return model.encode, model.decode, config.image_shape, config.latent_dim
    return model.encode, lambda z, v: model.decode(None, v), config.image_shape, 1


def saved_model(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """The SavedModel in a session, as TensorFlow Serving runs it: with Grappler, which a server does not turn off."""
    tf = tensorflow_with(threads)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    options = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph, config=options)
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(exported / "savedmodel" / "1")).signature_def

    def call(name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        signature = signatures[name]
        feeds = {info.name: inputs[key] for key, info in signature.inputs.items()}
        return session.run({key: info.name for key, info in signature.outputs.items()}, feeds)

    shape = tuple(size.size for size in signatures["encode"].inputs["images"].tensor_shape.dim[1:])
    z = signatures["decode"].inputs.get("z")
    d_z = z.tensor_shape.dim[1].size if z else 1
    return lambda images: call("encode", images=images), lambda z, v: call("decode", z=z, v=v), shape, d_z


def onnx(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """The ONNX files in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    encoder, decoder = (
        onnxruntime.InferenceSession(str(exported / "onnx" / f"{name}.onnx"), options)
        for name in ("encoder", "decoder")
    )
    shape = tuple(encoder.get_inputs()[0].shape[1:])
    names = [value.name for value in decoder.get_inputs()]
    d_z = decoder.get_inputs()[0].shape[1] if "z" in names else 1

    def decode(z: np.ndarray, v: np.ndarray) -> object:
        return decoder.run(None, {name: {"z": z, "v": v}[name] for name in names})

    return lambda images: encoder.run(None, {"images": images}), decode, shape, d_z


def openvino(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """The ONNX files in OpenVINO, in float32."""
    import openvino as ov

    core, options = ov.Core(), {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    encoder, decoder = (
        core.compile_model(str(exported / "onnx" / f"{name}.onnx"), "CPU", options) for name in ("encoder", "decoder")
    )
    shape = tuple(size.get_length() for size in list(encoder.input("images").partial_shape)[1:])
    sizes = {port.get_any_name(): port.partial_shape for port in decoder.inputs}
    d_z = sizes["z"][1].get_length() if "z" in sizes else 1

    def decode(z: np.ndarray, v: np.ndarray) -> object:
        return decoder({name: {"z": z, "v": v}[name] for name in sizes})

    return lambda images: encoder({"images": images}), decode, shape, d_z


def litert(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """The LiteRT files."""
    from ai_edge_litert.interpreter import Interpreter

    encoder, decoder = (
        Interpreter(str(exported / "litert" / f"{name}.tflite"), num_threads=threads).get_signature_runner()
        for name in ("encoder", "decoder")
    )
    shape = tuple(int(side) for side in encoder.get_input_details()["images"]["shape"][1:])
    inputs = decoder.get_input_details()
    d_z = int(inputs["z"]["shape"][1]) if "z" in inputs else 1

    def decode(z: np.ndarray, v: np.ndarray) -> object:
        return decoder(**{name: {"z": z, "v": v}[name] for name in inputs})

    return lambda images: encoder(images=images), decode, shape, d_z


if __name__ == "__main__":
    main()
