"""Metrics of continuations by hand and against NLTK, sacrebleu and rouge-score."""

from __future__ import annotations

import json
import math
from importlib.metadata import version

import nltk
import numpy as np
import pytest
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from sonarkit.evaluation import nlg
from sonarkit.evaluation.nlg import cut_story, distinct, meteor, nlg_report, nltk_bleu, prompts_of, repetition, rouge_l, self_bleu

TOLD = [["The fox ran home.", "He was happy."], ["Mia found a kite."], ["Tom slept and slept and slept and slept."], []]
TRUE = [["The fox ran away.", "He was sad."], ["Mia found a red kite."], ["Tom sang a song.", "All went home."], ["It rained."]]


def test_a_story_is_cut_after_two_sentences_or_in_the_middle() -> None:
    story = ["A.", "B.", "C.", "D.", "E."]
    assert cut_story(story) == (["A.", "B."], ["C.", "D.", "E."])
    assert cut_story(story, "half") == (["A.", "B."], ["C.", "D.", "E."])
    assert cut_story(story[:4], "half") == (["A.", "B."], ["C.", "D."])
    for short, prefix in ((["A."], "half"), (["A.", "B."], 2), ([], 1), (story, 5)):
        with pytest.raises(ValueError, match="needs a story of at least"):
            cut_story(short, prefix)  # type: ignore[arg-type]
    for bad in (0, -1, "third"):
        with pytest.raises(ValueError, match="at least 1, or 'half'"):
            cut_story(story, bad)  # type: ignore[arg-type]


def test_short_stories_are_left_out_and_named() -> None:
    prompts = prompts_of([["A.", "B."], ["A.", "B.", "C."], ["A."]])
    assert (prompts.prefixes, prompts.references) == ([["A.", "B."]], [["C."]])
    assert (prompts.stories, prompts.too_short) == ([1], [0, 2])
    assert prompts_of([["A.", "B."], ["A."]], "half").too_short == [1]
    with pytest.raises(ValueError, match="none of 1 stories has the 3 sentences"):
        prompts_of([["A.", "B."]])


def test_bleu_by_hand() -> None:
    """3 of 4 words, 2 of 3 pairs, 1 of 2 triples; no 4-gram: smoothing 4 puts 1 / (2 * 5 / ln 4) for its 0."""
    by_hand = (3 / 4 * 2 / 3 * 1 / 2 * (1 / (2 * 5 / math.log(4)))) ** 0.25
    assert nltk_bleu("the fox ran home", "the fox ran away") == pytest.approx(100 * by_hand)
    assert nltk_bleu("a b c d", "a b c d e f") == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert nltk_bleu("", "a b") == nltk_bleu("  ", "a b") == nltk_bleu("x", "a b") == 0


def test_bleu_is_nltks() -> None:
    for told, true in zip(TOLD[:3], TRUE):
        want = sentence_bleu([true[0].split()], told[0].split(), smoothing_function=SmoothingFunction().method4)
        assert nltk_bleu(told[0], true[0]) == pytest.approx(100 * want)


def test_rouge_l_by_hand() -> None:
    """ "dogs" and "dog" have one stem: 3 of 4 and 3 of 3 words in common."""
    assert rouge_l("the big dogs ran", "the dog ran") == pytest.approx(100 * 2 * (3 / 4) / (1 + 3 / 4))
    assert rouge_l("", "the dog") == 0
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for told, true in zip(TOLD, TRUE):  # what is ASCII counts as rouge-score counts it
        assert rouge_l(" ".join(told), " ".join(true)) == 100 * scorer.score(" ".join(true), " ".join(told))["rougeL"].fmeasure
    assert rouge_l("Лиса бежала домой.", "Лиса бежала домой!") == 100 and rouge_l("Déjà vu", "Deja vu") == 50


def test_meteor_by_hand() -> None:
    """3 of 4 words match in one chunk: F = P R / (0.9 P + 0.1 R), less 0.5 (1 / 3)^3 of it."""
    assert meteor("the fox ran home", "the fox ran away", "exact_stem") == pytest.approx(100 * 0.75 * (1 - 0.5 / 27))
    assert meteor("the dogs", "the dog", "exact_stem") == pytest.approx(100 * (1 - 0.5 / 8))  # by stem
    assert meteor("", "the dog", "exact_stem") == meteor("big", "large", "exact_stem") == 0
    if nlg.meteor_mode() == "exact_stem":
        with pytest.raises(ValueError, match="needs WordNet's data .python -m nltk.downloader wordnet.; mode='exact_stem'"):
            meteor("big", "large", "wordnet")
    with pytest.raises(ValueError, match="'wordnet' or 'exact_stem'"):
        meteor("a", "b", "stem")  # type: ignore[arg-type]


def test_meteor_has_another_name_without_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        raise LookupError(name)

    nlg.meteor_mode.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(nltk.data, "find", find)
        assert nlg.meteor_mode() == "exact_stem"
        report = nlg_report(TOLD, TRUE, resamples=20)
    nlg.meteor_mode.cache_clear()
    assert "meteor_exact_stem" in report.scores and "meteor" not in report.scores
    assert "no WordNet here" in report.labels["meteor_exact_stem_first"] and version("nltk") in report.table()
    with monkeypatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda name: name)
        assert nlg.meteor_mode() == "wordnet" and nlg.meteor_name("wordnet") == "meteor"
    nlg.meteor_mode.cache_clear()


@pytest.mark.parametrize("metric", [BLEU(), CHRF()])
def test_corpus_metrics_are_sacrebleus(metric: BLEU | CHRF) -> None:
    told, true = [" ".join(t) for t in TOLD], [" ".join(t) for t in TRUE]
    found = nlg.corpus_metric(metric, told, true)
    assert found.value == pytest.approx(metric.corpus_score(told, [true]).score)
    assert found.low <= found.value <= found.high and found.low < found.high
    assert nlg.corpus_metric(metric, true, true).low == pytest.approx(100)


@pytest.mark.parametrize("metric", [BLEU(), CHRF()])
def test_corpus_scores_of_two_systems_are_compared_text_by_text(metric: BLEU | CHRF) -> None:
    """One says every text but for its last word, the other but for its first two; and then the other way round in half."""
    true = [f"the {a} fox ran home to {b} in the {c} night" for a in ("red", "old", "sly") for b in ("Mia", "Tom") for c in "xyz"]
    good, bad = [text[: text.rindex(" ")] for text in true], [" ".join(text.split()[2:-3]) for text in true]
    found = nlg.corpus_comparison(metric, good, bad, true, resamples=200)
    scores = [metric.corpus_score(told, [true]).score for told in (good, bad)]
    assert found.difference.value == pytest.approx(scores[0] - scores[1]) and found.difference.low > 0 and found.p_value < 0.01
    mixed = [[a, b] if i % 2 else [b, a] for i, (a, b) in enumerate(zip(good, bad))]
    even = nlg.corpus_comparison(metric, [a for a, _ in mixed], [b for _, b in mixed], true, resamples=200)
    assert even.p_value > 0.3 and even.difference.low < 0 < even.difference.high
    with pytest.raises(ValueError, match="as many texts of both as references, got 18, 17 and 18"):
        nlg.corpus_comparison(metric, good, bad[:-1], true)


def test_distinct_by_hand() -> None:
    """Words: a b a / b c -> 3 of 5; pairs: ab ba bc -> 3 of 3. Without the first text 2 of 2, without the second 2 of 3."""
    texts = ["a b A", "b c"]
    assert distinct(texts, 1).value == pytest.approx(60) and distinct(texts, 2).value == 100
    assert distinct(texts, 1) == nlg.jackknife(60, [100, 200 / 3])
    assert distinct(["a", "b"], 2).value == 0 and math.isnan(distinct(["a", "b"], 2).low)


def test_the_jackknife_of_distinct_leaves_out_one_text_each() -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abcdefgh"), 6)) for _ in range(7)]
    for n in (1, 2, 3):
        without = [distinct(texts[:i] + texts[i + 1 :], n).value for i in range(7)]
        want = nlg.jackknife(distinct(texts, n).value, without)
        assert distinct(texts, n).low == pytest.approx(want.low) and distinct(texts, n).high == pytest.approx(want.high)


def test_repetition_by_hand() -> None:
    assert repetition("a b a b a b", 2) == pytest.approx(60)  # ab ba ab ba ab: 2 of 5 are new
    assert repetition("a b c d") == 0 and repetition("a b c") == 0 and repetition("a a a a a") == 50
    with pytest.raises(ValueError, match="at least one word"):
        repetition("a b", 0)


def test_self_bleu() -> None:
    same, others = ["the fox ran home today"] * 3, ["the fox ran home today", "a bear sleeps in winter", "Tom sang one song now"]
    assert self_bleu(same) == pytest.approx([100, 100, 100])
    assert max(self_bleu(others)) < 10
    assert self_bleu(["alone"]) == [] and len(self_bleu(others * 4, most=5)) == 5
    assert self_bleu(others * 4, most=5, seed=1) == self_bleu(others * 4, most=5, seed=1)


def test_the_report_counts_and_says_how() -> None:
    report = nlg_report(TOLD, TRUE, mode="exact_stem", resamples=50)
    assert report.counts == {"stories": 4, "empty": 1, "sentences": 4, "words": 19, "median_words_of_reference": 6}
    assert report.scores["rouge_l_first"].value == pytest.approx(
        np.mean([rouge_l(t[0] if t else "", r[0]) for t, r in zip(TOLD, TRUE)])
    )
    assert report.of_story["bleu_first"][3] == 0 and len(report.of_story["rouge_l"]) == 4
    want = sacrebleu.corpus_bleu([" ".join(t) for t in TOLD], [[" ".join(t) for t in TRUE]]).score
    assert report.scores["bleu"].value == pytest.approx(want)
    assert set(report.scores) == set(report.labels)
    assert report.versions["nltk"] == version("nltk")
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["scores"]["chrf"]["count"] == 4 and "version" in read["labels"]["chrf"]
    table = report.table()
    assert all(name in table for name in report.scores) and "1 empty" in table and f"nltk {version('nltk')}" in table


def test_nothing_told_has_zeros_and_no_variety() -> None:
    report = nlg_report([[], []], TRUE[:2], mode="exact_stem", resamples=10)
    assert report.counts["empty"] == 2 and "distinct_1" not in report.scores and "self_bleu" not in report.scores
    assert all(score.value == 0 for score in report.scores.values())
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "told, true, message",
    [
        ([["A."]], [], "one true continuation for each, got 1 told and 0"),
        ([], [], "got 0 told"),
        (["A. B."], [["A."]], "told continuation 0 is one string"),
        ([["A."], ["B."]], [["A."], []], "true continuation 1 has no words"),
        ([["A."]], [[" "]], "true continuation 0 has no words"),
    ],
)
def test_bad_input_is_named(told: list, true: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nlg_report(told, true)
