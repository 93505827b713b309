"""How much memory there is, asked before it is needed."""

from __future__ import annotations

from pathlib import Path

import torch


def available(device: torch.device = torch.device("cpu")) -> int | None:
    """Bytes that can be taken on `device` without swapping or being killed; None where the system does not tell.

    On a CPU the least of what the system has free (Linux's MemAvailable) and what the control groups may still take; on a GPU
    what the driver has free, and what torch keeps from it without using it.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or not Path("/proc/meminfo").is_file():
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return min((left for left in (free, *map(_left, _groups())) if left is not None), default=None)


def check(needed: int, what: str, device: torch.device = torch.device("cpu"), advice: str = "") -> None:
    """ValueError, before anything is allocated, when `needed` bytes are more than `device` has left."""
    left = available(device)
    if left is not None and needed > left:
        raise ValueError(
            f"{what} needs {_gib(needed)} of memory on {device}, but {_gib(left)} are free; "
            f"{advice or 'free some, or use a machine with more'}"
        )


CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def _groups() -> list[Path]:
    """The control groups (v2) that this process is in, the innermost first: each may have a limit."""
    lines = OWN_GROUP.read_text().splitlines() if OWN_GROUP.is_file() else []
    own = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    inner = CGROUPS / own
    return [inner, *inner.parents][: len(inner.relative_to(CGROUPS).parts) + 1]


def _left(group: Path) -> int | None:
    """What a control group may still take, what the system can drop of it included; None where it has no limit."""
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return None
    cached = (group / "memory.stat").read_text().split() if (group / "memory.stat").is_file() else []
    return limit - used + (int(cached[cached.index("file") + 1]) if "file" in cached else 0)


def _number(path: Path) -> int | None:
    """The number in a file of the control group; None when there is none or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
