"""The check of `doctor` that reports installed packages and the machine: versions, driver, CUDA, devices, memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from tfdecouple.doctor.report import Request, Result, Task
from tfdecouple.runtime.devices import count_cores, format_bytes, read_cpuinfo, read_total_memory

# Packages whose versions the report lists.
_PACKAGES = (
    "tfdecouple", "tensorflow", "keras", "tensorflow-probability", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu",
    "nvidia-cudnn-cu12", "nvidia-nccl-cu12",
)  # fmt: skip
# Environment variables of oneDNN that let CPUs compute float32 in lower precision, unless set to one of `_STRICT`.
_ROUNDING = ("TF_SET_ONEDNN_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
_STRICT = ("", "STRICT", "strict")
# Matches names of environment variables that change how TensorFlow computes; the report lists them.
_COMPUTING = re.compile(r"(TF_|XLA_|NVIDIA_|CUDA_|NCCL_|ONEDNN_|DNNL_|MALLOC_|OMP_|KERAS_|TFDECOUPLE_).*")
# Environment variable that names the GPUs that a program may use; Slurm sets it in each job.
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def describe_machine() -> dict[str, Any]:
    """Returns a dict of facts about this machine on which speed depends: processor, cores, load, versions."""
    return {
        "processor": read_cpuinfo("model name") or platform.processor(),
        "cores": count_cores(),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def list_instruction_sets() -> list[str]:
    """Returns the processor's instruction sets that matter for speed, by Linux' names such as "avx2"."""
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in read_cpuinfo("flags").split()]


def inspect_machine(task: Task) -> Iterator[Result]:
    """Yields `Result`s on this machine: facts, whether TensorFlow sees all GPUs, whether float32 is fully precise."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    built = tf.sysconfig.get_build_info()
    facts = {
        **describe_machine(),
        "versions": {each.name: each.version for each in importlib.metadata.distributions() if each.name in _PACKAGES},
        "cuda": built.get("cuda_version"),
        "cudnn": built.get("cudnn_version"),
        "instructions": list_instruction_sets(),
        "tf32_by_default": tf.config.experimental.tensor_float_32_execution_enabled(),
        "memory_bytes": read_total_memory(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if _COMPUTING.fullmatch(name)},
        "gpus": [tf.config.experimental.get_device_details(gpu) for gpu in gpus],
        "devices": [d.name.partition("device:")[2] for d in tf.config.list_logical_devices("GPU" if gpus else "CPU")],
        "nvidia_smi": _read_driver(),
    }
    yield from check_machine(facts)


def find_used_devices(request: Request, results: list[Result]) -> tuple[str, ...]:
    """Returns the names of the devices to check, such as ("GPU:0",), from the `results` of `inspect_machine`."""
    none = {"devices": ["CPU:0"], "gpus": []}
    facts = next((result.figures for result in results if "devices" in result.figures), none)
    return tuple(facts["devices"][: request.devices or (None if facts["gpus"] else 1)])


def check_machine(facts: dict[str, Any]) -> Iterator[Result]:
    """Yields the `Result`s of `inspect_machine` from the dict `facts`, which that function collects on a machine."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield Result("versions", None, versions, figures=facts)
    sets, memory = ", ".join(facts["instructions"]), format_bytes(facts["memory_bytes"])
    yield Result("machine", None, f"{facts['processor']}, {facts['cores']} cores ({sets}), {memory} of memory")
    present, seen, environment = facts["nvidia_smi"], len(facts["gpus"]), facts["environment"]
    yield from (Result("GPU", None, line) for line in present)
    cuda = f"CUDA {facts['cuda']}, cuDNN {facts['cudnn']}" if facts["cuda"] else "no CUDA"
    message = f"TensorFlow was built with {cuda} and sees {seen} GPUs, the driver {len(present)}"
    advice = "pip install -e '.[gpu]' brings the CUDA libraries that TensorFlow looks for; then a new shell"
    holds = seen >= len(present) if present else None
    if _VISIBLE in environment:
        # CUDA ignores an entry that names no GPU, and all later entries. So TensorFlow must see a GPU if the first
        # entry names one.
        message += f"; {_VISIBLE} is {environment[_VISIBLE]!r}"
        advice += f"; and see whether {_VISIBLE} names GPUs that are there"
        names_one = re.match(r"\s*(\d|GPU-|MIG-)", environment[_VISIBLE])
        holds = seen > 0 if present and names_one else None
    yield Result("GPUs in use", holds, message, advice)
    rounding = {name: environment[name] for name in _ROUNDING if name in environment}
    if wrong := [f"{name}={value}" for name, value in rounding.items() if value not in _STRICT]:
        yield Result("float32 of the CPU", False, f"rounded by {', '.join(wrong)}", f"unset {' '.join(rounding)}")


def _read_driver() -> list[str]:
    fields = "driver_version,name,memory.total,memory.used,compute_cap,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
