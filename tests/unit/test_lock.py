"""One writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from sonarkit.core import lock
from sonarkit.core.lock import sole_writer


def test_the_second_writer_is_told_of_the_first_and_comes_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "store"
    with sole_writer(folder):
        assert json.loads((folder / "writer.lock").read_text())["pid"] == os.getpid()
        told = rf"store is being written by process {os.getpid()} on .* \(since .*\); wait"
        with pytest.raises(ValueError, match=told), sole_writer(folder):
            raise AssertionError
        (folder / "writer.lock").write_text("")  # it has not said yet who it is
        with pytest.raises(ValueError, match="written by another process"), sole_writer(folder):
            raise AssertionError
    assert list(folder.iterdir()) == []
    with pytest.raises(KeyError), sole_writer(folder):
        raise KeyError
    with sole_writer(folder):
        pass


def test_a_lock_whose_file_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the file just before its holder removed it looks again."""
    original, opened = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        opened.append(descriptor)
        if len(opened) == 1:
            (tmp_path / "writer.lock").unlink()
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path):
        assert len(opened) == 2 and (tmp_path / "writer.lock").is_file()


def test_without_locks_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", unsupported)
        with sole_writer(tmp_path), sole_writer(tmp_path):
            pass
    monkeypatch.setattr(lock, "fcntl", None)
    with sole_writer(tmp_path), sole_writer(tmp_path):
        pass
