"""The kernels of processors that this one is not: oneDNN is told to take no newer instructions.

What differs between processors is which of oneDNN's kernels compute products and convolutions, and how many channels
they take at a time. The tests that depend on it run again, each set of instructions in a process of its own.
"""

import pathlib

import pytest
from helpers.places import run_python

# What oneDNN calls a set; a flag of /proc/cpuinfo by which a processor has it, those of newer ones, and how
# oneDNN then says what it takes.
SETS = {
    "AVX2": ("avx2", {"avx512bw"}, "Intel AVX2"),
    "AVX512_CORE": (
        "avx512bw", {"avx512_bf16"}, "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    ),
    "AVX512_CORE_BF16": (
        "avx512_bf16", {"avx512_fp16", "amx_bf16"}, "Intel AVX-512 with Intel DL Boost and bfloat16 support",
    ),
}  # fmt: skip
TESTS = [
    "tests/runtime/test_convolution.py",
    "tests/training/test_step.py::TestStep::test_bfloat16_nets_keep_float32_weights_and_nearly_the_loss",
]

# What oneDNN says of itself before it first computes.
PROGRAM = """
import os
os.environ["ONEDNN_VERBOSE"] = "1"
import tensorflow as tf
tf.nn.conv2d(tf.ones([1, 8, 8, 16]), tf.ones([3, 3, 16, 16]), 1, "SAME")
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", SETS)
def test_numeric_tests_pass_without_newer_instructions_of_the_processor(instructions, forked):
    try:
        flags = set(pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    flag, newer, taken = SETS[instructions]
    if flag not in flags:
        pytest.skip("the processor has none of these instructions")
    if not newer & flags:
        pytest.skip("the processor has no newer instructions: the quick tests ran with these")
    assert f"cpu,isa:{taken}\n" in run_python("-c", PROGRAM, ONEDNN_MAX_CPU_ISA=instructions).stdout
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = run_python(*arguments, ONEDNN_MAX_CPU_ISA=instructions)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
