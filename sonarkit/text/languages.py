"""Languages: SONAR's 202 with their names, scripts and families, and what people type for them.

1. `languages.tsv` has a row for each language, in the order of SONAR's language tokens; `LANGUAGES` is that table.
2. `resolve` turns what someone typed (`fra_Latn`, `fr`, `fr-CA`, `French`) into a code that the codec at hand knows, or
   says what it knows; `per_text` does so for a list of texts.

A code is FLORES-200's: three letters of ISO 639-3, `_`, four of ISO 15924. SONAR has all of FLORES-200 but arb_Latn and
min_Arab, and calls sat_Olck sat_Beng. That is only a wrong name: NLLB's training and test data are Santali in Ol Chiki
script (said by its authors in the issue facebookresearch/flores 52), so texts under sat_Beng must be in Ol Chiki, too.

What to do when a language is mistaken, mixed or unknown. Measured on `mini` and StoryWorld's test sentences by
tests/bench/language_tags.py (`--codec sonar` measures Meta's weights, which may behave otherwise):

- A wrong tag on a known language costs little: cosine 0.995 to the right vector (at worst 0.988, English tagged Spanish),
  BLEU 94.8 in place of 95.2, no translation missed among 200.
- Which of the known languages? Encode under each tag and take the one under which the sentence's own `token_loss` is
  least: right for each of 160 sentences.
- A clause in another language: leave the sentence whole, under either tag (BLEU 82 and 83, as in one language; its halves
  apart 33). Two sentences in two languages: split them (92; left together 23, as two in one language, 24).
- A language that the codec does not know (Italian, Dutch): no tag helps (cosine 0.30 to 0.35, the nearest sentence is the
  right one in 40 to 55 %, BLEU 2 to 5 into English). It shows: the least loss was 6.5 nats a token and more, against at
  most 0.37 for known languages.
"""

from __future__ import annotations

import csv
import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Language:
    """A row of the table.

    `name` is FLORES-200's. `family` and `branch` are those that SONAR and NLLB publish, brought up to Glottolog 5.1;
    creoles stand with the language that gave most of their words, an isolate has no branch. `iso639_1` is the language's
    own two-letter code, or that of the macrolanguage it is the standard of (`ar` for arb_Arab). `own_name` is the Unicode
    CLDR's, "" where that has none. Codes and names that two rows share are ambiguous.
    """

    code: str  # "lvs_Latn"
    name: str  # "Standard Latvian"
    script: str  # "Latin"
    family: str  # "Indo-European"
    branch: str  # "Balto-Slavic"
    iso639_1: str  # "lv"
    own_name: str  # "latviešu"
    other_codes: tuple[str, ...]  # of ISO 639-2 and 639-3, retired ones, locales: ("lav",)
    other_names: tuple[str, ...]  # ("Latvian",)

    def __str__(self) -> str:
        return f"{self.code} ({self.name})"


def _read_table() -> dict[str, Language]:
    with Path(__file__).with_name("languages.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval=""))
    return {
        row["code"]: Language(
            **{key: row[key] for key in ("code", "name", "script", "family", "branch", "iso639_1", "own_name")},
            other_codes=tuple(row["other_codes"].split()),
            other_names=tuple(filter(None, row["other_names"].split("; "))),
        )
        for row in rows
    }


LANGUAGES: Mapping[str, Language] = MappingProxyType(_read_table())
SONAR_LANGUAGES: tuple[str, ...] = tuple(LANGUAGES)  # in the order of the language tokens, which is NLLB's


class UnknownLanguageError(ValueError):
    """A language that the model at hand does not know, or that two it knows may be."""


# Of FLORES-200, but not of SONAR.
_NOT_IN_SONAR = {
    "arb_latn": "FLORES-200 has romanized Arabic, SONAR does not; write it in Arabic script and give arb_Arab",
    "min_arab": "FLORES-200 has Minangkabau in Arabic script, SONAR does not; write it in Latin script and give min_Latn",
}
# Where a country writes a language in another script than SONAR's: the locale must not pass for SONAR's code.
EXAMPLE = "Codes are FLORES-200's, such as eng_Latn"
LONGEST = 100  # characters of what is typed for a language; the search for what was meant takes time by their number

_SCRIPT_IN = {
    "kk_cn": "arab", "ky_cn": "arab", "mn_cn": "mong", "pa_pk": "arab", "sd_in": "deva", "sr_me": "latn", "uz_af": "arab",
}  # fmt: skip
_POSIX_SCRIPTS = {"arabic": "arab", "cyrillic": "cyrl", "devanagari": "deva", "latin": "latn"}  # sr_RS@latin
# Language, extended language ("zh-yue"), script, region.
_TAG = re.compile(r"([a-z]{2,3})(?:_([a-z]{3}))?(?:_([a-z]{4}))?(?:_([a-z]{2}|\d{3}))?")


def resolve(typed: str, known: Sequence[str]) -> str:
    """The code among `known` that someone means who typed `typed`.

    The first of these that fits: a known code as it is (so a codec may have languages that are not in the table); a code
    in other letter case or with `-`; ISO 639-1, 639-2 or 639-3 (`fr`, `fre`, `fra`), alone or in a locale (`fr-CA`,
    `fr_FR.UTF-8`); a name, English or the language's own (`French`, `français`).

    A macrolanguage means its standard variety: `ar` and `Arabic` arb_Arab whatever the country (an Egyptian locale
    mostly holds Modern Standard Arabic; give arz_Arab for the spoken one), `fa` pes_Arab but fa-AF prs_Arab, `no`
    nob_Latn, `lv` lvs_Latn, `ms` zsm_Latn, `sw` swh_Latn. `zh`, `Chinese` and `Mandarin` mean zho_Hans, but zh-TW, zh-HK
    and zh-MO zho_Hant. Nothing else is a default: `kas` (two scripts), `Kurdish`, `sh` raise, unless only one that it may
    mean is known here. A script that is typed is kept to: `sr-Latn` is not srp_Cyrl.

    Raises UnknownLanguageError, which lists the candidates, or the nearest, or what is known here.
    """
    if typed in known:
        return typed
    if len(typed) > LONGEST:
        raise UnknownLanguageError(f"unknown language {typed[:LONGEST]!r}...: {_listed(known)}. {EXAMPLE}")
    here = [code for code in _meant(typed, known) if code in known]
    if set(here) == {"zho_Hans", "zho_Hant"}:
        return "zho_Hans"
    if len(here) > 1:
        raise UnknownLanguageError(f"ambiguous language {typed!r}: give {_any(here)}")
    if not here:
        raise UnknownLanguageError(f"unknown language {typed!r}: {_advice(typed, known)}")
    return here[0]


def per_text(lang: str | Sequence[str], count: int, known: Sequence[str]) -> list[str]:
    """The code among `known` for each of `count` texts, from one language for all or one each; see `resolve`.

    Raises ValueError when there are neither one nor `count` of them, and UnknownLanguageError.
    """
    typed = [lang] * count if isinstance(lang, str) else list(lang)
    if len(typed) != count:
        raise ValueError(f"one language code for all texts or one for each: got {len(typed)} codes for {count} texts")
    codes = {one: resolve(one, known) for one in ({lang} if isinstance(lang, str) else set(typed))}
    return [codes[one] for one in typed]


def check_language(code: str, known: Sequence[str]) -> str:
    """Return `code` if it is one of `known`, as files must spell it; else raise UnknownLanguageError."""
    if code in known:
        return code
    meant = resolve(code, known)
    raise UnknownLanguageError(f"unknown language {code!r}: did you mean {_named(meant)}? Codes are FLORES-200's here")


# ---------------------------------------------------------------------- what was meant


def _meant(typed: str, known: Sequence[str]) -> list[str]:
    """Codes, of the table or known, that `typed` may stand for; [] if none."""
    tag = _plain(typed)
    codes = [*LANGUAGES, *(code for code in known if code not in LANGUAGES)]
    if found := [code for code in codes if _plain(code) == tag] or _whole_tags().get(re.split("[.@]", tag)[0], []):
        return found
    language, script = _parse(tag)
    parts = {language, *_language_parts().get(language, ())}
    if found := [code for code in codes if _plain(code).split("_")[0] in parts]:
        return [code for code in found if not script or _plain(code).endswith(f"_{script}")]
    return _names().get(_key(typed), [])


def _plain(code: str) -> str:
    return code.strip(" _").lower().replace("-", "_")  # "__eng_Latn__" is how a tokenizer writes it


def _parse(tag: str) -> tuple[str, str]:
    """Language and script of a plain tag or locale, "" where it has none: "sr_rs@latin" -> "sr", "latn"."""
    tag, _, modifier = tag.partition("@")
    match = _TAG.fullmatch(tag.split(".")[0])
    if not match:
        return "", ""
    language, extended, script, region = match.groups()
    if extended:
        if extended not in _language_parts():
            return "", ""
        language = extended
    return language, script or _POSIX_SCRIPTS.get(modifier) or _SCRIPT_IN.get(f"{language}_{region}", "")


@cache
def _language_parts() -> dict[str, set[str]]:
    """From each code of a language to the first parts of the FLORES codes it stands for: "fr", "fre", "fra" -> {"fra"}."""
    parts: dict[str, set[str]] = {}
    for language in LANGUAGES.values():
        for code in filter(None, (language.code[:3], language.iso639_1, *language.other_codes)):
            if code.isalpha():
                parts.setdefault(code, set()).add(language.code[:3])
    return parts


@cache
def _whole_tags() -> dict[str, list[str]]:
    """Tags that are not put together from language and script: "zh_tw", "sat_olck"."""
    return {
        _plain(code): [language.code] for language in LANGUAGES.values() for code in language.other_codes if not code.isalpha()
    }


@cache
def _names() -> dict[str, list[str]]:
    """From each name, as `_key` spells it, to codes. Names are known with their script, too: "Serbian Cyrillic"."""
    names: dict[str, list[str]] = {}
    for language in LANGUAGES.values():
        bare = re.sub(r" \(\w+ script\)$", "", language.name)
        for name in filter(None, (language.name, bare, language.own_name, *language.other_names)):
            for key in {_key(name), _key(f"{name} {language.script}")}:
                names.setdefault(key, []).append(language.code)
    return {key: list(dict.fromkeys(codes)) for key, codes in names.items()}


def _key(name: str) -> str:
    """A name without letter case, accents and punctuation: "Ta’izzi-Adeni Arabic" -> "taizzi adeni arabic"."""
    letters = unicodedata.normalize("NFKD", re.sub("['’‘ʻʼʽ`]", "", name.casefold()))
    words = re.split(r"[\s\-_/(),.;:]+", re.sub("[\u0300-\u036f]", "", letters))
    return " ".join(word for word in words if word not in ("", "language", "script"))


# ---------------------------------------------------------------------- what to say when nothing was


def _advice(typed: str, known: Sequence[str]) -> str:
    tag = _plain(typed)
    if tag in _NOT_IN_SONAR:
        return _NOT_IN_SONAR[tag]
    if meant := _meant(typed, known):
        return f"{_any(meant)} is not known here; {_listed(known)}"
    language, script = _parse(tag)
    if script and (others := [code for code in _meant(language, known) if code in known]):
        return f"it is not known here in {_script_name(script)} script; did you mean {_any(others)}?"
    nearest = _nearest(typed, known)
    if not nearest:
        return f"{_listed(known)}. {EXAMPLE}"
    if set(nearest) & set(known):
        return f"did you mean {_any(nearest)}?"
    return f"did you mean {_any(nearest)}? That is not known here; {_listed(known)}"


def _nearest(typed: str, known: Sequence[str]) -> list[str]:
    """Up to three codes, the nearest by code or name, those that are known here first."""
    tag, key = _plain(typed), _key(typed)
    codes = [*LANGUAGES, *(code for code in known if code not in LANGUAGES)]
    found = [code for code in codes if _plain(code).startswith(f"{tag.split('_')[0]}_")]  # "zul_Lat"
    if not found:  # "Brazilian Portuguese"
        found = [code for word in key.split() if len(word) > 3 for code in _names().get(word, [])]
    if not found and not _parse(tag)[0]:  # a well-formed code that means nothing lies near many that it does not mean
        spelt = {**{_plain(code): [code] for code in codes}, **_names()}
        found = [code for close in difflib.get_close_matches(key, spelt, cutoff=0.75) for code in spelt[close]]
    return sorted(dict.fromkeys(found), key=lambda code: code not in known)[:3]


def _named(code: str) -> str:
    return str(LANGUAGES.get(code, code))


def _any(codes: Sequence[str]) -> str:
    return " or ".join(map(_named, codes))


def _listed(codes: Sequence[str]) -> str:
    if len(codes) <= 12:
        return f"known here are {', '.join(map(_named, codes))}"
    return f"known here are {len(codes)} languages, from {_named(codes[0])} to {_named(codes[-1])}"


def _script_name(script: str) -> str:
    names = {language.code[4:].lower(): language.script for language in LANGUAGES.values() if language.code != "sat_Beng"}
    return names.get(script, script.capitalize())
