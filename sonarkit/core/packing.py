"""Sequences of unequal length laid end to end without padding.

Sequences are sorted by length, so those of one length form a dense block. Linear layers run on all
tokens at once, (T, H); attention and pooling run block by block, (n, L, H). There is no padding to mask.

Letters: N sequences, T tokens of all of them together, L the length within a block, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# cuDNN, which torch prefers for attention in half precision on Hopper, plans anew for each (n, L), and every batch has new ones.
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Packing:
    """How N sequences lie in one flat tensor, shortest first.

    `blocks` lists `(n, L)`: n sequences of length L. `order_N[i]` is the caller's index of the i-th packed one.
    """

    blocks: tuple[tuple[int, int], ...]
    order_N: Tensor

    def split(self, x_TH: Tensor) -> list[Tensor]:
        """One dense view (n, L, ...) per block. (`split` has one cheap backward, slices would not.)"""
        parts = x_TH.split([n * length for n, length in self.blocks])
        return [part.unflatten(0, block) for part, block in zip(parts, self.blocks)]

    def positions(self) -> Tensor:
        """(T,) place of each token in its sequence, from 0."""
        return torch.cat([torch.arange(length).repeat(n) for n, length in self.blocks]).to(self.order_N.device)

    def spread(self, x_NH: Tensor) -> Tensor:
        """(N, H) one row per packed sequence -> (T, H), that row for each of its tokens."""
        parts = x_NH.split([n for n, _ in self.blocks])
        return torch.cat([part[:, None].expand(-1, length, -1).flatten(0, 1) for part, (_, length) in zip(parts, self.blocks)])

    def in_callers_order(self, x_NH: Tensor) -> Tensor:
        """Undo the sorting: row i is the caller's i-th sequence."""
        return x_NH.index_select(0, torch.argsort(self.order_N))

    def without_last(self) -> Packing:
        """The same sequences, each one token shorter (they have at least two)."""
        return Packing(tuple((n, length - 1) for n, length in self.blocks), self.order_N)

    def attention(self, qkv_T3H: Tensor, heads: int, causal: bool, dropout: float = 0.0) -> Tensor:
        """Self-attention within each sequence. (T, 3H), queries, keys and values side by side, -> (T, H).

        Attention weights are dropped with the probability `dropout`, so it must be 0 outside training.
        """
        plain = qkv_T3H.device.type == "cpu" and qkv_T3H.requires_grad and not dropout
        limit = PLAIN_LENGTHS[qkv_T3H.element_size() < 4] if plain else 0
        short = tuple(block for block in self.blocks if block[1] <= limit)
        if len(short) == len(self.blocks):
            return _PlainAttention.apply(qkv_T3H, short, heads, causal)
        blocks, outputs = self.split(qkv_T3H), []  # (n, L, 3H) each
        if short:
            flat = torch.cat([block.flatten(0, 1) for block in blocks[: len(short)]])
            outputs.append(_PlainAttention.apply(flat, short, heads, causal))
        for block in blocks[len(short) :]:
            query, key, value = block.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, L, d)
            attended = F.scaled_dot_product_attention(query, key, value, None, dropout, causal and block.shape[1] > 1)
            outputs.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(outputs)


# Up to these lengths plain products beat the fused kernel in training on a CPU, in float32 and in bfloat16. Forward and backward
# of 2 048 tokens, 16 heads of 64, one core, torch 2.9 and 2.13: lengths 16, 128, 256, 1024 take 21, 56, 139, 569 ms against
# 26, 55, 94, 253 in float32, and 14, 24, 39, 215 against 110, 88, 93, 185 in bfloat16 (512: 70 against 153).
PLAIN_LENGTHS = (128, 512)


class _PlainAttention(torch.autograd.Function):
    """Short sequences on a CPU, forward and backward: plain products, block by block, with few copies.

    The backward pass keeps qkv and the attention weights, nothing else.
    """

    @staticmethod
    def forward(ctx: Any, qkv_T3H: Tensor, blocks: Sequence[tuple[int, int]], heads: int, causal: bool) -> Tensor:
        out_TH, kept = qkv_T3H.new_empty(len(qkv_T3H), qkv_T3H.shape[1] // 3), []
        sizes = [n * length for n, length in blocks]
        with torch.autocast("cpu", enabled=False):
            for (n, length), part, out in zip(blocks, qkv_T3H.split(sizes), out_TH.split(sizes)):
                query, key, value = _by_head(part, n, 3, heads)
                weights = torch.bmm(query, key.mT).mul_(query.shape[-1] ** -0.5)  # (n * heads, L, L)
                if causal:
                    weights.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu_(1), -torch.inf)
                weights = weights.softmax(-1)
                _by_place(out, n, 1, heads).copy_(torch.bmm(weights, value).view(1, n, heads, length, -1))
                kept.append(weights)
        ctx.blocks, ctx.heads = blocks, heads
        ctx.save_for_backward(qkv_T3H, *kept)
        return out_TH

    @staticmethod
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        qkv_T3H, *kept = ctx.saved_tensors
        grad_T3H, heads = torch.empty_like(qkv_T3H), ctx.heads
        sizes = [n * length for n, length in ctx.blocks]
        parts = zip(ctx.blocks, kept, *(x.split(sizes) for x in (qkv_T3H, grad_TH, grad_T3H)))
        with torch.autocast("cpu", enabled=False):
            for (n, length), weights, part, grad_part, out in parts:
                query, key, value = _by_head(part, n, 3, heads)
                (grad,) = _by_head(grad_part, n, 1, heads)
                grads = query.new_empty(3, *query.shape)
                torch.bmm(weights.mT, grad, out=grads[2])
                scores = torch._softmax_backward_data(torch.bmm(grad, value.mT), weights, -1, weights.dtype)
                scores *= query.shape[-1] ** -0.5
                torch.bmm(scores, key, out=grads[0])
                torch.bmm(scores.mT, query, out=grads[1])
                _by_place(out, n, 3, heads).copy_(grads.view(3, n, heads, length, -1))
        return grad_T3H, None, None, None


def _by_place(x: Tensor, n: int, count: int, heads: int) -> Tensor:
    """(n * L, count * heads * d) -> a view (count, n, heads, L, d)."""
    return x.view(n, -1, count, heads, x.shape[1] // (count * heads)).permute(2, 0, 3, 1, 4)


def _by_head(x: Tensor, n: int, count: int, heads: int) -> Tensor:
    """(n * L, count * heads * d) -> a dense (count, n * heads, L, d)."""
    return _by_place(x, n, count, heads).contiguous().flatten(1, 2)


def packing_of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing:
    """The packing of sequences of these lengths, each at least 1."""
    assert lengths and min(lengths) > 0, "packed sequences need at least one token each"
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    blocks = tuple((len(list(same)), length) for length, same in groupby(order, key=lambda i: lengths[i]))
    return Packing(blocks, torch.tensor(order, device=device))


def pack(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Packing]:
    """Token sequences -> (T,) tokens laid end to end, and how they lie."""
    packing = packing_of([len(s) for s in sequences])
    flat = torch.tensor([token for i in packing.order_N.tolist() for token in sequences[i]], dtype=torch.long)
    return flat.to(device), Packing(packing.blocks, packing.order_N.to(device))


def chunks_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices sorted by length and cut into chunks of at most `budget` tokens (one sequence at least)."""
    chunks: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not chunks or tokens + lengths[i] > budget:
            chunks.append([])
            tokens = 0
        chunks[-1].append(i)
        tokens += lengths[i]
    return chunks
