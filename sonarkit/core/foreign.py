"""Text and JSON that others wrote: what is wrong with it is a ValueError that says where, and no line of it fills the memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

LONGEST_LINE = 64 << 20  # bytes: a book of some 10 million words


def parse_json(text: str | bytes) -> Any:
    """`json.loads` of which every error is a ValueError; its own for what is nested too deeply is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, remedy: str = "copy it again") -> dict[str, Any]:
    """The object in a JSON file. ValueError names the file, what is wrong and the remedy; OSError as usual."""
    try:
        told = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {remedy}") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(told).__name__}; {remedy}")
    return told


def bounded_lines(file: IO[bytes], name: object) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, with their numbers and ends. ValueError names one of more than LONGEST_LINE bytes, unread."""
    for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(
                f"{name}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; expected a text a line. "
                "Is it another kind of file, or has it lost its line ends?"
            )
        yield number, line
