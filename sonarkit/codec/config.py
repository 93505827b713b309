"""The shape of a SONAR codec."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodecConfig:
    """Encoder, decoder and the vector between them. The defaults are those of Meta's text SONAR (facts: arXiv 2308.11466).

    `width` is the model width and the size D of the sentence vector; `vocab_size` counts the tokenizer's
    pieces with its special and language tokens; `max_tokens` bounds a sentence, specials included.
    """

    languages: tuple[str, ...]
    vocab_size: int = 256_206
    width: int = 1024
    encoder_layers: int = 24
    decoder_layers: int = 24
    heads: int = 16
    ffn: int = 8192
    dropout: float = 0.1
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width ({self.width}) must be even and a multiple of heads ({self.heads})")
        if min(self.vocab_size, self.encoder_layers, self.decoder_layers, self.ffn) < 1 or self.max_tokens < 3:
            raise ValueError(f"vocab_size, layers and ffn must be positive and max_tokens at least 3: {self}")
        if not self.languages:
            raise ValueError("languages must name at least one FLORES-200 code, such as ('eng_Latn',)")
