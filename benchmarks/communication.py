"""Calculates the cost of adding up gradients over several GPUs, and the batch per GPU that hides this cost.

    python benchmarks/communication.py
    python benchmarks/communication.py --gradients bfloat16 --utilisation 0.5

The program measures nothing and needs no GPU. It prints the assumptions of its calculations. The model:

  all-reduce   a ring over n devices takes 2 (n - 1) / n * bytes / bandwidth, where a device sends and receives at this
               bandwidth at the same time, plus 2 (n - 1) * latency for each bucket of gradients. With several hosts,
               gradients are reduce-scattered within each host, added up by rings over the hosts, and all-gathered
               within each host. All devices of a host share its network card.
  computing    training takes 3 multiply-adds for each forward one (one product, and two for its gradients). Each
               multiply-add is two operations, computed at a fraction of the GPU's peak (--utilisation).
  hidden       gradients are sent during the backward pass, so that communication is hidden if all-reduce takes no
               longer than the backward pass, which is two thirds of the computing. The column has the smallest number
               of images per GPU that hides it. With several micro-batches (--micro-batches) nothing is hidden: each
               GPU first adds up their gradients, and the sum is complete only after the last backward pass.

A cell is empty if no batch hides the communication, or if the preset's batch has less than one image per GPU.

The model leaves out the time to launch kernels (it dominates small micro-batches and gives more time to hide behind),
the small all-reduce of batch normalisation, and networks shared with other jobs.
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
# Bytes in a bucket of gradients: NCCL's rings run at full speed only with some megabytes in each bucket.
BUCKET = 32e6


@dataclasses.dataclass(frozen=True)
class Link:
    """A link between devices or between hosts.

    Attributes:
        name: name of the link in the table.
        bandwidth: advertised bytes per second that one end sends while it receives as many.
        efficiency: fraction of the bandwidth that collective operations reach.
        latency: seconds for one step of a ring.
    """

    name: str
    bandwidth: float
    efficiency: float
    latency: float

    @property
    def rate(self) -> float:
        """Bytes per second that collective operations reach."""
        return self.bandwidth * self.efficiency


NVLINK = Link("NVLink, 300 GB/s each way (A100)", 300e9, 0.65, 5e-6)
PCIE = Link("PCIe 4.0 x16, 32 GB/s each way", 32e9, 0.6, 10e-6)
NETWORKS = tuple(Link(f"{rate} Gbit/s a host", rate / 8 * 1e9, 0.8, 20e-6) for rate in (100, 200, 400))


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster of hosts that have the same number of GPUs each.

    Attributes:
        hosts: number of hosts.
        devices: number of GPUs in each host.
        inside: link between the GPUs of a host.
        between: link between the hosts, shared by all GPUs of a host; None for a single host.
    """

    hosts: int
    devices: int
    inside: Link
    between: Link | None = None

    @property
    def gpus(self) -> int:
        """Number of GPUs in all hosts."""
        return self.hosts * self.devices

    @property
    def name(self) -> str:
        """Description of the cluster for the table."""
        between = f", {self.between.name}" if self.between else ""
        return f"{self.gpus} GPUs, {self.inside.name}{between}"


CLUSTERS = (
    Cluster(1, 8, NVLINK),
    Cluster(1, 8, PCIE),
    *(Cluster(8, 8, NVLINK, network) for network in NETWORKS),
)


def ring_seconds(size: float, count: int, rate: float, latency: float, buckets: int = 1) -> float:
    """Returns the seconds in which a ring of `count` members adds up `size` bytes from each member.

    Args:
        size: bytes that each member has.
        count: number of members.
        rate: bytes per second that each member sends.
        latency: seconds for each of the 2 (count - 1) steps of a bucket.
        buckets: number of buckets that are sent one after the other.
    """
    if count < 2:
        return 0.0
    return 2 * (count - 1) / count * size / rate + buckets * 2 * (count - 1) * latency


def all_reduce_seconds(size: float, cluster: Cluster, bucket: float = BUCKET) -> float:
    """Returns the seconds in which all GPUs of a cluster add up `size` bytes of gradients."""
    buckets = max(1, math.ceil(size / bucket))
    inside = ring_seconds(size, cluster.devices, cluster.inside.rate, cluster.inside.latency, buckets)
    if cluster.hosts < 2 or cluster.between is None:
        return inside
    # Each GPU sends 1/devices of the bytes at 1/devices of the bandwidth, which takes as long as one GPU sending all.
    return inside + ring_seconds(size, cluster.hosts, cluster.between.rate, cluster.between.latency, buckets)


def compute_seconds(forward_multiply_adds: float, peak: float, utilisation: float) -> float:
    """Returns the seconds that one image takes in training, in the forward and the backward pass."""
    return 2 * (1 + BACKWARD) * forward_multiply_adds / (peak * utilisation)


def hidden_from(communication: float, image: float) -> int:
    """Returns the smallest number of images per GPU whose backward pass hides the communication.

    Args:
        communication: seconds that the all-reduce takes.
        image: seconds that one image takes in training.
    """
    backward = image * BACKWARD / (1 + BACKWARD)
    return max(1, math.ceil(communication / backward))


def cost(communication: float, image: float, batch: int, overlap: bool) -> float:
    """Returns the fraction of an update that is spent waiting for the all-reduce, with `batch` images per GPU."""
    computing = batch * image
    hidden = min(communication, computing * BACKWARD / (1 + BACKWARD)) if overlap else 0.0
    waiting = communication - hidden
    return waiting / (computing + waiting)


def main() -> int:
    """Prints the table of all presets on all clusters; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradients", choices=tuple(BYTES), default="float32", help="as they travel (default float32)")
    parser.add_argument("--peak", type=float, default=156.0, help="TFLOP/s of a GPU (default 156: A100, TF32)")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it that is reached (default 0.3)")
    parser.add_argument("--micro-batches", type=int, default=1, help="of an update (default 1)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures there")
    options = parser.parse_args()
    return run_program(lambda: communicate(options))


def communicate(options: argparse.Namespace) -> int:
    """Calculates the table and prints it after the assumptions; returns the exit status."""
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
    """Returns a row of figures for each preset on each cluster; None stands for a figure that does not exist."""
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
    """Returns the rows as a markdown table for the docs."""
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
