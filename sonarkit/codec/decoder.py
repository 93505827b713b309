"""SONAR's text decoder: a transformer whose only memory is the sentence vector.

Its cross-attention has a single key, so the softmax is 1 and the term is exactly W_o(W_v z + b_v) + b_o,
the same for every token of the sentence. The queries, the keys and the layer norm before them never reach
the output, so they are not even stored: a decoder layer adds the sentence's term between its
self-attention and its feed-forward network. This holds in value and in gradient (tests/unit/test_decoder.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonarkit.codec.config import DecoderConfig, StackConfig
from sonarkit.codec.layers import FeedForward, LayerNorm, SelfAttention, TokenEmbedding
from sonarkit.core.cross_entropy import linear_cross_entropy
from sonarkit.core.packing import Packing


class DecoderLayer(nn.Module):
    """Causal self-attention, the sentence's term, feed-forward network; pre-norm."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(config.width)
        self.attention = SelfAttention(config)
        self.ffn_norm = LayerNorm(config.width)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TH: Tensor, sentence_NH: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed, and a term (N, H) of each sentence, packed -> (T, H)."""
        x_TH = x_TH + self.dropout(self.attention(self.attention_norm(x_TH), packing, causal=True))
        x_TH += self.dropout(packing.spread(sentence_NH))  # in place: nothing has kept the sum
        return x_TH + self.dropout(self.ffn(self.ffn_norm(x_TH)))

    def step(self, x_BH: Tensor, sentence_BH: Tensor, cache: Tensor, length: int) -> Tensor:
        """One token per row, (B, H) -> (B, H); `cache` and `length` as in `SelfAttention.step`."""
        x_BH = x_BH + self.attention.step(self.attention_norm(x_BH), cache, length) + sentence_BH
        return x_BH + self.ffn(self.ffn_norm(x_BH))


class SentenceTerms(nn.Module):
    """All layers' cross-attention to one vector: z (N, D) -> (layers, N, H)."""

    def __init__(self, config: DecoderConfig, vector_width: int) -> None:
        super().__init__()
        self.normalize = config.normalize_vector
        layers, width = config.layers, config.width
        value_bound, output_bound = (6 / (width + vector_width)) ** 0.5, (3 / width) ** 0.5  # xavier
        self.value_weight = nn.Parameter(torch.empty(layers, width, vector_width).uniform_(-value_bound, value_bound))
        self.value_bias = nn.Parameter(torch.zeros(layers, width))
        self.output_weight = nn.Parameter(torch.empty(layers, width, width).uniform_(-output_bound, output_bound))
        self.output_bias = nn.Parameter(torch.zeros(layers, width))

    def forward(self, z_ND: Tensor) -> Tensor:
        """(N, D) -> (layers, N, H)."""
        if self.normalize:
            z_ND = F.normalize(z_ND, dim=-1)
        values = torch.matmul(z_ND, self.value_weight.mT) + self.value_bias[:, None]
        return torch.matmul(values, self.output_weight.mT) + self.output_bias[:, None]


CACHE_STEP = 16  # tokens by which the cache grows


@dataclass
class DecodingState:
    """What incremental decoding of B rows remembers."""

    sentence_LBH: Tensor  # cross-attention term of each layer and row
    cache: list[Tensor]  # of each layer (2, B, heads, room, d): keys and values, `length` of them filled
    length: int  # tokens fed so far
    max_tokens: int

    def make_room(self) -> None:
        """The cache grows with the sentences, layer by layer: little more memory than is filled."""
        for layer, old in enumerate(self.cache):
            room = min(self.length + CACHE_STEP, self.max_tokens)
            self.cache[layer] = old.new_empty(*old.shape[:3], room, old.shape[4])
            self.cache[layer][:, :, :, : self.length] = old[:, :, :, : self.length]

    def select(self, rows: Tensor) -> DecodingState:
        """Keep (or repeat, or reorder) rows: row i becomes what row `rows[i]` was. This state is used up.

        Rows that stay where they are cost nothing, so a search does well to leave them there: on mini, 64 tokens, moving
        all took more time than all the rest.
        """
        places = torch.arange(len(rows), device=rows.device)
        if len(rows) > self.sentence_LBH.shape[1]:
            self.cache = [old.index_select(1, rows) for old in self.cache]
        else:
            moved = (rows != places).nonzero()[:, 0]
            sources = rows[moved]
            for layer, old in enumerate(self.cache):
                for part in old[:, :, :, : self.length]:  # keys, then values: half the copy at a time
                    part[moved] = part[sources]
                self.cache[layer] = old[:, : len(rows)]
        return DecodingState(self.sentence_LBH.index_select(1, rows), self.cache, self.length, self.max_tokens)


class Decoder(nn.Module):
    """Sentence vectors (N, D) -> token probabilities; input `</s> __lang__ pieces`, output projection tied.

    Frozen, it may be held in bfloat16, `decoder.to(torch.bfloat16)`: autocast then has nothing to convert at each step, and its
    residual stream stays in float32. On mini a loss of 0.7677 nats a token in float32 is 0.7682 under autocast, 0.7686 so.
    """

    def __init__(self, config: DecoderConfig, vector_width: int, vocab_size: int, max_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config, vocab_size, max_tokens)
        self.sentence_terms = SentenceTerms(config, vector_width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width)

    def forward(self, z_ND: Tensor, ids_T: Tensor, packing: Packing) -> Tensor:
        """Teacher forcing: z in the caller's order and the packed inputs -> (T, H) last hidden states, packed."""
        if not torch.is_autocast_enabled(z_ND.device.type):
            z_ND = z_ND.to(self.embedding.weight.dtype)
        terms_LNH = self.sentence_terms(z_ND.index_select(0, packing.order_N))
        x_TH = self.embedding(ids_T, packing.positions())
        for layer, term_NH in zip(self.layers, terms_LNH):
            x_TH = layer(x_TH, term_NH, packing)
        return self.norm(x_TH)

    def token_losses(
        self, z_ND: Tensor, targets_T: Tensor, packing: Packing, skip: int = 1, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each sentence's own tokens given its vector, by teacher forcing.

        z (N, D) is in the caller's order; `targets_T` holds whole packed targets `</s> __lang__ pieces </s>`. The first
        `skip` predictions are not counted: 1 leaves out the language token, which is given, not predicted. Returns the
        differentiable sum () in nats and the loss of every counted token (tokens,), packed.
        """
        inputs_T = torch.cat([block[:, :-1].flatten() for block in packing.split(targets_T)])
        wanted_T = torch.cat([block[:, skip + 1 :].flatten() for block in packing.split(targets_T)])
        shorter = packing.without_last()
        hidden_TH = self(z_ND, inputs_T, shorter)
        counted_TH = torch.cat([block[:, skip:].flatten(0, 1) for block in shorter.split(hidden_TH)])
        return linear_cross_entropy(counted_TH, self.embedding.weight, wanted_T, label_smoothing)

    @torch.no_grad()
    def start(self, z_BD: Tensor, max_tokens: int) -> DecodingState:
        """State for decoding B vectors into at most `max_tokens` tokens each."""
        head_width = self.config.width // self.config.heads
        sentence_LBH = self.sentence_terms(z_BD.to(self.embedding.weight.dtype))
        empty = sentence_LBH.new_empty(2, len(z_BD), self.config.heads, 0, head_width)
        return DecodingState(sentence_LBH, [empty] * len(self.layers), 0, max_tokens)

    @torch.no_grad()
    def step(self, ids_B: Tensor, state: DecodingState) -> Tensor:
        """Feed one token per row; advances `state`. -> (B, V) log-probabilities in float32."""
        if state.length == state.cache[0].shape[3]:
            state.make_room()
        x_BH = self.embedding(ids_B, torch.full_like(ids_B, state.length))
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            x_BH = layer.step(x_BH, state.sentence_LBH[place], state.cache[place], state.length)
        state.length += 1
        return torch.log_softmax((self.norm(x_BH) @ self.embedding.weight.T).float(), -1)
