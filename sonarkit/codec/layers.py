"""The transformer parts of encoder, decoder and pooler: NLLB's arithmetic, biases everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonarkit.codec.config import StackConfig, TextStackConfig
from sonarkit.core.packing import Packing

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "gelu": nn.GELU, "silu": nn.SiLU}


@lru_cache
def sinusoidal_positions(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """(count, width) fairseq's table for positions first, first + 1, ...: all sines, then all cosines."""
    with torch.device("cpu"):
        frequencies = torch.exp(torch.arange(width // 2) * -(math.log(10_000) / (width // 2 - 1)))
        angles = torch.arange(first, first + count)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(device)


class TokenEmbedding(nn.Module):
    """Token embedding, scaled, plus positions."""

    def __init__(self, config: TextStackConfig, vocab_size: int, max_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, config.width) * config.width**-0.5)
        self.positions = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(max_tokens, config.width) * config.width**-0.5)
        self.scale = math.sqrt(config.width) if config.scale_embedding else 1.0
        self.dropout = nn.Dropout(config.dropout)
        self.config, self.max_tokens = config, max_tokens

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """ids (...), places in the sentence, from 0, broadcastable to it -> (..., H)."""
        return self.placed(F.embedding(ids, self.weight), places)

    def placed(self, x: Tensor, places: Tensor) -> Tensor:
        """Rows of `weight`, or mixtures of them, (..., H) -> (..., H), scaled and with positions."""
        if torch.is_autocast_enabled(x.device.type):  # the residual stream stays in float32, whatever the weights are held in
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x * self.scale
        if self.config.positions == "sinusoidal":
            table = sinusoidal_positions(
                self.config.first_position, self.max_tokens, self.weight.shape[1], self.weight.device
            ).to(x.dtype)
            x = x + table[places]
        elif self.positions is not None:
            x = x + F.embedding(places, self.positions)
        return self.dropout(x)


class LayerNorm(nn.LayerNorm):
    """In the precision of what it reads: a frozen decoder may be held in bfloat16 under a float32 residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class FeedForward(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.inner = linear(config.width, config.ffn)
        self.output = linear(config.ffn, config.width)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        return self.output(self.dropout(self.activation(self.inner(x))))


class SelfAttention(nn.Module):
    """Each token looks at those of its own sentence; queries, keys and values come from one product."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = linear(config.width, 3 * config.width)
        self.output = linear(config.width, config.width)

    def forward(self, x_TH: Tensor, packing: Packing, causal: bool) -> Tensor:
        """(T, H) packed -> (T, H); `causal`: at none that comes later."""
        return self.output(packing.attention(self.qkv(x_TH), self.heads, causal, self.dropout if self.training else 0.0))

    def step(self, x_BH: Tensor, cache: Tensor, length: int) -> Tensor:
        """One token per row, (B, H) -> (B, H); `cache` (2, B, heads, L_max, d) has keys and values of the `length` before it."""
        query, key, value = self.qkv(x_BH).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (B, heads, d)
        cache[0, :, :, length], cache[1, :, :, length] = key, value
        keys, values = cache[:, :, :, : length + 1]
        return self.output(F.scaled_dot_product_attention(query[:, :, None], keys, values).flatten(1))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that begins with Xavier's uniform weights and biases of 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
