"""A disk that is full, a real one of 4 MB: nothing that was whole is lost, and with space again the same command goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import STEPS, contents, encode, losses, save, train_llm

from sonarkit.core import checkpoint

PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip() or 'no mount'}); it takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def leave(disk: Path, pages: int) -> Path:
    """Fill the disk but for so many pages; -> the file that does."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(bytes(PAGE)):
                pass
        except OSError:
            pass
        file.truncate(file.tell() // PAGE * PAGE - pages * PAGE)
    return ballast


def told(work: Callable[..., None], *arguments: Any, **options: Any) -> str:
    """What the work says about the disk; "" where it was through."""
    try:
        work(*arguments, **options)
    except OSError as error:
        return str(error)
    return ""


def test_encoding(disk: Path, corpus: Path, whole_store: Path) -> None:
    full, store = 0, disk / "store"
    for pages in range(0, 26, 2):
        ballast = leave(disk, pages)
        if error := told(encode, corpus, store):
            full += 1
            assert f"could not write {store}/" in error and "No space left" in error, error
            assert "nothing was written. Free space or choose another place, and start again" in error
            kept = contents(store)
            assert not any(name.endswith((".tmp", ".lock")) for name in kept)
            assert all(
                data == contents(whole_store)[name] for name, data in kept.items() if "shard" in name and "hash" not in name
            )
        ballast.unlink()
        encode(corpus, store)
        assert contents(store) == contents(whole_store)
        for path in store.iterdir():
            path.unlink()
    assert 3 < full < 13


def test_a_store_that_is_begun_goes_on_where_it_was(disk: Path, corpus: Path, whole_store: Path) -> None:
    store = disk / "store"
    ballast = leave(disk, 9)
    assert told(encode, corpus, store)
    before = {path: path.stat().st_mtime_ns for path in store.glob("shard*.json")}
    assert before
    ballast.unlink()
    encode(corpus, store)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(store) == contents(whole_store)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_training(tensorboard: bool, disk: Path, whole_store: Path, whole_run: Path) -> None:
    full = 0
    for pages in (0, 1, 2, 6, 12, 20, 28, 40, 55) if not tensorboard else (3, 20):
        out = disk / f"run-{pages}"
        ballast = leave(disk, pages)
        if error := told(train_llm, whole_store, out, tensorboard=tensorboard):
            full += 1
            assert str(out) in error and "No space left" in error and "Free space" in error, error
            assert checkpoint.latest(out) is None or checkpoint.read(checkpoint.latest(out))
        ballast.unlink()
        train_llm(whole_store, out, tensorboard=tensorboard)
        assert losses(out) == losses(whole_run) and len(losses(out)) == STEPS
        assert contents(out / "final") == contents(whole_run / "final")
        subprocess.run(["rm", "-r", out], check=True)
    assert full > 1


def test_saving(disk: Path) -> None:
    save(disk / "model", seed=2)
    save(disk / "new")
    before = contents(disk / "model")
    needed = -(-len(before["model.safetensors"]) // PAGE)
    for pages in range(needed):
        ballast = leave(disk, pages)
        error = told(save, disk / "model")
        assert f"could not write {disk / 'model' / 'model.safetensors'}" in error and "the old file is kept. Free space" in error
        assert contents(disk / "model") == before
        ballast.unlink()
    save(disk / "model")
    assert contents(disk / "model") == contents(disk / "new") != before
