"""The decoder-only transformer under every model here: Llama 3's blocks, read from and written to vectors.

RMSNorm, SwiGLU, rotary positions with Llama 3's scaling, no biases; heads x head_dim need not equal the
hidden width. Parameter names are Hugging Face's, so that published weights load by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sonarkit.codec.config import MOST_LAYERS
from sonarkit.core.config import check_sizes
from sonarkit.core.packing import Packing, packing_of


@dataclass(frozen=True)
class BackboneConfig:
    """The shape of a backbone; the rest is Llama 3.2's (arXiv 2508.05305, section 4 and public configuration).

    A `rope_factor` of 1 leaves the rotary frequencies as they are.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    head_dim: int
    norm_eps: float = 1e-6
    rope_theta: float = 500_000.0
    rope_factor: float = 32.0
    rope_low_frequency_factor: float = 1.0
    rope_high_frequency_factor: float = 4.0
    rope_original_positions: int = 8192
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "ffn", "heads", "head_dim")
        check_sizes(self, "layers", most=MOST_LAYERS)
        if self.head_dim % 2:
            raise ValueError(f"expected head_dim even: {self}")
        if not 0 < self.rope_theta < math.inf or not 0 < self.rope_factor < math.inf:
            raise ValueError(f"rope_theta and rope_factor must be positive and finite: {self}")


@lru_cache
def rope_frequencies(config: BackboneConfig, device: torch.device) -> Tensor:
    """(head_dim / 2,) radians per position, slow ones stretched as in Llama 3.1.

    Wavelengths above original / low are multiplied by `rope_factor`, those below original / high are kept, and
    between the two the frequency is interpolated.
    """
    with torch.device("cpu"):
        frequency = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
        turns = config.rope_original_positions * frequency / (2 * math.pi)  # how often it turns in the original context
        low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return (frequency * kept + frequency / config.rope_factor * (1 - kept)).to(device)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: x (..., heads, d), angles (..., d / 2) -> x with pairs (i, i + d/2) turned."""
    cos, sin = angles.cos().to(x.dtype)[..., None, :], angles.sin().to(x.dtype)[..., None, :]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden, inner, bias=False)
        self.v_proj = nn.Linear(config.hidden, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden, bias=False)

    def _heads(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (p(x).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(query, angles), rotate(key, angles), value

    def qkv(self, x_TH: Tensor, angles: Tensor) -> Tensor:
        """(T, 3 heads d): queries and keys, turned, and values, side by side."""
        return torch.cat([part.flatten(-2) for part in self._heads(x_TH, angles)], -1)

    def forward(self, x_TH: Tensor, angles: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed -> (T, H); angles (T, d / 2)."""
        return self.o_proj(packing.attention(self.qkv(x_TH, angles), self.heads, causal=True))

    def weights(self, x_SH: Tensor, angles: Tensor) -> Tensor:
        """One document: (heads, S, S) causal weights, row i over positions 0 to i, which the kernels of `forward` keep inside."""
        query, key, _ = (part.transpose(0, 1) for part in self._heads(x_SH, angles))  # (heads, S, d)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x_SH.device).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1)

    def extend(self, x_BSH: Tensor, angles: Tensor, cache: Tensor, places_BS: Tensor) -> Tensor:
        """S new positions per row, (B, S, H) -> (B, S, H); `cache` (2, B, S_max, heads, d) has those before `places_BS`."""
        query, key, value = self._heads(x_BSH, angles)
        rows = torch.arange(len(x_BSH), device=x_BSH.device)[:, None]
        cache[0, rows, places_BS], cache[1, rows, places_BS] = key, value
        seen = torch.arange(cache.shape[2], device=x_BSH.device) <= places_BS[:, None, :, None]  # (B, 1, S, S_max)
        keys, values = (part.transpose(1, 2) for part in cache)
        attended = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=seen)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each after its RMSNorm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.compiled = False  # what comes before and after the attention runs through torch.compile

    def before(self, x_TH: Tensor, angles: Tensor) -> Tensor:
        """(T, H) -> (T, 3 heads d), what attention reads."""
        return self.self_attn.qkv(self.input_layernorm(x_TH), angles)

    def after(self, x_TH: Tensor, attended_TH: Tensor) -> Tensor:
        """(T, H) and what was attended to, (T, heads d) -> (T, H)."""
        x_TH = x_TH + self.self_attn.o_proj(attended_TH)
        return x_TH + self.mlp(self.post_attention_layernorm(x_TH))

    def forward(self, x_TH: Tensor, angles: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed -> (T, H); angles (T, d / 2)."""
        before, after = compiled_parts() if self.compiled else (Block.before, Block.after)
        return after(self, x_TH, packing.attention(before(self, x_TH, angles), self.self_attn.heads, causal=True))

    def extend(self, x_BSH: Tensor, angles: Tensor, cache: Tensor, places_BS: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H); see `Attention.extend`."""
        x_BSH = x_BSH + self.self_attn.extend(self.input_layernorm(x_BSH), angles, cache, places_BS)
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


@lru_cache
def compiled_parts() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """A block's token-wise halves, compiled once for all blocks and any number of tokens.

    The attention between them goes over the lengths of a batch, each of which would be compiled anew.
    """
    return torch.compile(Block.before, dynamic=True), torch.compile(Block.after, dynamic=True)


def recompute(layers: Iterable[nn.Module], on: bool = True) -> None:
    """Activation checkpointing: keep only each layer's inputs for the backward pass, which computes the rest again."""
    for layer in layers:
        layer.__dict__.pop("forward", None)
        if on:
            layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable[..., Tensor], *inputs: object) -> Tensor:
    return checkpoint(forward, *inputs, use_reentrant=False) if torch.is_grad_enabled() else forward(*inputs)


@dataclass
class Context:
    """What B rows have read so far: keys and values (layers, 2, B, S_max, heads, d) and the length of each row."""

    cache: Tensor
    lengths_B: Tensor

    def select(self, rows: Tensor) -> Context:
        """Keep (or repeat, or reorder) rows: row i is what row `rows[i]` was."""
        return Context(self.cache.index_select(2, rows), self.lengths_B.index_select(0, rows))


class Backbone(nn.Module):
    """The blocks and a final norm; what comes in and goes out is of width H."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.init_std)

    def _angles(self, places: Tensor) -> Tensor:
        return places[..., None] * rope_frequencies(self.config, places.device)

    def forward(self, x_TH: Tensor, packing: Packing) -> Tensor:
        """Causal pass over packed documents: (T, H) -> (T, H), after the final norm."""
        angles = self._angles(packing.positions())
        for layer in self.layers:
            x_TH = layer(x_TH, angles, packing)
        return self.norm(x_TH)

    @torch.no_grad()
    def attention(self, x_SH: Tensor) -> Tensor:
        """What one document (S, H) attends to: (layers, heads, S, S) causal weights, each row summing to 1."""
        packing = packing_of([len(x_SH)], x_SH.device)
        angles = self._angles(packing.positions())
        weights = []
        for layer in self.layers:
            assert isinstance(layer, Block)
            weights.append(layer.self_attn.weights(layer.input_layernorm(x_SH), angles))
            x_SH = layer(x_SH, angles, packing)
        return torch.stack(weights)

    def empty_context(self, rows: int, positions: int) -> Context:
        """For `rows` rows that have read nothing, with room for `positions` positions each."""
        weight = self.norm.weight  # a part of it, where it is sharded
        shape = (len(self.layers), 2, rows, positions, self.config.heads, self.config.head_dim)
        cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return Context(cache, torch.zeros(rows, dtype=torch.long, device=weight.device))

    def extend(self, x_BSH: Tensor, context: Context, new_B: Tensor) -> Tensor:
        """Read `new_B[i]` <= S more positions in each row (the rest of x is padding); advances `context`.

        (B, S, H) -> (B, S, H). What padding writes to the cache lies beyond the row's length and is overwritten later.
        """
        places_BS = context.lengths_B[:, None] + torch.arange(x_BSH.shape[1], device=x_BSH.device)
        angles = self._angles(places_BS)
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            x_BSH = layer.extend(x_BSH, angles, context.cache[place], places_BS)
        context.lengths_B = context.lengths_B + new_B
        return self.norm(x_BSH)
