"""Corpora: documents one at a time from files, folders, StoryWorld or a Hugging Face dataset.

A corpus is named by a string:

    stories.txt                documents separated by blank lines
    stories.jsonl  .jsonl.gz   one JSON object a line, the text under `column`
    stories.parquet            the text in `column`
    folder/                    all of these in it, in the order of their names
    storyworld:20000           that many training stories (storyworld:20000@7 with seed 7)
    storyworld:valid  :test    the fixed sets that ship
    handwritten                the 30 stories that no grammar wrote
    hf:NAME[:CONFIG][@SPLIT]   a Hugging Face dataset, streamed (pip install "sonarkit[hf]")

Nothing is dropped in silence: `corpus.dropped` counts it by reason.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet

from sonarkit.core.paths import data_folder
from sonarkit.text import storyworld

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


class ColumnError(ValueError):
    """The corpus has no such column."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from, such as `stories.jsonl:12`."""

    text: str
    source: str


@dataclass
class Corpus:
    """Documents, read anew at each iteration; the counts are those of the last one."""

    name: str
    read: Callable[[], Iterator[tuple[object, str]]]  # (value, source), the value not yet checked
    limit: int | None = None
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Document]:
        self.kept, self.dropped = 0, Counter()
        for value, source in self.read():
            if self.limit is not None and self.kept >= self.limit:
                return
            if not isinstance(value, str):
                self.dropped["not a text"] += 1
            elif not value.strip():
                self.dropped["empty"] += 1
            else:
                self.kept += 1
                yield Document(value, source)

    def report(self) -> str:
        """`kept 186 documents, dropped 2 (2 empty)`."""
        reasons = ", ".join(f"{count} {why}" for why, count in self.dropped.most_common())
        return f"kept {self.kept} documents, dropped {self.dropped.total()}" + (f" ({reasons})" if reasons else "")


def open_corpus(spec: str | Path, *, column: str = "text", lang: str = "eng_Latn", limit: int | None = None) -> Corpus:
    """The corpus that `spec` names (see the module). `lang` chooses among the languages of a corpus that has several.

    Raises FileNotFoundError, ValueError for a kind of file that is not known, and, while reading, ColumnError
    (listing the columns there are) and ValueError with file and line for invalid UTF-8 or JSON.
    """
    name = str(spec)
    if name.startswith("storyworld:"):
        return Corpus(name, _storyworld(name.removeprefix("storyworld:"), lang), limit)
    if name == "handwritten":
        return Corpus(name, lambda: _handwritten(lang), limit)
    if name.startswith("hf:"):
        return Corpus(name, lambda: _hugging_face(name.removeprefix("hf:"), column), limit)
    files = _files(Path(spec))
    return Corpus(name, lambda: (item for file in files for item in _file(file, column)), limit)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(KINDS))
        if not files:
            raise ValueError(f"the folder {path} holds no corpus file; expected some of {', '.join(KINDS)}")
        return files
    if not path.is_file():
        raise FileNotFoundError(f"no corpus at {path}; expected a file or folder of {', '.join(KINDS)}, or storyworld:, handwritten, hf:")
    if not path.name.endswith(KINDS):
        raise ValueError(f"{path} is of no known kind; expected {', '.join(KINDS)}")
    return [path]


def _file(path: Path, column: str) -> Iterator[tuple[object, str]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, column)
    elif path.suffix == ".txt":
        yield from _plain(path)
    else:
        for number, row in read_jsonl(path):
            yield _cell(row, column, f"{path}:{number}"), f"{path.name}:{number}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not valid UTF-8 (byte {line[error.start]:#04x}); convert the file, such as with iconv") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers; blank lines are skipped. ValueError names file and line."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {line.strip()[:60]}")
        yield number, row


def _cell(row: dict[str, Any], column: str, where: str) -> object:
    if column not in row:
        raise ColumnError(f"{where}: no column {column!r}; the columns are {', '.join(map(str, row))}. Name one with --column")
    return row[column]


def _plain(path: Path) -> Iterator[tuple[object, str]]:
    lines: list[str] = []
    began = 1
    for number, line in _lines(path):
        if line.strip():
            began = began if lines else number
            lines.append(line)
        elif lines:
            yield "".join(lines), f"{path.name}:{began}"
            lines = []
    if lines:
        yield "".join(lines), f"{path.name}:{began}"


def _parquet(path: Path, column: str) -> Iterator[tuple[object, str]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file ({error})") from error
    if column not in file.schema_arrow.names:
        raise ColumnError(f"{path}: no column {column!r}; the columns are {', '.join(file.schema_arrow.names)}. Name one with --column")
    number = 0
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(0).to_pylist():
            yield value, f"{path.name}:{number}"
            number += 1


def _storyworld(what: str, lang: str) -> Callable[[], Iterator[tuple[object, str]]]:
    if what in ("valid", "test"):
        path = data_folder() / "storyworld" / f"{what}.jsonl"
        return lambda: ((_told(row["sentences"], lang), f"storyworld/{what}:{number}") for number, row in read_jsonl(path))
    count, _, seed = what.partition("@")
    if not count.isdigit() or (seed and not seed.isdigit()):
        raise ValueError(f"storyworld:{what} is no StoryWorld corpus; expected storyworld:COUNT, storyworld:COUNT@SEED, storyworld:valid or storyworld:test")
    return lambda: (
        (_told(story.sentences, lang), f"storyworld/train@{seed or 0}:{i}")
        for i, story in enumerate(storyworld.stories(int(count), seed=int(seed or 0)))
    )


def _handwritten(lang: str) -> Iterator[tuple[object, str]]:
    for number, row in read_jsonl(data_folder() / "handwritten.jsonl"):
        yield _told({code: told for code, told in row.items() if code != "title"}, lang), f"handwritten:{number}"


def _told(sentences: dict[str, list[str]], lang: str) -> str:
    if lang not in sentences:
        raise ValueError(f"this corpus is not told in {lang!r}; it has {', '.join(sentences)}")
    return " ".join(sentences[lang])


def _hugging_face(what: str, column: str) -> Iterator[tuple[object, str]]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError('hf: corpora need the datasets package: pip install "sonarkit[hf]"') from error
    path, _, split = what.partition("@")
    name, _, config = path.partition(":")
    dataset = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    for number, row in enumerate(dataset):
        yield _cell(row, column, f"hf:{what}"), f"hf:{name}:{number}"
