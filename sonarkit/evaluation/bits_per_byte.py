"""How many bits a model needs for a byte of the true text: the one number that all families have in common.

Each sentence but a document's first, and its end, is told from the true sentences before it; the bits of its tokens, `</s>`
included, are divided by its bytes in UTF-8. A model that predicts a vector is judged by the decoder, which reads the true
sentence given that vector: what SONAR-LLM is trained on, and what MSE and diffusion LCMs never saw. A token-level model is
judged by its own tokens; its end of the text stands for the sentence "End of sequence." and for that sentence's bytes. Of a
sentence that is longer than the codec takes a vector model is asked for what the codec reads, and for its bytes alone.

A diffusion LCM draws its vector, so its number is that of one draw: no less, on average, than that of the mixture of all draws
(Jensen).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.packing import pack
from sonarkit.evaluation.concept_metrics import predictions
from sonarkit.evaluation.statistics import RESAMPLES, Interval, bootstrap
from sonarkit.models.concept_model import ConceptModule
from sonarkit.models.family import Model
from sonarkit.models.rollout import END_OF_SEQUENCE
from sonarkit.models.token_llm import TokenDocument, TokenLLM
from sonarkit.store.reader import Document, Store

BATCH = 32  # documents that are told at once


def bits_per_byte(
    model: Model,
    store: Store,
    limit: int | None = None,
    *,
    max_sentences: int = 32,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> Interval:
    """Over the first `limit` documents of a store (None: all), cut after `max_sentences`, with the interval over documents.

    `seed` is that of the diffusion's draws and of the bootstrap; `options` are those of `concept_metrics.predictions`, such as
    a diffusion LCM's `sampling`. Raises ValueError for a store of another codec than the
    model's, and for no documents.
    """
    count = len(store) if limit is None else min(limit, len(store))
    if isinstance(model, TokenLLM):
        texts = [store[i].texts[:max_sentences] for i in range(count)]
        rows_N2 = text_bits(model, texts, store.lang, seed=seed)
    else:
        if store.manifest["codec_fingerprint"] != model.sonar.fingerprint():
            raise ValueError(
                f"the store was made by codec {store.manifest['codec']!r} ({store.manifest['codec_fingerprint']}), the model "
                f"reads {model.sonar.name!r} ({model.sonar.fingerprint()}): their vectors mean different things"
            )
        tokenizer = model.sonar.tokenizer
        language, most = tokenizer.language_id(store.lang), model.sonar.config.max_tokens - 2
        documents = [store.document(i, language, tokenizer.eos_id, max_sentences, most) for i in range(count)]
        for document in documents:
            document.bytes[:] = _bytes_told(model.sonar, document.targets, document.bytes)
        rows_N2 = _document_bits(model, documents, seed, **options)
    return ratio(rows_N2, resamples=resamples, seed=seed)


def text_bits(model: Model, stories: Sequence[Sequence[str]], lang: str, *, seed: int = 0, **options: Any) -> np.ndarray:
    """(N, 2) bits and bytes of each story, a list of sentences in `lang`; the sum of the first over that of the second counts.

    `options` are those of `concept_metrics.predictions`, such as a diffusion LCM's `sampling`.
    Raises ValueError for no stories and for one without a sentence.
    """
    if not stories or not all(stories):
        raise ValueError("expected at least one story, and at least one sentence in each")
    end_bytes = len(END_OF_SEQUENCE.encode())
    if isinstance(model, TokenLLM):
        return _token_bits(model, [model.document(story, end_bytes) for story in stories])
    documents = []
    for story in stories:
        texts = [*story, END_OF_SEQUENCE]
        vectors_SD = model.sonar.encode(texts, lang).cpu()
        targets = model.sonar.target_ids(texts, lang)
        text_bytes = _bytes_told(model.sonar, targets, [len(text.encode()) for text in texts])
        documents.append(Document(vectors_SD, targets, text_bytes))
    return _document_bits(model, documents, seed, **options)


def _bytes_told(sonar: Sonar, targets: Sequence[list[int]], text_bytes: Sequence[int]) -> list[int]:
    """The bytes of each sentence as far as the decoder tells it: it was cut where it has as many pieces as the codec takes."""
    most = sonar.config.max_tokens + 1  # `</s> __lang__` and `</s>` about one piece less than two of them leave room for
    return [len(sonar.tokenizer.decode(ids).encode()) if len(ids) >= most else whole for ids, whole in zip(targets, text_bytes)]


def ratio(rows_N2: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Bits over bytes of all rows, with the interval over rows."""
    return bootstrap(rows_N2, quotient, resamples=resamples, seed=seed)


def quotient(sums: np.ndarray) -> float:
    """The first sum over the second, as a statistic of rows (N, 2)."""
    return float(sums[0] / sums[1])


@torch.no_grad()
def _token_bits(model: TokenLLM, documents: Sequence[TokenDocument]) -> np.ndarray:
    parts = [model.loss([document]).parts["bits_per_byte"] for document in documents]
    return np.array([[float(bits), text_bytes] for bits, text_bytes in parts])


@torch.no_grad()
def _document_bits(model: ConceptModule, documents: Sequence[Document], seed: int, **options: Any) -> np.ndarray:
    return np.array(list(_bits_and_bytes(model, documents, seed, **options))).reshape(-1, 2)


def _bits_and_bytes(
    model: ConceptModule, documents: Sequence[Document], seed: int, **options: Any
) -> Iterator[tuple[float, float]]:
    """The decoder's bits of each document's sentences given the vectors predicted for them, and their bytes."""
    for start in range(0, len(documents), BATCH):
        part = documents[start : start + BATCH]
        vectors = [document.vectors_SD.to(model.device) for document in part]
        for document, predicted_SD in zip(part, predictions(model, vectors, seed + start, **options)):
            ids_T, packing = pack(document.targets[1:], model.device)
            nats, _ = model.sonar.decoder.token_losses(predicted_SD, ids_T, packing)
            yield float(nats) / math.log(2), float(sum(document.bytes[1:]))
