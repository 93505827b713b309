"""Named runs: each function returns a whole configuration, every field of which the command line can change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sonarkit.codec.config import CodecConfig, codec_config
from sonarkit.codec.objectives import ObjectiveConfig
from sonarkit.models.backbone import BackboneConfig
from sonarkit.training.concept_task import ConceptDataConfig
from sonarkit.training.loop import TrainConfig
from sonarkit.training.optimizer import OptimizerConfig

STORYWORLD_LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")


@dataclass(frozen=True)
class CodecRun:
    """Train a SONAR codec on StoryWorld and on aligned JSONL files.

    `stories` StoryWorld stories are made from the seed. `bitext` files hold rows keyed by language code; of each,
    every 50th row by a hash of its English side is held out for good. `bitext_share` of the pairs come from them.
    `pieces` is the size of the SentencePiece vocabulary, trained on the same text.
    """

    train: TrainConfig
    init: str = ""  # a codec to go on from, weights and tokenizer; "" begins with random weights
    bitext: tuple[Path, ...] = ()
    bitext_share: float = 0.15
    stories: int = 20_000
    pieces: int = 8000
    width: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    heads: int = 4
    ffn: int = 1024
    dropout: float = 0.0
    codec_max_tokens: int = 128
    pairs_per_step: int = 40
    micro_pairs: int = 256
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def codec_config(self, vocab_size: int) -> CodecConfig:
        return codec_config(
            STORYWORLD_LANGUAGES,
            vocab_size,
            self.width,
            self.encoder_layers,
            self.decoder_layers,
            self.heads,
            self.ffn,
            self.dropout,
            self.codec_max_tokens,
        )


@dataclass(frozen=True)
class SonarLLMRun:
    """Train a SONAR-LLM on an embedding store.

    `data` is the store to learn from, `valid` the one it is judged on; `codec` what made them. `init` is a SONAR-LLM
    over the same codec to go on from, "mini" or a folder; "" begins with random weights.
    """

    data: Path
    valid: Path
    train: TrainConfig
    backbone: BackboneConfig
    init: str = ""
    codec: str = "mini"
    batches: ConceptDataConfig = field(default_factory=ConceptDataConfig)


def codec_mini() -> CodecRun:
    """The shipped codec: D = 256, two CPU cores."""
    optimizer = OptimizerConfig(lr=2e-3, muon=True, warmup_steps=300, schedule="cosine", min_lr_ratio=0.01)
    return CodecRun(
        TrainConfig(Path("runs/codec-mini"), steps=2800, precision="auto", log_every=50, save_every=250, optimizer=optimizer),
        objective=ObjectiveConfig(dae_weight=0.5, dae_share=0.25, noise_ratio=0.0),
    )


SONAR_LLM_SIZES = {
    "mini": BackboneConfig(hidden=320, ffn=1024, layers=6, heads=5, head_dim=64),
}


def sonar_llm(size: str) -> SonarLLMRun:
    """SONAR-LLM of a named size with the recipe that goes with it."""
    if size not in SONAR_LLM_SIZES:
        raise ValueError(f"unknown size {size!r}; the sizes are {', '.join(SONAR_LLM_SIZES)}")
    optimizer = OptimizerConfig(lr=1e-3, muon=True, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01, warmup_steps=50)
    return SonarLLMRun(
        Path("stores/storyworld-train"),
        Path("stores/storyworld-valid"),
        TrainConfig(
            Path(f"runs/sonar-llm-{size}"),
            steps=3000,
            precision="auto",
            log_every=20,
            eval_every=500,
            save_every=250,
            optimizer=optimizer,
        ),
        SONAR_LLM_SIZES[size],
        batches=ConceptDataConfig(documents_per_step=32, micro_tokens=16_384),
    )


Family = Literal["codec", "sonar-llm"]


def recipe(family: str, size: str) -> CodecRun | SonarLLMRun:
    """The run that `train.py FAMILY --size SIZE` starts from. ValueError names the families and sizes there are."""
    if family == "codec":
        if size != "mini":
            raise ValueError(f"unknown size {size!r}; the sizes are mini")
        return codec_mini()
    if family == "sonar-llm":
        return sonar_llm(size)
    raise ValueError(f"unknown model family {family!r}; the families are codec, sonar-llm")
