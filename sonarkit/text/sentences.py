"""Text to sentences with NLTK's Punkt, offline too.

1. A blank line ends a sentence; within a paragraph white space is folded to single spaces.
2. Punkt reads a shadow of the paragraph, of the same length, in which all quotation marks are ASCII and end marks
   that do not end the sentence ("Where is it?" asked Tom.) are commas. Its cuts are applied to the paragraph.
3. The model is NLTK's own for the language where the user has it, else ours, `assets/punkt.json`.

Ours is trained again, on StoryWorld and aligned corpora, by

    python -m sonarkit.text.sentences OUT.json BITEXT.jsonl.gz ...
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import nltk
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTokenizer, PunktTrainer

from sonarkit.core.paths import asset

OUR_MODEL = "sonarkit-punkt-2"
PARAMETERS = "punkt.json"
NLTK_MODELS = {
    "ces": "czech",
    "dan": "danish",
    "deu": "german",
    "ell": "greek",
    "eng": "english",
    "est": "estonian",
    "fin": "finnish",
    "fra": "french",
    "ita": "italian",
    "mal": "malayalam",
    "nld": "dutch",
    "nob": "norwegian",
    "pol": "polish",
    "por": "portuguese",
    "rus": "russian",
    "slv": "slovene",
    "spa": "spanish",
    "swe": "swedish",
    "tur": "turkish",
}
# Well-known abbreviations. Not those that are words too: "He said no. Tom left.", "Il en a sept. Paul rit."
ABBREVIATIONS = {
    "eng_Latn": """mr mrs ms dr prof st jr sr rev hon capt lt sgt col gov vs etc e.g i.e a.m p.m ph.d u.s u.k u.n approx
                   dept inc ltd corp sept oct nov""",
    "fra_Latn": "m mm mme mmes mlle mlles mgr dr pr st ste etc p.ex c.-à-d av bd cf env apr janv févr juil oct nov déc",
    "deu_Latn": """hr hrn fr frl dr prof st nr bzw usw u.s.w z.b d.h u.a o.ä v.a ca evtl ggf vgl inkl str geb mio mrd tel
                   jan feb okt nov dez""",
    "spa_Latn": "sr sra srta sres dr dra d dña prof ud uds vd vds ee.uu p.ej etc pág núm tel av avda gral sto sta",
}
# Before a capital these never end a sentence. Punkt alone would cut "Mr. Fox", having seen "fox" in lower case.
_TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Dra|Prof|Rev|Capt|Lt|Sgt|Gen|MM|Mme|Mlle|Mgr|Hr|Hrn|Fr|Frl|Sr|Sra|Srta|Sres|Dña)\.(?= \w)")
# German writes ordinals with a full stop: "Am 3. Mai" goes on.
_AFTER_ORDINAL = """januar februar märz april mai juni juli august september oktober november dezember jahrhundert
                    geburtstag klasse stock tag woche mal platz"""

_BLANK_LINE = re.compile(r"\n\s*\n")
_DASHES = "—–-"
# What may close a quotation after an end mark: a quote glued to it, or French's " »" (not German's opening »Wort).
_CLOSER = r"""(?:["'”“’‘»«›‹)\]]|\ [»›](?!\w))"""
_END = re.compile(rf"([.!?…]+)({_CLOSER}*)(?=(\ ?[{_DASHES}]?\ ?)(\S?))")
_SENTENCE_MARKS = str.maketrans(dict.fromkeys("؟۔।॥።။։។།᱾。！？", "?"))
_QUOTES = str.maketrans(dict.fromkeys("„“”«»‹›", '"') | dict.fromkeys("’‘‚", "'"))
# Chinese and Japanese put no space between sentences.
_WITHOUT_SPACE = re.compile(r"(?<=[。！？])(?![。！？」』”’）\s])")


def split_sentences(text: str, lang: str = "eng_Latn") -> list[str]:
    """The sentences of `text`, white space folded to single spaces; text without a letter or digit can be one too.

    Empty text gives []. Any language is accepted: those without a model of their own are split by English's.
    """
    sentences: list[str] = []
    for paragraph in _BLANK_LINE.split(text):
        folded = " ".join(paragraph.split())
        if folded:
            sentences += _cut(folded, _starts(folded, lang))
    return sentences


def _starts(paragraph: str, lang: str) -> list[int]:
    """Where sentences may begin: where Punkt says so and there is a space, and after a Chinese full stop."""
    found = (start for start, _ in _punkt(lang).span_tokenize(_shadow(paragraph)) if start and paragraph[start - 1] == " ")
    return sorted({*found, *(match.start() for match in _WITHOUT_SPACE.finditer(paragraph))})


def _cut(paragraph: str, starts: list[int]) -> list[str]:
    """The paragraph cut there, except before what has no letter or digit (". . .", an emoji): that ends a sentence."""
    ends = [*starts[1:], len(paragraph)]
    cuts = [0, *(start for start, end in zip(starts, ends) if re.search(r"\w", paragraph[start:end])), len(paragraph)]
    return [paragraph[start:end].strip() for start, end in zip(cuts, cuts[1:])]


def segmenter_name(lang: str = "eng_Latn") -> str:
    """Which model splits this language here; stores record it, since it can differ from machine to machine."""
    name = _nltk_model(lang)
    return f"nltk-punkt-{name}" if name else OUR_MODEL


def _shadow(paragraph: str) -> str:
    """What Punkt reads in place of `paragraph`, character for character."""
    in_dialogue = paragraph[0] in _DASHES  # — Où est-il ? demanda Tom.

    def end_mark(match: re.Match[str]) -> str:
        marks, closers, gap, following = match.groups()
        trails_off = "…" in marks or ".." in marks
        quoted = closers or any(dash in gap for dash in _DASHES) or (in_dialogue and gap and marks[-1] != ".")
        if following.islower():
            goes_on = quoted or trails_off
        else:  # the second: "Who are you?". Then he left.
            goes_on = following in tuple(",;:") or (closers and not gap and following in tuple(".!?…"))
        if goes_on or (trails_off and match.start() == 0):
            end = "," * len(marks)
        elif trails_off:  # "Wait... Tom came." ends like a word with a full stop: Punkt itself would not cut before a name
            end = "x" * (len(marks) - 1) + "."
        else:
            end = marks
        return end + '"' * len(closers)

    shadow = _END.sub(end_mark, _TITLE.sub(r"\1,", paragraph.translate(_SENTENCE_MARKS)))
    return shadow.replace("« ", '""').translate(_QUOTES)


# ---------------------------------------------------------------------- models


@cache
def _nltk_model(lang: str) -> str | None:
    """NLTK's model for the language, if the user has it; nothing is ever downloaded."""
    name = NLTK_MODELS.get(lang[:3])
    try:
        if name:
            nltk.data.find(f"tokenizers/punkt_tab/{name}/")
    except LookupError:
        return None
    return name


@cache
def _punkt(lang: str) -> PunktSentenceTokenizer:
    name = _nltk_model(lang)
    if name:
        return PunktTokenizer(name)
    models = _our_models()
    return load_punkt(models.get(lang, models["eng_Latn"]))


@cache
def _our_models() -> dict[str, dict[str, list[str]]]:
    return json.loads(asset(PARAMETERS).read_text(encoding="utf-8"))


def load_punkt(model: dict[str, list[str]]) -> PunktSentenceTokenizer:
    """A Punkt tokenizer from what `train_punkt` returned."""
    parameters = PunktParameters()
    parameters.abbrev_types = set(model["abbreviations"])
    parameters.collocations = {("##number##", word) for word in model["after_ordinal"]}
    parameters.sent_starters = set(model["sentence_starters"])
    parameters.ortho_context.update(dict.fromkeys(model["lower_case"], _LOWER))
    return PunktSentenceTokenizer(parameters)


# ---------------------------------------------------------------------- training

_LOWER = 1 << 4 | 1 << 5 | 1 << 6  # nltk.tokenize.punkt's _ORTHO_LC: seen in lower case, wherever
_MIDDLE_UPPER = 1 << 2  # its _ORTHO_MID_UC: seen with a capital inside a sentence


def train_punkt(sentences: Iterable[str], lang: str) -> dict[str, list[str]]:
    """Our Punkt model for one language, from its sentences in the order of the text, as JSON values.

    Kept of what PunktTrainer learns: the words that begin sentences, and those written with a capital only there.
    Its abbreviations are kept where they hold a full stop (`p.m`) and otherwise replaced by `ABBREVIATIONS`: on
    50 000 Tatoeba sentences it takes 57 plain words for abbreviations (aid, chef, hill, ...) and finds 2 true ones;
    its collocations (again + guess) come from sentences that follow one another by chance, and are dropped.
    """
    trainer = PunktTrainer()
    # The first word of a quotation would count as a capital inside a sentence.
    trainer.train(" ".join(s for s in sentences if not re.search(r'["„“«»]', s)), finalize=True)
    learnt = trainer.get_params()
    context = learnt.ortho_context
    return {
        "abbreviations": sorted({a for a in learnt.abbrev_types if "." in a} | set(ABBREVIATIONS.get(lang, "").split())),
        "after_ordinal": _AFTER_ORDINAL.split() if lang == "deu_Latn" else [],
        "sentence_starters": sorted(w for w in learnt.sent_starters if context[w] & _LOWER),  # names begin many, too
        "lower_case": sorted(w for w in context if w.isalpha() and context[w] & _LOWER and not context[w] & _MIDDLE_UPPER),
    }


def _training_sentences(bitext: Iterable[Path]) -> dict[str, list[str]]:
    """By language: 4 000 StoryWorld stories and the aligned corpora, without their test rows."""
    from sonarkit.text import storyworld
    from sonarkit.text.bitext import held_out, read_aligned

    sentences: dict[str, list[str]] = defaultdict(list)
    for story in storyworld.stories(4000):
        for lang, told in story.sentences.items():
            sentences[lang] += told
    for path in bitext:
        for row in read_aligned(path):
            if not held_out(row.get("eng_Latn", "")):
                for lang, sentence in row.items():
                    sentences[lang].append(sentence)
    return sentences


def main(out: str, *bitext: str) -> None:
    """Train a model per language and write them all to `out`."""
    corpora = _training_sentences(map(Path, bitext))
    models = {lang: train_punkt(sentences, lang) for lang, sentences in corpora.items()}
    Path(out).write_text(json.dumps(models, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
