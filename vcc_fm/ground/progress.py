"""Progress of long work, with rate and time left."""

from __future__ import annotations

import time

from rich.console import Console

SECONDS = 5.0
"""Between two lines."""


class ProgressLines:
    """Plain lines a few seconds apart, which a log file keeps as a terminal shows them.

    Args:
        what: name of the work.
        unit: what is counted.
        console: where the lines go.
        before: how much was done before this run; it is no part of the rate.
    """

    def __init__(self, what: str, unit: str, console: Console, before: int = 0):
        self._what, self._unit, self._console, self._before = what, unit, console, before
        self._begin = self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Report ``done`` of ``total``; prints at the end and when some seconds have passed."""
        now = time.perf_counter()
        if done < total and now - self._last < SECONDS:
            return
        self._last = now
        rate = (done - self._before) / max(now - self._begin, 1e-9)
        left = (total - done) / max(rate, 1e-9)
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        self._console.print(
            f"{self._what}: {done:,}/{total:,} {self._unit}  {shown} {self._unit}/s  ETA {left:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
