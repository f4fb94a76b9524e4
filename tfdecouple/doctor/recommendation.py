"""Which options to train with here: of the ways that were timed and whose numbers are right, the fastest that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfdecouple.costs import fewest_micro_batches, not_counted
from tfdecouple.doctor.examination import Request
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.options import DEFAULT, VARIANTS
from tfdecouple.doctor.speed import config_of
from tfdecouple.runtime.memory import shown_bytes

Found = Mapping[str, Sequence[Finding]]

# What is faster by less is not worth another option.
GAIN = 1.05
# Settings that save memory at the cost of time, in the order in which they are tried where nothing else fits.
SAVING = (["training.memory=recompute"], ["training.memory=invert"])
# Of a device's memory, what TensorFlow and gaps leave to training.
USABLE = 0.9


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """Options, and why.

    Attributes:
        settings: `NAME=VALUE` for `--set`; empty where the defaults are the best.
        environment: variables to set.
        why: sentences.
    """

    settings: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    def options(self) -> str:
        """Returns them for a command line: `--set NAME=VALUE ...`."""
        return " ".join(f"--set {setting}" for setting in self.settings)


def recommend(request: Request, found: Found) -> Recommendation:
    """Returns what to train with: a precision, micro-batches, and whatever else `options.VARIANTS` tries.

    Args:
        request: what was looked at.
        found: the findings by the names of the checks.
    """
    gains = _gains(found.get("speed", ()))
    if DEFAULT.name not in gains:
        return Recommendation(why=("training was not timed: nothing to choose from",))
    right, wrong = _judged_variants(found)
    chosen = _chosen(gains, right)
    settings: list[str] = []
    environment: list[str] = []
    why: list[str] = []
    for variant in VARIANTS[1:]:
        if variant.name not in gains:
            continue
        if variant.name in chosen:
            settings += variant.settings
            environment += [f"{name}={value}" for name, value in variant.environment.items()]
            verdict = ", taken"
        else:
            verdict = ", not taken"
            if variant.name in wrong:
                verdict = ", but its numbers are wrong here"
            elif variant.name not in right:
                verdict = ", but its numbers were not compared"
        why.append(f"{variant.name}: {gains[variant.name]:.2f} times as fast{verdict}")
    micro_batches, reason = _micro_batches(request, settings, found)
    return Recommendation((*settings, *micro_batches), tuple(environment), (*why, *reason))


def _gains(findings: Iterable[Finding]) -> dict[str, float]:
    """Returns how many times as fast as the default each variant trains, at the largest batch of both."""
    rows = [one.figures for one in findings if one.figures.get("phase") == "train"]
    rows.sort(key=lambda row: row["batch"])
    default = {(row["devices"], row["batch"]): row["images_per_s"] for row in rows if row["variant"] == DEFAULT.name}
    places = [(row, default.get((row["devices"], row["batch"]))) for row in rows]
    return {row["variant"]: row["images_per_s"] / rate for row, rate in places if rate}


def _judged_variants(found: Found) -> tuple[set[str], set[str]]:
    """Returns the variants in which all devices compute the same, and those in which one computes something else.

    What was not compared is in neither; where the comparison of a device failed, nothing is known to be right, and of
    variants that concern several devices nothing where these do not add up, or train otherwise than one by default.
    """
    alone, wrong_alone = _judged(found.get("numerics", ()))
    together, wrong_together = _judged(found.get("devices", ()))
    concern_several = {variant.name for variant in VARIANTS if variant.together}
    if DEFAULT.name in wrong_together:
        together = set()
    return (alone - concern_several) | (together & concern_several), wrong_alone | wrong_together


def _judged(findings: Iterable[Finding]) -> tuple[set[str], set[str]]:
    """Returns the variants that are right by some findings, none where one of them failed, and those that are wrong."""
    judged = [(one.holds, one.figures.get("variant")) for one in findings]
    right, wrong = ({name for holds, name in judged if name and holds is said} for said in (True, False))
    return (set() if (False, None) in judged else right - wrong), wrong


def _chosen(gains: Mapping[str, float], right: set[str]) -> set[str]:
    """Returns the variants that are worth it: of those that are right and set the same options the fastest."""
    best: dict[tuple[str, ...], tuple[float, str]] = {}
    for variant in VARIANTS[1:]:
        gain = gains.get(variant.name, 0.0)
        if gain >= GAIN and variant.name in right:
            options = tuple(sorted({*(each.partition("=")[0] for each in variant.settings), *variant.environment}))
            best[options] = max(best.get(options, (0.0, "")), (gain, variant.name))
    return {name for _, name in best.values()}


def _micro_batches(request: Request, settings: Sequence[str], found: Found) -> tuple[list[str], list[str]]:
    """Returns settings by which a preset's batch fits into memory, with as few micro-batches as do, and why."""
    facts = next((one.figures for one in found.get("build", ()) if "devices" in one.figures), None)
    if request.preset is None or facts is None:
        return [], []
    devices = len(facts["devices"][: request.devices or (None if facts["gpus"] else 1)])
    # Logical CPU devices share the memory of the machine.
    memory = device_memory(facts) // (1 if facts["gpus"] else devices)
    for saving in ([], *SAVING):
        config = config_of(request.preset, [*request.settings, *settings, *saving])
        if count := fewest_micro_batches(config, devices, int(USABLE * memory)):
            set_, own = [f"training.micro_batches={count}"], config.training.micro_batches
            share = config.training.batch_size // (count * devices)
            why = f"{count} micro-batches: {share} images at a time on each device fit into {shown_bytes(memory)}"
            why += not_counted(config)
            return [*saving, *(set_ if count != own else [])], [why]
    return [], [f"not even one image at a time fits into {shown_bytes(memory)}, by calculation"]


def device_memory(facts: Mapping[str, Any]) -> int:
    """Returns the bytes of the smallest GPU, or of this machine where there is none."""
    sizes = [line["memory.total"].split()[0] for line in facts["nvidia_smi"] if "memory.total" in line]
    if facts["gpus"] and sizes and all(size.isdigit() for size in sizes):
        return min(map(int, sizes)) * 2**20
    return int(facts["memory_bytes"])
