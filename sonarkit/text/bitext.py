"""Aligned corpora: rows that hold one sentence in two or more languages."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cache
from pathlib import Path

from sonarkit.text.corpora import read_jsonl
from sonarkit.text.languages import SONAR_LANGUAGES, UnknownLanguageError, check_language


def read_aligned(path: str | Path, dropped: Counter[str] | None = None) -> list[dict[str, str]]:
    """Rows of a JSONL file (or .jsonl.gz), keyed by FLORES-200 code, two or more languages each.

    Empty sides are left out, and rows with fewer than two sides left; `dropped` counts both. A list, since training
    draws from it at random. Raises ValueError naming file and line of what is no such row, OSError for the file.
    """
    dropped = Counter() if dropped is None else dropped
    rows = []
    for number, row in read_jsonl(Path(path)):
        for code, text in row.items():
            if not isinstance(text, str):
                raise ValueError(f"{path}:{number}: expected a sentence for each language code, got {code!r}: {str(text)[:60]}")
            try:
                _known(code)
            except UnknownLanguageError as error:
                raise UnknownLanguageError(f"{path}:{number}: {error}") from error
        sides = {code: text.strip() for code, text in row.items() if text.strip()}
        dropped["empty side"] += len(row) - len(sides)
        if len(sides) >= 2:
            rows.append(sides)
        else:
            dropped["row of fewer than two languages"] += 1
    dropped += Counter()  # forgets the reasons that never occurred
    return rows


@cache
def _known(code: str) -> str:
    return check_language(code, SONAR_LANGUAGES)


def held_out(english: str) -> bool:
    """Whether a row belongs to the test set for good: about every 50th, by a hash of its English side."""
    return int.from_bytes(hashlib.sha256(english.encode()).digest()[:8], "big") % 50 == 0
