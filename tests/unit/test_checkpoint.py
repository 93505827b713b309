"""A crash, a full disk or a flipped bit never costs the last good copy."""

from __future__ import annotations

import errno
import inspect
import json
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sonarkit.core import checkpoint
from sonarkit.core.distributed import World

WEIGHTS = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3, dtype=torch.float16)}
ALONE = World(0, 1, 0, torch.device("cpu"))


def save(folder: Path, step: int, keep: int = 2, weights: dict[str, Tensor] = WEIGHTS, **trainer: Any) -> Path:
    with checkpoint.Checkpoints(folder, ALONE, keep) as checkpoints:
        state = {"model": dict(weights), "optimizer": {"lr": 0.1 * step}}
        checkpoints.save(step, state, {"step": step, "random": torch.arange(4), **trainer}, {"lr": 0.1})
    return folder / f"step-{step:08d}"


def load(path: Path) -> dict[str, Any]:
    state = {"model": {key: torch.zeros_like(value) for key, value in WEIGHTS.items()}, "optimizer": {"lr": 0.0}}
    checkpoint.read(path).load_into(state, ALONE)
    return state


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
    assert {file.name for file in path.iterdir()} == {"state", "trainer.pt", "config.json", "checksums.json"}
    state, found = load(path), checkpoint.read(path)
    assert all(torch.equal(state["model"][key], value) for key, value in WEIGHTS.items())
    assert state["optimizer"]["lr"] == 0.1 * 1000
    assert found.trainer_states[0]["step"] == 1000
    assert torch.equal(found.trainer_states[0]["random"], torch.arange(4))
    assert found.config == {"lr": 0.1}


def test_what_is_written_is_what_was_when_save_was_called(tmp_path: Path) -> None:
    weight = torch.zeros(1_000_000)
    with checkpoint.Checkpoints(tmp_path, ALONE) as checkpoints:
        checkpoints.save(1, {"model": {"weight": weight}}, {}, {})
        weight += 1  # training goes on while the file is written
        checkpoints.save(2, {"model": {"weight": weight}}, {}, {})
    for step, value in ((1, 0.0), (2, 1.0)):
        state = {"model": {"weight": torch.full((1_000_000,), 9.0)}}
        checkpoint.read(tmp_path / f"step-{step:08d}").load_into(state, ALONE)
        assert state["model"]["weight"].unique().tolist() == [value]


def test_the_writer_never_looks_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread's GPU is GPU 0 whatever the rank's is: looking ahead there, each rank opens a context on it."""
    library = checkpoint.distributed_checkpoint()
    if "async_stager" not in inspect.signature(library.async_save).parameters:
        pytest.skip("torch 2.8 copies aside only what its own writer writes")
    given: list[int] = []

    class Writer(library.FileSystemWriter):
        def __init__(self, path: Path, **options: Any) -> None:
            super().__init__(path, **options)
            given.append(self.per_thread_copy_ahead)

    monkeypatch.setattr(library, "FileSystemWriter", Writer)
    save(tmp_path, 1)
    assert given == [0]


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


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """In a shard, in the trainer's state."""
    save(tmp_path, 1)
    refused = pytest.raises(OSError, match="could not save the checkpoint of step 2.*step-00000001 is kept")
    with files_of_at_most(20_000), refused:
        save(tmp_path, 2, weights={"weight": torch.zeros(10_000)})
    with files_of_at_most(20_000), pytest.raises(OSError, match="step-00000001 is kept"):
        save(tmp_path, 2, big=torch.zeros(10_000))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load(tmp_path / "step-00000001")["optimizer"]["lr"] == 0.1


def test_a_failure_in_the_background_is_told_without_waiting_for_the_next_save(tmp_path: Path) -> None:
    checkpoints = checkpoint.Checkpoints(tmp_path, ALONE)
    with files_of_at_most(20_000):
        checkpoints.save(2, {"model": {"weight": torch.zeros(10_000)}}, {}, {})
        deadline = time.monotonic() + 60
        with pytest.raises(OSError, match="there is no older one"):
            while time.monotonic() < deadline:
                checkpoints.check()
    checkpoints.check()  # told once


def test_a_full_disk_at_the_first_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*there is no older one"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state/__0_0.distcp", "state/.metadata", "trainer.pt", "config.json"])
def test_a_flipped_bit_or_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    flip_a_bit(path / name)
    with pytest.raises(ValueError, match=f"{name} is missing or damaged.*delete"):
        checkpoint.read(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing or damaged"):
        checkpoint.read(path, verify=False)


def test_damaged_checksums_a_foreign_state_and_no_checkpoint_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save({"state": Path("a")}, path / "trainer.pt")  # a pickled class: never loaded
    sums = json.loads((path / "checksums.json").read_text())
    sums["trainer.pt"] = checkpoint._sha256(path / "trainer.pt")
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match="not written by sonarkit"):
        checkpoint.read(path)
    for broken in ("{", "[]", "{}"):
        (path / "checksums.json").write_text(broken)
        with pytest.raises(ValueError, match="delete"):
            checkpoint.read(path)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        checkpoint.read(tmp_path / "step-00000002")


@pytest.mark.parametrize("state", [{"model": {"other": torch.zeros(1)}}, {"model": {"weight": torch.zeros(2, 2)}}])
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(ValueError, match="do not fit this run: rank 0: .*(other|weight)"):
        checkpoint.read(path).load_into(state, ALONE)


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


def test_a_flipped_bit_in_a_weights_file_is_found_wherever_it_is(tmp_path: Path) -> None:
    """But in the name of the checksum itself, where no weight changes."""
    path = tmp_path / "model.safetensors"
    checkpoint.write_safetensors(path, WEIGHTS, {"format": "test", "more": 'a "quoted" ü'})
    whole = path.read_bytes()
    name = range(whole.index(b'"crc32"'), whole.index(b'"crc32"') + len(b'"crc32":"'))
    for place in (place for place in range(len(whole)) if place not in name):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            checkpoint.read_safetensors(path)


def test_the_same_weights_are_the_same_bytes_and_older_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    written = set()
    for _ in range(5):  # safetensors itself gives three keys in any order
        checkpoint.write_safetensors(new, WEIGHTS, {"format": "test", "codec": "none"})
        written.add(new.read_bytes())
    assert len(written) == 1
    with safetensors.safe_open(new, "pt") as file:
        assert file.metadata().keys() == {"format", "codec", "crc32"}
    safetensors.torch.save_file(WEIGHTS, old, {"format": "test"})
    for path in (new, old):
        assert all(torch.equal(value, WEIGHTS[key]) for key, value in checkpoint.read_safetensors(path).items())


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
    with pytest.raises(ValueError, match=r"a Linear .*missing bias; unexpected extra; weight is \(2, 2\), expected \(3, 2\)"):
        checkpoint.assign(nn.Linear(2, 3), tensors, Path("model.safetensors"))


def test_assign_fills_a_module_on_the_meta_device_without_copying() -> None:
    with torch.device("meta"):
        linear = nn.Linear(2, 3)
    tensors = safetensors.torch.load(safetensors.torch.save(dict(nn.Linear(2, 3).state_dict())))
    checkpoint.assign(linear, tensors, Path("model.safetensors"))
    assert linear.weight.data_ptr() == tensors["weight"].data_ptr()
    assert linear.weight.requires_grad


def test_weights_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    checkpoint.write_safetensors(tmp_path / "model.safetensors", WEIGHTS, {})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    checkpoint.write_atomically(tmp_path / "link.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit((tmp_path / "pipe").read_text)
        checkpoint.write_atomically(tmp_path / "pipe", lambda path: path.write_text("through"))
        assert read.result() == "through" and (tmp_path / "pipe").is_fifo()


def test_whatever_stops_a_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(tmp_path / "a.txt", interrupted)
    assert not list(tmp_path.iterdir())
