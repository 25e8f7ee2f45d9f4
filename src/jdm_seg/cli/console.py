"""What a verb says while it works: messages, progress with rate and remaining time, and what to do next."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

_RECENT = 20
"""Items whose pace counts: a batch that goes on begins with a burst of cases that are complete already."""


def log_to_stderr(quiet: bool) -> None:
    """Let the package's own messages through, one a line; with ``quiet`` warnings only."""
    logger = logging.getLogger("jdm_seg")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


class Pace:
    """How fast items go, and how long the rest will take, from the last few of them."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock.

        Args:
            total: Number of items.
            clock: Gives seconds; replaced in tests.
        """
        self.total = total
        self.done = 0
        self._clock = clock
        self._times: deque[float] = deque([clock()], maxlen=_RECENT + 1)

    def step(self) -> str:
        """Count one item; return seconds an item and the time that is left, or nothing after the last."""
        self.done += 1
        self._times.append(self._clock())
        each = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        left = (self.total - self.done) * each
        return f"{shown_time(each)} each, {shown_time(left)} left" if self.done < self.total else ""


def shown_time(seconds: float) -> str:
    """Return a duration in the unit that a reader would choose: ``0.4 s``, ``12 s``, ``3 min``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function to call after each item: a bar on a terminal, plain lines elsewhere, nothing if quiet.

    Args:
        what: The items, in plural.
        total: Their number.
        quiet: Say nothing.
    """
    pace = Pace(total)
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", style="dim"),
            TextColumn("{task.description}", markup=False),  # a case id may hold brackets
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total, pace="")
            yield lambda text: bar.update(task, advance=1, description=text, pace=pace.step())
    else:

        def line(text: str) -> None:
            rest = pace.step()
            told = f" ({rest})" if rest else ""
            print(f"{what} {pace.done}/{total}: {text}{told}", file=sys.stderr, flush=True)

        yield line


@contextlib.contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function to call after each step of work whose number nobody knows."""
    yield (lambda _: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))


def say_next(*commands: str, quiet: bool = False) -> None:
    """Say what a user would do now, on stderr: results alone go to stdout."""
    if not quiet:
        for command in commands:
            print(f"next: {command}", file=sys.stderr)
