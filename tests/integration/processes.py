"""How the tests start commands in processes of their own, kill them, and what they expect of a refusal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "sonarkit"
PATIENCE = 600  # seconds; they matter on a machine that is busy with something else only
Finished = subprocess.CompletedProcess


def environment() -> dict[str, str]:
    """This process' environment, for children that share two cores with their like."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(arguments: list[Any], stdin: str | bytes | None = None, **options: Any) -> Finished[str]:
    """`python ARGUMENTS` to its end; `stdin` is what is piped in."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    options |= {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, *map(str, arguments)]
    found = subprocess.run(command, env=environment(), timeout=PATIENCE, check=False, **options)
    return Finished(found.args, found.returncode, (found.stdout or b"").decode(), (found.stderr or b"").decode())


@contextmanager
def started(arguments: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`python ARGUMENTS` at work; killed with its children when the block ends, if it still runs then."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(), **options}
    process: subprocess.Popen[str]
    with subprocess.Popen([sys.executable, *map(str, arguments)], **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for pid in [*children(process), process.pid]:
                    os.kill(pid, signal.SIGKILL)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that `process` started: torchrun's ranks."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, listing.splitlines()) if int(parent) == process.pid]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until `condition` holds; `process` must be at work so long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def torchrun(ranks: int, script: str, *arguments: Any) -> list[Any]:
    """The arguments that start `sonarkit/SCRIPT` on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", ranks, "--standalone"]
    return [*launcher, PACKAGE / script, *arguments]


def assert_refused(found: Finished[str], *words: str) -> None:
    """The command ended as user errors do: status 2, and one line that says so."""
    assert found.returncode == 2, found
    assert "Traceback" not in found.stderr
    (line,) = [line for line in found.stderr.splitlines() if "note:" not in line]
    for word in words:
        assert word in line, line
