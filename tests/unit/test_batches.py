"""Which documents a step sees, and how evenly ranks share them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from sonarkit.store.batches import DocumentBatches, Source, deal, shares
from sonarkit.store.reader import Document

SIZES = np.arange(2, 22, 2)  # document i has 2 (i + 1) target tokens


def load(index: int) -> Document:
    return Document(torch.full((2, 1), float(index)), [[1] * (index + 1)] * 2, [1, 1])


def batches(rank: int = 0, size: int = 1, per_step: int = 4, micro_tokens: int = 24) -> DocumentBatches:
    return DocumentBatches([Source(SIZES, load)], per_step, micro_tokens, seed=3, rank=rank, size=size)


def indices(step: list[list[Document]]) -> list[int]:
    return [int(document.vectors_SD[0, 0]) for micro in step for document in micro]


def take(source: Iterator[list[list[Document]]], steps: int) -> list[list[int]]:
    return [indices(next(source)) for _ in range(steps)]


def test_every_epoch_shows_every_document_once_in_another_order() -> None:
    flat = [i for step in take(batches(per_step=1), 20) for i in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_ranks_share_the_step_of_one() -> None:
    for alone, first, second in zip(take(batches(), 6), take(batches(0, 2), 6), take(batches(1, 2), 6)):
        assert sorted(first + second) == sorted(alone)


def test_the_position_restores_the_sequence_on_any_number_of_ranks() -> None:
    source = batches()
    take(source, 3)
    alone, pair = batches(), [batches(rank, 2) for rank in range(2)]
    for resumed in (alone, *pair):
        resumed.load_state_dict(source.state_dict())
    wanted = take(source, 4)
    assert take(alone, 4) == wanted
    assert [sorted(a + b) for a, b in zip(take(pair[0], 4), take(pair[1], 4))] == [sorted(step) for step in wanted]


def test_micro_batches_obey_the_token_budget_and_are_as_many_on_every_rank() -> None:
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 4, 8):
        for _ in range(20):
            tokens = rng.integers(10, 400, 64).tolist()
            dealt = shares(tokens, ranks, 1000)
            assert len({len(mine) for mine in dealt}) == 1
            assert sorted(i for mine in dealt for micro in mine for i in micro) == list(range(64))
            assert max(sum(tokens[i] for i in micro) for mine in dealt for micro in mine) <= 1000
            totals = [sum(tokens[i] for micro in mine for i in micro) for mine in dealt]
            assert max(totals) <= 1.02 * sum(tokens) / ranks


def test_a_rank_with_one_document_has_one_micro_batch() -> None:
    assert shares([900, 10, 10, 900], 2, 1000) == [[[0, 1]], [[3, 2]]]
    assert shares([900, 600, 600], 2, 1000) == [[[0]], [[1, 2]]]  # over the budget, since rank 0 has nothing to put in a second


def test_the_largest_go_first_to_whoever_holds_least() -> None:
    assert deal([1, 5, 3, 3], 2) == [[1, 0], [2, 3]]
    assert deal([7, 7, 7], 3) == [[0], [1], [2]]


def test_a_mixture_keeps_its_weights_and_each_sources_epochs() -> None:
    other = Source(SIZES[:5], lambda i: load(i + 100), weight=3.0)
    mixed = DocumentBatches([replace(other, weight=1.0, load=load), other], 1, 60, seed=1)
    flat = [i for step in take(mixed, 800) for i in step]
    heavy = [i - 100 for i in flat if i >= 100]
    assert len(heavy) / len(flat) == pytest.approx(0.75, abs=0.04)
    assert all(sorted(heavy[i : i + 5]) == list(range(5)) for i in range(0, len(heavy) - 5, 5))
    resumed = DocumentBatches(mixed.sources, 1, 60, seed=1)
    resumed.load_state_dict(mixed.state_dict())
    assert take(resumed, 3) == take(mixed, 3)


def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(ValueError, match="4 documents a step cannot be shared by 5 ranks"):
        batches(0, 5)
    with pytest.raises(ValueError, match="20 target tokens, more than micro_tokens = 19; raise"):
        batches(micro_tokens=19)
    with pytest.raises(ValueError, match="no document to train on in here"):
        DocumentBatches([Source(SIZES[:0], load, name="here")], 4, 24, 0)
    with pytest.raises(ValueError, match="weight of there must be above 0"):
        DocumentBatches([Source(SIZES, load, weight=0.0, name="there")], 4, 24, 0)
