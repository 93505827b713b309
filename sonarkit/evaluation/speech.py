"""How well speech is understood: where it lies among texts, its transcription, and its translation without any pair of the two.

`speech_set` opens what a string names:

    synthetic:200            StoryWorld by espeak-ng; synthetic:200@test, @valid-unheard: in voices that training never hears
    speech.tsv  .jsonl       a manifest: path, text, language (see text.speech_data)
    cv-corpus-21.0/fr@test   a split of Common Voice's or FLEURS' folder of a language

`evaluate_speech` measures it. Speech encoders learn from transcriptions alone (arXiv 2308.11466, section 3.2), so what is decoded
into another language is translated zero-shot. Beside each number stands the same by way of the transcription: the difference
is the speech encoder's, the rest the codec's.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.audio import seconds_of
from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation.codec import distinct_rows
from sonarkit.evaluation.translation import UNSPACED, scores, tokenizer_for
from sonarkit.evaluation.xsim import best_matches
from sonarkit.text import storyworld
from sonarkit.text.languages import resolve
from sonarkit.text.speech_data import SyntheticConfig, Utterance, open_speech, synthesize

SYNTHETIC = Path("stores/speech")  # where synthetic speech is kept
# Of a spoken language: its key in the report, its head in the table, and how it is written.
COLUMNS = {
    "utterances": ("utt.", "d"), "cosine": ("cosine", ".3f"),
    "wer": ("WER %", ".1f"), "wer_text": ("by text", ".1f"), "bleu": ("BLEU", ".1f"), "bleu_text": ("by text", ".1f"),
    "xsim": ("xsim %", ".1f"),
    "bleu_translation": ("BLEU", ".1f"), "bleu_text_translation": ("by text", ".1f"), "xsim_translation": ("xsim %", ".1f"),
}  # fmt: skip
Report = dict[str, Any]
Split = Literal["train", "valid", "test"]


# ---------------------------------------------------------------------- what to measure on


@dataclass(frozen=True)
class SpeechSet:
    """Utterances, the manifest that lists them, and their translations where the set has them, a row by language for each.

    `name` has letters, digits and underscores only.
    """

    name: str
    manifest: Path
    utterances: list[Utterance]
    translations: list[dict[str, str]]


def speech_set(
    spec: str,
    split: Split = "train",
    synthetic: Path = SYNTHETIC,
    *,
    progress: bool = False,
    skip_missing: bool = False,
    dropped: Counter[str] | None = None,
) -> SpeechSet:
    """Open what `spec` names (see the module); `split` is taken where it names none ("valid" is dev of published sets).

    Synthetic speech is made below the folder `synthetic` where it is not there yet. With `skip_missing` utterances whose files
    are not there are left out; `dropped` counts what is left out, by reason. Raises FileNotFoundError and ValueError as
    `open_speech` and `synthesize` do, and ValueError for a specification that means nothing.
    """
    place, part = (spec, "") if "@" not in spec or Path(spec).exists() else tuple(spec.rsplit("@", 1))
    if place.startswith("synthetic:"):
        return _synthetic(spec, place.removeprefix("synthetic:"), part or split, synthetic, progress)
    path = Path(place)
    if path.is_file():
        if part:
            raise ValueError(f"{spec}: a manifest has no splits; leave @{part} out")
        found = open_speech(path, skip_missing=skip_missing, dropped=dropped)
        return SpeechSet(_name(f"{path.resolve().parent.name}_{path.stem}"), path, found, [])
    part = part or {"valid": "dev"}.get(split, split)
    found = open_speech(path, part, skip_missing=skip_missing, dropped=dropped)
    return SpeechSet(_name(f"{path.resolve().name}_{part}"), path / f"{part}.tsv", found, [])


def _synthetic(spec: str, count: str, part: str, folder: Path, progress: bool) -> SpeechSet:
    split, _, voices = part.partition("-")
    if not count.isdecimal() or not int(count) or split not in storyworld.SPLITS or voices not in ("", "unheard"):
        raise ValueError(
            f"{spec}: expected synthetic:COUNT or synthetic:COUNT@SPLIT with SPLIT one of {', '.join(storyworld.SPLITS)}, "
            "maybe followed by -unheard; such as synthetic:200@valid-unheard"
        )
    config = SyntheticConfig(int(count), split=split, voices=voices or "train")
    manifest = folder / f"{part}-{count}" / "manifest.tsv"
    if not manifest.is_file():  # it is written last
        synthesize(manifest.parent, config, progress=progress)
    stories = storyworld.stories(config.count, config.seed, config.split)
    rows = (row for story in stories for row in storyworld.aligned(story.sentences))
    return SpeechSet(_name(part), manifest, open_speech(manifest), list(islice(rows, config.count)))


def _name(text: str) -> str:
    return re.sub(r"\W+", "_", text)


def translations_of(utterances: Sequence[Utterance], rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For each utterance the first aligned row that has its text in its language, or none ({}).

    So the sentences of FLEURS, which are FLORES', find their translations there.
    """
    found: dict[tuple[str, str], Mapping[str, str]] = {}
    for row in rows:
        for code, text in row.items():
            found.setdefault((code, text.strip()), row)
    return [dict(found.get((u.language, u.text.strip()), {})) for u in utterances]


# ---------------------------------------------------------------------- word errors


def words_of(text: str, code: str = "eng_Latn") -> list[str]:
    """What a word error is counted in: words without case and punctuation; characters where the script has no spaces."""
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text.casefold())
    return list("".join(kept.split())) if code.rpartition("_")[2] in UNSPACED else kept.split()


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that make b of a."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def word_error_rate(said: Sequence[str], references: Sequence[str], code: str = "eng_Latn") -> float:
    """Word errors in percent of the references' words, over the whole corpus (it may be above 100).

    ValueError where there are not as many of both, or no words in the references.
    """
    wanted = [words_of(text, code) for text in references]
    total = sum(map(len, wanted))
    if len(said) != len(wanted) or not total:
        raise ValueError(
            f"expected a reference with words for each text, got {len(said)} texts, {len(wanted)} references, {total} words"
        )
    return 100 * sum(edit_distance(words_of(text, code), words) for text, words in zip(said, wanted)) / total


# ---------------------------------------------------------------------- the report


def evaluate_speech(
    sonar: Sonar,
    utterances: Sequence[Utterance],
    translations: Sequence[Mapping[str, str]] = (),
    *,
    into: Sequence[str] = (),
    beam_size: int = 5,
    batch_seconds: float | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Report:
    """Measure the speech encoder of a codec on utterances; `translations` are one row by language for each, {} for none.

    `languages` has for each spoken language: `cosine` to the vector of the transcription; of what is decoded in that language
    `wer`, word errors in percent, and `bleu`; `bleu_into_LANGUAGE` of each other language, which is zero-shot translation;
    `xsim` and `xsim_to_LANGUAGE`, errors in percent of finding its sentence, by margin, among all of a language;
    `bleu_translation` and `xsim_translation`, means over the other languages. `wer_text`, `bleu_text` and the like are the same
    from the transcription's vector. `mean` is over the spoken languages. Searches leave out utterances that repeat a sentence in
    any language: `distinct` are left; among fewer than two there is none. `into` are the languages to decode into beside the
    spoken ones, by default all that rows and codec have.

    Raises ValueError where the codec has no speech encoder, where there is no utterance or not a row for each, and for a file
    that cannot be encoded; UnknownLanguageError for a language that the codec does not have.
    """
    began = time.monotonic()
    if not utterances or (translations and len(translations) != len(utterances)):
        raise ValueError(
            "expected at least one utterance, and a row of translations for each or none; "
            f"got {len(utterances)} utterances and {len(translations)} rows"
        )
    codes = [resolve(u.language, sonar.languages) for u in utterances]
    rows = [{**row, code: u.text} for code, u, row in zip(codes, utterances, translations or [{}] * len(utterances))]
    have = sorted({code for row in rows for code in row} & set(sonar.languages))
    targets = sorted({resolve(code, have) for code in into} | set(codes)) if into else have
    tell("encoding")
    heard = sonar.encode_speech([u.path for u in utterances], batch_seconds=batch_seconds)
    read = sonar.encode([u.text for u in utterances], codes)
    cosines = F.cosine_similarity(heard, read).tolist()
    distinct = distinct_rows(rows)
    table: dict[str, dict[str, float]] = {}
    for code in sorted(set(codes)):
        spoken = [i for i, one in enumerate(codes) if one == code]
        seconds = sum(seconds_of(utterances[i].path) for i in spoken)
        table[code] = {"utterances": len(spoken), "seconds": seconds, "cosine": fmean(cosines[i] for i in spoken)}
    signatures = {}
    for target in targets:
        tell(f"decoding into {target}")
        chosen = [i for i, row in enumerate(rows) if target in row]
        for z, suffix in ((heard, ""), (read, "_text")):
            said = dict(zip(chosen, sonar.decode(z[chosen], target, beam_size=beam_size)))
            for code, row in table.items():
                if of := [i for i in chosen if codes[i] == code]:
                    pair = [said[i] for i in of], [rows[i][target] for i in of]
                    found = scores(*pair, target, tokenizer=tokenizer_for(target, False))
                    row[f"bleu{suffix}" + (f"_into_{target}" if code != target else "")] = found.bleu
                    signatures[target] = found.signatures["bleu"]
                    if code == target:
                        row[f"wer{suffix}"] = word_error_rate(*pair, code)
        tell(f"searching {target}")
        wanted = {i: rows[i][target] for i in distinct if target in rows[i]}
        for code, error in _search_errors(sonar, heard, codes, wanted, target).items():
            table[code]["xsim" + (f"_to_{target}" if code != target else "")] = error
    for row in table.values():
        for name, begins in (("bleu", "bleu_into_"), ("bleu_text", "bleu_text_into_"), ("xsim", "xsim_to_")):
            if others := [value for key, value in row.items() if key.startswith(begins)]:
                row[f"{name}_translation"] = fmean(others)
    keys = dict.fromkeys(key for row in table.values() for key in row)
    return {
        "model": sonar.name,
        "speech": sonar.speech.name,
        "fingerprint": sonar.fingerprint(),
        "utterances": len(utterances),
        "translated": sum(len(row) > 1 for row in rows),
        "distinct": len(distinct),
        "beam_size": beam_size,
        "targets": targets,
        "languages": table,
        "mean": {key: fmean(row[key] for row in table.values() if key in row) for key in keys},
        "signatures": signatures,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
    }


def _search_errors(sonar: Sonar, heard: Tensor, codes: Sequence[str], wanted: Mapping[int, str], target: str) -> dict[str, float]:
    """By spoken language how often, in percent, an utterance finds another sentence of `target` than its own."""
    if len(wanted) < 2:
        return {}
    chosen = list(wanted)
    best = best_matches(heard[chosen], sonar.encode(list(wanted.values()), target)).tolist()
    wrong: dict[str, list[bool]] = {}
    for place, (i, found) in enumerate(zip(chosen, best)):
        wrong.setdefault(codes[i], []).append(found != place)
    return {code: 100 * fmean(errors) for code, errors in wrong.items()}


def table_of(report: Report) -> str:
    """The report as people read it: a row for each spoken language, the mean last; then BLEU by language decoded into."""
    heads = [("", 2), ("transcription", 5), ("translation, zero-shot", 3)]
    lines = [" " * 12 + "".join(f"{head:^{9 * span}}" for head, span in heads).rstrip()]
    lines.append(" " * 12 + "".join(f"{head:>9}" for head, _ in COLUMNS.values()))
    rows = [*report["languages"].items(), ("mean", {**report["mean"], "utterances": report["utterances"]})]
    for name, row in rows:
        cells = (f"{row[key]:9{kind}}" if key in row else " " * 9 for key, (_, kind) in COLUMNS.items())
        lines.append(f"{name:<12}{''.join(cells)}".rstrip())
    if len(report["targets"]) > 1:
        lines.append("BLEU into".ljust(12) + "".join(f"{target:>20}" for target in report["targets"]))
        for name, row in report["languages"].items():
            pairs = (
                (f"bleu{of}" + (f"_into_{target}" if target != name else "") for of in ("", "_text"))
                for target in report["targets"]
            )
            cells = (f"{row[heard]:12.1f} ({row[read]:5.1f})" if heard in row else " " * 20 for heard, read in pairs)
            lines.append(f"{name:<12}{''.join(cells)}".rstrip())
    distinct = f"{report['translated']} have translations, searches are among {report['distinct']} that repeat no sentence"
    return "\n".join(
        [
            *lines,
            f"(in brackets and 'by text': from the vector of the transcription; {distinct})",
            *(f"BLEU: {one}" for one in dict.fromkeys(report["signatures"].values())),
        ]
    )
