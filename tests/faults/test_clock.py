"""A clock that jumps back and forth, and files whose times mean nothing: neither changes what is made."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt, calls_of, contents, encode, losses, train_llm

YEARS = 30 * 365 * 86400.0


def by_a_clock_that_jumps(work: Callable[..., None], *arguments: Any) -> None:
    """The work, while every look at the wall clock gives another decade."""
    rng, now, now_ns = random.Random(0), time.time, time.time_ns
    time.time = lambda: now() + rng.uniform(-YEARS, YEARS)
    time.time_ns = lambda: now_ns() + int(1e9 * rng.uniform(-YEARS, YEARS))
    work(*arguments)


def shuffle_times(folder: Path) -> None:
    rng = random.Random(0)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (rng.uniform(1, 2e9), rng.uniform(1, 2e9)))


@pytest.mark.parametrize("what", ["encode", "train"])
def test_a_clock_that_jumps(what: str, corpus: Path, whole_store: Path, whole_run: Path, tmp_path: Path) -> None:
    """While the work goes on, and between two sittings; the older checkpoint looks like the newer one."""
    work, source = (encode, corpus) if what == "encode" else (train_llm, whole_store)
    calls, out = calls_of(work, source, tmp_path / "counted"), tmp_path / "out"
    assert attempt(by_a_clock_that_jumps, work, source, out, after=int(0.8 * calls)) == -signal.SIGKILL
    shuffle_times(out)
    for i, path in enumerate(sorted(out.glob("step-*"), reverse=True)):
        os.utime(path, (i, i))
    assert attempt(by_a_clock_that_jumps, work, source, out) == 0
    if what == "encode":
        assert contents(out) == contents(whole_store)
    else:
        assert losses(out) == losses(whole_run) and contents(out / "final") == contents(whole_run / "final")
