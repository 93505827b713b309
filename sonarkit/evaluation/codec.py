"""How good a codec is: auto-encoding, translation, and the search for translations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation.translation import corpus_bleu
from sonarkit.evaluation.xsim import xsim_error

# Measured on `mini` and StoryWorld's test sentences: language gap 0.11, relative spread 0.98, effective dimension 67 of 256;
# on handwritten stories, which are unlike its training, 0.64, 0.92 and 68. Training an earlier `mini` on by MSE alone took its
# spread from 0.99 to 0.71, 0.41, 0.18 and 0.10 in 10, 20, 40 and 60 steps of Adam at 3e-4, the dimension from 69 to 54, 40, 29
# and 23. Random weights have 0.87, 0.39 and 39: a run from scratch begins with alarms.
LANGUAGE_GAP = 0.8  # at most
RELATIVE_SPREAD = 0.5  # at least: below, two sentences have a cosine above 0.75 in the mean
EFFECTIVE_DIMENSION = 8.0  # at least, or a third of what the sentences allow


def codec_report(sonar: Sonar, rows: Sequence[dict[str, str]], *, beam_size: int = 5, all_pairs: bool = True) -> dict[str, float]:
    """BLEU and xsim over aligned rows (each has every language of the first one, two at least).

    Keys: `bleu_eng_Latn` (auto-encoding), `bleu_deu_Latn-eng_Latn` (translation), `bleu_translation` (mean over
    directions), `xsim_deu_Latn-eng_Latn` and `xsim_mean` (errors in percent; rows that repeat a sentence in any
    language are left out, since they have two right answers). Without `all_pairs` there is one
    direction, from the first language to the second.

    Raises ValueError for fewer than two different rows, and UnknownLanguageError.
    """
    languages = _two_or_more(rows)
    vectors = {code: sonar.encode([row[code] for row in rows], code) for code in languages}
    results: dict[str, float] = {}
    for code in languages:
        told = sonar.decode(vectors[code], code, beam_size=beam_size)
        results[f"bleu_{code}"] = corpus_bleu(told, [row[code] for row in rows], code)
    directions = list(itertools.permutations(languages, 2)) if all_pairs else [(languages[0], languages[1])]
    for source, target in directions:
        told = sonar.decode(vectors[source], target, beam_size=beam_size)
        results[f"bleu_{source}-{target}"] = corpus_bleu(told, [row[target] for row in rows], target)
    results["bleu_translation"] = sum(results[f"bleu_{a}-{b}"] for a, b in directions) / len(directions)
    distinct = distinct_rows(rows)
    for source, target in directions:
        results[f"xsim_{source}-{target}"] = 100 * xsim_error(vectors[source][distinct], vectors[target][distinct])
    results["xsim_mean"] = sum(results[f"xsim_{a}-{b}"] for a, b in directions) / len(directions)
    return results


def space_report(sonar: Sonar, rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Four numbers that tell whether a codec's space is one space, and still a space, over aligned rows of two or more languages.

    `language_gap`: mean squared distance between a sentence and its translations over that between any two sentences,
    0 where languages share one space, about 1 where they do not know each other. `spread`: root mean square distance of
    the vectors from their mean, 0 when everything has collapsed into a point. `relative_spread`: the same over the root mean
    square length, 0 to 1; its square is 1 less the mean cosine of two sentences, roughly. `effective_dimension`: participation
    ratio (sum l)^2 / sum l^2 of the variances l along the principal axes, from 1 to D.
    """
    languages = _two_or_more(rows)
    z_LND = torch.stack([sonar.encode([row[code] for row in rows], code) for code in languages]).cpu().double()
    within = z_LND.var(0, correction=0).sum()  # half the mean squared distance of a pair, as every variance
    flat_ND = z_LND.flatten(0, 1)
    centred_ND = flat_ND - flat_ND.mean(0)
    covariance_DD = centred_ND.T @ centred_ND / len(flat_ND)
    total = covariance_DD.trace()  # sum l; and sum l^2 is the squared norm: no decomposition, which would fail on NaN
    return {
        "language_gap": float(within / len(rows) * len(languages) / (len(languages) - 1) / total),
        "spread": float(total.sqrt()),
        "relative_spread": float((total / flat_ND.square().sum(1).mean()).sqrt()),
        "effective_dimension": float(total.square() / covariance_DD.square().sum()),
    }


def space_alarms(space: Mapping[str, float], sentences: int, width: int) -> list[str]:
    """What is wrong with a space by its `space_report` over so many rows of width D; [] where nothing is.

    A line for each of: numbers that are not finite, a collapse (RELATIVE_SPREAD), few directions (EFFECTIVE_DIMENSION, which
    needs some twenty different sentences to mean anything), languages apart (LANGUAGE_GAP). The thresholds are far from
    what a codec that works has, so that an alarm early in training is worth a look and one that stays is a failure.
    """
    if broken := [name for name, value in space.items() if not math.isfinite(value)]:
        return [f"not finite: {', '.join(broken)}; all sentences have one vector, or training diverged"]
    alarms = []
    spread, dimension, gap = space["relative_spread"], space["effective_dimension"], space["language_gap"]
    if spread < RELATIVE_SPREAD:
        advice = "the MSE needs a reconstruction loss (MT or DAE) beside it, or less weight"
        alarms.append(f"collapse: relative spread {spread:.2f} < {RELATIVE_SPREAD}, sentences have nearly one vector; {advice}")
    least = min(EFFECTIVE_DIMENSION, (min(sentences, width) - 1) / 3)
    if dimension < least:
        alarms.append(f"few directions: effective dimension {dimension:.1f} < {least:.1f} of {width}")
    if gap > LANGUAGE_GAP:
        advice = "it is the MSE between translations that closes the gap; on text unlike the training's some gap is usual"
        alarms.append(f"languages apart: language gap {gap:.2f} > {LANGUAGE_GAP}; {advice}")
    return alarms


def _two_or_more(rows: Sequence[dict[str, str]]) -> list[str]:
    """The languages of aligned rows."""
    languages = sorted(rows[0])
    if len(languages) < 2:
        raise ValueError(f"expected rows in two languages or more, got {', '.join(languages) or 'none'}")
    return languages


def distinct_rows(rows: Sequence[dict[str, str]]) -> list[int]:
    """Indices of rows none of whose sentences stood in an earlier row."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for i, row in enumerate(rows):
        if not seen & set(row.items()):
            kept.append(i)
        seen |= set(row.items())
    return kept
