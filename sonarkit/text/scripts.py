"""Scripts: which of SONAR's 29 a text is written in, by the names that Unicode gives its letters.

A script is its code of ISO 15924, as in the second half of a language's code. Only letters are looked at: digits, marks,
punctuation and letters that all scripts share (the modifier apostrophes, mathematical letters) say nothing.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

# By the first word of a letter's Unicode name, "CYRILLIC SMALL LETTER ZHE".
_BY_NAME = {
    "ARABIC": "Arab", "ARMENIAN": "Armn", "BENGALI": "Beng", "BOPOMOFO": "Bopo", "CJK": "Hani", "CYRILLIC": "Cyrl",
    "DEVANAGARI": "Deva", "ETHIOPIC": "Ethi", "FEMININE": "Latn", "GEORGIAN": "Geor", "GREEK": "Grek", "GUJARATI": "Gujr",
    "GURMUKHI": "Guru", "HANGUL": "Hang", "HEBREW": "Hebr", "HENTAIGANA": "Hira", "HIRAGANA": "Hira", "IDEOGRAPHIC": "Hani",
    "KANNADA": "Knda", "KATAKANA": "Kana", "KATAKANA-HIRAGANA": "Kana", "KHMER": "Khmr", "LAO": "Laoo", "LATIN": "Latn",
    "MALAYALAM": "Mlym", "MASCULINE": "Latn", "MYANMAR": "Mymr", "OL": "Olck", "ORIYA": "Orya", "SINHALA": "Sinh",
    "TAMIL": "Taml", "TELUGU": "Telu", "THAI": "Thai", "TIBETAN": "Tibt", "TIFINAGH": "Tfng",
}  # fmt: skip
_SHARED = ("MODIFIER", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "MICRO", "OHM", "PLANCK", "VERTICAL", "CARON")
_OTHER = "Zzzz"  # a letter of a script that no language of SONAR is written in

_HAN = ("Hani", "Hans", "Hant")
# What a script is written with, where that is not itself. Han letters under Hang would let Chinese pass for Korean.
_WRITTEN_WITH = {
    "Hans": _HAN,
    "Hant": (*_HAN, "Bopo"),
    "Jpan": (*_HAN, "Hira", "Kana"),
    "Kore": ("Hang",),
}
_WIDE = (*_HAN, "Hira", "Kana", "Hang")


@cache
def script(char: str) -> str:
    """The script of a letter; "" for what is no letter or one that all scripts share, "Zzzz" for a script not in SONAR.

    Han letters are Hans or Hant where only the simplified or only the traditional writing has them (GB 2312 and Big5, the
    character sets of either, tell), else Hani.
    """
    if not char.isalpha():
        return ""
    words = unicodedata.name(char, _OTHER).split()
    word = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    found = "" if word in _SHARED else _BY_NAME.get(word, _OTHER)
    if found == "Hani":
        simplified, traditional = _is_in(char, "gb2312"), _is_in(char, "big5")
        return found if simplified == traditional else "Hans" if simplified else "Hant"
    return found


def _is_in(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def letters(text: str) -> Counter[str]:
    """How many letters a text has of each script."""
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if code := script(char):
            found[code] += count
    return found


def language_script(lang: str) -> str:
    """The script of a language code; "" where the code names none that is known here. Mind sat_Beng: see text.languages."""
    code = "Olck" if lang == "sat_Beng" else lang.partition("_")[2]
    return code if code in _WRITTEN_WITH or code in _BY_NAME.values() else ""


def script_share(found: Counter[str], lang: str) -> float:
    """Share of the `letters` of a text that its language is written with, 0 to 1; 1 where there is nothing to tell by.

    Han is counted as simplified or traditional as a whole, by which of the two has more letters of its own in the text:
    most letters belong to both. Japanese in Han alone and Chinese cannot be told apart.
    """
    code, total = language_script(lang), found.total()
    if not code or not total:
        return 1.0
    if (code == "Hans" and found["Hant"] > found["Hans"]) or (code == "Hant" and found["Hans"] > found["Hant"]):
        return 0.0
    return sum(found[part] for part in _WRITTEN_WITH.get(code, (code,))) / total


def width(text: str, found: Counter[str]) -> int:
    """Length of a text whose `letters` were found: characters, those of Han, kana and Hangul twice, as wide as they print."""
    return len(text) + sum(found[code] for code in _WIDE)
