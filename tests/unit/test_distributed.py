"""Sums over ranks, on gloo: the same on every rank, the plain sum of what each had."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from sonarkit.core import distributed
from sonarkit.core.distributed import Watch, World, _Seen, checked_device

RANKS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(rank: int, port: int, out: str) -> None:
    """One rank's part; what it got goes to a file."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = distributed.start("auto" if not torch.cuda.is_available() else "cpu")
    assert (world.rank, world.size, world.local_rank) == (rank, RANKS, rank)
    mine = torch.tensor([1.0, 10.0 * rank], dtype=torch.float64)
    summed = distributed.sum_over_ranks(world, mine)
    assert mine.tolist() == [1.0, 10.0 * rank]  # left alone
    norm = nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.weight += rank
        norm.running_mean += rank  # type: ignore[operator]
    distributed.broadcast_weights(world, norm)
    torch.manual_seed(rank)
    learner = distributed.replicate(world, nn.Linear(3, 1))
    learner(torch.full((1, 3), 10.0**rank)).sum().backward()
    distributed.print0(world, "heard once")
    distributed.barrier(world)
    got = {
        "sum": summed,
        "grads": [p.grad for p in learner.parameters()],
        "weights": learner.state_dict(),
        "norm": norm.state_dict(),
    }
    torch.save(got, Path(out) / f"{rank}.pt")
    distributed.stop()


def test_two_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mp.spawn(work, (free_port(), str(tmp_path)), nprocs=RANKS)
    for rank in range(RANKS):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got["sum"].tolist() == [2.0, 10.0]
        assert [grad.tolist() for grad in got["grads"]] == [[[11.0] * 3], [2.0]], "summed, not averaged"
        torch.manual_seed(0)
        assert torch.equal(got["weights"]["module.weight"], nn.Linear(3, 1).weight)
        assert torch.equal(got["norm"]["weight"], torch.ones(2))
        assert torch.equal(got["norm"]["running_mean"], torch.zeros(2))
    assert capfd.readouterr().out.count("heard once") == 1


def test_one_process_needs_no_group() -> None:
    world = distributed.start("cpu")
    assert world == World(0, 1, 0, torch.device("cpu"))
    assert distributed.sum_over_ranks(world, torch.ones(2)).tolist() == [1.0, 1.0]
    model = nn.Linear(3, 1)
    assert distributed.replicate(world, model) is model
    distributed.broadcast_weights(world, model)
    distributed.barrier(world)
    distributed.stop()


def look(
    rank: int,
    ways: dict[int, tuple[int, bool]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> str:
    """What `rank` says in 20 looks, two seconds apart, at three ranks that wait in their tenth collective, having 10 seconds.

    `ways` tells of those that do otherwise: the collective they have come to, and whether their thread is alive.
    """
    monkeypatch.setattr(distributed.os, "_exit", sys.exit)
    watch, seen = Watch(World(rank, 3, rank, torch.device("cpu")), 10.0), [_Seen() for _ in range(3)]
    for beat in range(20):
        for other, one in enumerate(seen):
            collective, alive = ways.get(other, (10, True))
            one.hear([beat * alive, [collective, 7], seconds, "step 7", f"process {other} on here"])
        try:
            watch._judge(seen)
        except SystemExit as end:
            assert end.code == 1 and beat == 5, "as soon as 10 seconds are over"
            return capsys.readouterr().err
    return ""


def test_the_rank_that_the_others_wait_for_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(rank: int, ways: dict[int, tuple[int, bool]], seconds: float = 10.0) -> str:
        return look(rank, ways, capsys, monkeypatch, seconds)

    told = "sonarkit (rank 0): rank 2 (process 2 on here) has been at step 7 for 10 s, and the others wait; it ends here"
    assert said(0, {2: (9, True)}).startswith(told)
    assert said(1, {2: (9, True)}) == said(2, {2: (9, True)}) == "", "one rank speaks"
    assert said(0, {0: (9, True)}) == "" and "(rank 1): rank 0 (process 0 on here) has been" in said(1, {0: (9, True)})
    assert "rank 2 (process 2 on here) has given no sign of life for 10 s, since step 7" in said(0, {2: (10, False)})
    assert "all ranks have been at step 7 for 10 s: they wait for one another" in said(1, {})
    assert said(0, {2: (9, True)}, seconds=60.0) == "", "an evaluation may take longer"
    assert "no sign of life for 10 s" in said(0, {2: (9, False)}, seconds=60.0), "but not without a sign of life"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there_is_named() -> None:
    for name in ("cuda:0", "cuda"):
        with pytest.raises(ValueError, match="is not there"):
            checked_device(name)
    with pytest.raises(ValueError, match="unknown device 'gpu'; expected cpu, cuda"):
        checked_device("gpu")
    assert checked_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device cuda:0 is not there \(this machine has 0 GPUs\)"):
        distributed.start("cuda")
