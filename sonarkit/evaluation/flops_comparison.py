"""SONAR-LLM against a token-level LLM in floating-point operations, by the length of the text (arXiv 2508.05305).

The paper draws, for 600M and sentences of 60 tokens, the LLM cheaper below about 4096 tokens and SONAR-LLM above, up to a
million, its quadratic term divided by 60^2. It does not give its count. Ours (`models.flops`) takes the same backbone for both,
an embedding of 128 256 tokens for the LLM and SONAR's codec, and lays open what remains as assumptions (`ASSUMPTIONS`): whether
sentences are decoded, with how many hypotheses, whether the encoder reads them back, and whether attention is n^2 pairs (one
pass over a text) or those that a cache has seen, n (n + 1) / 2.

| SONAR-LLM 600M is counted with | it is the cheaper one from, in tokens |
|---|---|
| its backbone alone | 60: at once |
| a greedy decoder, whole squares | 3 540 |
| a greedy decoder | 7 020 |
| a greedy decoder and the encoder | 26 700 |
| a beam of 5 | 122 340 |
| a beam of 5 and the encoder, the kit's default | 141 960 |

So the published crossover comes out only where the decoder is greedy and the encoder is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sonarkit.codec.config import CodecConfig
from sonarkit.models import flops
from sonarkit.models.backbone import BackboneConfig

LENGTHS = tuple(2**power for power in range(8, 21))  # 256 to 1 048 576 tokens
PUBLISHED = 4096  # tokens, where the paper's curves cross


@dataclass(frozen=True)
class Assumption:
    """What of SONAR-LLM is counted. A `beam_size` of 0 decodes nothing."""

    name: str
    beam_size: int
    reencode: bool
    whole_squares: bool

    def __post_init__(self) -> None:
        if self.beam_size < 0:
            raise ValueError(f"beam_size must be at least 0 (0 = not decoded), got {self.beam_size}")


ASSUMPTIONS = (
    Assumption("backbone alone", 0, False, True),
    Assumption("greedy decoder, whole squares", 1, False, True),
    Assumption("greedy decoder", 1, False, False),
    Assumption("greedy decoder, encoder", 1, True, False),
    Assumption("beam of 5", 5, False, False),
    Assumption("beam of 5, encoder", 5, True, False),
)


@dataclass(frozen=True)
class Row:
    """FLOPs for a text of `tokens` tokens: of the LLM, and of SONAR-LLM part by part."""

    tokens: int
    llm: float
    backbone: float
    search: float
    encoder: float

    @property
    def sonar_llm(self) -> float:
        """All its parts."""
        return self.backbone + self.search + self.encoder

    @property
    def ratio(self) -> float:
        """How many times what the LLM takes SONAR-LLM takes; below 1 it is the cheaper one."""
        return self.sonar_llm / self.llm


def compare(
    backbone: BackboneConfig,
    assumption: Assumption,
    lengths: Sequence[int] = LENGTHS,
    codec: CodecConfig = CodecConfig(("eng_Latn",)),
    *,
    pieces: int = 60,
    vocab_size: int = flops.LLAMA_VOCABULARY,
) -> list[Row]:
    """A row for each length in tokens; a sentence begun counts whole. Raises ValueError for lengths or pieces below 1."""
    if pieces < 1 or min(lengths, default=1) < 1:
        raise ValueError(f"expected at least 1 piece a sentence and texts of at least 1 token, got {pieces} and {list(lengths)}")
    squares = assumption.whole_squares
    parts = flops.sentence_flops(backbone, codec, pieces, context=0, beam_size=assumption.beam_size)
    rows = []
    for tokens in lengths:
        sentences = -(-tokens // pieces)
        looking = (sentences**2 if squares else sentences * (sentences + 1) // 2) * flops.backbone_attention(backbone)
        rows.append(
            Row(
                tokens,
                flops.token_llm_flops(backbone, tokens, vocab_size, whole_squares=squares),
                sentences * parts["backbone"] + looking,
                sentences * parts["search"],
                sentences * parts["reencoding"] if assumption.reencode else 0,
            )
        )
    return rows


def crossovers(backbone: BackboneConfig, assumptions: Sequence[Assumption] = ASSUMPTIONS, *, pieces: int = 60) -> dict[str, int]:
    """From how many tokens on SONAR-LLM is the cheaper one, under each assumption; see `flops.crossover`."""
    return {
        each.name: flops.crossover(
            backbone, pieces=pieces, beam_size=each.beam_size, reencode=each.reencode, whole_squares=each.whole_squares
        )
        for each in assumptions
    }
