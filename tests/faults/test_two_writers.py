"""Two processes write one store, or train one run: the second refuses and names the first; a dead one's lock is no lock."""

from __future__ import annotations

import os
import platform
import signal
import time
from pathlib import Path

import pytest
from attempts import attempt, begun, calls_of, contents, encode, losses, train_llm


@pytest.mark.parametrize("what", ["encode", "train"])
def test_the_second_refuses(what: str, corpus: Path, whole_store: Path, whole_run: Path, tmp_path: Path) -> None:
    work, source = (encode, corpus) if what == "encode" else (train_llm, whole_store)
    half, out = calls_of(work, source, tmp_path / "counted") // 2, tmp_path / "out"
    with begun(work, source, out, end=signal.SIGSTOP, after=half) as (first, _):
        deadline = time.monotonic() + 600
        while state(first.pid) != "T":
            assert first.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        before = contents(out)
        holder = rf"out is being written by process {first.pid} on {platform.node()} \(since 20..-.*\); wait until"
        with pytest.raises(ValueError, match=holder):
            work(source, out)
        assert contents(out) == before
        os.kill(first.pid, signal.SIGCONT)
        first.join()
        assert first.exitcode == 0
    if what == "encode":
        assert contents(out) == contents(whole_store)
    else:
        assert losses(out) == losses(whole_run)


def state(pid: int) -> str:
    """`T` when the process was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_lock_of_a_dead_process_is_taken_over(corpus: Path, whole_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert attempt(encode, corpus, store, after=calls_of(encode, corpus, tmp_path / "counted") // 2) == -signal.SIGKILL
    assert (store / "writer.lock").is_file()
    encode(corpus, store)
    assert contents(store) == contents(whole_store)
