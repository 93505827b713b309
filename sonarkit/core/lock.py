"""One writer at a time: a lock on a folder that goes with the process that holds it, so that none is ever stale."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "writer.lock"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Let nobody else write into `folder` (made if need be) while the block runs.

    The lock is the system's own, on the file `writer.lock`, which tells who holds it and goes when the block ends; after a
    `kill -9` the file may stay, but the lock does not, and whoever comes next takes it over. Ranks of one run are one writer:
    one of them asks for all. On a system or a file system without locks there is none. Raises ValueError that names the
    process which holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        with open(path, "a+b", buffering=0) as file:
            if not _taken(file.fileno()):
                raise ValueError(
                    f"{folder} is being written by {_holder(path)}; wait until that is through, stop it, or choose another folder"
                )
            if not _is_still(path, file.fileno()):  # whoever held it has removed it meanwhile
                continue
            try:
                _tell(file.fileno())
                yield
            finally:
                if fcntl is not None:
                    path.unlink(missing_ok=True)  # while it is ours
        if fcntl is None:  # Windows removes no file that is open
            path.unlink(missing_ok=True)
        return


def _taken(descriptor: int) -> bool:
    """Whether the lock is ours now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _tell(descriptor: int) -> None:
    """Write who holds the lock. It holds without that, too, where the disk is full."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since}).encode())
    except OSError:
        pass


def _holder(path: Path) -> str:
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return f"process {told['pid']} on {told['host']} (since {told['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written that yet, or could not
        return "another process"
