"""Attention pooling: one learned query reads all encoder outputs through a small transformer decoder.

SONAR's speech encoder pools so (arXiv 2308.11466, section 3.2), and text encoders whose vector is wider than the model.
The query attends to nothing but itself, so its self-attention is exactly W_o(W_v x + b_v) + b_o; as in the decoder
the queries and keys that cannot reach the output are not stored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.layers import FeedForward, linear, sinusoidal_positions
from sonarkit.core.packing import Packing


class PoolerLayer(nn.Module):
    """Post-norm (Meta's) or pre-norm: self-attention of the one query, cross-attention, feed-forward network."""

    def __init__(self, config: PoolerConfig, memory_width: int) -> None:
        super().__init__()
        self.pre_norm, self.heads = config.norm == "pre", config.heads
        self.self_norm = nn.LayerNorm(config.width)
        self.self_value, self.self_output = linear(config.width, config.width), linear(config.width, config.width)
        self.cross_norm = nn.LayerNorm(config.width)
        self.query = linear(config.width, config.width)
        self.key_value = linear(memory_width, 2 * config.width)
        self.cross_output = linear(config.width, config.width)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)  # of attention weights, too

    def forward(self, x_ND: Tensor, memory_TH: Tensor, packing: Packing) -> Tensor:
        """(N, D) packed, beside the (T, H) outputs of their sentences -> (N, D)."""
        x_ND = self._add(x_ND, self.self_norm, lambda x: self.self_output(self.self_value(x)))
        x_ND = self._add(x_ND, self.cross_norm, lambda x: self._read(x, memory_TH, packing))
        return self._add(x_ND, self.ffn_norm, self.ffn)

    def _add(self, x: Tensor, norm: nn.LayerNorm, function) -> Tensor:  # type: ignore[no-untyped-def]
        return x + self.dropout(function(norm(x))) if self.pre_norm else norm(x + self.dropout(function(x)))

    def _read(self, x_ND: Tensor, memory_TH: Tensor, packing: Packing) -> Tensor:
        """Cross-attention of one query per sentence to that sentence's outputs."""
        dropped = self.dropout.p if self.training else 0.0
        queries = self.query(x_ND).split([n for n, _ in packing.blocks])
        read = []
        for query, memory in zip(queries, packing.split(self.key_value(memory_TH))):  # (n, D), (n, L, 2D)
            key, value = memory.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, L, d)
            query = query.unflatten(-1, (self.heads, 1, -1))  # (n, heads, 1, d)
            read.append(F.scaled_dot_product_attention(query, key, value, None, dropped).flatten(1))
        return self.cross_output(torch.cat(read))


class AttentionPooler(nn.Module):
    """(T, H) packed encoder outputs -> (N, D) packed sentence vectors."""

    def __init__(self, config: PoolerConfig, memory_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.scale = math.sqrt(memory_width)  # as in sonar-space 0.5.0, also where the pooler is wider than the encoder
        self.layers = nn.ModuleList(PoolerLayer(config, memory_width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.projection = linear(config.width, config.width)

    def forward(self, memory_TH: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed -> (N, D) packed."""
        width = len(self.query)
        position = sinusoidal_positions(0, 1, width, self.query.device)[0].to(self.query.dtype)
        x_ND = (self.query * self.scale + position).expand(len(packing.order_N), -1)
        for layer in self.layers:
            x_ND = layer(x_ND, memory_TH, packing)
        return self.projection(self.norm(x_ND))
