"""The most floating-point operations a second that this device reaches in a matrix product, to measure others by."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

SECONDS = 0.3  # of measuring
SLOWEST = 0.02  # seconds: the sides double until a product takes as long. A CPU stops near 1024, a GPU at the largest
LARGEST = 8192


@cache
def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several square products in `dtype` on `device`; measured once a process, in about 0.3 s.

    What training may hope for, rather than the figure in a data sheet. Several processes that measure on one CPU share
    it, as they do when they train.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        side, product = 256, _product(256, device, dtype)
        best = product()
        while best < SLOWEST and side < LARGEST:
            try:
                product = _product(2 * side, device, dtype)
            except torch.OutOfMemoryError:  # a training run has the rest
                break
            side, best = 2 * side, product()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            best = min(best, product())
    return 2 * side**3 / best


def _product(side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """A square product that was run once; each call runs it again and gives the seconds it took."""
    generator = torch.Generator(device).manual_seed(0)  # a run's own random numbers stay as they are
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    out = a @ b

    def run() -> float:
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        return time.perf_counter() - began

    return run


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
