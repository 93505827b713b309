"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101); `clip` bounds the global gradient norm (0 = off); weight decay acts on matrices only.

    The rate rises linearly over `warmup_steps`, then follows `schedule`: a cosine down towards `min_lr_ratio` of
    the peak, reached as training ends, the inverse square root of the step (NLLB), or constant.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or min(self.eps, self.weight_decay, self.clip, self.warmup_steps) < 0:
            raise ValueError(f"lr must be above 0; eps, weight_decay, clip and warmup_steps not negative: {self}")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"betas must be in [0, 1), min_lr_ratio in [0, 1]: {self}")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that want a gradient. Raises ValueError when there is none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter to train; call requires_grad_() on what should learn")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The rate of the update that takes step `step` (from 0) of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
