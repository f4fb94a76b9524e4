"""An examination of this machine: its checks one after the other, what they find, and what goes wrong with them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from tfdecouple.doctor.apart import MeasurementError, Processes, end_all
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.options import Variant, tried

# Checks that run side by side: most of their time one thread traces.
_AT_ONCE = 2

Say = Callable[[str], Any]

_ADVICE = {
    "time": "see what else computes here (top, nvidia-smi), or give each measurement longer: --timeout",
    "memory": "see what else holds memory here (free, nvidia-smi), and end it, or take a machine with more",
    "error": "run this check alone (--only NAME) with TFDECOUPLE_TRACEBACK=1 in the environment; report what it says",
}


class Runner(Protocol):
    """Runs a generator by the name "module:function" of it, as `apart.Processes` and `apart.run_here` do."""

    def __call__(
        self, target: str, setting: dict[str, Any], limit: float, arguments: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yields what the generator yields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to look at.

    Attributes:
        preset: whose model is timed and measured; None for the small one that comes along, and no measuring of memory.
        settings: `NAME=VALUE` that change the preset.
        quick: whether few things are tried, in about a minute.
        devices: how many train; None for all GPUs, or one CPU.
        timeout: seconds after which a measurement is ended.
    """

    preset: str | None = None
    settings: tuple[str, ...] = ()
    quick: bool = False
    devices: int | None = None
    timeout: float = 900.0


class Examination:
    """What the checks share: what was asked for, the devices, and a way to run things apart.

    Args:
        request: what to look at.
        say: is told how far it is, a line at a time.
        runner: runs a measurement; None for processes of their own.

    Attributes:
        request: as it was given.
        devices: those that compute, by TensorFlow's names, such as "GPU:0"; known once `build` has looked.
        found: the findings so far, by the names of the checks.
    """

    def __init__(self, request: Request, say: Say = print, runner: Runner | None = None):
        self.request = request
        self.devices: list[str] = ["CPU:0"]
        self.found: dict[str, list[Finding]] = {}
        self._processes = Processes()
        self._say, self._runner = say, runner or self._processes
        self._begun = time.monotonic()
        self._ended = False
        # Of each measurement that runs, whether it does so alone.
        self._running: list[bool] = []
        self._turns = threading.Condition()

    def say(self, text: str) -> None:
        """Tells how far the examination is."""
        self._say(f"[{time.monotonic() - self._begun:4.0f} s] {text}")

    def variants(self, device: str) -> list[Variant]:
        """Returns the variants that are tried on a device."""
        return tried(device.startswith("GPU"), self.request.quick)

    def examine(self, checks: Sequence[Any]) -> None:
        """Runs checks: those that measure time or memory alone, the others two at a time."""
        # The order of the report, whichever ends first.
        self.found.update({check.name: [] for check in checks})
        for alone, group in itertools.groupby(checks, lambda check: check.alone):
            if alone:
                # What others of them hold, of GPUs too, this one may be about.
                self._processes.end()
            with concurrent.futures.ThreadPoolExecutor(1 if alone else _AT_ONCE) as pool:
                try:
                    list(pool.map(self.take, group))
                except BaseException:
                    # Interrupted: whoever waits for a process has nothing to wait for any more.
                    self._ended = True
                    pool.shutdown(wait=False, cancel_futures=True)
                    end_all()
                    raise
        self._processes.end()

    def take(self, check: Any) -> None:
        """Runs a check to its end, whatever happens on the way, and keeps what it finds.

        Raises:
            MeasurementError: for a mistake of the user's, which concerns all checks.
        """
        self.say(f"{check.name}: {check.title}")
        kept = self.found.setdefault(check.name, [])
        try:
            for finding in check.run(self):
                kept.append(finding)
                if finding.holds is False:
                    self.say(f"  {finding.what}: does NOT hold: {finding.said}")
        except MeasurementError:
            raise
        except Exception as error:  # noqa: BLE001 - a check that fails is a line of the report, and the next one follows
            kept.append(Finding(check.title, False, f"{type(error).__name__}: {error}", _ADVICE["error"]))

    def findings(
        self,
        target: str,
        judge: Callable[[dict[str, Any]], Finding],
        what: str,
        arguments: dict[str, Any],
        *,
        promise: bool = True,
        tensorflow: bool = True,
        environment: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> Iterator[Finding]:
        """Runs a measurement and yields what is to be said of each thing that it yields.

        What it yields as {"doing": TEXT} is told as progress. A measurement that fails, hangs or runs out of memory
        ends with a finding that says so.

        Args:
            target: "module:function" of a generator of dicts of plain values.
            judge: makes a finding of such a dict.
            what: is measured, for that finding.
            arguments: of the generator, plain values.
            promise: whether it is of something that is promised; otherwise too little time or memory breaks nothing.
            tensorflow: whether it needs TensorFlow, set up as the programs do.
            environment: variables that its process has besides.
            alone: whether its process must be a new one, which nothing else has used and beside which no other runs.

        Raises:
            MeasurementError: for a mistake of the user's.
        """
        setting: dict[str, Any] = {"tensorflow": tensorflow, "environment": dict(environment or {}), "alone": alone}
        setting["devices"] = self.request.devices
        doing = ""
        try:
            with self._turn(alone):
                if self._ended:
                    return
                for found in self._runner(target, setting, self.request.timeout, arguments):
                    if "doing" in found:
                        doing = found["doing"]
                        self.say(f"  {doing}")
                    else:
                        yield judge(found)
        except MeasurementError as error:
            if error.kind == "mistake":
                raise
            holds = False if promise or error.kind == "error" else None
            where = f", at {doing}" if doing and doing != what else ""
            yield Finding(what, holds, f"not measured{where}: {error}", _ADVICE[error.kind], {"failed": error.kind})

    @contextlib.contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Waits until a measurement may run: where it or one that runs is alone, until none does."""
        with self._turns:
            self._turns.wait_for(lambda: not (self._running and (alone or any(self._running))))
            self._running.append(alone)
        try:
            yield
        finally:
            with self._turns:
                self._running.remove(alone)
                self._turns.notify_all()
