"""The transformer layers of encoder and decoder: pre-norm, ReLU, biases everywhere (NLLB's arithmetic)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonarkit.codec.config import CodecConfig
from sonarkit.core.packing import Packing

FIRST_POSITION = 2  # fairseq's: position = padding index (1) + 1 + place in the sentence


@lru_cache
def sinusoidal_positions(count: int, width: int, device: torch.device) -> Tensor:
    """(count, width) fairseq's table for places 0, 1, ... of a sentence: all sines, then all cosines."""
    with torch.device("cpu"):
        frequencies = torch.exp(torch.arange(width // 2) * -(math.log(10_000) / (width // 2 - 1)))
        angles = torch.arange(FIRST_POSITION, FIRST_POSITION + count)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(device)


class TokenEmbedding(nn.Module):
    """Token embedding times sqrt(width), plus sinusoidal positions."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.vocab_size, config.width) * config.width**-0.5)
        self.scale = math.sqrt(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.max_tokens = config.max_tokens

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """ids (...), places broadcastable to it -> (..., H)."""
        table = sinusoidal_positions(self.max_tokens, self.weight.shape[1], self.weight.device).to(self.weight.dtype)
        return self.dropout(F.embedding(ids, self.weight) * self.scale + table[places])


class FeedForward(nn.Module):
    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.inner = linear(config.width, config.ffn)
        self.output = linear(config.ffn, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(F.relu(self.inner(x))))


class SelfAttention(nn.Module):
    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = linear(config.width, 3 * config.width)
        self.output = linear(config.width, config.width)

    def forward(self, x_TH: Tensor, packing: Packing, causal: bool) -> Tensor:
        return self.output(packing.attention(self.qkv(x_TH), self.heads, causal))

    def step(self, x_BH: Tensor, cache: Tensor, length: int) -> Tensor:
        """One token per row; `cache` (2, B, heads, L_max, d) holds keys and values of the `length` before it."""
        query, key, value = self.qkv(x_BH).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (B, heads, d)
        cache[0, :, :, length], cache[1, :, :, length] = key, value
        keys, values = cache[:, :, :, : length + 1]
        return self.output(F.scaled_dot_product_attention(query[:, :, None], keys, values).flatten(1))


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
