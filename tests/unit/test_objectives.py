"""The losses of SONAR's training against their definitions, the noise, and where gradients go."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.objectives import (
    DecoderObjective,
    ObjectiveConfig,
    PairBatch,
    damaged,
    decoder_loss,
    masked_spans,
    pair_loss,
    spliced,
    words,
)
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.packing import pack
from sonarkit.text.tokenizer import Tokenizer

ENGLISH = ["The little fox ran home.", "Mia found a red kite in the forest."]
LANGS = ["eng_Latn"] * 2 + ["fra_Latn"] * 2
FRENCH = ["Le petit renard rentra à la maison.", "Mia trouva un cerf-volant rouge."]


def pairs(sonar: Sonar) -> PairBatch:
    texts, codes = ENGLISH + FRENCH, LANGS
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
    texts, codes = ENGLISH + FRENCH, LANGS
    own = sonar.token_loss(sonar.encode(texts, codes), texts, codes)
    assert float(loss.parts["dae"][0]) == pytest.approx(own.total.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(0.5 * own.total.item(), rel=1e-5)


def test_a_share_of_the_sentences_is_denoised_and_weighted_up(sonar: Sonar) -> None:
    config = ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=1.0, dae_share=0.5, noise_ratio=0.0)
    losses = [pair_loss(sonar, replace(pairs(sonar), noise_seed=str(seed)), config) for seed in range(200)]
    for loss in losses:
        assert loss.total.item() == pytest.approx(2 * float(loss.parts["dae"][0]), rel=1e-5)
    assert 0 < sum(loss.parts["dae"][1] == 0 for loss in losses) < 30  # of four sentences none: 1 in 16
    everything = pair_loss(sonar, pairs(sonar), replace(config, dae_share=1.0)).total.item()
    assert sum(loss.total.item() for loss in losses) / 200 == pytest.approx(everything, rel=0.1)


def test_damage_follows_from_the_seed_and_the_place_in_the_step(sonar: Sonar) -> None:
    config = ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=1.0)
    loss = pair_loss(sonar, pairs(sonar), config).total.item()
    assert pair_loss(sonar, replace(pairs(sonar), places=[0, 1]), config).total.item() == loss
    assert pair_loss(sonar, replace(pairs(sonar), noise_seed="1"), config).total.item() != loss
    assert pair_loss(sonar, replace(pairs(sonar), places=[7, 8]), config).total.item() != loss


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


@pytest.mark.parametrize("span", [1.0, 1.5, 3.5, 8.0])
def test_masked_spans_are_as_long_as_told_in_the_mean(span: float) -> None:
    """Of a sentence so long that spans seldom meet: each leaves one mask."""
    ids, config = [900, *range(10, 50_010), 3], ObjectiveConfig(noise_ratio=0.04, noise_span=span)
    damaged = masked_spans(ids, 1, config, random.Random(0))
    assert 0.04 * 50_000 / damaged.count(1) == pytest.approx(span, rel=0.15)


# ---------------------------------------------------------------------- words


SENTENCE = "Once upon a time there was a bear in the forest and they all laughed until night"


def noise(**options: float) -> ObjectiveConfig:
    return ObjectiveConfig(**{"noise_ratio": 0.0, **options})  # type: ignore[arg-type]


def told(tokenizer: Tokenizer, config: ObjectiveConfig, seed: int = 0, text: str = SENTENCE) -> list[str]:
    """The words of a text after damage, its frame checked."""
    ids = tokenizer.source(text, "eng_Latn")
    found = damaged(ids, tokenizer, config, random.Random(seed))
    assert (found[0], found[-1]) == (ids[0], ids[-1])
    return tokenizer.decode(found[1:-1]).split()


def test_words_begin_where_sentencepiece_says(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces(SENTENCE)
    found = words(pieces, tokenizer)
    assert [tokenizer.decode(word) for word in found] == SENTENCE.split() and len(pieces) > len(found)
    assert [piece for word in found for piece in word] == pieces
    assert len(words(tokenizer.pieces("小狐狸跑回家了"), tokenizer)) == 1 and words([], tokenizer) == []


def test_words_are_dropped_whole_and_one_stays(tokenizer: Tokenizer) -> None:
    kept = [told(tokenizer, noise(word_drop=0.3), seed) for seed in range(300)]
    assert sum(map(len, kept)) / 300 / len(SENTENCE.split()) == pytest.approx(0.7, abs=0.03)
    for found in kept:
        rest = iter(SENTENCE.split())
        assert all(word in rest for word in found), "whole words, in their order"
    assert all(len(told(tokenizer, noise(word_drop=0.99), seed, "Mia found a kite")) >= 1 for seed in range(50))


def test_a_splice_is_the_beginning_of_one_sentence_and_the_end_of_another(tokenizer: Tokenizer) -> None:
    first, last = ["Mia", "found", "a", "red", "kite"], ["the", "bear", "laughed", "until", "night"]
    pieces = [tokenizer.pieces(" ".join(half)) for half in (first, last)]
    cuts = set()
    for seed in range(300):
        found = tokenizer.decode(spliced(*pieces, tokenizer, random.Random(seed))).split()
        kept = next(n for n in range(len(first), 0, -1) if found[:n] == first[:n])
        assert found == first[:kept] + last[len(last) - len(found) + kept :] and len(found) > kept
        cuts.add((kept, len(found) - kept))
    assert cuts == {(k, m) for k in range(1, 6) for m in range(1, 6)}
    assert spliced(pieces[0], [], tokenizer, random.Random(0)) and spliced([], [], tokenizer, random.Random(0)) == []


def test_splices_are_said_from_their_own_vectors(sonar: Sonar) -> None:
    config = ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=1.0, noise_ratio=0.0, dae_splice=1.0)
    batch = replace(pairs(sonar), others=sonar.target_ids(["A bear sang."] * 2 + ["Un ours chanta."] * 2, LANGS))
    loss = pair_loss(sonar, batch, config)
    texts = []
    for i, (source, target) in enumerate(zip(batch.sources, batch.targets)):
        rng = batch.rng(i)
        rng.random(), rng.random()  # whether it is denoised, whether it is a splice
        pieces = spliced(target[2:-1], batch.others[i][2:-1], sonar.tokenizer, rng)
        texts.append(([source[0], *pieces, source[-1]], [*target[:2], *pieces, target[-1]]))
    z = sonar.encoder(*pack([source for source, _ in texts], sonar.device))
    nats, losses = sonar.decoder.token_losses(z, *pack([target for _, target in texts], sonar.device))
    assert loss.total.item() == pytest.approx(nats.item(), rel=1e-6) and loss.parts["dae"][1] == len(losses)
    half = replace(config, dae_splice=0.5)
    totals = {round(pair_loss(sonar, replace(batch, noise_seed=str(seed)), half).total.item(), 3) for seed in range(40)}
    assert len(totals) > 20, "some of the four are splices, others are not"
    with pytest.raises(ValueError, match="no others to splice with"):
        pair_loss(sonar, pairs(sonar), config)
    with pytest.raises(ValueError, match=r"dae_splice must be in \[0, 1\], got 1.5"):
        ObjectiveConfig(dae_splice=1.5)


@pytest.mark.parametrize("places", [1, 3])
def test_words_move_that_far_and_no_farther(tokenizer: Tokenizer, places: int) -> None:
    text = [f"{letter}{letter}" for letter in "abcdefghijklmnop"]
    moves = set()
    for seed in range(200):
        found = told(tokenizer, noise(word_shuffle=places), seed, " ".join(text))
        assert sorted(found) == text
        moves |= {abs(found.index(word) - place) for place, word in enumerate(text)}
    assert moves == set(range(places + 1))


def test_all_noise_at_once_and_a_data_tag_keep_the_frame(tokenizer: Tokenizer) -> None:
    config = ObjectiveConfig(word_drop=0.2, word_shuffle=3, noise_ratio=0.3)
    ids = tokenizer.source(SENTENCE, "eng_Latn")
    tagged = [ids[0], tokenizer.size - 3, *ids[1:]]
    for seed in range(30):
        plain = damaged(ids, tokenizer, config, random.Random(seed))
        assert tokenizer.unk_id in plain and set(plain) <= {*ids, tokenizer.unk_id} and len(plain) < len(ids)
        assert damaged(tagged, tokenizer, config, random.Random(seed)) == [*tagged[:2], *plain[1:]]
    for empty in ([ids[0], ids[-1]], [*tagged[:2], tagged[-1]]):
        assert damaged(empty, tokenizer, config, random.Random(0)) == empty
    assert damaged(ids, tokenizer, noise(), random.Random(0)) == ids


@pytest.mark.parametrize("option", [{"word_drop": 0.5}, {"word_shuffle": 3}])
def test_word_noise_alone_is_noise(sonar: Sonar, option: dict[str, float]) -> None:
    """The denoising loss reads the damaged copy, not the clean vectors."""
    only, batch = {"mt_weight": 0, "mse_weight": 0, "dae_weight": 1.0}, pairs(sonar)
    config, rngs = noise(**only, **option), [batch.rng(i) for i in range(4)]
    loss = pair_loss(sonar, batch, config)
    assert all(rng.random() < 1 for rng in rngs)  # which decides on the share
    z = sonar.encoder(*pack([damaged(ids, sonar.tokenizer, config, rng) for ids, rng in zip(batch.sources, rngs)]))
    wanted, _ = sonar.decoder.token_losses(z, *pack(batch.targets))
    assert loss.total.item() == pytest.approx(wanted.item(), rel=5e-6)
    assert abs(loss.total.item() / pair_loss(sonar, batch, noise(**only)).total.item() - 1) > 5e-5


# ---------------------------------------------------------------------- where gradients go


@pytest.mark.parametrize("side, moving", [("both", (0, 1)), ("first", (0,)), ("second", (1,))])
def test_the_distance_moves_the_side_it_is_told(
    sonar: Sonar, side: Literal["both", "first", "second"], moving: tuple[int, ...]
) -> None:
    """Against the gradient of the plain formula, the other side held."""
    batch = pairs(sonar)
    loss = pair_loss(sonar, batch, ObjectiveConfig(0.0, 1.0, 0.0, mse_gradient=side))
    parameters = list(sonar.encoder.parameters())
    found = torch.autograd.grad(loss.total, parameters)
    vectors = [sonar.encoder(*pack(batch.sources[:2])), sonar.encoder(*pack(batch.sources[2:]))]
    first, second = (z if i in moving else z.detach() for i, z in enumerate(vectors))
    wanted = torch.autograd.grad((first - second).square().mean(1).sum() * loss.count / 2, parameters)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------- a teacher's vectors


def test_distillation_is_the_distance_of_both_sides_to_the_teacher(sonar: Sonar) -> None:
    teacher = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    loss = pair_loss(sonar, pairs(sonar), ObjectiveConfig(0.0, 0.0, 0.0, distill_weight=0.5), teacher)
    english, french = sonar.encode(ENGLISH, "eng_Latn"), sonar.encode(FRENCH, "fra_Latn")
    squared = float((english - teacher).square().mean(1).sum() + (french - teacher).square().mean(1).sum())
    assert float(loss.parts["distill"][0]) == pytest.approx(squared, rel=1e-5) and loss.parts["distill"][1] == 4
    assert loss.total.item() == pytest.approx(0.5 * squared / 4 * loss.count, rel=1e-5) and set(loss.parts) == {"distill"}


def test_a_side_that_only_the_teacher_knows_is_left_out(sonar: Sonar) -> None:
    teacher, batch = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), pairs(sonar)
    batch = replace(batch, sources=[*batch.sources[:3], []], targets=[*batch.targets[:3], []])
    loss = pair_loss(sonar, batch, ObjectiveConfig(0.0, 0.0, 0.0, distill_weight=1.0), teacher)
    squared = (sonar.encode(ENGLISH, "eng_Latn") - teacher).square().mean(1).sum()
    squared += (sonar.encode(FRENCH[:1], "fra_Latn") - teacher[:1]).square().mean(1).sum()
    assert float(loss.parts["distill"][0]) == pytest.approx(squared.item(), rel=1e-5) and loss.parts["distill"][1] == 3
    with pytest.raises(ValueError, match="can only be distilled"):
        pair_loss(sonar, batch, ObjectiveConfig(), teacher)


def test_a_teacher_that_does_not_fit_is_refused(sonar: Sonar) -> None:
    config = ObjectiveConfig(distill_weight=1.0)
    with pytest.raises(ValueError, match="no vectors of a teacher"):
        pair_loss(sonar, pairs(sonar), config)
    with pytest.raises(ValueError, match=r"expected teacher's vectors of shape \(2, 32\).*got \(2, 64\)"):
        pair_loss(sonar, pairs(sonar), config, torch.zeros(2, 64))


def test_a_batch_in_which_nothing_is_to_be_said_has_no_loss_and_can_be_gone_back_through(sonar: Sonar) -> None:
    batch = replace(pairs(sonar), targets=[[]] * 4)
    for loss, part in (
        (pair_loss(sonar, batch, ObjectiveConfig(1.0, 0.0, 1.0)), "mt"),
        (decoder_loss(sonar, batch, DecoderObjective()), "decoder"),
        (pair_loss(sonar, pairs(sonar), ObjectiveConfig(0.0, 0.0, 1.0, dae_share=1e-9)), "dae"),  # of which none is drawn
    ):
        sonar.zero_grad()
        loss.total.backward()
        assert loss.total.item() == loss.parts[part][1] == 0
        assert all(p.grad is not None for p in sonar.decoder.parameters())  # as DDP and FSDP want it


def test_a_target_that_is_not_to_be_learnt_is_not(sonar: Sonar) -> None:
    """French is a machine's: only English is learnt, from French vectors, and denoised."""
    whole = pairs(sonar)
    batch = replace(whole, targets=[*whole.targets[:2], [], []])
    loss = pair_loss(sonar, batch, ObjectiveConfig(mse_weight=0, dae_weight=1.0, noise_ratio=0.0))
    english, french = sonar.encode(ENGLISH, "eng_Latn"), sonar.encode(FRENCH, "fra_Latn")
    into, own = sonar.token_loss(french, ENGLISH, "eng_Latn"), sonar.token_loss(english, ENGLISH, "eng_Latn")
    assert loss.count == into.count == loss.parts["mt"][1] == loss.parts["dae"][1]
    assert float(loss.parts["mt"][0]) == pytest.approx(into.total.item(), rel=1e-5)
    assert float(loss.parts["dae"][0]) == pytest.approx(own.total.item(), rel=1e-5)
    tuned = decoder_loss(sonar, batch, DecoderObjective(interpolate=False))
    assert tuned.count == own.count and tuned.total.item() == pytest.approx(own.total.item(), rel=1e-5)


# ---------------------------------------------------------------------- the decoder alone


@pytest.fixture
def decoded(sonar: Sonar, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The vectors that the decoder is given, call by call."""
    seen: list[Tensor] = []
    plain = sonar.decoder.token_losses
    monkeypatch.setattr(sonar.decoder, "token_losses", lambda z, *rest, **named: seen.append(z) or plain(z, *rest, **named))
    return seen


def own_vectors(sonar: Sonar) -> Tensor:
    return torch.cat([sonar.encode(ENGLISH, "eng_Latn"), sonar.encode(FRENCH, "fra_Latn")])


def test_the_decoder_learns_from_points_between_the_vectors(sonar: Sonar, decoded: list[Tensor]) -> None:
    own, points = own_vectors(sonar), []
    other = own.roll(2, 0)
    for seed in range(100):
        loss = decoder_loss(sonar, replace(pairs(sonar), noise_seed=str(seed)), DecoderObjective())
        share_N1 = ((decoded[-1] - other) * (own - other)).sum(1, keepdim=True) / (own - other).square().sum(1, keepdim=True)
        torch.testing.assert_close(decoded[-1], other + share_N1 * (own - other))  # on the line
        points.append(share_N1[:, 0])
    assert float(loss.parts["decoder"][0]) == loss.total.item() and loss.parts["decoder"][1] == loss.count
    shares = torch.stack(points)
    assert shares.min() > -1e-4 and shares.min() < 0.05 and shares.max() > 0.95 and shares.max() < 1 + 1e-4
    assert shares.mean(0).sub(0.5).abs().max() < 0.12, "uniform in every pair and direction"
    assert shares.T.corrcoef().fill_diagonal_(0).abs().max() < 0.35, "each pair and direction has its own"


def test_noise_is_scaled_to_the_spread_of_each_dimension(sonar: Sonar, decoded: list[Tensor]) -> None:
    own, objective = own_vectors(sonar), DecoderObjective(interpolate=False, vector_noise=0.5)
    for spread in (torch.linspace(0.0, 2.0, 32), None):
        decoded.clear()
        for seed in range(300):
            decoder_loss(sonar, replace(pairs(sonar), noise_seed=str(seed)), objective, spread)
        noise_ND = torch.cat([z - own for z in decoded])
        wanted = 0.5 * (own.std(0) if spread is None else spread)
        torch.testing.assert_close(noise_ND.std(0), wanted, rtol=0.12, atol=1e-6)
    with pytest.raises(ValueError, match="one value for each of 32 dimensions"):
        decoder_loss(sonar, pairs(sonar), objective, torch.ones(7))


def test_the_encoder_is_evaluated_without_gradient_and_left_in_its_mode(sonar: Sonar) -> None:
    for module in sonar.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    sonar.encoder.train()  # the decoder stays in evaluation mode, so nothing else is random
    objective = DecoderObjective(vector_noise=0.3)
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(decoder_loss(sonar, pairs(sonar), objective).total)
    assert losses[0].item() == losses[1].item(), "by the batch's seed alone"
    assert decoder_loss(sonar, replace(pairs(sonar), noise_seed="1"), objective).total.item() != losses[0].item()
    assert sonar.encoder.training and not sonar.decoder.training
    losses[0].backward()
    assert all(p.grad is None for p in sonar.encoder.parameters())
    assert all(p.grad is not None for p in sonar.decoder.parameters())


def test_label_smoothing_is_that_of_torch(sonar: Sonar) -> None:
    loss = decoder_loss(sonar, pairs(sonar), DecoderObjective(interpolate=False, label_smoothing=0.1))
    wanted = 0.0
    for text, code in zip(ENGLISH + FRENCH, ["eng_Latn"] * 2 + ["fra_Latn"] * 2):
        target = sonar.tokenizer.target(text, code)
        hidden = sonar.decoder(sonar.encode([text], code), *pack([target[:-1]]))
        logits = hidden[1:] @ sonar.decoder.embedding.weight.T
        wanted += F.cross_entropy(logits, torch.tensor(target[2:]), reduction="sum", label_smoothing=0.1).item()
    assert loss.total.item() == pytest.approx(wanted, rel=1e-5)


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="mt_weight"):
        ObjectiveConfig(mt_weight=-1)
    with pytest.raises(ValueError, match="noise_ratio"):
        ObjectiveConfig(noise_ratio=1.0)
    with pytest.raises(ValueError, match="one of them above 0"):
        ObjectiveConfig(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="distill_weight"):
        ObjectiveConfig(distill_weight=-1.0)
    with pytest.raises(ValueError, match="word_drop"):
        ObjectiveConfig(word_drop=1.0)
    with pytest.raises(ValueError, match="word_shuffle"):
        ObjectiveConfig(word_shuffle=-1)
    with pytest.raises(ValueError, match="label_smoothing"):
        ObjectiveConfig(label_smoothing=1.0)
    with pytest.raises(ValueError, match='mse_gradient must be "both", "first" or "second"'):
        ObjectiveConfig(mse_gradient="target")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vector_noise"):
        DecoderObjective(vector_noise=-0.1)
