"""SONAR's text encoder: a pre-norm transformer and a pooling of its outputs to one vector (arXiv 2308.11466, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonarkit.codec.config import EncoderConfig, StackConfig
from sonarkit.codec.layers import FeedForward, LayerNorm, SelfAttention, TokenEmbedding
from sonarkit.codec.pooler import AttentionPooler
from sonarkit.core.packing import Packing


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each after its layer norm."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(config.width)
        self.attention = SelfAttention(config)
        self.ffn_norm = LayerNorm(config.width)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TH: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed -> (T, H)."""
        x_TH = x_TH + self.dropout(self.attention(self.attention_norm(x_TH), packing, causal=False))
        return x_TH + self.dropout(self.ffn(self.ffn_norm(x_TH)))


class Encoder(nn.Module):
    """`__lang__ pieces </s>` of N sentences -> (N, D) sentence vectors, in the caller's order."""

    def __init__(self, config: EncoderConfig, vocab_size: int, max_tokens: int) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(config, vocab_size, max_tokens)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width)
        self.pooling = config.pooling
        self.pooler = AttentionPooler(config.pooler, config.width) if config.pooler else None

    def forward(self, ids_T: Tensor, packing: Packing) -> Tensor:
        """(T,) packed ids of N sentences -> (N, D), in the caller's order."""
        return self.read(self.embedding(ids_T, packing.positions()), packing)

    def read(self, x_TH: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed embeddings of N sentences -> (N, D), in the caller's order."""
        for layer in self.layers:
            x_TH = layer(x_TH, packing)
        x_TH = self.norm(x_TH)
        return packing.in_callers_order(self.pool(x_TH, packing))

    def pool(self, x_TH: Tensor, packing: Packing) -> Tensor:
        """(T, H) outputs, language token and `</s>` among them -> (N, D), packed; the mean is summed in float32."""
        if self.pooler is not None:
            return self.pooler(x_TH, packing)
        blocks = packing.split(x_TH)  # (n, L, H) each
        if self.pooling == "mean":
            return torch.cat([block.mean(1, dtype=torch.promote_types(block.dtype, torch.float32)) for block in blocks])
        return torch.cat([block.amax(1) if self.pooling == "max" else block[:, -1] for block in blocks])
