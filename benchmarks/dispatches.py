"""Counts the TensorFlow operations of each type, such as Conv2D, that a training step dispatches.

    python benchmarks/dispatches.py --preset cifar10
    python benchmarks/dispatches.py --preset quickstart --batch 32 --json counts.json

The counts are operations that TensorFlow's executors ran during the first step, also in functions that the step calls.
Each operation costs time of the host, and most launch a kernel on a GPU. The counts come from the trace of TensorFlow's
profiler, which leaves out operations that cost nothing: constants, arguments, identities and reshapes. The profiler
also stops recording an operation after some 90 quick runs. Therefore the program counts the first step, and the counts
are too low for a function that one step calls more often. There is no input pipeline.

On a CPU a step computes shards of a batch in parallel, and packs convolutions of few channels (docs/design.md).
--one-shard keeps the batch in one piece, as on a GPU.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
# This checkout comes first on `sys.path`, so that no other installed version of the project is measured.
sys.path.insert(0, str(ROOT))

from benchmarks.common import make_table, write_json  # noqa: E402
from benchmarks.model_benchmark import Benchmark  # noqa: E402
from benchmarks.throughput import make_config  # noqa: E402
from tfdecouple.runtime.devices import describe_machine  # noqa: E402
from tfdecouple.runtime.process import run_program, start_tensorflow  # noqa: E402

# Types of operation that are not counted, because TensorFlow runs them to fold constants before the first step.
_FOLDING_TYPES = {"_Send", "_Recv"}
# Number of types of operation with a row of their own in the printed table; all rarer types share one row.
_ROWS = 24


def main() -> int:
    """Runs the program `dispatches.py`, which counts the operations of a training step, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10", help="preset of the model (default cifar10)")
    parser.add_argument("--batch", type=int, default=16, help="images in a step (default 16)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="config value as for train.py")
    parser.add_argument("--threads", type=int, default=2, help="threads that compute (default 2)")
    parser.add_argument("--one-shard", action="store_true", help="do not divide the batch among threads, as on a GPU")
    parser.add_argument("--json", metavar="FILE", help="write the counts to this file, too")
    options = parser.parse_args()
    return run_program(lambda: count_step(options))


def count_step(options: argparse.Namespace) -> int:
    """Runs one training step of --preset, prints how many operations of each type ran, and returns exit status 0."""
    phase = {"phase": f"train{options.batch}", "precision": None, "memory": None}
    config = make_config(argparse.Namespace(**vars(options), **phase), "train", options.batch)
    start_tensorflow(1 if options.one_shard else options.threads)
    import tfdecouple.training  # noqa: F401 - imports all that train.py imports

    benchmark = Benchmark(config)
    import numpy as np
    import tensorflow as tf

    # The images are a constant, because operations of an input pipeline would be counted with the step's.
    shape = options.batch, *config.model.image_shape
    images = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    counts = count_operations(lambda: benchmark.step([images], 0).fetch_numbers())
    total = sum(counts.values())
    most = counts.most_common(_ROWS)
    rows: list[list[Any]] = [[kind, number] for kind, number in most]
    rows += [["others", total - sum(number for _, number in most)], ["all", total]]
    print(make_table(["operation", f"{options.preset}, {options.batch} images"], rows))
    counted = {"preset": options.preset, "set": options.set, "total": total, "kinds": dict(counts)}
    write_json(options.json, {**counted, "machine": describe_machine()})
    return 0


def count_operations(call: Callable[[], Any]) -> collections.Counter[str]:
    """Runs `call()` under TensorFlow's profiler, and returns {type of operation, such as "Conv2D": count of runs}."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        try:
            call()
        finally:
            tf.profiler.experimental.stop()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    counts: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        names = {number: metadata.name for number, metadata in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                # The profiler names the event of an operation "NAME:TYPE", and events of other code "CLASS::METHOD".
                node, _, kind = name.rpartition(":")
                if name == "ExecutorState::ProcessAsync::Start":
                    # This event stands for an asynchronous operation, whose type is one of the event's statistics.
                    stats = {
                        names[stat.metadata_id]: stat.str_value or names.get(stat.ref_value) for stat in event.stats
                    }
                    counts[stats["kernel_type"]] += 1
                elif node and not node.endswith(":") and kind.isidentifier() and kind not in _FOLDING_TYPES:
                    counts[kind] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
