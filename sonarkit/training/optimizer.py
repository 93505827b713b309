"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101); `clip` bounds the global gradient norm (0 = off); weight decay acts on matrices only.

    With `muon`, the weight matrices of linear layers follow Muon instead (orthogonalised momentum, scaled to AdamW's
    update size: arXiv 2502.16982); embeddings, vectors and the rest stay with AdamW, at the same rate.

    The rate rises linearly to `lr` over `warmup_steps`, then follows `schedule`: a cosine down towards `min_lr_ratio` of
    `lr`, reached as training ends, the inverse square root of the step (NLLB), or constant.
    """

    lr: float = 1e-3
    muon: bool = False
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


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for weight matrices, scaled to AdamW's update size (arXiv 2502.16982).

    torch.optim.Muon (2.9) orthogonalises in bfloat16 only, which takes a CPU without bfloat16 instructions
    12 s for each update of the mini codec where this takes 0.2 s, and lets the last bit of a gradient decide the third
    digit of an update. This one works in the gradient's own precision, or in the `dtype` given: bfloat16 takes half the
    time where products in it are fast (192 x 576 to 320 x 1024, AVX-512), and moves an update by 1 to 2 %.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if not self.state[matrix]:
                    self.state[matrix]["momentum"] = torch.zeros_like(matrix)
                momentum = self.state[matrix]["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(momentum, group["momentum"]).to(self.dtype or matrix.dtype))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * math.sqrt(max(matrix.shape)) * group["lr"])


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix (m, n) with its singular values brought near 1 (between 0.7 and 1.2), by a quintic Newton-Schulz iteration."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Optimizers:
    """One or more optimizers over parts of a model, used as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def make_optimizer(model: nn.Module, config: OptimizerConfig, muon_dtype: torch.dtype | None = None) -> Optimizers:
    """The optimizer over the parameters that want a gradient; `muon_dtype` as in `Muon`. Raises ValueError when there is none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter to train; call requires_grad_() on what should learn")
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} if config.muon else set()
    rest = [p for p in parameters if id(p) not in linear]
    # biases of all layers together are a matrix
    biases = {id(p) for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("bias")}
    groups = [
        {"params": [p for p in rest if id(p) not in biases], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if id(p) in biases], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # an empty one would keep the state from being saved by name
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    matrices = [p for p in parameters if id(p) in linear]
    if not matrices:
        return Optimizers(adamw)
    return Optimizers(Muon(matrices, config.lr, config.weight_decay, dtype=muon_dtype), adamw)


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
