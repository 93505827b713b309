"""Training a model that reads and predicts sentence vectors from an embedding store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sonarkit.core.config import to_dict
from sonarkit.core.distributed import World, sum_over_ranks
from sonarkit.core.loss import LossSum
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.store.batches import DocumentBatches
from sonarkit.store.reader import Document, Store


@dataclass(frozen=True)
class ConceptDataConfig:
    """How documents become batches: at most `max_sentences` a document, `max_tokens` pieces a sentence."""

    documents_per_step: int = 512
    micro_tokens: int = 16_384
    max_sentences: int = 32
    max_tokens: int = 256


class ConceptTask:
    """What the training loop needs to train a concept model on `train`, judged on `valid`.

    `samples(model)` may add results to each evaluation (rank 0 only): numbers, and texts such as a sample story.
    """

    def __init__(
        self,
        model: SonarLLM,
        train: Store,
        valid: Store,
        data: ConceptDataConfig,
        seed: int,
        samples: Callable[[SonarLLM], Mapping[str, float | str]] = lambda model: {},
    ) -> None:
        for store in (train, valid):
            if store.width != model.config.embedding:
                raise ValueError(f"{store.folder} has vectors of width {store.width}, the model reads {model.config.embedding}")
        self.concept_model, self.train, self.valid, self.data, self.seed, self.samples = model, train, valid, data, seed, samples

    @property
    def model(self) -> nn.Module:
        return self.concept_model

    def _load(self, store: Store) -> Callable[[int], Document]:
        tokenizer = self.concept_model.sonar.tokenizer
        language_id = tokenizer.language_id(store.lang)
        return lambda index: store.document(index, language_id, tokenizer.eos_id, self.data.max_sentences, self.data.max_tokens)

    def batches(self, rank: int, size: int) -> DocumentBatches:
        data = self.data
        return DocumentBatches(
            len(self.train), self._load(self.train), data.documents_per_step, data.micro_tokens, self.seed, rank, size
        )

    def loss(self, batch: list[Document]) -> LossSum:
        return self.concept_model.loss(batch)

    @torch.no_grad()
    def evaluate(self, world: World) -> dict[str, float | str]:
        """Loss over the whole validation store, shared by the ranks: sums, divided once."""
        self.concept_model.eval()
        load, sums = self._load(self.valid), torch.zeros(4, dtype=torch.float64)
        mine = range(world.rank, len(self.valid), world.size)
        for start in range(0, len(mine), 32):
            loss = self.concept_model.loss([load(i) for i in mine[start : start + 32]])
            bits, text_bytes = loss.parts["bits_per_byte"]
            sums += torch.tensor([float(loss.total), loss.count, float(bits), text_bytes], dtype=torch.float64)
        nats, tokens, bits, text_bytes = sum_over_ranks(world, sums).tolist()
        results: dict[str, float | str] = {"loss_nats_per_token": nats / tokens, "bits_per_byte": bits / text_bytes}
        if world.rank == 0:
            results |= self.samples(self.concept_model)
        self.concept_model.train()
        return results

    def save_pretrained(self, folder: Path) -> None:
        self.concept_model.save_pretrained(folder)

    def config(self) -> dict[str, Any]:
        store = {key: self.train.manifest[key] for key in ("corpus", "lang", "codec_fingerprint", "documents", "tokens")}
        return {
            "task": "sonar-llm",
            "model": to_dict(self.concept_model.config),
            "data": to_dict(self.data),
            "seed": self.seed,
            "store": store,
        }
