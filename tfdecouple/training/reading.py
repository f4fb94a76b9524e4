"""When the loop reads from the devices."""

from __future__ import annotations

import time

# So long may a stop or a divergence stay unknown, but for the step under way. Systems that end a program give it half a
# minute or more between SIGTERM and SIGKILL.
SECONDS = 5.0
# Sums of so many steps over thousands of devices are whole numbers in float32.
_MOST = 1000


class ReadSchedule:
    """After how many steps the loop reads again from the devices what its steps have left there.

    To read is to wait for all steps that were dispatched: a GPU has nothing to do afterwards until the next one comes.
    So it is done with each row of the log, and between two rows only where these are many seconds apart. The first step
    of a process is read, then at most twice as many each time, as long as they take no more than `SECONDS`.

    Several workers must read at the same steps. Each says with every step how many it would take until the next time;
    what they agree on is what all have received with the step that was read.

    Args:
        step: steps taken.

    Attributes:
        wish: after how many steps this process would read again.
    """

    def __init__(self, step: int):
        self.wish = 1
        self._next = step + 1
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leaves out of the time of steps what was done between them."""
        self._since, self._last = time.monotonic(), step

    def is_due(self, step: int) -> bool:
        """Returns whether to read after this step."""
        return step >= self._next

    def note(self, step: int, agreed: float) -> None:
        """Notes that a step was read.

        Args:
            step: steps taken.
            agreed: the wish of all workers that came with it.
        """
        seconds = (time.monotonic() - self._since) / max(1, step - self._last)
        self._next = step + max(1, int(agreed))
        self.wish = max(1, int(min(2 * agreed, _MOST, SECONDS / max(seconds, 1e-9))))
        self.restart(step)
