"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sonarkit.core import memory


def test_what_torch_keeps_of_a_gpu_without_using_it_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a codec was dropped its blocks are torch's still, and the driver calls them taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 24))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 12)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2)
    assert memory.available(torch.device("cuda")) == 3 + 10


def test_the_tightest_of_the_control_groups_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job of Slurm or systemd is limited in a group below the root, or in one above its own."""
    own = tmp_path / "groups" / "slurm" / "job"
    own.mkdir(parents=True)
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/slurm/job\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "own")
    free = memory.available()
    assert free is not None and free > 5000
    for group, limit in ((own, "max"), (own.parent, "5000")):
        (group / "memory.max").write_text(limit)
        (group / "memory.current").write_text("3000")
    (own.parent / "memory.stat").write_text("anon 1000\nfile 700\n")
    assert memory.available() == 5000 - 3000 + 700
    (own / "memory.max").write_text("3100")
    assert memory.available() == 100


def test_too_much_is_refused_before_it_is_taken() -> None:
    with pytest.raises(ValueError, match=r"a codec needs 1048576\.0 GiB of memory on cpu, but .* are free; take less"):
        memory.check(2**50, "a codec", advice="take less")
    memory.check(1, "a byte")
