"""The worker program of `export.py`, which encodes and decodes in one runtime.

    python benchmarks/export_worker.py RUNTIME RUN EXPORTED THREADS MOST

For ONNX Runtime, OpenVINO and LiteRT it needs only numpy and the runtime, and imports nothing of the project.
"""

from __future__ import annotations

import pathlib
import sys
import time

import numpy as np


def work(runtime: str, run: pathlib.Path, exported: pathlib.Path, threads: int, most: int) -> None:
    """Answers each input line "ENDPOINT BATCH" with the wall and CPU seconds of one call, on standard output.

    Args:
        runtime: name of the runtime in `RUNTIMES` or `OTHERS`.
        run: run folder.
        exported: export folder.
        threads: number of threads of the runtime.
        most: number of images in the largest batch.
    """
    encode, decode, shape, d_z = {**RUNTIMES, **OTHERS}[runtime](run, exported, threads)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (most, *shape), dtype=np.uint8)
    z, v = (0.5 * rng.standard_normal((most, *each)).astype(np.float32) for each in ((d_z,), shape))
    for line in sys.stdin:
        endpoint, batch = line.split()[0], int(line.split()[1])
        begun, before = time.perf_counter(), time.process_time()
        if endpoint == "encode":
            encode(images[:batch])
        else:
            decode(z[:batch], v[:batch])
        print(time.perf_counter() - begun, time.process_time() - before, flush=True)


def tensorflow_with(threads: int):
    """Returns the module tensorflow, set up with this number of threads."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from tfdecouple.runtime.process import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def keras(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """Returns encode, decode, image shape and size of z of the Keras model that `load_model` returns."""
    tensorflow_with(threads)
    import tfdecouple

    model = tfdecouple.load_model(run)
    config = model.config
    if config.has_latent:
        return model.encode, model.decode, config.image_shape, config.latent_dim
    return model.encode, lambda z, v: model.decode(None, v), config.image_shape, 1


def saved_model(run: pathlib.Path, exported: pathlib.Path, threads: int):
    """Returns encode, decode, image shape and size of z of the SavedModel in a session with Grappler, as servers do."""
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
    """Returns encode, decode, image shape and size of z of the ONNX files in ONNX Runtime."""
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
    """Returns encode, decode, image shape and size of z of the ONNX files in OpenVINO, in float32."""
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
    """Returns encode, decode, image shape and size of z of the LiteRT files."""
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


RUNTIMES = {"keras": keras, "savedmodel": saved_model, "onnx": onnx}
OTHERS = {"openvino": openvino, "litert": litert}

if __name__ == "__main__":
    name, *folders, threads, most = sys.argv[1:]
    work(name, *map(pathlib.Path, folders), threads=int(threads), most=int(most))
