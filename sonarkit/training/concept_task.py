"""Training a model that reads and predicts sentence vectors from an embedding store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sonarkit.core.config import to_dict
from sonarkit.core.distributed import World, sum_over_ranks
from sonarkit.core.loss import LossSum
from sonarkit.models.concept_model import ConceptModule
from sonarkit.store.batches import DocumentBatches, Source
from sonarkit.store.reader import Document, Store


@dataclass(frozen=True)
class ConceptDataConfig:
    """How documents become batches: `documents_per_step` on all ranks together, of each at most `max_sentences` sentences (and
    the end) of at most `max_tokens` pieces; at most `micro_tokens` target tokens, special ones included, in a micro-batch.
    """

    documents_per_step: int = 512
    micro_tokens: int = 16_384
    max_sentences: int = 32
    max_tokens: int = 256


class ConceptTask:
    """What the training loop needs to train a concept model, of whatever family, on the stores in `train`, judged on `valid`.

    `options` are those of the family's loss in training (the evaluation is always the plain one), `sharding` those of its
    `shard`. `weights` are the shares of the documents of a step that each store gives, by default in proportion to
    their documents.
    `samples(model)` may add results to each evaluation: numbers, and texts such as a sample story.

    Raises ValueError for a store whose vectors are of another width than the model's.
    """

    def __init__(
        self,
        model: ConceptModule,
        train: Sequence[Store],
        valid: Store,
        data: ConceptDataConfig,
        seed: int,
        samples: Callable[[Any], Mapping[str, float | str]] = lambda model: {},
        *,
        weights: Sequence[float] | None = None,
        options: Mapping[str, Any] | None = None,
        sharding: Mapping[str, Any] | None = None,
    ) -> None:
        for store in (*train, valid):
            if store.width != model.config.embedding:
                raise ValueError(f"{store.folder} has vectors of width {store.width}, the model reads {model.config.embedding}")
        self.concept_model, self.train, self.valid, self.data, self.seed = model, list(train), valid, data, seed
        self.samples, self.options, self.sharding, self._sharded = samples, dict(options or {}), dict(sharding or {}), False
        self.weights = list(weights) if weights else [len(store) for store in train]

    @property
    def model(self) -> nn.Module:
        return self.concept_model

    @property
    def loss_unit(self) -> str:
        return self.concept_model.loss_unit

    def _load(self, store: Store) -> Callable[[int], Document]:
        tokenizer = self.concept_model.sonar.tokenizer
        language_id = tokenizer.language_id(store.lang)
        return lambda index: store.document(index, language_id, tokenizer.eos_id, self.data.max_sentences, self.data.max_tokens)

    def batches(self, rank: int, size: int) -> DocumentBatches:
        data = self.data
        sources = [
            Source(store.document_tokens(data.max_sentences, data.max_tokens), self._load(store), weight, str(store.folder))
            for store, weight in zip(self.train, self.weights, strict=True)
        ]
        return DocumentBatches(sources, data.documents_per_step, data.micro_tokens, self.seed, rank, size)

    def loss(self, batch: list[Document]) -> LossSum:
        """The family's, with `options`."""
        return self.concept_model.loss(batch, **self.options)

    def cost(self, batch: list[Document]) -> dict[str, float]:
        """Sentences after each document's first, the end included, and FLOPs of forward and backward pass."""
        sentences = sum(len(document.targets) - 1 for document in batch)
        return {"sentences": float(sentences), "flops": self.concept_model.flops(batch)}

    def describe(self, batch: list[Document]) -> list[str]:
        return [document.source for document in batch]

    def shard(self, world: World) -> None:
        """FSDP2, as the family lays out its weights."""
        self.concept_model.shard(world, **self.sharding)
        self._sharded = True

    @torch.no_grad()
    def evaluate(self, world: World) -> dict[str, float | str]:
        """Loss over the whole validation store (`mean_losses`): in float32, or where the codec is held in bfloat16 in its
        autocast."""
        frozen = next(self.concept_model.sonar.decoder.parameters())
        self.concept_model.eval()
        with torch.autocast(frozen.device.type, torch.bfloat16, enabled=frozen.dtype == torch.bfloat16):
            results = mean_losses(self._load(self.valid), len(self.valid), self.concept_model.loss, self.loss_unit, world)
        if world.rank == 0 or self._sharded:  # in parts it takes all ranks to tell a story
            results |= self.samples(self.concept_model)
        self.concept_model.train()
        return results

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self.concept_model.save_pretrained(folder, weights=weights)

    def config(self) -> dict[str, Any]:
        kept = ("corpus", "lang", "codec_fingerprint", "documents", "tokens")
        return {
            "task": self.concept_model.family,
            "model": to_dict(self.concept_model.config),
            "data": to_dict(self.data),
            "options": self.options,
            "seed": self.seed,
            "stores": [{**{key: store.manifest[key] for key in kept}, "weight": w} for store, w in zip(self.train, self.weights)],
        }


def mean_losses(
    load: Callable[[int], Any], documents: int, loss: Callable[[list[Any]], LossSum], unit: str, world: World
) -> dict[str, float | str]:
    """`loss` and its parts over documents 0, 1, ..., shared by the ranks: sums, divided once.

    Every rank takes as many batches: one that has no document left repeats one and does not count it.
    """
    sums: dict[str, Tensor] = {}
    mine = range(world.rank, documents, world.size)
    for start in range(0, -(-documents // world.size), 32):
        indices = mine[start : start + 32]
        found = loss([load(i) for i in indices or [0]])
        for name, (total, count) in {f"loss_{unit}": (found.total, found.count), **found.parts}.items():
            added = torch.tensor([float(total), count], dtype=torch.float64) * bool(indices)
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + added
    summed = sum_over_ranks(world, torch.stack(list(sums.values())))
    return {name: total / count for name, (total, count) in zip(sums, summed.tolist())}
