"""Cross-entropy of a tied output projection, without ever holding tokens x vocabulary.

The gradient with respect to the hidden states is formed chunk by chunk while the loss is computed, so
only a (chunk, V) slice of the logits exists at a time. A frozen projection gets no gradient at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20  # of one float32 slice of logits: 4 and 64 MiB were slower on two cores


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        with_hidden, with_weight = ctx.needs_input_grad[:2]
        kind = hidden_TH.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TH.dtype
        with torch.autocast(kind, enabled=False):
            weight = weight_VH.to(compute)
            losses_T = torch.empty(len(targets_T), dtype=torch.promote_types(compute, torch.float32), device=hidden_TH.device)
            grad_hidden = torch.empty_like(hidden_TH) if with_hidden else None
            grad_weight = torch.zeros_like(weight_VH) if with_weight else None
            rows = max(1, CHUNK_BYTES // (4 * len(weight_VH)))
            for start in range(0, len(targets_T), rows):
                part = slice(start, start + rows)
                hidden, targets = hidden_TH[part].to(compute), targets_T[part, None]
                logits = (hidden @ weight.T).to(losses_T.dtype)
                log_total = logits.logsumexp(-1, keepdim=True)
                loss = log_total - logits.gather(1, targets)
                if smoothing:
                    loss = (1 - smoothing) * loss + smoothing * (log_total - logits.mean(-1, keepdim=True))
                losses_T[part] = loss[:, 0]
                if not (with_hidden or with_weight):
                    continue
                grad = logits.sub_(log_total).exp_()  # softmax, then minus the (smoothed) target
                if smoothing:
                    grad -= smoothing / len(weight)
                grad.scatter_add_(1, targets, torch.full_like(loss, smoothing - 1))
                grad = grad.to(compute)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad @ weight).to(grad_hidden.dtype)
                if grad_weight is not None:
                    grad_weight += (grad.T @ hidden).to(grad_weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses_T)
        return losses_T.sum(), losses_T

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
        )


def linear_cross_entropy(
    hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of `targets_T` under softmax(hidden @ weight.T), in nats.

    Returns the differentiable sum () and, for inspection only, the loss of each token (T,). Under autocast
    the products run in its dtype and everything else in float32. `label_smoothing` as in
    `torch.nn.functional.cross_entropy`.
    """
    return _LinearCrossEntropy.apply(hidden_TH, weight_VH, targets_T, label_smoothing)
