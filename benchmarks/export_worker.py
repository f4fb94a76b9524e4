"""The worker program of `benchmarks/export.py`, which encodes and decodes with one runtime and times each call.

    python benchmarks/export_worker.py RUNTIME RUN EXPORTED THREADS MOST

RUN is a run folder, EXPORTED an export folder, and MOST the size of the largest batch. For ONNX Runtime, OpenVINO
and LiteRT the program needs only numpy and the runtime, and imports nothing of the project.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import numpy as np

FILES = {"encode": "encoder", "decode": "decoder"}


def serve_calls(runtime: str, run: pathlib.Path, exported: pathlib.Path, threads: int, most: int) -> None:
    """Encodes or decodes N images for each input line "encode N" or "decode N"; prints the call's wall and CPU seconds.

    The runtime "keras" loads the run folder `run`, and all others the folder `exported`. `most` is the largest N.
    """
    call = {**RUNTIMES, **OTHERS}[runtime](run, exported, threads)
    model = json.loads((exported / "model_card.json").read_text(encoding="utf-8"))["architecture"]
    shape = {"images": model["image_shape"], "v": model["image_shape"], "z": [model["latent_dim"]]}
    names = {"encode": ["images"], "decode": ["v"] if model["latent_dim"] is None else ["z", "v"]}
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {"images": rng.integers(0, 256, (most, *shape["images"]), dtype=np.uint8)}
    inputs |= {name: 0.5 * rng.standard_normal((most, *shape[name]), np.float32) for name in names["decode"]}
    for line in sys.stdin:
        endpoint, batch = line.split()[0], int(line.split()[1])
        begun, before = time.perf_counter(), time.process_time()
        call(endpoint, {name: inputs[name][:batch] for name in names[endpoint]})
        print(time.perf_counter() - begun, time.process_time() - before, flush=True)


def set_up_tensorflow(threads: int):
    """Imports TensorFlow and makes it compute with `threads` threads; returns the module `tensorflow`."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from tfdecouple.system.process import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def open_keras(run: pathlib.Path, exported: pathlib.Path, threads: int):
    set_up_tensorflow(threads)
    import tfdecouple

    model = tfdecouple.load_model(run)

    def call(endpoint: str, inputs: dict[str, np.ndarray]) -> object:
        return model.encode(inputs["images"]) if endpoint == "encode" else model.decode(inputs.get("z"), inputs["v"])

    return call


def open_saved_model(run: pathlib.Path, exported: pathlib.Path, threads: int):
    tf = set_up_tensorflow(threads)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    options = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph, config=options)
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(exported / "savedmodel" / "1")).signature_def

    def call(endpoint: str, inputs: dict[str, np.ndarray]) -> object:
        signature = signatures[endpoint]
        feeds = {info.name: inputs[key] for key, info in signature.inputs.items()}
        return session.run({key: info.name for key, info in signature.outputs.items()}, feeds)

    return call


def open_onnx(run: pathlib.Path, exported: pathlib.Path, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        endpoint: onnxruntime.InferenceSession(str(exported / "onnx" / f"{file}.onnx"), options)
        for endpoint, file in FILES.items()
    }
    return lambda endpoint, inputs: sessions[endpoint].run(None, inputs)


def open_openvino(run: pathlib.Path, exported: pathlib.Path, threads: int):
    import openvino as ov

    core, options = ov.Core(), {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    models = {
        endpoint: core.compile_model(str(exported / "onnx" / f"{file}.onnx"), "CPU", options)
        for endpoint, file in FILES.items()
    }
    return lambda endpoint, inputs: models[endpoint](inputs)


def open_litert(run: pathlib.Path, exported: pathlib.Path, threads: int):
    from ai_edge_litert.interpreter import Interpreter

    runners = {
        endpoint: Interpreter(str(exported / "litert" / f"{file}.tflite"), num_threads=threads).get_signature_runner()
        for endpoint, file in FILES.items()
    }
    return lambda endpoint, inputs: runners[endpoint](**inputs)


# For each runtime, the function that opens a model in it: it returns a function `call(endpoint, {input: array})` that
# runs "encode" or "decode". Only RUNTIMES are timed by default, OTHERS on request.
RUNTIMES = {"keras": open_keras, "savedmodel": open_saved_model, "onnx": open_onnx}
OTHERS = {"openvino": open_openvino, "litert": open_litert}

if __name__ == "__main__":
    name, run, exported, threads, most = sys.argv[1:]
    serve_calls(name, pathlib.Path(run), pathlib.Path(exported), int(threads), int(most))
