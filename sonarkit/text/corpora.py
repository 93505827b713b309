"""Corpora: documents one at a time from files, folders, StoryWorld or a Hugging Face dataset.

A corpus is named by a string:

    stories.txt                documents separated by blank lines
    stories.jsonl  .jsonl.gz   one JSON object a line, the text under `column` (document+summary: of both, one after the other)
    stories.parquet            the text in `column`
    folder/                    all of these in it, in the order of their names
    s3://bucket/stories.jsonl  any of these behind a URL that fsspec reads (pip install s3fs, gcsfs, ...), streamed
    storyworld:20000           that many training stories (storyworld:20000@7 with seed 7)
    storyworld:valid  :test    the fixed sets that ship; storyworld:unseen, a theme that no training story has
    handwritten                the 30 stories that no grammar wrote
    hf:NAME[:CONFIG][@SPLIT]   a Hugging Face dataset, streamed (pip install "sonarkit[hf]")

Nothing is dropped in silence: `corpus.dropped` counts it by reason.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet

from sonarkit.core.download import offline
from sonarkit.core.files import RemoteFile, as_url, remote_files
from sonarkit.core.foreign import LONGEST_LINE, bounded_lines, parse_json
from sonarkit.core.paths import data_folder
from sonarkit.text import storyworld
from sonarkit.text.languages import check_language, resolve

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
            if reason := _unfit(value):
                self.dropped[reason] += 1
                continue
            self.kept += 1
            yield Document(str(value), source)
            if self.kept == self.limit:
                return

    def report(self) -> str:
        """`kept 186 documents, dropped 2 (2 empty)`."""
        reasons = ", ".join(f"{count} {why}" for why, count in self.dropped.most_common())
        return f"kept {self.kept} documents, dropped {self.dropped.total()}" + (f" ({reasons})" if reasons else "")


def _unfit(value: object) -> str | None:
    """Why a value cannot be a document, if it cannot."""
    if not isinstance(value, str):
        return "not a text"
    if not value.strip():
        return "empty"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return "broken Unicode"
    return None


def open_corpus(spec: str | Path, *, column: str = "text", lang: str = "eng_Latn", limit: int | None = None) -> Corpus:
    """The corpus that `spec` names (see the module). `lang` chooses among the languages of a corpus that has several.

    Raises FileNotFoundError, ValueError for a kind of file that is not known and for a `limit` below 1,
    UnknownLanguageError, and, while reading, ColumnError (listing the columns there are) and ValueError with file and line
    for invalid UTF-8 or JSON, or a document of more than 64 MiB.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is the number of documents to keep, at least 1; got {limit}")
    name = str(spec)
    if name.startswith("storyworld:") or name == "handwritten":
        lang = resolve(lang, tuple(storyworld.CODES.values()))
    if name.startswith("storyworld:"):
        return Corpus(name, _storyworld(name.removeprefix("storyworld:"), lang), limit)
    if name == "handwritten":
        return Corpus(name, lambda: _handwritten(lang), limit)
    if name.startswith("hf:"):
        return Corpus(name, lambda: _hugging_face(name.removeprefix("hf:"), column), limit)
    files: Sequence[Path | RemoteFile] = _remote(url) if (url := as_url(spec)) else _files(Path(spec))
    return Corpus(name, lambda: (item for file in files for item in _file(file, column)), limit)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        visible = (file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts))
        files = sorted(file for file in visible if file.is_file() and file.name.endswith(KINDS))
        if not files:
            raise ValueError(f"the folder {path} holds no corpus file; expected some of {', '.join(KINDS)}")
        return files
    if not path.is_file():
        others = "storyworld:COUNT, storyworld:test, handwritten or hf:NAME"
        raise FileNotFoundError(f"no corpus at {path}; expected a file or folder of {', '.join(KINDS)}, or {others}")
    if not path.name.endswith(KINDS):
        raise ValueError(f"{path} is of no known kind; expected {', '.join(KINDS)}")
    return [path]


def _remote(url: str) -> list[RemoteFile]:
    files = [file for file in remote_files(url) if file.name.endswith(KINDS)]
    if not files:
        raise ValueError(f"{url} holds no corpus file; expected some of {', '.join(KINDS)}")
    return files


def _file(path: Path | RemoteFile, column: str) -> Iterator[tuple[object, str]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, column)
    elif path.suffix == ".txt":
        yield from _plain(path)
    else:
        for number, row in read_jsonl(path):
            yield _cell(row, column, f"{path}:{number}"), f"{path.name}:{number}"


def read_lines(path: Path | RemoteFile) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file, plain or .gz, with their numbers and ends. ValueError names file and line."""
    for number, line in _raw_lines(path):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            what = f"not valid UTF-8 (byte {line[error.start]:#04x} in column {error.start + 1})"
            raise ValueError(f"{path}:{number}: {what}; convert the file, such as with iconv") from error


def _raw_lines(path: Path | RemoteFile) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stored, _unpacked(path, stored) as file:
        number = 0
        try:
            for number, line in bounded_lines(file, path):
                yield number, line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            what = f"no whole gzip file: it breaks off after line {number}"
            raise ValueError(f"{path} is {what} ({error}); copy it again") from error


def _unpacked(path: Path | RemoteFile, stored: IO[bytes]) -> IO[bytes]:
    """With `readline` of at most so many bytes, which a file of fsspec's does not know."""
    return cast(IO[bytes], gzip.open(stored) if path.suffix == ".gz" else io.BufferedReader(stored))


def read_jsonl(path: Path | RemoteFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers; blank lines are skipped. ValueError names file and line."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {line.strip()[:60]}")
        yield number, row


def _cell(row: dict[str, Any], column: str, where: str) -> object:
    names = _columns(column, row)
    for name in names:
        if name not in row:
            raise _no_column(where, name, row)
    return _joined([row[name] for name in names])


def _columns(column: str, known: Iterable[str]) -> list[str]:
    """`document+summary` names two columns, unless one is called so."""
    return [column] if column in known else column.split("+")


def _joined(values: Sequence[object]) -> object:
    """The texts of several columns as one, a blank line between them, where a sentence ends; or the value that is none."""
    unfit = [value for value in values if not isinstance(value, str) or not value.strip()]
    return unfit[0] if unfit else "\n\n".join(map(str, values))


def _no_column(where: str, column: str, columns: Iterable[str]) -> ColumnError:
    found = ", ".join(columns) or "none"
    return ColumnError(f"{where}: no column {column!r} of text; the columns are {found}. Name one with --column")


def _plain(path: Path | RemoteFile) -> Iterator[tuple[object, str]]:
    lines: list[str] = []
    began, size = 1, 0
    for number, line in read_lines(path):
        if line.strip():
            began, size = (began, size + len(line)) if lines else (number, len(line))
            lines.append(line)
            if size > LONGEST_LINE:
                raise ValueError(
                    f"{path}:{began}: a document of more than {LONGEST_LINE >> 20} MiB; put blank lines between documents, "
                    "or write the file as .jsonl"
                )
        elif lines:
            yield "".join(lines), f"{path.name}:{began}"
            lines = []
    if lines:
        yield "".join(lines), f"{path.name}:{began}"


def _parquet(path: Path | RemoteFile, column: str) -> Iterator[tuple[object, str]]:
    number = 0
    try:
        with path.open("rb") as stored, pyarrow.parquet.ParquetFile(stored) as file:
            kinds = {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names}
            columns = _columns(column, kinds)
            for one in columns:
                if one not in kinds or not _holds_text(kinds[one]):
                    raise _no_column(str(path), one, (f"{name} ({kind})" for name, kind in kinds.items()))
            for batch in file.iter_batches(256, columns=columns):
                for values in zip(*(batch.column(one) for one in columns)):
                    yield _joined([value.as_py() for value in values]), f"{path.name}:{number}"
                    number += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: row {number} is not valid UTF-8; write the file again from the source") from error
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # of the system: no right to read it, say
            raise
        raise ValueError(f"{path} is no whole Parquet file ({error}); copy it again") from error


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _storyworld(what: str, lang: str) -> Callable[[], Iterator[tuple[object, str]]]:
    if what in ("valid", "test", "unseen"):
        path = data_folder() / "storyworld" / f"{what}.jsonl"
        return lambda: ((_told(row["sentences"], lang), f"storyworld/{what}:{number}") for number, row in read_jsonl(path))
    count, _, seed = what.partition("@")
    if not count.isdecimal() or (seed and not seed.isdecimal()):
        expected = "storyworld:COUNT, storyworld:COUNT@SEED, storyworld:valid or storyworld:test"
        raise ValueError(f"storyworld:{what} is no StoryWorld corpus; expected {expected}")
    return lambda: (
        (_told(story.sentences, lang), f"storyworld/train@{seed or 0}:{i}")
        for i, story in enumerate(storyworld.stories(int(count), seed=int(seed or 0)))
    )


def _handwritten(lang: str) -> Iterator[tuple[object, str]]:
    for number, row in read_jsonl(data_folder() / "handwritten.jsonl"):
        yield _told({code: told for code, told in row.items() if code != "title"}, lang), f"handwritten:{number}"


def _told(sentences: dict[str, list[str]], lang: str) -> str:
    return " ".join(sentences[check_language(lang, tuple(sentences))])


def _hugging_face(what: str, column: str) -> Iterator[tuple[object, str]]:
    for row, source in hugging_face_rows(what):
        yield _cell(row, column, f"hf:{what}"), source


def hugging_face_rows(what: str, split: str = "train") -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of `NAME[:CONFIG][@SPLIT]` as they come from the Hugging Face hub, and where each stood.

    ValueError without the datasets package, FileNotFoundError where SONARKIT_OFFLINE forbids the network.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f'hf:{what} needs the datasets package: pip install "sonarkit[hf]"') from error
    if said := offline():
        raise FileNotFoundError(f"hf:{what} comes from the Hugging Face hub, and {said} forbids the network; name a file")
    path, _, named = what.partition("@")
    name, _, config = path.partition(":")
    for number, row in enumerate(datasets.load_dataset(name, config or None, split=named or split, streaming=True)):
        yield dict(row), f"hf:{name}:{number}"
