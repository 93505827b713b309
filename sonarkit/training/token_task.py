"""Training the token-level baseline on the stores that concept models read: the same documents, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sonarkit.core.config import to_dict
from sonarkit.core.distributed import World, shard
from sonarkit.core.loss import LossSum
from sonarkit.models.flops import token_training_flops
from sonarkit.models.token_llm import TokenDocument, TokenLLM
from sonarkit.store.batches import DocumentBatches, Source
from sonarkit.store.reader import Store
from sonarkit.training.concept_task import ConceptDataConfig, mean_losses

CHECKED = 16  # documents whose stored ids are held against the model's tokenizer


@dataclass(frozen=True)
class TokenLossOptions:
    """`whole_text`: learn the first sentence of a document, too, as token-level models do. The evaluation leaves it out."""

    whole_text: bool = True


class TokenTask:
    """What the training loop needs to train a `TokenLLM` on the stores in `train`, judged on `valid`.

    Which documents a step has depends on stores, `weights`, `seed` and `documents_per_step` alone, as in `ConceptTask`. Token ids
    come from a store if the model's tokenizer made them, else its texts are tokenized. `micro_tokens` are the store's tokens in
    either case, special ones included: to count another tokenizer's, a whole corpus would have to be read first.
    `samples(model)` may add results to each evaluation: numbers, and texts such as a sample story.
    """

    def __init__(
        self,
        model: TokenLLM,
        train: Sequence[Store],
        valid: Store,
        data: ConceptDataConfig,
        seed: int,
        samples: Callable[[TokenLLM], Mapping[str, float | str]] = lambda model: {},
        *,
        weights: Sequence[float] | None = None,
        options: TokenLossOptions = TokenLossOptions(),
    ) -> None:
        self.token_model, self.train, self.valid, self.data, self.seed = model, list(train), valid, data, seed
        self.samples, self.options, self._sharded = samples, options, False
        self.weights = list(weights) if weights else [len(store) for store in train]

    loss_unit = "nats_per_token"

    @property
    def model(self) -> nn.Module:
        return self.token_model

    def _load(self, store: Store) -> Callable[[int], TokenDocument]:
        data, tokens = self.data, self.token_model.tokens
        end_bytes = len(store.manifest["end_of_sequence"]["text"].encode())

        def stored(index: int) -> TokenDocument:
            return TokenDocument.of(store.document(index, 0, 0, data.max_sentences, data.max_tokens))

        def tokenized(index: int) -> TokenDocument:
            document = store[index]
            read = self.token_model.document(document.texts[: data.max_sentences], end_bytes, document.source)
            return TokenDocument([pieces[: data.max_tokens] for pieces in read.pieces], read.bytes, read.source)

        samples = [store[i] for i in range(min(CHECKED, len(store)))] if tokens.kind == "codec" else []
        pairs = [pair for sample in samples for pair in zip(sample.tokens, tokens.pieces(sample.texts), strict=True)]
        # a sentence longer than the codec takes was cut
        return stored if pairs and all(ids == own[: len(ids)] for ids, own in pairs) else tokenized

    def batches(self, rank: int, size: int) -> DocumentBatches:
        data = self.data
        sources = [
            Source(
                store.document_tokens(data.max_sentences, data.max_tokens),
                self._load(store),
                weight,
                str(store.folder),
            )
            for store, weight in zip(self.train, self.weights, strict=True)
        ]
        return DocumentBatches(sources, data.documents_per_step, data.micro_tokens, self.seed, rank, size)

    def loss(self, batch: list[TokenDocument]) -> LossSum:
        """That of `TokenLLM`, in nats, with `options`."""
        return self.token_model.loss(batch, self.options.whole_text)

    def cost(self, batch: list[TokenDocument]) -> dict[str, float]:
        """Sentences after each document's first, the end included, as concept models count them, and FLOPs."""
        flops = token_training_flops(self.token_model, batch, whole_text=self.options.whole_text)
        return {"sentences": float(sum(len(document.pieces) for document in batch)), "flops": float(flops)}

    def describe(self, batch: list[TokenDocument]) -> list[str]:
        return [document.source for document in batch]

    def shard(self, world: World) -> None:
        """FSDP2 over the backbone's layers; token embedding and output projection with the rest."""
        shard(world, self.token_model, ("loss", "advance"), self.token_model.backbone.layers, ("extend",))
        self._sharded = True

    @torch.no_grad()
    def evaluate(self, world: World) -> dict[str, float | str]:
        """Loss over the whole validation store but for first sentences; see `mean_losses`."""
        self.token_model.eval()
        results = mean_losses(self._load(self.valid), len(self.valid), self.token_model.loss, self.loss_unit, world)
        if world.rank == 0 or self._sharded:  # in parts it takes all ranks to tell a story
            results |= self.samples(self.token_model)
        self.token_model.train()
        return results

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        self.token_model.save_pretrained(folder, weights=weights)

    def config(self) -> dict[str, Any]:
        kept = ("corpus", "lang", "codec_fingerprint", "documents", "tokens")
        return {
            "task": "token-llm",
            "model": to_dict(self.token_model.config),
            "data": to_dict(self.data),
            "options": to_dict(self.options),
            "seed": self.seed,
            "stores": [{**{key: store.manifest[key] for key in kept}, "weight": w} for store, w in zip(self.train, self.weights)],
        }
