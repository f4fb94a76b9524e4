"""What is installed and what is there: versions, driver, CUDA, cuDNN, devices, TF32, memory."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.machine import instructions, machine
from tfdecouple.runtime.memory import machine_memory, shown_bytes

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

_PACKAGES = (
    "tfdecouple", "tensorflow", "keras", "tensorflow-probability", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu",
    "nvidia-cudnn-cu12", "nvidia-nccl-cu12",
)  # fmt: skip
# Of oneDNN, by which float32 on a CPU is computed in fewer bits; and the values that change nothing.
_ROUNDING = ("TF_SET_ONEDNN_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
_STRICT = ("", "STRICT", "strict")
# Of the environment, what changes how TensorFlow computes.
_TOLD = re.compile(r"(TF_|XLA_|NVIDIA_|CUDA_|NCCL_|ONEDNN_|DNNL_|MALLOC_|OMP_|KERAS_|TFDECOUPLE_).*")
_SMI = ("driver_version", "name", "memory.total", "memory.used", "compute_cap", "mig.mode.current")
_SMI_SECONDS = 30
# Says which GPUs a program may use; Slurm sets it in each job.
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def look() -> Iterator[dict[str, Any]]:
    """Yields the facts."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    kind = "GPU" if gpus else "CPU"
    built = tf.sysconfig.get_build_info()
    yield {
        **machine(),
        "versions": _versions(),
        "unfitting": list(unfitting()),
        "cuda": built.get("cuda_version"),
        "cudnn": built.get("cudnn_version"),
        "instructions": instructions(),
        "threads": [
            tf.config.threading.get_intra_op_parallelism_threads(),
            tf.config.threading.get_inter_op_parallelism_threads(),
        ],
        "tf32_by_default": tf.config.experimental.tensor_float_32_execution_enabled(),
        "memory_bytes": machine_memory(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if _TOLD.fullmatch(name)},
        "gpus": [_plain(tf.config.experimental.get_device_details(gpu)) for gpu in gpus],
        "devices": [device.name.partition("device:")[2] for device in tf.config.list_logical_devices(kind)],
        "nvidia_smi": _nvidia_smi(),
    }


def check(examination: Examination) -> Iterator[Finding]:
    """Tells the facts, and judges those without which nothing can hold."""
    for finding in examination.findings("tfdecouple.doctor.build:look", judge_versions, "versions", {}):
        yield finding
        if facts := finding.figures if "devices" in finding.figures else None:
            most = examination.request.devices or (None if facts["gpus"] else 1)
            examination.devices = facts["devices"][:most]
            yield from judge_machine(facts)


def judge_versions(facts: dict[str, Any]) -> Finding:
    """Says what is installed, and whether it is what this project admits."""
    said = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    if wrong := facts["unfitting"]:
        advice = "install what fits, in an environment of its own: pip install -e . in a checkout"
        return Finding("versions", False, f"{'; '.join(wrong)} ({said})", advice, facts)
    return Finding("versions", True, said, figures=facts)


def judge_machine(facts: dict[str, Any]) -> Iterator[Finding]:
    """Yields what is to be said of the machine."""
    named = f" ({', '.join(facts['instructions'])})" if facts["instructions"] else ""
    yield Finding("processor", None, f"{facts['processor']}, {facts['cores']} cores{named}")
    yield Finding("memory", None, shown_bytes(facts["memory_bytes"]))
    present, seen = facts["nvidia_smi"], facts["gpus"]
    for line in present:
        yield Finding("GPU", None, ", ".join(f"{name} {value}" for name, value in line.items()))
    visible, wanted = facts["environment"].get(_VISIBLE), _wanted(len(present), facts["environment"])
    cuda = f"CUDA {facts['cuda']}, cuDNN {facts['cudnn']}" if facts["cuda"] else "no CUDA"
    said = f"TensorFlow was built with {cuda} and sees {len(seen)} GPUs, the driver {len(present)}"
    advice = "pip install -e '.[gpu]' brings the CUDA libraries that TensorFlow looks for; then a new shell"
    if visible is not None:
        said += f", of which {_VISIBLE}={visible} leaves {wanted}"
        advice += f"; and see whether {_VISIBLE} names GPUs that are there"
    holds = len(seen) >= wanted if wanted else None
    yield Finding("GPUs in use", holds, said, advice if holds is False else "")
    rounding = {name: facts["environment"][name] for name in _ROUNDING if name in facts["environment"]}
    if wrong := [f"{name}={value}" for name, value in rounding.items() if value not in _STRICT]:
        yield Finding(
            "float32 of the CPU", False, f"rounded, as {', '.join(wrong)} says", f"unset {' '.join(rounding)}"
        )
    switch = "on" if facts["tf32_by_default"] else "off"
    yield Finding("TF32", None, f"TensorFlow's switch is {switch} by default; the model turns it off while it computes")


def _wanted(present: int, environment: Mapping[str, str]) -> int:
    """Returns how many of the driver's GPUs CUDA is to show: those that are named before anything that is no name."""
    if _VISIBLE not in environment:
        return present
    entries = map(str.strip, environment[_VISIBLE].split(","))
    return min(present, len(list(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, entries))))


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def unfitting() -> Iterator[str]:
    """Yields what is installed in another version than this project's metadata ask for, or not at all."""
    from packaging.requirements import Requirement

    try:
        needed = importlib.metadata.requires("tfdecouple") or []
    except importlib.metadata.PackageNotFoundError:
        # A checkout that is used without being installed.
        return
    for requirement in map(Requirement, needed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is missing"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, and must be {requirement.specifier}"


def _plain(details: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in details.items()}


def _nvidia_smi() -> list[dict[str, str]]:
    """Returns what the driver says of each GPU; nothing where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line.split(",") for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(_SMI, (value.strip() for value in line), strict=False)) for line in lines]
