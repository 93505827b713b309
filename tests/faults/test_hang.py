"""A rank that hangs is named, torchrun starts the ranks again, and the run ends as one that nothing disturbed.

As a script under torchrun (`test_hang.py STORE OUT`) this file is one of two ranks.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from attempts import STEPS, losses, train_llm

from sonarkit.core import distributed
from sonarkit.core.distributed import Watch

HANG_SECONDS = 15


def test_a_rank_that_hangs_is_named_and_the_ranks_begin_again(whole_store: Path, whole_run: Path, tmp_path: Path) -> None:
    """First rank 1 sticks in C code in the third step, then, after the restart, rank 0 waits for ever in the fifth."""
    from processes import run

    out = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 2]
    found = run([*launcher, __file__, whole_store, out])
    assert found.returncode == 0, found.stderr[-3000:]
    first, *later = (line for line in found.stderr.splitlines() if "it ends here" in line)
    silent = rf"rank 1 .process \d+ on .*. has given no sign of life for {HANG_SECONDS} s, since .* or soon after"
    stuck = rf"rank 0 .process \d+ on .*. has been at step 5 for {HANG_SECONDS} s, and the others wait"
    assert re.fullmatch(rf"sonarkit .rank 0.: {silent}; it ends here; what was finished is kept", first)
    # rank 0, which sleeps on, may say of rank 1 that it is gone before torchrun ends it, too
    assert re.fullmatch(rf"sonarkit .rank 1.: {stuck}; it ends here; what was finished is kept", later[0])
    assert f"resumed {out} from step" in found.stdout
    assert [step for step, _, _ in losses(out)] == list(range(1, STEPS + 1))
    assert [loss for _, loss, _ in losses(out)] == pytest.approx([loss for _, loss, _ in losses(whole_run)], rel=1e-5)


def hang(attempt: int, rank: int, where: str) -> None:
    if (attempt, rank, where) in [(0, 1, "step 3"), (1, 0, "step 5")]:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else torchrun waits half a minute before it kills
        sleep = time.sleep if attempt else ctypes.PyDLL(None).sleep  # C's holds the interpreter: no other thread runs, either
        sleep(3600)


def main(store: Path, out: Path) -> None:
    torch.set_num_threads(1)
    world, attempt, original = distributed.start("cpu"), int(os.environ["TORCHELASTIC_RESTART_COUNT"]), Watch.at

    def at(watch: Watch, where: str, seconds: float | None = None) -> None:
        original(watch, where, seconds)
        hang(attempt, world.rank, where)

    Watch.at = at  # type: ignore[method-assign]
    train_llm(store, out, world, hang_minutes=HANG_SECONDS / 60)
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
