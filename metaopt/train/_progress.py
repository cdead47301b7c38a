"""What a run shows while it goes, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from metaopt.progress import bar

__all__ = ["Progress", "interruptible"]


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop after this step; a second one is immediate."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody presses Ctrl-C there
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


class Progress:
    """A bar with smoothed loss and score and the speed, and a line that stays every tenth of the way.

    Nothing at all where it is not shown: tqdm would import asyncio and make a semaphore for it.
    """

    def __init__(self, first: int, total: int, shown: bool) -> None:
        self.total = total
        self.bar: Any = nullcontext()
        self.smooth: dict[str, float] = {}
        self.tasks, self.began = 0, time.perf_counter()
        self.shown = shown
        if shown:
            self.bar = bar(total=total, initial=first, unit="step")

    def step(self, n: int, num_tasks: int, line: dict[str, float]) -> None:
        """Show the numbers of step n."""
        if not self.shown:
            return
        self.tasks += num_tasks
        for k, v in line.items():
            if v == v:
                self.smooth[k] = 0.98 * self.smooth.get(k, v) + 0.02 * v
        self.bar.update()
        if n % 20 == 0 or n == self.total:
            words = {k: f"{v:.4f}" for k, v in self.smooth.items() if k != "mse"}
            words["tasks/s"] = f"{self.tasks / (time.perf_counter() - self.began):.0f}"
            self.bar.set_postfix(words, refresh=False)
            if n % max(self.total // 200 * 20, 20) == 0:
                self.say(f"step {n:>6}  " + "  ".join(f"{k} {v}" for k, v in words.items()))

    def say(self, text: str) -> None:
        """A line that stays above the bar."""
        if self.shown:
            self.bar.write(text)
