"""The checks of `doctor`: installation and machine; numbers, exactness and training of a small trained model; speed."""

import contextlib
import importlib.metadata
import itertools
import math
import os
import re
import statistics
import subprocess
import time
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.config import Config
from tfdecouple.data.hard_images import make_hard_images
from tfdecouple.doctor.check_runner import MODEL, QUICK_BATCH, CheckResult, Task, make_doctor_config
from tfdecouple.errors import ExactnessWarning, UserError
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.model.objective import map_noise_to_z
from tfdecouple.runs.opened_run import load_model
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.files import Facts
from tfdecouple.system.devices import describe_machine, format_bytes, read_cpuinfo, read_total_memory
from tfdecouple.training.step import TrainingState, TrainStep
from tfdecouple.training.workers import get_mirrored_strategy, make_strategy

# Packages whose versions the report lists.
_PACKAGES = (
    "tfdecouple", "tensorflow", "keras", "tensorflow-probability", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu",
    "nvidia-cudnn-cu12", "nvidia-nccl-cu12",
)  # fmt: skip
# Instruction sets of processors that matter for speed, by Linux' names.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# Environment variables of oneDNN that let CPUs compute float32 in lower precision, unless set to "" or "strict".
_ROUNDING = ("TF_SET_ONEDNN_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
# Matches names of environment variables that change how TensorFlow computes; the report lists them.
_COMPUTING = re.compile(r"(TF_|XLA_|NVIDIA_|CUDA_|NCCL_|ONEDNN_|DNNL_|MALLOC_|OMP_|KERAS_|TFDECOUPLE_).*")
# Names the GPUs that a program may use; Slurm sets it in each job.
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# The file beside the small model's checkpoint with unseen photographs, and what the model computes in float32 on a CPU
# from one batch of the first `IMAGES` of these `PHOTOGRAPHS`.
NUMBERS = "numbers.npz"
PHOTOGRAPHS, IMAGES = 128, 16
# Largest relative difference (Euclidean norm) of computed arrays from those in `numbers.npz` (docs/results/doctor.md).
# Gradients have another bound, `Variant.gradient`.
BOUND = 1e-4
# Number of training steps on one device and on several, and the largest difference of their weights relative to the
# change in training, above rounding errors, because Adam's steps are large for tiny gradients, too.
STEPS, WEIGHTS_BOUND = 10, 1e-3
# Batch sizes that are timed on CPUs and on GPUs; some GPUs have too little memory for the last one.
BATCHES = {"CPU": (4, 16, 64), "GPU": (1, 16, 64, 256, 1024)}


def inspect_machine(task: Task) -> Iterator[CheckResult]:
    """Yields results on this machine: facts, whether TensorFlow sees all GPUs, whether float32 is fully precise."""
    gpus, built = tf.config.list_physical_devices("GPU"), tf.sysconfig.get_build_info()
    installed, devices = importlib.metadata.distributions(), tf.config.list_logical_devices("GPU" if gpus else "CPU")
    fields = "driver_version,name,memory.total,memory.used,compute_cap,mig.mode.current"
    command, driver = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], list[str]()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    yield from check_machine(
        {
            **describe_machine(),
            "versions": {package.name: package.version for package in installed if package.name in _PACKAGES},
            "cuda": built.get("cuda_version"),
            "cudnn": built.get("cudnn_version"),
            "instructions": [name for name in _INSTRUCTIONS if name in read_cpuinfo("flags").split()],
            "memory_bytes": read_total_memory(),
            "environment": {name: value for name, value in sorted(os.environ.items()) if _COMPUTING.fullmatch(name)},
            "gpus": [tf.config.experimental.get_device_details(gpu) for gpu in gpus],
            "devices": [device.name.partition("device:")[2] for device in devices],
            "nvidia_smi": driver,
        }
    )


def check_machine(facts: Facts) -> Iterator[CheckResult]:
    """Yields the results of `inspect_machine` from the dict `facts`, which that function collects on a machine."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield CheckResult("versions", None, versions, figures=facts)
    sets, memory = ", ".join(facts["instructions"]), format_bytes(facts["memory_bytes"])
    yield CheckResult("machine", None, f"{facts['processor']}, {facts['cores']} cores ({sets}), {memory} of memory")
    present, seen, environment = facts["nvidia_smi"], len(facts["gpus"]), facts["environment"]
    yield from (CheckResult("GPU", None, line) for line in present)
    cuda = f"CUDA {facts['cuda']}, cuDNN {facts['cudnn']}" if facts["cuda"] else "no CUDA"
    message = f"TensorFlow was built with {cuda} and sees {seen} GPUs, the driver {len(present)}"
    advice = "pip install -e '.[gpu]' brings the CUDA libraries that TensorFlow looks for; then a new shell"
    holds = seen >= len(present) if present else None
    if _VISIBLE in environment:
        # CUDA ignores an entry that names no GPU, and all later ones: only the first entry promises a GPU.
        message += f"; {_VISIBLE} is {environment[_VISIBLE]!r}"
        advice += f"; and see whether {_VISIBLE} names GPUs that are there"
        holds = seen > 0 if present and re.match(r"\s*(\d|GPU-|MIG-)", environment[_VISIBLE]) else None
    yield CheckResult("GPUs in use", holds, message, advice)
    if rounding := [name for name in _ROUNDING if environment.get(name, "").lower() not in ("", "strict")]:
        values = ", ".join(f"{name}={environment[name]}" for name in rounding)
        yield CheckResult("float32 of the CPU", False, f"rounded by {values}", f"unset {' '.join(rounding)}")


def load_photographs(count: int) -> np.ndarray:
    """Returns photographs that the small model was not trained on, uint8 `[count, 16, 16, 3]`, repeated if needed."""
    return np.resize(np.load(MODEL / NUMBERS)["images"], (count, 16, 16, 3))


def make_training(strategy: tf.distribute.Strategy, settings: Sequence[str]) -> tuple[TrainingState, TrainStep]:
    """Returns a `TrainingState` with the trained weights of `doctor`'s small model, and its `TrainStep` to train on."""
    batch = [f"training.{name}={IMAGES}" for name in ("batch_size", "evaluation_batch_size")]
    config = RunFolder(MODEL).read_config().override([*batch, "training.ema_decay=0.0", *settings])
    with strategy.scope():
        state = TrainingState(config)
    RunFolder(MODEL).load_weights(state.model, averaged=False)
    return state, TrainStep(state, strategy)


def compute_numbers(device: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {name: array} of what the small model computes on a device: z, v, x, bits/dim and samples."""
    with tf.device(device):
        model, rng = load_model(MODEL), np.random.default_rng(1)
        z_noise = rng.standard_normal((IMAGES, model.config.latent_dim)).astype(np.float32)
        v_noise = rng.standard_normal((IMAGES, *model.config.image_shape)).astype(np.float32)
        u_noise = rng.random((IMAGES, *model.config.image_shape), np.float32)
        z, v = model.encode(images)[:2]
        x = model.flow.inverse_and_log_det(v, z)[0]
        bits = model.bound(images, noise=(z_noise, u_noise)).bits_per_dim
        sampled = model.flow.inverse_and_log_det(0.7 * v_noise, map_noise_to_z(model, z_noise))[0]
    values = {"z": z, "v": v, "x": x, "bits_per_dim": bits, "sampled": sampled}
    return {name: np.asarray(value) for name, value in values.items()}


def compute_gradient(device: str, images: np.ndarray, settings: Sequence[str]) -> np.ndarray:
    """Returns the gradient of all weights of `doctor`'s small model in a training step on a device, float32 `[n]`."""
    state, step = make_training(get_mirrored_strategy((device,)), settings)
    step([images], 0)
    # After the first step, Adam's running means of gradients are the gradient times 1 - beta_1.
    return _join(state.optimizer.means) / (1 - state.training.beta_1)


def _join(variables: Mapping[str, keras.Variable]) -> np.ndarray:
    return np.concatenate([variable.numpy().ravel() for _, variable in sorted(variables.items())])


def compare_numbers(task: Task) -> Iterator[CheckResult]:
    """Yields a result for each device: whether the small model computes there the stored arrays of `numbers.npz`."""
    right, images, variant = np.load(MODEL / NUMBERS), load_photographs(IMAGES), task.variant
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        numbers = compute_numbers(device, images) if not variant.settings else {}
        numbers["gradient"] = compute_gradient(device, images, variant.settings)
        off = {name: _compare(value, right[name], right[name]) for name, value in numbers.items()}
        # The comparison is written so that NaN fails, too.
        wrong = [n for n, value in off.items() if not value <= (variant.gradient if n == "gradient" else BOUND)]
        listed = ", ".join(f"{name} {f'{value:.0e}' if value else 0}" for name, value in off.items())
        message = f"relative errors: {listed}" + (f"; too large: {', '.join(wrong)}" if wrong else "")
        advice = f"do not train here with {' '.join(variant.settings)}"
        if not variant.settings:
            advice = f"{device} rounds float32: look for variables that lower the precision (TF_*, NVIDIA_*, "
            advice += "XLA_FLAGS), for errors of its memory (nvidia-smi -q -d ECC), try another driver"
        figures = {"device": device, "variant": variant.name, "off": off}
        yield CheckResult(f"{device}, {variant.name}", not wrong, message, advice, figures)


def _compare(value: np.ndarray, right: np.ndarray, scale: np.ndarray) -> float:
    """Returns |value - right| / |scale|, with Euclidean norms."""
    return round(float(np.linalg.norm(np.float64(value) - right) / np.linalg.norm(scale)), 9)


def compare_devices(task: Task) -> Iterator[CheckResult]:
    """Yields one `CheckResult`: whether training on all devices together gives the weights that one device gives."""
    count = len(task.devices)
    images = load_photographs(STEPS * count * max(2, IMAGES // count)).reshape(STEPS, -1, 16, 16, 3)
    start, alone = train_weights(make_strategy(1), images)
    together = train_weights(make_strategy(count), images)[1]
    off, is_bitwise = _compare(together, alone, alone - start), bool(np.array_equal(alone, together))
    message = "equal to the bit" if is_bitwise else f"off by {off:.0e} of the change in training"
    advice = "use --devices 1, report this; try NCCL_P2P_DISABLE=1, nvidia-smi topo -m, another driver or NCCL"
    what = f"weights after {STEPS} steps, 1 device against {count}"
    yield CheckResult(what, off <= WEIGHTS_BOUND, message, advice, {"off": off, "bitwise": is_bitwise})


def train_weights(strategy: tf.distribute.Strategy, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the small model, `[n]`, before and after one training step on each of the batches."""
    state, step = make_training(strategy, [f"training.batch_size={images.shape[1]}", "training.warmup_steps=1"])
    start, data = _join(state.trainable), tf.data.Dataset.from_tensor_slices(images)
    for number, batch in enumerate(strategy.experimental_distribute_dataset(data)):
        step([batch], number)
    return start, _join(state.trainable)


def try_round_trips(task: Task) -> Iterator[CheckResult]:
    """Yields a result for each device: whether the small model reconstructs all images exactly from their codes."""
    photographs = load_photographs(64 if task.quick else PHOTOGRAPHS)
    kinds = {"photographs": photographs, **make_hard_images(photographs.shape[1:], len(photographs))}
    # All images are run as one batch, because TensorFlow would trace the model again for each batch size.
    images, names = np.concatenate([*kinds.values()]), np.repeat([*kinds], [len(group) for group in kinds.values()])
    for device in dict.fromkeys(["CPU:0", *task.devices]):
        with tf.device(device), warnings.catch_warnings():
            # The model warns of images that it might not reconstruct exactly. Here they are counted instead.
            warnings.simplefilter("ignore", ExactnessWarning)
            model = load_model(MODEL)
            is_lost = (np.asarray(model.decode(*model.encode(images))) != images).any((1, 2, 3))
        lost = {kind: int(is_lost[names == kind].sum()) for kind in kinds}
        listed = ", ".join(f"{count} of {len(kinds[kind])} {kind}" for kind, count in lost.items() if count)
        message = f"lost: {listed}" if listed else f"all {len(images)} images of {len(kinds)} kinds are exact"
        advice = f"{device} computes inexactly: look for variables that lower the precision; decode nothing there"
        yield CheckResult(f"Keras, {device}", not listed, message, advice, {"device": device, "lost": lost})


def measure_speed(task: Task) -> Iterator[CheckResult]:
    """Yields a result with the speed in images per second for each batch size and phase (training, encoding ...)."""
    variant, count = task.variant, len(task.devices)
    sizes = [(batch, 1) for batch in ([QUICK_BATCH] if task.quick else BATCHES[task.devices[0][:3]])]
    if count > 1 and not variant.settings:
        sizes.append((QUICK_BATCH * count, count))
    for batch, devices in sizes:
        start, config = time.perf_counter(), make_doctor_config(task, batch)
        phases = _make_phases(config, devices)
        for phase in variant.phases if devices == 1 else ["train"]:
            phases[phase](1)
            first = time.perf_counter() - start
            once = timeit.timeit(lambda: phases[phase](1), number=1)  # noqa: B023 - called here
            # A timed repetition takes at least so many seconds.
            calls = max(1, math.ceil((0.3 if task.quick else 2.0) / once))
            seconds = timeit.repeat(lambda: phases[phase](calls), number=1, repeat=3)  # noqa: B023 - called here
            rate = batch * calls / statistics.median(seconds)
            where = f"{batch} images{f' on {devices} devices' if devices > 1 else ''}"
            message = f"{rate:,.1f} images/s, the first after {first:.1f} s"
            figures = {"phase": phase, "variant": variant.name, "batch": batch, "devices": devices}
            yield CheckResult(f"{phase}, {variant.name}, {where}", None, message, "", {**figures, "images_per_s": rate})
            start = time.perf_counter()


def _make_phases(config: Config, devices: int) -> dict[str, Callable[[int], object]]:
    """Returns {phase: function that does the phase's work as often as its argument says}, for a new model."""
    strategy, batch = make_strategy(devices), config.training.batch_size
    with strategy.scope():
        state = TrainingState(config)
    model, take_step, steps = state.model, TrainStep(state, strategy), itertools.count()
    # With training.jit_compile XLA also compiles inference, as after `load_model(run, jit_compile=True)`.
    model.flow.runner.mode = RunMode(jit_compile=config.training.jit_compile)
    images = np.random.default_rng(0).integers(0, 256, (batch, *config.model.image_shape), np.uint8)
    labels = np.arange(batch, dtype=np.int32) % max(config.model.classes, 1) if model.config.has_labels else None
    model.initialize(images[:QUICK_BATCH], seed=0)
    state.optimizer.start_averages()
    data = tf.data.Dataset.from_tensors(images if labels is None else (images, labels)).repeat()
    batches = iter(strategy.experimental_distribute_dataset(data))
    z, v = model.encode(images, labels)[:2]
    score = tf.function(lambda: model.bound(images, labels, seed=0).bits_per_dim, autograph=False)

    def train(count: int) -> None:
        # The program waits for a GPU after the last step only, as training does between two rows of its log.
        for _ in range(count):
            result = take_step([next(batches)], next(steps))
        if not (result := result.fetch_numbers()).applied:
            raise UserError(f"a step was not applied: {result}")

    def repeat(call: Callable[[], tf.Tensor]) -> Callable[[int], object]:
        return lambda count: [call().numpy() for _ in range(count)]

    encode, decode = lambda: model.encode(images, labels).v, lambda: model.decode(z, v)
    return {"train": train, "eval": repeat(score), "encode": repeat(encode), "decode": repeat(decode)}
