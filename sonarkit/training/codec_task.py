"""Training SONAR: pairs of sentences drawn from aligned corpora, and the loss over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sonarkit.codec.objectives import ObjectiveConfig, PairBatch, pair_loss
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.config import to_dict
from sonarkit.core.distributed import World
from sonarkit.core.loss import LossSum

Row = dict[str, str]  # one sentence in two or more languages, by FLORES-200 code


@dataclass(frozen=True)
class Source:
    """An aligned corpus and the share of the pairs drawn from it."""

    name: str
    rows: Sequence[Row]
    weight: float


class PairBatches:
    """The micro-batches of one rank, step after step, for ever.

    A pair is a source by weight, one of its rows and two of the row's languages, all at random. Step k draws
    the same pairs whatever the number of ranks; rank r gets each `size`-th of them.
    """

    def __init__(
        self, sonar: Sonar, sources: Sequence[Source], pairs_per_step: int, micro_pairs: int, seed: int, rank: int, size: int
    ) -> None:
        if pairs_per_step < size:
            raise ValueError(f"{pairs_per_step} pairs a step cannot be shared by {size} ranks; raise pairs_per_step")
        self.sonar, self.sources, self.pairs_per_step, self.micro_pairs = sonar, sources, pairs_per_step, micro_pairs
        self.seed, self.rank, self.size, self.step = seed, rank, size, 0

    def __next__(self) -> list[PairBatch]:
        rng = random.Random(f"{self.seed}-{self.step}")
        chosen = rng.choices(self.sources, [source.weight for source in self.sources], k=self.pairs_per_step)
        pairs = [(row, rng.sample(sorted(row), 2)) for row in (rng.choice(source.rows) for source in chosen)][
            self.rank :: self.size
        ]
        micro = [pairs[i : i + self.micro_pairs] for i in range(0, len(pairs), self.micro_pairs)]
        batches = [self._batch(part, f"{self.seed}-{self.step}-{self.rank}-{i}") for i, part in enumerate(micro)]
        self.step += 1
        return batches

    def _batch(self, pairs: list[tuple[Row, list[str]]], noise_seed: str) -> PairBatch:
        texts = [row[languages[side]] for side in (0, 1) for row, languages in pairs]
        codes = [languages[side] for side in (0, 1) for _, languages in pairs]
        return PairBatch(self.sonar.source_ids(texts, codes), self.sonar.target_ids(texts, codes), noise_seed)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class CodecTask:
    """What the training loop needs to train a `Sonar`; `evaluate` comes from the caller."""

    def __init__(
        self,
        sonar: Sonar,
        sources: Sequence[Source],
        objective: ObjectiveConfig,
        *,
        pairs_per_step: int,
        micro_pairs: int,
        seed: int,
        evaluate: Callable[[Sonar], dict[str, float]],
    ) -> None:
        self.sonar, self.sources, self.objective = sonar, sources, objective
        self.pairs_per_step, self.micro_pairs, self.seed, self._evaluate = pairs_per_step, micro_pairs, seed, evaluate

    @property
    def model(self) -> nn.Module:
        return self.sonar

    def batches(self, rank: int, size: int) -> PairBatches:
        return PairBatches(self.sonar, self.sources, self.pairs_per_step, self.micro_pairs, self.seed, rank, size)

    def loss(self, batch: PairBatch) -> LossSum:
        return pair_loss(self.sonar, batch, self.objective)

    def evaluate(self, world: World) -> dict[str, float]:
        self.sonar.eval()
        results = self._evaluate(self.sonar) if world.rank == 0 else {}
        self.sonar.train()
        return results

    def cost(self, batch: PairBatch) -> dict[str, float]:
        return {"sentences": float(len(batch.sources))}

    def describe(self, batch: PairBatch) -> list[str]:
        texts = [self.sonar.tokenizer.decode(ids) for ids in batch.sources]
        return texts[: len(texts) // 2]  # the first sides of the pairs

    def shard(self, world: World) -> None:
        raise ValueError('a codec trains with --parallel ddp: at 1.5e9 parameters it fits a GPU whole; "fsdp" is for SONAR-LLM')

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self.sonar.save_pretrained(folder)

    def config(self) -> dict[str, Any]:
        return {
            "task": "codec",
            "codec": to_dict(self.sonar.config),
            "tokenizer": self.sonar.tokenizer.fingerprint,
            "objective": to_dict(self.objective),
            "pairs_per_step": self.pairs_per_step,
            "seed": self.seed,
            "sources": [[source.name, len(source.rows), source.weight] for source in self.sources],
        }
