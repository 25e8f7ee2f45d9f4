"""Wall time of every stage, where stages run inside one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class StageClock:
    """Adds up the time of stages; while an inner one runs, the outer one stands still: no second counts twice.

    On a GPU, work that is only queued counts for the stage that waits for it.
    """

    def __init__(self) -> None:
        """Start with no stage."""
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._last = time.perf_counter()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, in the order in which stages began."""
        return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what the block takes for stage ``name``."""
        self._lap()
        self._running.append(name)
        self._seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with its calls counted for stage ``name``."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            self._seconds[self._running[-1]] += now - self._last
        self._last = now
