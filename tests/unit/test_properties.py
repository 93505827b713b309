"""What holds for any input: segmenter, tokenizer, store, sampler and beam search (hypothesis, always the same examples)."""

from __future__ import annotations

import tempfile
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sonarkit.codec.config import codec_config
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.search import Hypothesis, SearchConfig, beam_search
from sonarkit.core.distributed import World
from sonarkit.store.batches import DocumentBatches, Source
from sonarkit.store.build import Coder, StoreStamp, build
from sonarkit.store.reader import Store
from sonarkit.text.corpora import Corpus
from sonarkit.text.sentences import split_sentences
from sonarkit.text.tokenizer import Tokenizer

ALONE = World(0, 1, 0, torch.device("cpu"))
few = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(few, max_examples=150)

# ---------------------------------------------------------------------- segmenter

PROSE = st.lists(
    st.sampled_from(
        [
            "Tom",
            "Mia",
            "ran",
            "fox",
            "3",
            "Dr.",
            "p.m.",
            "Mr.",
            "oui",
            "»",
            "«",
            "“",
            "”",
            '"',
            "'",
            "—",
            "- ",
            "...",
            "…",
            ".",
            "!",
        ]
        + [
            "?",
            "?!",
            ".”",
            "。",
            "！",
            "你好",
            " ",
            " ",
            " ",
            "\n",
            "\n\n",
            "\t",
            "\u00a0",
            "\u3000",
            ",",
            ":",
            "(",
            ")",
            "é",
            "🦊",
        ]
    ),
    max_size=30,
).map("".join)
TEXT = st.one_of(PROSE, st.text(max_size=60))
LANGUAGE = st.sampled_from(["eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn", "zho_Hans", "rus_Cyrl"])


@many
@given(TEXT, LANGUAGE)
def test_sentences_lose_nothing_but_white_space(text: str, lang: str) -> None:
    sentences = split_sentences(text, lang)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    for sentence in sentences:
        assert sentence and sentence == " ".join(sentence.split())


@many
@given(st.lists(TEXT, max_size=4), LANGUAGE)
def test_paragraphs_are_split_one_by_one(paragraphs: list[str], lang: str) -> None:
    apart = [sentence for paragraph in paragraphs for sentence in split_sentences(paragraph, lang)]
    assert split_sentences("\n\n".join(paragraphs), lang) == apart


@many
@given(TEXT, LANGUAGE)
def test_white_space_decides_nothing(text: str, lang: str) -> None:
    assume("\n" not in text)
    assert split_sentences(f"  {text} ".replace(" ", "\t  "), lang) == split_sentences(text, lang)


# ---------------------------------------------------------------------- tokenizer


@many
@given(TEXT)
def test_what_a_tokenizer_normalises_comes_back(tokenizer: Tokenizer, text: str) -> None:
    pieces = tokenizer.pieces(text)
    once = tokenizer.decode(pieces)
    assert tokenizer.pieces(once) == pieces and tokenizer.decode(tokenizer.pieces(once)) == once
    assert not set(pieces) & set(tokenizer.special_ids)
    assert tokenizer.source(text, "fra_Latn") == [tokenizer.language_id("fra_Latn"), *pieces, tokenizer.eos_id]


LETTERS = st.characters(max_codepoint=0x52F, categories=("L", "N", "P"))


@many
@given(st.lists(st.text(LETTERS, min_size=1, max_size=8), max_size=6).map(" ".join))
def test_words_come_back_as_they_are_normalised(tokenizer: Tokenizer, text: str) -> None:
    normalised = " ".join(unicodedata.normalize("NFKC", text).split())
    assert tokenizer.decode(tokenizer.pieces(normalised)) == tokenizer.decode(tokenizer.pieces(text))
    assert "".join(tokenizer.decode(tokenizer.pieces(text)).split()) == "".join(normalised.split())


@many
@given(st.text(st.characters(), max_size=40), st.lists(st.integers(0, 400), max_size=20))
def test_no_text_and_no_ids_are_too_much_for_a_tokenizer(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    """Half of surrogate pairs are among the texts, and ids that are none."""
    assert tokenizer.pieces_batch([text, ""]) == [tokenizer.pieces(text), []]
    tokenizer.decode(ids).encode()


# ---------------------------------------------------------------------- store

SENTENCE = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
BAR = "\x1f"


def vectors_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[float(len(text)), float(sum(text.encode()) % 997), -1.0] for text in texts]).reshape(-1, 3)


@few
@given(st.lists(st.lists(SENTENCE, max_size=5), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 12))
def test_a_store_gives_back_what_was_put_in(documents: list[list[str]], per_shard: int, most: int) -> None:
    assume(any(documents))
    told = [[sentence.replace(BAR, "|") for sentence in sentences] for sentences in documents]
    corpus = Corpus("mine", lambda: ((f"x{BAR}" + BAR.join(sentences), f"mine:{i}") for i, sentences in enumerate(told)))
    coder = Coder(vectors_of, lambda texts: [list(text.encode()) for text in texts], most)
    stamp = StoreStamp("mine", "eng_Latn", "bars", "none", "0" * 12, 3, per_shard)
    with tempfile.TemporaryDirectory() as folder:
        build(corpus, folder, stamp, coder, lambda text: [s for s in text.split(BAR)[1:] if s], "end", ALONE)
        store = Store(folder, verify=True)
        kept = [(i, sentences) for i, sentences in enumerate(told) if sentences]
        assert len(store) == len(kept)
        for place, (i, sentences) in enumerate(kept):
            stored = store[place]
            assert stored.texts == sentences and stored.source == f"mine:{i}"
            assert stored.tokens == [list(text.encode())[:most] for text in sentences]
            np.testing.assert_array_equal(stored.vectors_SD, vectors_of(sentences).numpy().astype(np.float16))
            document = store.document(place, 5, 3, max_sentences=3, max_tokens=4)
            assert document.targets[:-1] == [[3, 5, *ids[:4], 3] for ids in stored.tokens[:3]]
            assert document.bytes[:-1] == [len(text.encode()) for text in sentences[:3]]
        totals = [sum(map(len, store.document(i, 5, 3, 3, 4).targets)) for i in range(len(store))]
        assert store.document_tokens(3, 4).tolist() == totals


# ---------------------------------------------------------------------- sampler

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def flat(batches: DocumentBatches, steps: int) -> list[list[int]]:
    return [[int(document) for micro in next(batches) for document in micro] for _ in range(steps)]  # type: ignore[call-overload]


def sampler(sizes: list[int], per_step: int, seed: int, rank: int = 0, ranks: int = 1) -> DocumentBatches:
    return DocumentBatches([Source(np.array(sizes), int)], per_step, 60, seed, rank, ranks)


@many
@given(SIZES, st.integers(1, 8), st.integers(0, 2**31), st.integers(1, 5))
def test_each_document_comes_once_an_epoch(sizes: list[int], per_step: int, seed: int, epochs: int) -> None:
    count = len(sizes)
    steps = -(-epochs * count // per_step)
    drawn = flat(sampler(sizes, per_step, seed), steps)
    in_order = [i for (i,) in flat(sampler(sizes, 1, seed), steps * per_step)]
    for epoch in range(epochs):
        assert sorted(in_order[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert [sorted(step) for step in drawn] == [sorted(in_order[k * per_step : (k + 1) * per_step]) for k in range(steps)]


@many
@given(SIZES, st.integers(1, 8), st.integers(0, 2**31), st.integers(0, 9), st.data())
def test_a_position_gives_the_same_rest_to_any_number_of_ranks(
    sizes: list[int], per_step: int, seed: int, before: int, data: st.DataObject
) -> None:
    ranks = data.draw(st.integers(1, per_step))
    whole = sampler(sizes, per_step, seed)
    flat(whole, before)
    state = whole.state_dict()
    rest = flat(whole, 3)
    resumed = [sampler(sizes, per_step, seed, rank, ranks) for rank in range(ranks)]
    shares = []
    for one in resumed:
        one.load_state_dict(dict(state))
        shares.append([[len(micro) for micro in step] for step in [next(one) for _ in range(3)]])
        assert one.state_dict() == whole.state_dict()
    assert len({tuple(map(len, share)) for share in shares}) == 1, "ranks differ in micro-batches"
    for one in resumed:
        one.load_state_dict(dict(state))
    together = [sorted(sum(parts, [])) for parts in zip(*(flat(one, 3) for one in resumed))]
    assert together == [sorted(step) for step in rest]


# ---------------------------------------------------------------------- beam search

EOS, LANG, FORBIDDEN = 3, 8, [0, 1, 2, 8]


@pytest.fixture(scope="module")
def decoders() -> list[Decoder]:
    """Nine tokens, of which 4 to 7 are pieces; sharp, flat, and one that seldom ends."""
    found = []
    for seed, scale in ((1, 4.0), (2, 0.5), (3, 8.0)):
        torch.manual_seed(seed)
        config = codec_config(("eng_Latn",), 9, 8, 1, 1, 2, 16, dropout=0.0, max_tokens=16)
        decoder = Decoder(config.decoder, config.width, config.vocab_size, config.max_tokens).eval()
        with torch.no_grad():
            decoder.embedding.weight.mul_(scale)
        found.append(decoder)
    return found


def found_by(decoder: Decoder, seed: int, rows: int, config: SearchConfig) -> list[list[Hypothesis]]:
    z_BD = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    return beam_search(decoder, z_BD, [LANG] * rows, config, eos_id=EOS, forbidden=FORBIDDEN)


CASE = (st.integers(0, 2), st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0]))


@many
@given(*CASE)
def test_a_beam_is_sorted_and_within_its_bounds(
    decoders: list[Decoder], which: int, seed: int, beam: int, most: int, penalty: float
) -> None:
    config = SearchConfig(beam, most, length_penalty=penalty, score_language=False)
    for hypotheses in found_by(decoders[which], seed, 2, config):
        scores = [one.score for one in hypotheses]
        assert scores == sorted(scores, reverse=True) and 1 <= len(hypotheses) <= beam
        assert len({one.ids for one in hypotheses}) == len(hypotheses), "a sentence was found twice"
        for one in hypotheses:
            assert len(one.ids) <= most and set(one.ids) <= {4, 5, 6, 7} and len(one.log_probs) == len(one.ids) + 1
            assert all(value <= 0 for value in one.log_probs)
            assert one.score == pytest.approx(sum(one.log_probs) / len(one.log_probs) ** penalty, abs=1e-4)


@few
@given(*CASE)
def test_a_vector_is_told_alike_in_any_batch(
    decoders: list[Decoder], which: int, seed: int, beam: int, most: int, penalty: float
) -> None:
    config = SearchConfig(beam, most, length_penalty=penalty, score_language=False)
    z_BD = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    together = beam_search(decoders[which], z_BD, [LANG] * 3, config, eos_id=EOS, forbidden=FORBIDDEN)
    for row in range(3):
        (alone,) = beam_search(decoders[which], z_BD[row : row + 1], [LANG], config, eos_id=EOS, forbidden=FORBIDDEN)
        assert [one.score for one in alone] == pytest.approx([one.score for one in together[row]], abs=1e-4)
        assert alone[0].ids == together[row][0].ids


@few
@given(*CASE[:3], st.integers(1, 3), CASE[4])
def test_a_beam_that_loses_nothing_is_at_least_as_good_as_greedy(
    decoders: list[Decoder], which: int, seed: int, beam: int, most: int, penalty: float
) -> None:
    """Greedy's sentence can fall out of a beam, so a wider one may end with a worse score; it cannot where the beam has room for
    every sentence, nor where only one piece is said."""
    every = sum(4**length for length in range(most + 1))
    for size, length in ((every, most), (beam, 1)):
        greedy, wide = (
            found_by(decoders[which], seed, 1, SearchConfig(width, length, length_penalty=penalty, score_language=False))[0][0]
            for width in (1, size)
        )
        assert wide.score >= greedy.score - 1e-5


@few
@given(*CASE[:2], st.integers(1, 6))
def test_a_beam_of_one_takes_the_likeliest_each_time(decoders: list[Decoder], which: int, seed: int, most: int) -> None:
    decoder = decoders[which]
    z_1D = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
    ((found,),) = beam_search(decoder, z_1D, [LANG], SearchConfig(1, most), eos_id=EOS, forbidden=FORBIDDEN)
    state, ids = decoder.start(z_1D, most + 2), []
    with torch.no_grad():
        decoder.step(torch.tensor([EOS]), state)
        log_probs = decoder.step(torch.tensor([LANG]), state)
        while len(ids) < most:
            log_probs[:, FORBIDDEN] = -torch.inf
            if (token := int(log_probs.argmax())) == EOS:
                break
            ids.append(token)
            log_probs = decoder.step(torch.tensor([token]), state)
    assert found.ids == tuple(ids)
