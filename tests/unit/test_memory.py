"""How much memory there is."""

from __future__ import annotations

import pytest
import torch

from sonarkit.core import memory


def test_what_torch_keeps_of_a_gpu_without_using_it_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a codec was dropped its blocks are torch's still, and the driver calls them taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 24))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 12)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2)
    assert memory.available(torch.device("cuda")) == 3 + 10


def test_too_much_is_refused_before_it_is_taken() -> None:
    with pytest.raises(ValueError, match=r"a codec needs 1048576\.0 GiB of memory on cpu, but .* are free; take less"):
        memory.check(2**50, "a codec", advice="take less")
    memory.check(1, "a byte")
