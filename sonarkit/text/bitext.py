"""Aligned corpora: rows that hold one sentence in two or more languages."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path


def read_aligned(path: str | Path) -> list[dict[str, str]]:
    """Rows of a JSONL file (or .jsonl.gz), keyed by FLORES-200 code, two or more languages each.

    Empty sides are left out, and rows with fewer than two sides left. ValueError names file and line of what is
    no such row.
    """
    path, rows = Path(path), []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                raise ValueError(f"{path}:{number}: expected a JSON object in UTF-8 ({error})") from error
            if not isinstance(row, dict) or not all(isinstance(text, str) for text in row.values()):
                raise ValueError(f"{path}:{number}: expected an object of sentences keyed by language code, got {str(row)[:80]}")
            sides = {code: text.strip() for code, text in row.items() if text.strip()}
            if len(sides) >= 2:
                rows.append(sides)
    return rows


def held_out(english: str) -> bool:
    """Whether a row belongs to the test set for good: about every 50th, by a hash of its English side."""
    return int.from_bytes(hashlib.sha256(english.encode()).digest()[:8], "big") % 50 == 0
