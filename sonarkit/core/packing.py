"""Sequences of unequal length laid end to end without padding.

Sequences are sorted by length, so those of one length form a dense block. Linear layers run on all
tokens at once, (T, H); attention and pooling run block by block, (n, L, H). Nothing is ever masked.

Letters: N sequences, T tokens of all of them together, L the length within a block, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


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

    def attention(self, qkv_T3H: Tensor, heads: int, causal: bool) -> Tensor:
        """Self-attention within each sequence. (T, 3H), queries, keys and values side by side, -> (T, H)."""
        outputs = []
        # Short blocks on a CPU: the fused kernel's backward was 1.5 (float32) to 6 times (bfloat16) slower than plain products.
        plain = qkv_T3H.device.type == "cpu" and qkv_T3H.requires_grad and self.blocks[-1][1] <= 128
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            for block in self.split(qkv_T3H):  # (n, L, 3H)
                query, key, value = block.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, L, d)
                attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal and block.shape[1] > 1)
                outputs.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(outputs)


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
