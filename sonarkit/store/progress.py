"""How far all ranks are together, told by rank 0; and waiting for them with open ears."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch.distributed as dist
from tqdm.auto import tqdm

from sonarkit.core.distributed import World

EVERY = 30.0  # seconds between lines where there is no terminal
LOOK = 1.0  # seconds at least between two looks at what other ranks have done


class Progress:
    """On a terminal a bar, else a line every half minute: what was done, how many a second, and the time left.

    Rank 0 alone speaks. `total` is what there is to do, if that is known; `done` of it was done before.
    """

    def __init__(self, world: World, what: str, unit: str, total: int | None = None, done: int = 0) -> None:
        self._speaks, terminal = world.rank == 0, sys.stderr.isatty()
        self._bar = tqdm(
            desc=what,
            unit=f" {unit}",
            total=total,
            initial=done,
            smoothing=0,  # shards come in bursts: the mean tells the remaining time best
            disable=not (self._speaks and terminal),
        )
        self._lines = self._speaks and not terminal
        self._what, self._unit, self._total, self._before, self._done = what, unit, total, done, done
        self._began = self._told = self._looked = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def look(self, count: Callable[[], int], last: bool = False) -> None:
        """Ask `count` how much is done, which may take a while: not at every call."""
        if self._speaks and (last or time.monotonic() - self._looked >= LOOK):
            self.reached(count())
            self._looked = time.monotonic()

    def reached(self, done: int) -> None:
        """Show that `done` are done in all."""
        self._bar.update(done - self._done)
        self._done, now = done, time.monotonic()
        if self._lines and now - self._told >= EVERY:
            self._told = now
            print(self.line(now - self._began), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """`encode: 120000 of 480000 sentences, 412 sentences/s, 14:33 left`."""
        rate = (self._done - self._before) / max(seconds, 1e-9)
        of = f" of {self._total}" if self._total is not None else ""
        left = f", {tqdm.format_interval((self._total - self._done) / rate)} left" if self._total is not None and rate else ""
        return f"{self._what}: {self._done}{of} {self._unit}, {rate:.0f} {self._unit}/s{left}"


def meet(world: World) -> None:
    """Wait until every rank is here. Unlike in a plain barrier a signal is heard at once."""
    if world.size == 1:
        return
    arrived = dist.barrier(async_op=True)
    while not arrived.is_completed():
        time.sleep(0.02)
    arrived.wait()
