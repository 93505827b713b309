"""Beam search and sampling on tiny decoders."""

from __future__ import annotations

import itertools

import pytest
import torch

from sonarkit.codec import search
from sonarkit.codec.config import codec_config
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import Hypothesis, SearchConfig, beam_search, likeliest, sample, settle
from sonarkit.core.packing import pack

EOS, LANG = 3, 8


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Nine tokens, of which 4 to 7 are pieces, with probabilities that are far from uniform."""
    torch.manual_seed(1)
    config = codec_config(
        ("eng_Latn",), vocab_size=9, width=8, encoder_layers=1, decoder_layers=1, heads=2, ffn=16, dropout=0.0, max_tokens=16
    )
    decoder = Decoder(config.decoder, config.width, config.vocab_size, config.max_tokens).eval()
    with torch.no_grad():
        decoder.embedding.weight.mul_(4)
    return decoder


def teacher_forced(decoder: Decoder, z_1D: torch.Tensor, ids: tuple[int, ...]) -> float:
    total, losses = decoder.token_losses(z_1D, *pack([[EOS, LANG, *ids, EOS]]))
    return -total.item() / len(losses)


def test_a_wide_beam_finds_the_best_of_all_sentences(decoder: Decoder) -> None:
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    sentences = [ids for length in range(4) for ids in itertools.product((4, 5, 6, 7), repeat=length)]
    with torch.no_grad():
        scores = {ids: teacher_forced(decoder, z, ids) for ids in sentences}
    config = SearchConfig(beam_size=len(sentences), max_tokens=3)
    (found,) = beam_search(decoder, z, [LANG], config, eos_id=EOS, forbidden=[0, 1, 2, LANG])
    best = max(scores, key=scores.__getitem__)
    assert found[0].ids == best
    assert {h.ids for h in found} == set(sentences)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[hypothesis.ids], abs=1e-5)
        assert len(hypothesis.log_probs) == len(hypothesis.ids) + 1


def test_a_batch_gives_what_each_vector_gives_alone(decoder: Decoder) -> None:
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    config = SearchConfig(beam_size=3, max_tokens=8)
    together = beam_search(decoder, z, [LANG] * 5, config, eos_id=EOS, forbidden=[0, 1, 2, LANG])
    for row in range(5):
        (alone,) = beam_search(decoder, z[row : row + 1], [LANG], config, eos_id=EOS, forbidden=[0, 1, 2, LANG])
        assert [h.ids for h in alone] == [h.ids for h in together[row]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[row]], abs=1e-5)
    assert all(h.score >= g.score for found in together for h, g in itertools.pairwise(found))


def test_a_beam_of_one_is_greedy(decoder: Decoder) -> None:
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
    (found,) = beam_search(decoder, z, [LANG], SearchConfig(beam_size=1, max_tokens=8), eos_id=EOS, forbidden=[0, 1, 2, LANG])
    state, ids = decoder.start(z, 12), []
    decoder.step(torch.tensor([EOS]), state)
    log_probs = decoder.step(torch.tensor([LANG]), state)
    for _ in range(8):
        log_probs[:, [0, 1, 2, LANG]] = -torch.inf
        token = int(log_probs.argmax())
        if token == EOS:
            break
        ids.append(token)
        log_probs = decoder.step(torch.tensor([token]), state)
    assert found[0].ids == tuple(ids)


def test_every_sentence_obeys_the_limit_and_holds_no_special_token(sonar: Sonar) -> None:
    z = torch.randn(6, 32, generator=torch.Generator().manual_seed(3)) * 5
    for config in (SearchConfig(beam_size=4, max_tokens=7), SearchConfig(sample=True, max_tokens=7)):
        for found in sonar.search(z, "fra_Latn", config, seed=0):
            assert all(len(h.ids) <= 7 and not set(h.ids) & set(sonar.tokenizer.special_ids) for h in found)
            assert all(isinstance(h, Hypothesis) and h.score <= 0 for h in found)


def test_sampling_follows_the_probabilities_and_its_seed(decoder: Decoder) -> None:
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(4)).expand(4000, -1)
    config = SearchConfig(sample=True, max_tokens=1)

    def draw(seed: int) -> list[list[Hypothesis]]:
        noise = torch.Generator().manual_seed(seed)
        return sample(decoder, z, [LANG] * 4000, config, eos_id=EOS, forbidden=[0, 1, 2, LANG], generator=noise)

    counts = torch.zeros(9)
    for (hypothesis,) in draw(0):
        counts[hypothesis.ids[0] if hypothesis.ids else EOS] += 1
    state = decoder.start(z[:1], 4)
    decoder.step(torch.tensor([EOS]), state)
    log_probs = decoder.step(torch.tensor([LANG]), state)
    log_probs[:, [0, 1, 2, LANG]] = -torch.inf
    expected = log_probs.softmax(-1)[0]
    assert (counts / 4000 - expected).abs().max() < 0.03
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def kept(probabilities: list[float], top_k: int, top_p: float) -> set[int]:
    ids, logits = likeliest(torch.tensor([probabilities]).log(), top_k, top_p)
    return set(ids[logits.isfinite()].tolist())


def test_top_k_and_top_p_keep_the_likeliest_tokens() -> None:
    probabilities = [0.15, 0.5, 0.05, 0.3]
    assert kept(probabilities, 2, 1.0) == {1, 3}
    assert kept(probabilities, 0, 0.6) == {1, 3}  # 0.5 < 0.6 <= 0.8
    assert kept(probabilities, 0, 0.49) == {1}
    assert kept(probabilities, 0, 1.0) == {0, 1, 2, 3}
    assert kept(probabilities, 3, 0.7) == {1, 3}  # of the three left, 0.5 + 0.3 are 84 %


def test_a_nucleus_is_sought_among_the_likeliest_first_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row whose nucleus lies among the first few, one so flat that it does not."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([[5.0], [0.1]])
    for rows in (logits[:1], logits):
        for top_p in (0.5, 0.9):
            found = {}
            for first in (8, 1000):
                monkeypatch.setattr(search, "NUCLEUS", first)
                ids, kept_logits = likeliest(rows, 0, top_p)
                found[first] = [set(i[k.isfinite()].tolist()) for i, k in zip(ids, kept_logits)]
            assert found[8] == found[1000] and all(found[8])


def test_a_seed_says_the_same_whatever_the_batch_size(sonar: Sonar) -> None:
    z = torch.randn(7, 32, generator=torch.Generator().manual_seed(10))
    config = SearchConfig(sample=True, max_tokens=9)
    said = {size: [h[0].ids for h in sonar.search(z, "eng_Latn", config, batch_size=size, seed=3)] for size in (1, 3, 32)}
    assert said[1] == said[3] == said[32]
    assert said[32] != [h[0].ids for h in sonar.search(z, "eng_Latn", config, seed=4)]


@pytest.mark.parametrize("sampled", [False, True])
def test_broken_weights_are_named_not_searched(sonar: Sonar, sampled: bool) -> None:
    with torch.no_grad():
        sonar.decoder.norm.bias[0] = torch.nan
    with pytest.raises(ValueError, match="decoder gives NaN"):
        sonar.decode(torch.zeros(1, 32), sample=sampled)


def test_the_cache_grows_with_the_sentence_and_may_be_reordered(decoder: Decoder) -> None:
    """Rows repeated, permuted and dropped between steps give what each history gives alone."""
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(11))
    noise = torch.Generator().manual_seed(12)
    state, tokens, vectors = decoder.start(z, 16), torch.zeros(3, 0, dtype=torch.long), z
    for rows in ([0, 1, 2], [0, 0, 1, 2, 2], [4, 1, 2, 0, 1], [0, 3, 2], [2, 1], [1], [0], [0]):
        fed = torch.randint(0, 9, (len(rows),), generator=noise)
        state = state.select(torch.tensor(rows))
        tokens, vectors = torch.cat([tokens[rows], fed[:, None]], 1), vectors[rows]
        found = decoder.step(fed, state)
        alone = decoder.start(vectors, 16)
        for column in tokens.unbind(1):
            expected = decoder.step(column, alone)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_seed_says_the_same_in_batches_of_any_size_of_one_pass(decoder: Decoder) -> None:
    """Each vector has random numbers of its own: what the others say, and when they end, does not matter."""
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    config = SearchConfig(sample=True, max_tokens=8)

    def draw(z: torch.Tensor) -> list[list[Hypothesis]]:
        noise = torch.Generator().manual_seed(0)
        return sample(decoder, z, [LANG] * len(z), config, eos_id=EOS, forbidden=[0, 1, 2, LANG], generator=noise)

    assert [h[0].ids for h in draw(z)][:2] == [h[0].ids for h in draw(z[:2])]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("score_language", [False, True])
def test_scores_are_those_of_teacher_forcing(
    decoder: Decoder, sampled: bool, length_penalty: float, score_language: bool
) -> None:
    """Token by token, and summed over (number of tokens) ** length_penalty; cut sentences too."""
    z = torch.randn(7, 8, generator=torch.Generator().manual_seed(6))
    config = SearchConfig(3, 4, sampled, length_penalty=length_penalty, score_language=score_language)
    find = sample if sampled else beam_search
    found = find(decoder, z, [LANG] * 7, config, eos_id=EOS, forbidden=[0, 1, 2, LANG])
    assert {h.ended for hypotheses in found for h in hypotheses} == {False, True}
    for vector, hypotheses in zip(z, found):
        for h in hypotheses:
            with torch.no_grad():
                _, losses = decoder.token_losses(vector[None], *pack([[EOS, LANG, *h.ids, EOS]]), skip=0)
            assert h.log_probs == pytest.approx((-losses[1:]).tolist(), abs=1e-5)
            counted = losses if score_language else losses[1:]
            assert h.score == pytest.approx(-counted.sum().item() / len(counted) ** length_penalty, abs=1e-4)


def test_length_penalty_orders_short_and_long_sentences(decoder: Decoder) -> None:
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(7))

    def best(penalty: float) -> int:
        config = SearchConfig(200, 3, length_penalty=penalty)
        return len(beam_search(decoder, z, [LANG], config, eos_id=EOS, forbidden=[0, 1, 2, LANG])[0][0].ids)

    assert best(-3.0) <= best(1.0) <= best(8.0) and best(-3.0) < best(8.0)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_comes_twice(decoder: Decoder, sampled: bool, n: int) -> None:
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(8))
    find = sample if sampled else beam_search

    def repeats(ngram: int) -> int:
        config = SearchConfig(3, 12, sampled, no_repeat_ngram=ngram)
        found = find(decoder, z, [LANG] * 20, config, eos_id=EOS, forbidden=[0, 1, 2, LANG])
        grams = [[h.ids[i : i + n] for i in range(len(h.ids) - n + 1)] for hypotheses in found for h in hypotheses]
        return sum(len(g) - len(set(g)) for g in grams)

    assert repeats(n) == 0
    assert repeats(0) > 0, "else the first half proves nothing"


def test_a_sentence_has_the_least_number_of_tokens(decoder: Decoder) -> None:
    z = torch.randn(9, 8, generator=torch.Generator().manual_seed(9))
    for config in (SearchConfig(3, 6, min_tokens=4), SearchConfig(3, 6, True, min_tokens=4)):
        find = sample if config.sample else beam_search
        found = find(decoder, z, [LANG] * 9, config, eos_id=EOS, forbidden=[0, 1, 2, LANG])
        assert {len(h.ids) for hypotheses in found for h in hypotheses} <= {4, 5, 6}


def test_rows_that_can_stay_stay() -> None:
    assert settle([2, 0, 2, 5]) == [1, 3, 0, 2]
    assert settle([0, 1, 2]) == [0, 1, 2]
    for seed in range(20):
        sources = torch.randint(0, 6, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
        order = settle(sources)
        assert sorted(order) == list(range(6))
        assert {sources[i] for place, i in enumerate(order) if sources[i] == place} == {s for s in sources if s < 6}


@pytest.mark.parametrize(
    "bad",
    [
        {"beam_size": 0},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"min_tokens": 999},
        {"no_repeat_ngram": -1},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SearchConfig(**bad)  # type: ignore[arg-type]
