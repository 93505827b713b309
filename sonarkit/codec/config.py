"""The shape of a SONAR codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sonarkit.core.config import check_sizes

MOST_LAYERS, MOST_POSITIONS = 1000, 1 << 16
Activation = Literal["relu", "gelu", "silu"]
Pooling = Literal["mean", "max", "last", "attention"]


@dataclass(frozen=True)
class StackConfig:
    """A stack of transformer layers. The defaults are those of either side of Meta's text SONAR (arXiv 2308.11466).

    `dropout` acts on embeddings, attention weights, activations and what a layer adds. Meta's decoder drops the weight of its
    only key, the sentence's vector, too, for each head and token; ours does not, since its term is computed once a sentence.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    ffn: int = 8192
    activation: Activation = "relu"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "width", "heads", "ffn")
        check_sizes(self, "layers", most=MOST_LAYERS)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is a probability, got {self.dropout}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width ({self.width}) must be even and a multiple of heads ({self.heads})")


@dataclass(frozen=True)
class TextStackConfig(StackConfig):
    """A stack that reads tokens, as both sides do.

    The token embedding is multiplied by sqrt(width) (`scale_embedding`) and a position is added. Sinusoidal positions
    begin at `first_position`: fairseq's first token stands at its padding index, 1, plus one. Learned ones begin at 0.
    """

    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    first_position: int = 2
    scale_embedding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "sinusoidal" and self.width < 4:
            raise ValueError(f"sinusoidal positions need a width of 4 or more, got {self.width}")
        if not 0 <= self.first_position <= MOST_POSITIONS:
            raise ValueError(f"first_position must be between 0 and {MOST_POSITIONS}, got {self.first_position}")


@dataclass(frozen=True)
class PoolerConfig(StackConfig):
    """Attention pooling: a transformer decoder whose one query reads all encoder outputs (arXiv 2308.11466, section 3.2)."""

    layers: int = 3
    ffn: int = 4096
    norm: Literal["pre", "post"] = "post"


@dataclass(frozen=True)
class EncoderConfig(TextStackConfig):
    """The text encoder: its stack and how its outputs become one vector."""

    pooling: Pooling = "mean"
    pooler: PoolerConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.pooling == "attention") != (self.pooler is not None):
            raise ValueError(
                f"pooling 'attention' needs a pooler, and only it: got pooling {self.pooling!r}, pooler {self.pooler}"
            )


@dataclass(frozen=True)
class DecoderConfig(TextStackConfig):
    """The text decoder. With `normalize_vector` it brings the sentence vector to length 1 before it reads it.

    `predicts_language`: it was trained to predict the language token after the first `</s>`, so that a search may score it.
    """

    normalize_vector: bool = False
    predicts_language: bool = True


@dataclass(frozen=True)
class CodecConfig:
    """Encoder, decoder and the vector between them.

    `width` is the size D of the sentence vector; `vocab_size` counts the tokenizer's pieces with its special and
    language tokens; `max_tokens` bounds a sentence, specials included.
    """

    languages: tuple[str, ...]
    vocab_size: int = 256_206
    width: int = 1024
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    max_tokens: int = 512

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width")
        if not 3 <= self.max_tokens <= MOST_POSITIONS:
            raise ValueError(f"max_tokens must be between 3 and {MOST_POSITIONS}, got {self.max_tokens}")
        if not self.languages:
            raise ValueError("languages must name at least one FLORES-200 code, such as ('eng_Latn',)")
        last = self.encoder.pooler or self.encoder
        if last.width != self.width:
            raise ValueError(
                f"the encoder gives vectors of width {last.width}, but the codec's width is {self.width}; "
                "only attention pooling, whose pooler has a width of its own, changes it"
            )


def codec_config(
    languages: tuple[str, ...],
    vocab_size: int,
    width: int,
    encoder_layers: int,
    decoder_layers: int,
    heads: int,
    ffn: int,
    dropout: float = 0.1,
    max_tokens: int = 512,
) -> CodecConfig:
    """SONAR's architecture in another size, both sides alike but in depth; for a codec that our objectives train."""
    return CodecConfig(
        languages,
        vocab_size,
        width,
        EncoderConfig(width, encoder_layers, heads, ffn, dropout=dropout),
        DecoderConfig(width, decoder_layers, heads, ffn, dropout=dropout, predicts_language=False),
        max_tokens,
    )
