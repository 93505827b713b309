"""The one shape of every loss: sums, divided once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """A loss as a sum over `count` things (target tokens), so that ranks and micro-batches add up exactly.

    `total` () is what is differentiated, every weight already in it. `parts` names further (sum, count) pairs for
    the log, detached: `mt` is logged as `loss_mt`, a name that is a whole quantity (`bits_per_byte`) as it is.
    """

    total: Tensor
    count: float
    parts: dict[str, tuple[Tensor, float]]
