"""How the tests start commands in processes of their own, and what they expect of a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "sonarkit"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
Finished = subprocess.CompletedProcess


def start(arguments: list[Any], **options: Any) -> subprocess.Popen[str]:
    """`python ARGUMENTS` in a session of its own, so that it can be killed with its children."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options
    )


def run(arguments: list[Any], stdin: str | bytes | None = None, **options: Any) -> Finished[str]:
    """`python ARGUMENTS` to its end; `stdin` is what is piped in."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    options |= {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    found = subprocess.run([sys.executable, *map(str, arguments)], env=ENVIRONMENT, check=False, **options)
    return Finished(found.args, found.returncode, (found.stdout or b"").decode(), (found.stderr or b"").decode())


def torchrun(ranks: int, script: str, *arguments: Any) -> list[Any]:
    """The arguments that start `sonarkit/SCRIPT` on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", ranks, "--standalone"]
    return [*launcher, PACKAGE / script, *arguments]


def assert_refused(found: Finished[str], *words: str) -> None:
    """The command ended as user errors do: status 2, and one line that says so."""
    assert found.returncode == 2, found
    assert "Traceback" not in found.stderr
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("sonarkit") and "note:" not in line]
    for word in words:
        assert word in line, line
