"""The whole report on a codec: text back and forth, search, the space, and noise, as one table and one JSON object."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation.codec import distinct_rows, space_alarms, space_report
from sonarkit.evaluation.fragility import fragility_curve
from sonarkit.evaluation.negatives import KINDS, entity_pool, hard_negatives
from sonarkit.evaluation.translation import flores_tokenizer, scores, tokenizer_for
from sonarkit.evaluation.xsim import search_accuracy, xsim_error, xsim_plus_plus
from sonarkit.text.languages import UnknownLanguageError, resolve

Report = dict[str, Any]
ENGLISH = "eng_Latn"
# Of a language: its key in the report and its head in the table.
COLUMNS = {
    "bleu": "BLEU", "chrf": "chrF++",
    "bleu_to_pivot": "BLEU", "chrf_to_pivot": "chrF++",
    "bleu_from_pivot": "BLEU", "chrf_from_pivot": "chrF++",
    "xsim": "xsim %", "xsim_plus_plus": "xsim++ %", "accuracy": "acc. %",
}  # fmt: skip


def evaluate_codec(
    sonar: Sonar,
    rows: Sequence[dict[str, str]],
    *,
    pivot: str = ENGLISH,
    beam_size: int = 5,
    spbleu: bool = True,
    noise: Sequence[float] = (),
    seed: int = 0,
    tell: Callable[[str], object] = lambda _: None,
) -> Report:
    """Measure a codec on aligned rows, each with the languages of the first (`sets.rows_of`).

    `languages` has for each, scores from 0 to 100: `bleu` and `chrf` of what comes back (auto-encoding), and where it is
    not the pivot `bleu_to_pivot` and the like; `xsim` and `xsim_back`, errors in percent of finding the pivot's sentence and
    of being found by it; `accuracy`, of both directions by cosine; `xsim_plus_plus` and `xsim_plus_plus_by_kind` where the
    pivot is English. `mean` is that over the languages that have a number. Searches leave out rows that repeat a sentence
    in any language, since they would have two right answers: `distinct` is how many are left.

    BLEU is spBLEU (FLORES-200's tokenizer) where sacrebleu has that or may fetch it, and `spbleu` asks for it; `notes` says
    where not, `signatures` how each language was counted. `space` and `alarms`: `space_report`, `space_alarms`.
    `fragility`: for noise levels, of the pivot. `tell` hears what is being done.

    Raises ValueError for fewer than two different sentences and a pivot that is not in the rows, UnknownLanguageError for
    a language that the codec does not have.
    """
    began = time.monotonic()
    languages, pivot = _checked(sonar, rows, pivot)
    distinct = distinct_rows(rows)
    notes: list[str] = []
    if spbleu and (why := flores_tokenizer()):
        notes.append(f"no spBLEU: FLORES-200's tokenizer is not at hand ({why}); BLEU is by sacrebleu's own tokenizers instead")
        spbleu = False
    if len(distinct) < len(rows):
        notes.append(f"{len(rows) - len(distinct)} of {len(rows)} rows repeat a sentence and are left out of the searches")
    texts = {code: [row[code] for row in rows] for code in languages}
    z = {}
    for code in languages:
        tell(f"encoding {code}")
        z[code] = sonar.encode(texts[code], code)
    signatures: dict[str, dict[str, str]] = {}
    table: dict[str, dict[str, Any]] = {code: {} for code in languages}

    def score(source: str, target: str, into: str, suffix: str) -> None:
        tell(f"decoding {source} into {target}")
        told = sonar.decode(z[source], target, beam_size=beam_size)
        found = scores(told, texts[target], target, tokenizer=tokenizer_for(target, spbleu))
        table[into] |= {f"bleu{suffix}": found.bleu, f"chrf{suffix}": found.chrf}
        signatures[target] = found.signatures

    for code in languages:
        score(code, code, code, "")
    others = [code for code in languages if code != pivot]
    for code in others:
        score(code, pivot, code, "_to_pivot")
        score(pivot, code, code, "_from_pivot")
    y = z[pivot][distinct]
    negatives = _negatives(texts[pivot], [texts[pivot][i] for i in distinct], seed) if pivot == ENGLISH else []
    z_negatives = sonar.encode([text for _, text in negatives], ENGLISH) if negatives else y[:0]
    for code in others:
        tell(f"searching {code}")
        x = z[code][distinct]
        table[code] |= {"xsim": 100 * xsim_error(x, y, progress=True), "xsim_back": 100 * xsim_error(y, x, progress=True)}
        table[code]["accuracy"] = 50 * sum(search_accuracy(x, y, progress=True))
        if pivot == ENGLISH:
            found = xsim_plus_plus(x, y, z_negatives, [kind for kind, _ in negatives], progress=True)
            table[code]["xsim_plus_plus"] = 100 * found.error
            table[code]["xsim_plus_plus_by_kind"] = {
                kind: 100 * found.by_kind.get(kind, 0.0) for kind in (*KINDS, "other sentence")
            }
    report: Report = {
        "model": sonar.name,
        "fingerprint": sonar.fingerprint(),
        "sentences": len(rows),
        "distinct": len(distinct),
        "pivot": pivot,
        "beam_size": beam_size,
        "negatives": {kind: sum(one == kind for one, _ in negatives) for kind in KINDS} if pivot == ENGLISH else {},
        "languages": table,
        "mean": _mean(list(table.values())),
        "signatures": signatures,
    }
    if others:
        report["space"] = space_report(sonar, rows)
        report["alarms"] = space_alarms(report["space"], len(rows), sonar.config.width)
    if noise:
        tell("decoding with noise")
        curve = fragility_curve(sonar, texts[pivot], pivot, noise, beam_size=beam_size, seed=seed)
        report["fragility"] = {"lang": pivot, "seed": seed, "half": curve.half(), "levels": curve.table()}
    return report | {"notes": notes, "torch": torch.__version__, "seconds": round(time.monotonic() - began, 1)}


def _checked(sonar: Sonar, rows: Sequence[dict[str, str]], pivot: str) -> tuple[list[str], str]:
    if len(rows) < 2:
        raise ValueError(f"expected at least two rows to measure, got {len(rows)}: among one sentence nothing can be confused")
    languages = sorted(rows[0])
    try:
        pivot = resolve(pivot, languages)
    except UnknownLanguageError as error:
        raise UnknownLanguageError(f"the pivot is not among the rows' languages: {error}") from error
    for code in languages:
        try:
            resolve(code, sonar.languages)
        except UnknownLanguageError as error:
            raise UnknownLanguageError(f"the codec {sonar.name or 'at hand'} does not have every language: {error}") from error
    if len(languages) > 1 and len(distinct_rows(rows)) < 2:
        raise ValueError(f"expected at least two different rows, got {len(rows)} times the same")
    return languages, pivot


def _negatives(corpus: Sequence[str], sentences: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """The hard negatives of all sentences, once each, without those that are sentences of the corpus themselves."""
    pool = entity_pool(corpus)
    found = {text: kind for sentence in sentences for kind, text in hard_negatives(sentence, pool, seed)}
    for sentence in corpus:
        found.pop(sentence, None)
    return sorted(((kind, text) for text, kind in found.items()), key=lambda pair: KINDS.index(pair[0]))


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each number over the rows that have it, within dictionaries, too."""
    means: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        means[key] = _mean(values) if isinstance(values[0], dict) else sum(values) / len(values)
    return means


def table_of(report: Report) -> str:
    """The report as people read it: a row for each language, the mean last, then what else there is to know."""
    pivot = report["pivot"]
    lone = len(report["languages"]) == 1
    keys = [key for key in COLUMNS if key in report["mean"]]
    groups = [("auto-encoding", 2)] + ([] if lone else [(f"into {pivot}", 2), (f"from {pivot}", 2), (f"search for {pivot}", 3)])
    lines = [" " * 12 + "".join(f"{name:^{9 * span}}".rstrip().ljust(9 * span) for name, span in groups).rstrip()]
    lines.append(" " * 12 + "".join(f"{COLUMNS[key]:>9}" for key in keys))
    for name, row in [*report["languages"].items(), ("mean", report["mean"])]:
        lines.append(f"{name:<12}" + "".join(f"{row[key]:9.1f}" if key in row else " " * 9 for key in keys).rstrip())
    if by_kind := report["mean"].get("xsim_plus_plus_by_kind"):
        many = ", ".join(f"{count} {kind}" for kind, count in report["negatives"].items())
        shares = ", ".join(f"{kind} {share:.1f} %" for kind, share in by_kind.items())
        lines.append(f"xsim++ among {many}; confused with {shares}")
    if space := report.get("space"):
        lines.append("space: " + ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in space.items()))
    if noisy := report.get("fragility"):
        half = "more than half of the BLEU at every level" if noisy["levels"][0]["bleu"] else "there is no BLEU to lose"
        if noisy["half"] is not None:
            half = f"half of the BLEU at {noisy['half']:.2f}"
        lines.append(f"noise on {noisy['lang']}: {half}")
        for level in noisy["levels"]:
            lines.append("{noise:<12.2f}{bleu:9.1f}{chrf:9.1f}   cosine {cosine:.3f}".format(**level))
    lines += [f"alarm: {alarm}" for alarm in report.get("alarms", [])] + [f"note: {note}" for note in report["notes"]]
    counted = dict.fromkeys(one["bleu"] for one in report["signatures"].values())
    chrf = next(iter(report["signatures"].values()))["chrf"]
    return "\n".join([*lines, *(f"BLEU: {one}" for one in counted), f"chrF++: {chrf}"])
