"""What adding up gradients over several GPUs costs, on paper, and from which batch per GPU on it costs nothing.

    python benchmarks/communication.py
    python benchmarks/communication.py --gradients bfloat16 --utilisation 0.5

No GPU is needed and nothing is measured: these are calculations, with every assumption printed. The model:

  all-reduce   a ring over n devices takes 2 (n - 1) / n * bytes / bandwidth, bandwidth being what one device sends (and
               receives) at the same time, and 2 (n - 1) * latency for every bucket of gradients sent by itself. With
               several hosts: reduce-scatter within each host, a ring over the hosts in which each device carries its
               share over the network card of the host that all its devices use at once, all-gather within each host.
  computing    3 multiply-adds in training for each forward one (a product, and two for its gradients), two operations
               each, at a share of the GPU's peak (--utilisation).
  hidden       gradients are sent while the backward pass goes on, so all but those of the last bucket can hide behind
               it: communication is hidden where all-reduce takes no longer than the backward pass, two thirds of the
               computing. The batch is the smallest whole number of images for each GPU with that. With several
               micro-batches (--micro-batches) nothing is hidden: their gradients are added up on each GPU first, and
               the sum, which is sent, is complete only after the last backward pass.

A cell is empty where there is nothing to say: no batch hides anything, or the preset's own is less than an image a GPU.

What is left out: the overhead of starting kernels (small micro-batches of this flow are bound by it, which leaves more
time to hide behind), batch normalisation's own small all-reduce, and networks shared with others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import table, write_json  # noqa: E402
from tfdecouple.config import load_preset  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.networks.architecture import count_parameters  # noqa: E402
from tfdecouple.networks.costs import BACKWARD, multiply_adds  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

PRESETS = ("cifar10", "imagenet64", "lsun_bedroom_128", "celeba_hq_256")
BYTES = {"float32": 4, "bfloat16": 2}
# Gradients travel in buckets; NCCL's rings need some megabytes in each to run at full speed.
BUCKET = 32e6


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects devices, or hosts.

    Attributes:
        name: for people.
        bandwidth: bytes per second that one end sends while it receives as many, as advertised.
        efficiency: what collective operations get of it.
        latency: seconds of one step of a ring.
    """

    name: str
    bandwidth: float
    efficiency: float
    latency: float

    @property
    def rate(self) -> float:
        """Bytes per second that are reached."""
        return self.bandwidth * self.efficiency


NVLINK = Link("NVLink, 300 GB/s each way (A100)", 300e9, 0.65, 5e-6)
PCIE = Link("PCIe 4.0 x16, 32 GB/s each way", 32e9, 0.6, 10e-6)
NETWORKS = tuple(Link(f"{rate} Gbit/s a host", rate / 8 * 1e9, 0.8, 20e-6) for rate in (100, 200, 400))


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Hosts of equally many GPUs.

    Attributes:
        hosts: how many.
        devices: GPUs in each.
        inside: what connects them.
        between: what connects the hosts, all GPUs of a host sharing it; None for a single one.
    """

    hosts: int
    devices: int
    inside: Link
    between: Link | None = None

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.hosts * self.devices

    @property
    def name(self) -> str:
        """For people."""
        between = f", {self.between.name}" if self.between else ""
        return f"{self.gpus} GPUs, {self.inside.name}{between}"


CLUSTERS = (
    Cluster(1, 8, NVLINK),
    Cluster(1, 8, PCIE),
    *(Cluster(8, 8, NVLINK, network) for network in NETWORKS),
)


def ring_seconds(size: float, count: int, rate: float, latency: float, buckets: int = 1) -> float:
    """Returns how long a ring of `count` takes to add up `size` bytes that every member has.

    Args:
        size: bytes of each member.
        count: members.
        rate: bytes per second that each sends.
        latency: seconds of each of the 2 (count - 1) steps of a bucket.
        buckets: how many parts are sent one after the other.
    """
    if count < 2:
        return 0.0
    return 2 * (count - 1) / count * size / rate + buckets * 2 * (count - 1) * latency


def all_reduce_seconds(size: float, cluster: Cluster, bucket: float = BUCKET) -> float:
    """Returns how long all GPUs of a cluster take to add up `size` bytes of gradients."""
    buckets = max(1, math.ceil(size / bucket))
    inside = ring_seconds(size, cluster.devices, cluster.inside.rate, cluster.inside.latency, buckets)
    if cluster.hosts < 2 or cluster.between is None:
        return inside
    # Each GPU carries 1/devices of the bytes, at 1/devices of the host's network: as if one carried all of it.
    return inside + ring_seconds(size, cluster.hosts, cluster.between.rate, cluster.between.latency, buckets)


def compute_seconds(forward_multiply_adds: float, peak: float, utilisation: float) -> float:
    """Returns how long one image takes in training, forward and backward."""
    return 2 * (1 + BACKWARD) * forward_multiply_adds / (peak * utilisation)


def hidden_from(communication: float, image: float) -> int:
    """Returns the images per GPU and update from which communication hides behind the backward pass.

    Args:
        communication: seconds of the all-reduce.
        image: seconds of one image in training.
    """
    backward = image * BACKWARD / (1 + BACKWARD)
    return max(1, math.ceil(communication / backward))


def cost(communication: float, image: float, batch: int, overlap: bool) -> float:
    """Returns the share of an update that is spent waiting for the all-reduce, at `batch` images per GPU."""
    computing = batch * image
    hidden = min(communication, computing * BACKWARD / (1 + BACKWARD)) if overlap else 0.0
    waiting = communication - hidden
    return waiting / (computing + waiting)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradients", choices=tuple(BYTES), default="float32", help="as they travel (default float32)")
    parser.add_argument("--peak", type=float, default=156.0, help="TFLOP/s of a GPU (default 156: A100, TF32)")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it that is reached (default 0.3)")
    parser.add_argument("--micro-batches", type=int, default=1, help="of an update (default 1)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there")
    options = parser.parse_args()
    return run_program(lambda: communicate(options))


def communicate(options: argparse.Namespace) -> int:
    """Calculates and prints."""
    if not 0 < options.utilisation <= 1:
        raise UserError(f"--utilisation is {options.utilisation}; it must lie in (0, 1]")
    if options.peak <= 0:
        raise UserError(f"--peak is {options.peak}; it must be above 0")
    if options.micro_batches < 1:
        raise UserError(f"--micro-batches is {options.micro_batches}; it must be at least 1")
    assumptions = {
        "gradients": options.gradients,
        "peak_tflops": options.peak,
        "utilisation": options.utilisation,
        "micro_batches": options.micro_batches,
        "bucket_bytes": BUCKET,
        "links": [dataclasses.asdict(link) for link in (NVLINK, PCIE, *NETWORKS)],
    }
    rows = calculate(BYTES[options.gradients], options.peak * 1e12, options.utilisation, options.micro_batches)
    print(json.dumps(assumptions))
    print(render(rows))
    write_json(options.json, {"assumptions": assumptions, "rows": rows})
    return 0


def calculate(size: int, peak: float, utilisation: float, micro_batches: int) -> list[dict[str, Any]]:
    """Returns every preset on every cluster; None where there is no such figure."""
    rows = []
    for name in PRESETS:
        config = load_preset(name)
        parameters = count_parameters(config.model)["total"]
        image = compute_seconds(multiply_adds(config.model), peak, utilisation)
        for cluster in CLUSTERS:
            seconds = all_reduce_seconds(parameters * size, cluster)
            own = config.training.batch_size // cluster.gpus
            overlap = micro_batches == 1
            rows.append(
                {
                    "preset": name,
                    "parameters": parameters,
                    "cluster": cluster.name,
                    "gpus": cluster.gpus,
                    "all_reduce_ms": 1000 * seconds,
                    "image_ms": 1000 * image,
                    "hidden_from": hidden_from(seconds, image) if overlap else None,
                    "own_batch": own or None,
                    "waiting_without_overlap": cost(seconds, image, own, overlap=False) if own else None,
                    "waiting_with_overlap": cost(seconds, image, own, overlap) if own else None,
                }
            )
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """Returns the table as it goes into the docs."""
    header = ["preset", "parameters", "GPUs and links", "all-reduce, ms", "an image, ms", "hidden from images a GPU"]
    header += ["the preset's own", "then waiting, one after the other", "and overlapped"]
    return table(
        header,
        [
            [
                row["preset"],
                f"{row['parameters'] / 1e6:.1f} M",
                row["cluster"],
                row["all_reduce_ms"],
                row["image_ms"],
                row["hidden_from"],
                row["own_batch"],
                *(
                    None if share is None else f"{share:.0%}"
                    for share in (row["waiting_without_overlap"], row["waiting_with_overlap"])
                ),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
