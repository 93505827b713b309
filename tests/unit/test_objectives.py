"""The three losses of SONAR's training against their definitions, and the noise."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from sonarkit.codec.objectives import ObjectiveConfig, PairBatch, masked_spans, pair_loss
from sonarkit.codec.pipeline import Sonar

ENGLISH = ["The little fox ran home.", "Mia found a red kite in the forest."]
FRENCH = ["Le petit renard rentra à la maison.", "Mia trouva un cerf-volant rouge."]


def pairs(sonar: Sonar) -> PairBatch:
    texts, codes = ENGLISH + FRENCH, ["eng_Latn"] * 2 + ["fra_Latn"] * 2
    return PairBatch(sonar.source_ids(texts, codes), sonar.target_ids(texts, codes), "0-0-0-0")


def test_translation_and_distance_are_what_they_say(sonar: Sonar) -> None:
    loss = pair_loss(sonar, pairs(sonar), ObjectiveConfig(dae_weight=0))
    english, french = sonar.encode(ENGLISH, "eng_Latn"), sonar.encode(FRENCH, "fra_Latn")
    into_english, into_french = sonar.token_loss(french, ENGLISH, "eng_Latn"), sonar.token_loss(english, FRENCH, "fra_Latn")
    nats, tokens = loss.parts["mt"]
    assert tokens == loss.count == into_english.count + into_french.count
    assert float(nats) == pytest.approx((into_english.total + into_french.total).item(), rel=1e-5)
    distance = float((english - french).square().mean(1).sum())
    assert float(loss.parts["mse"][0]) == pytest.approx(distance, rel=1e-4) and loss.parts["mse"][1] == 2
    assert loss.total.item() == pytest.approx(float(nats) + 0.1 * distance / 2 * tokens, rel=1e-5)
    assert "dae" not in loss.parts


def test_denoising_without_noise_is_auto_encoding(sonar: Sonar) -> None:
    loss = pair_loss(sonar, pairs(sonar), ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=0.5, noise_ratio=0.0))
    texts, codes = ENGLISH + FRENCH, ["eng_Latn"] * 2 + ["fra_Latn"] * 2
    own = sonar.token_loss(sonar.encode(texts, codes), texts, codes)
    assert float(loss.parts["dae"][0]) == pytest.approx(own.total.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(0.5 * own.total.item(), rel=1e-5)


def test_a_share_of_the_sentences_is_denoised_and_weighted_up(sonar: Sonar) -> None:
    config = ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=1.0, dae_share=0.5)
    loss = pair_loss(sonar, pairs(sonar), config)
    nats, tokens = loss.parts["dae"]
    assert tokens < loss.count
    assert loss.total.item() == pytest.approx(float(nats) / tokens * loss.count, rel=1e-5)
    again = pair_loss(sonar, pairs(sonar), config)
    assert again.total.item() == loss.total.item(), "the damage follows from the batch's seed alone"
    assert pair_loss(sonar, replace(pairs(sonar), noise_seed="1"), config).total.item() != loss.total.item()


def test_gradients_reach_encoder_and_decoder(sonar: Sonar) -> None:
    sonar.train()
    pair_loss(sonar, pairs(sonar), ObjectiveConfig()).total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in sonar.parameters())


def test_masked_spans_cover_the_ratio_and_keep_the_frame() -> None:
    ids, rng = [900, *range(100, 140), 3], random.Random(0)
    for ratio in (0.25, 0.5):
        damaged = masked_spans(ids, 1, ObjectiveConfig(noise_ratio=ratio), rng)
        assert (damaged[0], damaged[-1]) == (900, 3)
        kept = [i for i in damaged[1:-1] if i != 1]
        assert kept == sorted(kept) and damaged.count(1) >= 1
        assert 40 - len(kept) <= ratio * 40 + 1e-9  # spans may overlap masks already made, never cover more
        assert 40 - len(kept) >= ratio * 40 - damaged.count(1) * 2
    assert masked_spans(ids, 1, ObjectiveConfig(noise_ratio=0.0), rng) == ids
    assert masked_spans([900, 3], 1, ObjectiveConfig(), rng) == [900, 3]


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="mt_weight"):
        ObjectiveConfig(mt_weight=-1)
    with pytest.raises(ValueError, match="noise_ratio"):
        ObjectiveConfig(noise_ratio=1.0)
