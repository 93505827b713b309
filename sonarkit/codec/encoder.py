"""SONAR's text encoder: a pre-norm transformer and the mean over all its outputs (arXiv 2308.11466, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonarkit.codec.config import CodecConfig
from sonarkit.codec.layers import FeedForward, SelfAttention, TokenEmbedding
from sonarkit.core.packing import Packing


class EncoderLayer(nn.Module):
    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TH: Tensor, packing: Packing) -> Tensor:
        x_TH = x_TH + self.dropout(self.attention(self.attention_norm(x_TH), packing, causal=False))
        return x_TH + self.dropout(self.ffn(self.ffn_norm(x_TH)))


class Encoder(nn.Module):
    """`__lang__ pieces </s>` of N sentences -> (N, D) sentence vectors, in the caller's order."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids_T: Tensor, packing: Packing) -> Tensor:
        x_TH = self.embedding(ids_T, packing.positions())
        for layer in self.layers:
            x_TH = layer(x_TH, packing)
        x_TH = self.norm(x_TH)
        pooled_ND = torch.cat([block.mean(1, dtype=torch.float32) for block in packing.split(x_TH)])
        return packing.in_callers_order(pooled_ND)
