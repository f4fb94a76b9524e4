"""The check of `doctor` that reports installed packages and the machine: versions, driver, CUDA, devices, memory."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from tfdecouple.doctor.check_runner import Result, Task
from tfdecouple.runtime.devices import describe_machine, format_bytes, list_instruction_sets, read_total_memory

# Packages whose versions the report lists.
_PACKAGES = (
    "tfdecouple", "tensorflow", "keras", "tensorflow-probability", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu",
    "nvidia-cudnn-cu12", "nvidia-nccl-cu12",
)  # fmt: skip
# Environment variables of oneDNN that let CPUs compute float32 in lower precision, unless set to "" or "strict".
_ROUNDING = ("TF_SET_ONEDNN_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
# Matches names of environment variables that change how TensorFlow computes; the report lists them.
_COMPUTING = re.compile(r"(TF_|XLA_|NVIDIA_|CUDA_|NCCL_|ONEDNN_|DNNL_|MALLOC_|OMP_|KERAS_|TFDECOUPLE_).*")
# Environment variable that names the GPUs that a program may use; Slurm sets it in each job.
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def inspect_machine(task: Task) -> Iterator[Result]:
    """Yields `Result`s on this machine: facts, whether TensorFlow sees all GPUs, whether float32 is fully precise."""
    import tensorflow as tf

    gpus, built = tf.config.list_physical_devices("GPU"), tf.sysconfig.get_build_info()
    installed, devices = importlib.metadata.distributions(), tf.config.list_logical_devices("GPU" if gpus else "CPU")
    yield from check_machine(
        {
            **describe_machine(),
            "versions": {package.name: package.version for package in installed if package.name in _PACKAGES},
            "cuda": built.get("cuda_version"),
            "cudnn": built.get("cudnn_version"),
            "instructions": list_instruction_sets(),
            "memory_bytes": read_total_memory(),
            "environment": {name: value for name, value in sorted(os.environ.items()) if _COMPUTING.fullmatch(name)},
            "gpus": [tf.config.experimental.get_device_details(gpu) for gpu in gpus],
            "devices": [device.name.partition("device:")[2] for device in devices],
            "nvidia_smi": _read_driver(),
        }
    )


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
        holds = seen > 0 if present and re.match(r"\s*(\d|GPU-|MIG-)", environment[_VISIBLE]) else None
    yield Result("GPUs in use", holds, message, advice)
    rounding = [name for name in _ROUNDING if environment.get(name, "").lower() not in ("", "strict")]
    if rounding:
        values = ", ".join(f"{name}={environment[name]}" for name in rounding)
        yield Result("float32 of the CPU", False, f"rounded by {values}", f"unset {' '.join(rounding)}")


def _read_driver() -> list[str]:
    fields = "driver_version,name,memory.total,memory.used,compute_cap,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
