"""How good a codec is: auto-encoding, translation, and the search for translations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import sacrebleu

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


def distinct_rows(rows: Sequence[dict[str, str]]) -> list[int]:
    """Indices of rows none of whose sentences stood in an earlier row."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for i, row in enumerate(rows):
        if not seen & set(row.items()):
            kept.append(i)
        seen |= set(row.items())
    return kept
