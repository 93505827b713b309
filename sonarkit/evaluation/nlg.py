"""How near a told continuation is to the true one, and how varied: as SONAR-LLM's paper counts, and as one should.

1. `prompts_of` cuts stories into a prefix and what follows: two sentences, or half the story (arXiv 2508.05305).
2. As published, of the first sentence after the prefix only: NLTK's sentence BLEU with smoothing method 4 on whitespace tokens,
   ROUGE-L F1 with stemming, NLTK's METEOR on whitespace tokens.
3. Of the whole continuation: sacrebleu's corpus BLEU and chrF, distinct n-grams, self-BLEU and repetition.

All scores are from 0 to 100, with intervals over the stories. METEOR moves with NLTK's version and with WordNet: without
WordNet's data it counts exact matches and stems only and is called `meteor_exact_stem`; nothing is ever downloaded.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Literal

import nltk
import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from sonarkit.evaluation.statistics import RESAMPLES, Comparison, Interval, bootstrap, jackknife, permutation_test

MeteorMode = Literal["wordnet", "exact_stem"]
SELF_BLEU_TEXTS = 50  # each against all the others: 50 are 2 450 comparisons


# ---------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Prompts:
    """Stories cut in two. `stories` are the indices of those that could be cut, `too_short` of the others."""

    prefixes: list[list[str]]
    references: list[list[str]]
    stories: list[int]
    too_short: list[int]


def cut_story(sentences: Sequence[str], prefix: int | Literal["half"] = 2) -> tuple[list[str], list[str]]:
    """The first `prefix` sentences of a story, or its first half (rounded down), and the others.

    Raises ValueError for a prefix that is empty or leaves nothing to tell.
    """
    count = len(sentences) // 2 if prefix == "half" else prefix
    if not isinstance(count, int) or count < 0 or (count == 0 and prefix != "half"):
        raise ValueError(f"prefix is a number of sentences, at least 1, or 'half'; got {prefix!r}")
    if not 0 < count < len(sentences):
        raise ValueError(
            f"a prefix of {prefix if prefix == 'half' else count} needs a story of at least {max(2, count + 1)} sentences, "
            f"this one has {len(sentences)}; leave it out or take a shorter prefix"
        )
    return list(sentences[:count]), list(sentences[count:])


def prompts_of(stories: Sequence[Sequence[str]], prefix: int | Literal["half"] = 2) -> Prompts:
    """Cut each story with `cut_story`; those that are too short are left out and told. ValueError where all are."""
    least = 2 if prefix == "half" else prefix + 1
    fit = [i for i, story in enumerate(stories) if len(story) >= least]
    if not fit:
        raise ValueError(f"none of {len(stories)} stories has the {least} sentences that a prefix of {prefix} needs")
    pairs = [cut_story(stories[i], prefix) for i in fit]
    return Prompts([p for p, _ in pairs], [r for _, r in pairs], fit, [i for i in range(len(stories)) if i not in set(fit)])


# ---------------------------------------------------------------------- one text against one


def nltk_bleu(told: str, reference: str) -> float:
    """NLTK's sentence BLEU, up to 4-grams, smoothing method 4, on whitespace tokens; 0 for an empty text."""
    if not told.split():
        return 0.0
    return 100 * float(sentence_bleu([reference.split()], told.split(), smoothing_function=SmoothingFunction().method4))


def rouge_l(told: str, reference: str) -> float:
    """F1 of the longest common subsequence of stemmed words (Google's rouge-score, with words of any script).

    rouge-score itself takes only a-z and 0-9 for a word's letters, so a Russian text has none; what is ASCII counts the same.
    """
    return 100 * float(_rouge().score(reference, told)["rougeL"].fmeasure)


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words(Tokenizer):
    """rouge-score's words, of any script: runs of letters and digits, lower case, Porter's stems of those above three letters."""

    def __init__(self) -> None:
        self.stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self.stem(word) if len(word) > 3 else word for word in re.findall(r"[^\W_]+", text.lower())]


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


@cache
def meteor_mode() -> MeteorMode:
    """ "wordnet" where NLTK finds WordNet's data on this machine, else "exact_stem"."""
    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
            return "wordnet"
        except LookupError:
            continue
    return "exact_stem"


def meteor(told: str, reference: str, mode: MeteorMode | None = None) -> float:
    """NLTK's METEOR on whitespace tokens, lower-cased; by default in the `meteor_mode` of this machine.

    "exact_stem" leaves out synonyms. The two are different metrics: compare numbers of one mode and one version of NLTK only.
    Raises ValueError for another mode, and for "wordnet" without WordNet's data.
    """
    mode = mode or meteor_mode()
    if mode not in ("wordnet", "exact_stem"):
        raise ValueError(f"mode must be 'wordnet' or 'exact_stem', got {mode!r}")
    if not told.split() or not reference.split():
        return 0.0
    synonyms = {} if mode == "wordnet" else {"wordnet": _NoSynonyms()}
    try:
        return 100 * float(single_meteor_score(reference.split(), told.split(), **synonyms))
    except LookupError as error:
        raise ValueError(
            "METEOR with synonyms needs WordNet's data (python -m nltk.downloader wordnet); mode='exact_stem' needs none"
        ) from error


# ---------------------------------------------------------------------- corpora


def corpus_metric(metric: BLEU | CHRF, told: Sequence[str], references: Sequence[str], interval: Any = bootstrap) -> Interval:
    """What `metric.corpus_score` says, with its interval by `bootstrap`, or that with other settings."""
    return interval(_corpus_rows(metric, told, references), lambda sums: _corpus_score(metric, sums))


def corpus_comparison(
    metric: BLEU | CHRF, first: Sequence[str], second: Sequence[str], references: Sequence[str], **options: Any
) -> Comparison:
    """The corpus scores of two systems that told the same things: first less second, by `statistics.permutation_test`, whose
    `options` it takes. Raises ValueError for unlike numbers of texts, and fewer than two."""
    if not len(first) == len(second) == len(references):
        raise ValueError(f"expected as many texts of both as references, got {len(first)}, {len(second)} and {len(references)}")
    ours, theirs = (_corpus_rows(metric, told, references) for told in (first, second))
    return permutation_test(ours, theirs, lambda sums: _corpus_score(metric, sums), **options)


def _corpus_rows(metric: BLEU | CHRF, told: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N, K) sacrebleu's counts of each text, whose sums make the score."""
    return np.array(metric._extract_corpus_statistics(list(told), [list(references)]), dtype=float)


def _corpus_score(metric: BLEU | CHRF, sums_K: np.ndarray) -> float:
    return float(metric._compute_score_from_stats([round(x) for x in sums_K]).score)


def distinct(texts: Sequence[str], n: int) -> Interval:
    """Percent of all n-grams (whitespace tokens, lower case) that are different ones (Li et al., arXiv 1510.03055, over n-grams).

    It falls with the amount of text: compare equally many texts of similar length. The interval is the jackknife's; 0 and none
    where no text has n words.
    """
    found = [Counter(_ngrams(text, n)) for text in texts]
    everywhere = sum(found, Counter())
    total, different = everywhere.total(), len(everywhere)
    if not total:
        return Interval(0.0, float("nan"), float("nan"), len(texts))
    own = [(sum(everywhere[gram] == count for gram, count in grams.items()), grams.total()) for grams in found]
    without = [100 * (different - only) / (total - size) for only, size in own if total > size]
    return jackknife(100 * different / total, without if len(without) == len(own) else [])


def repetition(text: str, n: int = 4) -> float:
    """Percent of a text's n-grams that stood in it before (Welleck et al., arXiv 1908.04319); 0 for fewer than n words."""
    grams = _ngrams(text, n)
    return 100 * (1 - len(set(grams)) / len(grams)) if grams else 0.0


def self_bleu(texts: Sequence[str], most: int = SELF_BLEU_TEXTS, seed: int = 0) -> list[float]:
    """NLTK's BLEU (smoothing method 1) of each text against all the others: high where all are alike (arXiv 1802.01886).

    It rises with the number of texts, so `most` of them are drawn where there are more. [] for fewer than two. ValueError for
    `most` below 2.
    """
    if most < 2:
        raise ValueError(f"self-BLEU compares at least two texts, got most={most}")
    chosen = [text.split() for text in texts]
    if len(chosen) > most:
        chosen = [chosen[i] for i in sorted(np.random.default_rng(seed).choice(len(chosen), most, replace=False))]
    if len(chosen) < 2:
        return []
    smooth = SmoothingFunction().method1
    return [
        100 * float(sentence_bleu(chosen[:i] + chosen[i + 1 :], text, smoothing_function=smooth)) if text else 0.0
        for i, text in enumerate(chosen)
    ]


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n-grams have at least one word, got n={n}")
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n))))


# ---------------------------------------------------------------------- the report


@dataclass(frozen=True)
class NlgReport:
    """`scores` by metric, `labels` how each was counted, `counts` of what went in, `versions` of the libraries.

    `of_story` has a value for each story of the metrics that have one, for `paired_bootstrap`.
    """

    scores: dict[str, Interval]
    labels: dict[str, str]
    counts: dict[str, int]
    versions: dict[str, str]
    of_story: dict[str, list[float]]

    def table(self) -> str:
        """A line for each metric, with its interval and how it was counted, then counts and versions."""
        lines = [f"{name:<25}{score!s:<28}  {self.labels[name]}" for name, score in self.scores.items()]
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in self.counts.items())
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return "\n".join([*lines, counts, versions])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without `of_story`."""
        return {
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "labels": self.labels,
            "counts": self.counts,
            "versions": self.versions,
        }


def versions() -> dict[str, str]:
    """Of the libraries that count."""
    return {name: version(name) for name in ("nltk", "rouge-score", "sacrebleu")}


def meteor_name(mode: MeteorMode) -> str:
    """What METEOR is called in reports: never the same for two ways of counting."""
    return "meteor" if mode == "wordnet" else "meteor_exact_stem"


def meteor_label(mode: MeteorMode) -> str:
    """How METEOR counts in that mode, and by which NLTK, as reports say it."""
    how = "exact, stems and WordNet" if mode == "wordnet" else "exact and stems only: no WordNet here"
    return f"METEOR ({how}; nltk {version('nltk')})"


def nlg_report(
    told: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    mode: MeteorMode | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NlgReport:
    """Compare continuations, each a list of sentences, with the true ones (`Prompts.references`).

    A continuation without a sentence counts as an empty text, which has 0 against its reference and no part in the metrics of
    variety; `counts` says how many. Raises ValueError for different numbers of both, none, a string where sentences are
    expected, and an empty reference.
    """
    _check_sentences(told, references)
    mode = mode or meteor_mode()
    first = [(_first(a), b[0]) for a, b in zip(told, references)]
    texts, true = [" ".join(a) for a in told], [" ".join(b) for b in references]
    spoken = [text for text in texts if text.split()]
    name = meteor_name(mode)
    values = {
        "bleu_first": [nltk_bleu(*pair) for pair in first],
        "rouge_l_first": [rouge_l(*pair) for pair in first],
        f"{name}_first": [meteor(*pair, mode=mode) for pair in first],
        "rouge_l": [rouge_l(a, b) for a, b in zip(texts, true)],
        name: [meteor(a, b, mode) for a, b in zip(texts, true)],
    }
    interval = partial(bootstrap, resamples=resamples, seed=seed)
    scores = {key: interval(row) for key, row in values.items()}
    bleu, chrf = BLEU(), CHRF()
    scores |= {"bleu": corpus_metric(bleu, texts, true, interval), "chrf": corpus_metric(chrf, texts, true, interval)}
    if spoken:
        scores |= {f"distinct_{n}": distinct(spoken, n) for n in (1, 2)}
        scores["repetition_4"] = interval([repetition(text) for text in spoken])
    if alike := self_bleu(spoken, seed=seed):
        scores["self_bleu"] = Interval(statistics.fmean(alike), math.nan, math.nan, len(alike))  # each text counts in every row
    labels = {
        "bleu_first": "first sentence, as published: NLTK sentence BLEU, smoothing 4",
        "rouge_l_first": "first sentence, as published: ROUGE-L F1, stemmed",
        f"{name}_first": f"first sentence, as published: {meteor_label(mode)}",
        "rouge_l": "whole continuation: ROUGE-L F1, stemmed",
        name: f"whole continuation: {meteor_label(mode)}",
        "bleu": f"whole continuation: {bleu.get_signature()}",
        "chrf": f"whole continuation: {chrf.get_signature()}",
        "distinct_1": "different words, % of all; jackknife",
        "distinct_2": "different pairs of words, % of all; jackknife",
        "repetition_4": "4-grams that stood in the same text before, %",
        "self_bleu": f"each of at most {SELF_BLEU_TEXTS} texts against the others; no interval",
    }
    counts = {
        "stories": len(told),
        "empty": len(told) - len(spoken),
        "sentences": sum(map(len, told)),
        "words": sum(len(text.split()) for text in texts),
        "median_words_of_reference": round(statistics.median(len(text.split()) for text in true)),
    }
    return NlgReport(scores, {key: labels[key] for key in scores}, counts, versions(), values)


def _first(sentences: Sequence[str]) -> str:
    return sentences[0] if sentences else ""


def _check_sentences(told: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> None:
    if len(told) != len(references) or not references:
        raise ValueError(f"expected one true continuation for each, got {len(told)} told and {len(references)} true ones")
    for what, many in (("told", told), ("true", references)):
        for i, sentences in enumerate(many):
            if isinstance(sentences, str):
                raise ValueError(f"{what} continuation {i} is one string; expected a list of sentences (split_sentences)")
    for i, sentences in enumerate(references):
        if not sentences or not sentences[0].split():
            raise ValueError(f"true continuation {i} has no words; leave out stories that end with the prefix (prompts_of)")
