"""How good a codec is: auto-encoding, translation, and the search for translations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import sacrebleu
import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation.xsim import xsim_error


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """sacrebleu's corpus BLEU with its defaults (13a tokenization, exponential smoothing), 0 to 100."""
    return sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score


def codec_report(sonar: Sonar, rows: Sequence[dict[str, str]], *, beam_size: int = 5, all_pairs: bool = True) -> dict[str, float]:
    """BLEU and xsim over aligned rows (each has every language of the first one).

    Keys: `bleu_eng_Latn` (auto-encoding), `bleu_deu_Latn-eng_Latn` (translation), `bleu_translation` (mean over
    directions), `xsim_deu_Latn-eng_Latn` and `xsim_mean` (errors in percent; rows that repeat a sentence in any
    language are left out, since they have two right answers).
    """
    languages = sorted(rows[0])
    vectors = {code: sonar.encode([row[code] for row in rows], code) for code in languages}
    results: dict[str, float] = {}
    for code in languages:
        results[f"bleu_{code}"] = corpus_bleu(sonar.decode(vectors[code], code, beam_size=beam_size), [row[code] for row in rows])
    directions = list(itertools.permutations(languages, 2)) if all_pairs else [(languages[0], languages[1])]
    for source, target in directions:
        told = sonar.decode(vectors[source], target, beam_size=beam_size)
        results[f"bleu_{source}-{target}"] = corpus_bleu(told, [row[target] for row in rows])
    results["bleu_translation"] = sum(results[f"bleu_{a}-{b}"] for a, b in directions) / len(directions)
    distinct = distinct_rows(rows)
    for source, target in directions:
        results[f"xsim_{source}-{target}"] = 100 * xsim_error(vectors[source][distinct], vectors[target][distinct])
    results["xsim_mean"] = sum(results[f"xsim_{a}-{b}"] for a, b in directions) / len(directions)
    return results


def space_report(sonar: Sonar, rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """Three numbers that tell whether a codec's space is one space, and still a space, over aligned rows.

    `language_gap`: mean squared distance between a sentence and its translations over that between any two sentences,
    0 where languages share one space, about 1 where they do not know each other. `spread`: root mean square distance of
    the vectors from their mean, 0 when everything has collapsed into a point. `effective_dimension`: participation
    ratio (sum l)^2 / sum l^2 of the variances l along the principal axes, from 1 to D.
    """
    languages = sorted(rows[0])
    z_LND = torch.stack([sonar.encode([row[code] for row in rows], code) for code in languages]).double()
    within = z_LND.var(0, correction=0).sum()  # half the mean squared distance of a pair, as every variance
    flat_ND = z_LND.flatten(0, 1)
    variances_D = torch.linalg.svdvals(flat_ND - flat_ND.mean(0)).square() / len(flat_ND)
    total = variances_D.sum()
    return {
        "language_gap": float(within / len(rows) * len(languages) / (len(languages) - 1) / total),
        "spread": float(total.sqrt()),
        "effective_dimension": float(total.square() / variances_D.square().sum()),
    }


def distinct_rows(rows: Sequence[dict[str, str]]) -> list[int]:
    """Indices of rows none of whose sentences stood in an earlier row."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for i, row in enumerate(rows):
        if not seen & set(row.items()):
            kept.append(i)
        seen |= set(row.items())
    return kept
