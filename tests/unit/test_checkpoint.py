"""A crash, a full disk or a flipped bit never costs the last good copy."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sonarkit.core import checkpoint

WEIGHTS = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3, dtype=torch.float16)}
STATES: list[dict[str, Any]] = [{"step": 7, "random": torch.arange(4)}, {"random": torch.arange(5)}]


def save(folder: Path, step: int, keep: int = 2, weights: dict[str, Tensor] = WEIGHTS) -> Path:
    return checkpoint.save(folder, step, weights, STATES, {"lr": 0.1}, keep)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """The system itself refuses to write a file beyond `limit` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------- training checkpoints


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 1000)
    assert path.name == "step-00001000"
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "trainer.pt",
        "trainer-rank1.pt",
        "config.json",
        "checksums.json",
    }
    found = checkpoint.load(path)
    assert all(torch.equal(found.model_state[key], value) for key, value in WEIGHTS.items())
    assert found.model_state["bias"].dtype == torch.float16
    assert found.trainer_states[0]["step"] == 7
    assert torch.equal(found.trainer_states[1]["random"], torch.arange(5))
    assert found.config == {"lr": 0.1}


def test_the_newest_are_kept_and_unfinished_ones_not_seen(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    for step in (9, 10, 100):
        save(tmp_path, step)
    (tmp_path / "step-00000200.tmp").mkdir()
    (tmp_path / "step-00000200.tmp" / "checksums.json").write_text("{}")
    (tmp_path / "step-00000300").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000100"
    save(tmp_path, 300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00000300"]


@pytest.mark.parametrize("limit", [100, 300, 1000])  # in the weights, in rank 0's state, in the big state
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)
    big = [{"step": 2, "optimizer": torch.zeros(10_000)}]
    with files_of_at_most(limit), pytest.raises(OSError, match="could not save the checkpoint of step 2.*step-00000001 is kept"):
        checkpoint.save(tmp_path, 2, WEIGHTS, big, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(tmp_path / "step-00000001").trainer_states[0]["step"] == 7


def test_a_full_disk_at_the_first_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*there is no older one"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "trainer-rank1.pt", "config.json"])
def test_a_flipped_bit_or_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    flip_a_bit(path / name)
    with pytest.raises(ValueError, match=f"{name} is missing or damaged.*delete"):
        checkpoint.load(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing or damaged"):
        checkpoint.load(path)


def test_damaged_checksums_a_foreign_state_and_no_checkpoint_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"state": Path("a")}, path / "trainer.pt")  # a pickled class: never loaded
    sums = json.loads((path / "checksums.json").read_text())
    sums["trainer.pt"] = checkpoint._sha256(path / "trainer.pt")
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match="not written by sonarkit"):
        checkpoint.load(path)
    for broken in ("{", "[]", "{}"):
        (path / "checksums.json").write_text(broken)
        with pytest.raises(ValueError, match="delete"):
            checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        checkpoint.load(tmp_path / "step-00000002")


# ---------------------------------------------------------------------- shipped weights


def test_weights_come_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.write_safetensors(path, WEIGHTS, {"format": "test"})
    assert torch.equal(checkpoint.read_safetensors(path)["weight"], WEIGHTS["weight"])
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[:20], b"", b"no safetensors at all, but some text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short.*download it again"):
            checkpoint.read_safetensors(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        checkpoint.read_safetensors(path)


def test_a_full_disk_keeps_the_old_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.write_safetensors(path, WEIGHTS, {})
    before = path.read_bytes()
    with files_of_at_most(1000), pytest.raises(OSError, match="the old file is kept"):
        checkpoint.write_safetensors(path, {"weight": torch.zeros(10_000)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_do_not_fit_are_named() -> None:
    tensors = {"weight": torch.zeros(2, 2), "extra": torch.zeros(1)}
    for assign in (checkpoint.assign, checkpoint.assign_in_place):
        with pytest.raises(ValueError, match=r"a Linear .*missing bias; unexpected extra; weight is \(2, 2\), expected \(3, 2\)"):
            assign(nn.Linear(2, 3), tensors, Path("model.safetensors"))


def test_assign_fills_a_module_on_the_meta_device_without_copying() -> None:
    with torch.device("meta"):
        linear = nn.Linear(2, 3)
    tensors = safetensors.torch.load(safetensors.torch.save(dict(nn.Linear(2, 3).state_dict())))
    checkpoint.assign(linear, tensors, Path("model.safetensors"))
    assert linear.weight.data_ptr() == tensors["weight"].data_ptr()
    assert linear.weight.requires_grad
