"""Where and with what a run was made, to be kept beside its numbers. Nothing in here may end a run."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import sonarkit
from sonarkit.core.paths import PACKAGE


def environment() -> dict[str, Any]:
    """Commit, versions, devices, world size, command line and time; null for what cannot be found out. No host name.

    `git_commit` is that of sonarkit's own source when it is a checkout, with `git_dirty` when tracked files were changed;
    an installed sonarkit in somebody else's repository has none.
    """
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", "sonarkit/__init__.py") else None
    changed = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "git_commit": commit,
        "git_dirty": None if changed is None else bool(changed),
        "sonarkit": sonarkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": _nccl(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world_size": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
        "command": shlex.join([Path(sys.executable or "python").name, *sys.orig_argv[1:]]),
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    """What git says about the folder that sonarkit lies in; None without git, a repository, or an answer in 10 s."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        answer = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):  # ValueError: an answer that is no text
        return None
    return answer.stdout.strip()


def _nccl() -> str | None:
    try:
        return ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda and dist.is_nccl_available() else None
    except (AttributeError, RuntimeError):
        return None


def _cpu_name() -> str | None:
    """The processor as Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or None
