"""Aligned sentences to evaluate on, named by a string:

    storyworld:test  :valid  :unseen   the sets that ship
    handwritten                        the 30 stories that no grammar wrote
    pairs.jsonl.gz                     what sonarkit.text.bitext reads; pairs.jsonl.gz@held-out the rows that training leaves out
    flores200_dataset                  FLORES-200: devtest/eng_Latn.devtest and so on, a sentence a line; flores200_dataset@dev
    flores_plus                        FLORES+: .parquet or .jsonl files with text, iso_639_3 and iso_15924, in the folder itself
                                       or in devtest/ and dev/; or one such file

FLORES+ asks to accept its conditions before it gives its files (huggingface.co/datasets/openlanguagedata/flores_plus),
so nothing here fetches it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow.parquet

from sonarkit.core.paths import data_folder
from sonarkit.text.bitext import Row, held_out, read_aligned
from sonarkit.text.corpora import read_jsonl, read_lines
from sonarkit.text.languages import SONAR_LANGUAGES, UnknownLanguageError, resolve
from sonarkit.text.storyworld import aligned

STORYWORLD = ("test", "valid", "unseen")
SPLITS = ("devtest", "dev")
COLUMNS = ("text", "iso_639_3", "iso_15924")  # of FLORES+


def rows_of(spec: str | Path, languages: Sequence[str] = (), every: int = 1) -> list[Row]:
    """Every `every`-th row of the set that `spec` names (see the module), each with the same languages, sorted.

    These are `languages`, or all that the first row has. Rows that lack one are left out and counted in a warning, as are a
    set's languages that SONAR does not know. Raises FileNotFoundError for what is not there, and ValueError for a language
    that no row has (naming those there are), for FLORES files of different length, and where no row is left.
    """
    if every < 1:
        raise ValueError(f"every is at least 1 (1 takes all rows), got {every}")
    rows = [row for row in _read(str(spec)) if row]
    if not rows:
        raise ValueError(f"{spec} has no rows")
    have = sorted({code for row in rows for code in row})
    wanted = sorted({_one_of(code, have, spec) for code in languages} if languages else rows[0])
    whole = [{code: row[code] for code in wanted} for row in rows if all(row.get(code, "").strip() for code in wanted)]
    if not whole:
        raise ValueError(f"{spec} has no row with all of {', '.join(wanted)}; its languages are {', '.join(have)}")
    if len(whole) < len(rows):
        warnings.warn(f"{spec}: {len(rows) - len(whole)} of {len(rows)} rows lack one of {', '.join(wanted)}", stacklevel=2)
    return whole[::every]


def spoken(rows: Sequence[Row], languages: Sequence[str]) -> list[Row]:
    """The rows with only those of their languages that a codec has; a warning counts the others. ValueError if none is left."""
    have = [code for code in rows[0] if code in languages]
    if not have:
        raise ValueError(f"the codec has none of the set's languages, {', '.join(rows[0])}; it has {', '.join(languages)}")
    if len(have) < len(rows[0]):
        warnings.warn(
            f"{len(rows[0]) - len(have)} languages of the set are left out, which the codec does not have", stacklevel=2
        )
    return [{code: row[code] for code in have} for row in rows]


def stories_of(spec: str) -> list[dict[str, list[str]]]:
    """The stories of a shipped set: the sentences of each by language, aligned. ValueError for another set."""
    if spec == "handwritten":
        stories = [row for _, row in read_jsonl(data_folder() / "handwritten.jsonl")]
        return [{code: told for code, told in story.items() if code != "title"} for story in stories]
    name = spec.removeprefix("storyworld:")
    if name not in STORYWORLD:
        raise ValueError(f"no set {spec!r}; expected storyworld:{', storyworld:'.join(STORYWORLD)}")
    return [row["sentences"] for _, row in read_jsonl(data_folder() / "storyworld" / f"{name}.jsonl")]


def _one_of(typed: str, have: Sequence[str], spec: str | Path) -> str:
    try:
        return resolve(typed, have)
    except UnknownLanguageError as error:
        raise UnknownLanguageError(f"{spec}: {error}") from error


def _read(spec: str) -> list[Row]:
    if spec == "handwritten" or spec.startswith("storyworld:"):
        return [row for story in stories_of(spec) for row in aligned(story)]
    name, _, part = (spec, "", "") if Path(spec).exists() or "@" not in spec else spec.rpartition("@")
    path = Path(name)
    if path.is_dir():
        if part and part not in SPLITS:
            raise ValueError(f"no split {part!r} of {path}; expected @devtest or @dev")
        return _flores(path, part or "devtest")
    if part not in ("", "held-out"):
        raise ValueError(f"{spec}: expected {path}@held-out, or the file without @")
    if path.is_file() and _is_flores_plus(path):
        return _flores_plus([path])
    try:
        rows = read_aligned(path)
    except FileNotFoundError as error:
        others = "storyworld:test, handwritten, a folder of FLORES or an aligned file"
        raise FileNotFoundError(f"no evaluation set at {spec}; expected {others}") from error
    if part and any("eng_Latn" not in row for row in rows):
        raise ValueError(f"{spec}: rows are held out by their English side, and some have none")
    return [row for row in rows if held_out(row["eng_Latn"])] if part else rows


# ---------------------------------------------------------------------- FLORES


def _flores(folder: Path, split: str) -> list[Row]:
    place = folder / split if (folder / split).is_dir() else folder
    if plain := sorted(place.glob(f"*.{split}")):
        return _flores_200(plain)
    tables = sorted([*place.glob("*.parquet"), *place.glob("*.jsonl")])
    if place == folder:  # splits side by side: eng_Latn.devtest.parquet, or devtest-00000.parquet
        tables = [file for file in tables if split in file.stem.replace("-", ".").split(".")] or tables
    if not tables:
        raise ValueError(f"{place} holds no FLORES: expected files like eng_Latn.{split}, or .parquet or .jsonl of FLORES+")
    return _flores_plus(tables)


def _flores_200(files: Sequence[Path]) -> list[Row]:
    columns: dict[str, list[str]] = {}
    for file in files:
        if code := _sonar_code(file.stem):
            columns[code] = [line.strip() for _, line in read_lines(file)]
    lengths = {code: len(column) for code, column in columns.items()}
    if len(set(lengths.values())) > 1:
        usual = max(lengths.values(), key=list(lengths.values()).count)
        odd = ", ".join(f"{code} has {length} lines" for code, length in lengths.items() if length != usual)
        raise ValueError(f"{files[0].parent}: files of one split have the same number of lines, here {usual}, but {odd}")
    return [dict(zip(columns, sentences)) for sentences in zip(*columns.values())]


def _is_flores_plus(path: Path) -> bool:
    return path.name.endswith((".parquet", ".jsonl", ".jsonl.gz")) and set(COLUMNS) <= set(next(_table(path), {}))


def _flores_plus(files: Sequence[Path]) -> list[Row]:
    """Rows of FLORES+ by their `id` where they have one, else by their order. Of two varieties of a language that share
    SONAR's code (Catalan and Valencian) the first counts, by the name of the file."""
    rows: dict[object, Row] = {}
    seen: dict[tuple[str, str], str] = {}  # which variety has a code
    unknown: set[str] = set()
    for file in files:
        counts: dict[str, int] = {}
        for row in _table(file):
            if not all(isinstance(row.get(name), str) for name in COLUMNS):
                raise ValueError(f"{file}: expected texts in the columns {', '.join(COLUMNS)}, got {str(row)[:80]}")
            typed = f"{row['iso_639_3']}_{row['iso_15924']}"
            code = _sonar_code(typed)
            if not code:
                unknown.add(typed)
                continue
            variety = f"{file.stem if len(files) > 1 else ''} {row.get('glottocode', '')} {row.get('variant', '')}"
            if seen.setdefault((code, str(row.get("split", ""))), variety) != variety:
                continue
            counts[code] = counts.get(code, 0) + 1
            key = (row.get("split", ""), row["id"] if "id" in row else counts[code])
            rows.setdefault(key, {})[code] = str(row["text"]).strip()
    if unknown:
        warnings.warn(f"not of SONAR's languages, left out: {', '.join(sorted(unknown))}", stacklevel=4)
    return list(rows.values())


def _table(file: Path) -> Iterator[dict[str, object]]:
    if file.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(256))
    else:
        yield from (row for _, row in read_jsonl(file))


def _sonar_code(typed: str) -> str:
    """SONAR's code for a code of FLORES, "" where it has none."""
    try:
        return resolve(typed, SONAR_LANGUAGES)
    except UnknownLanguageError:
        return ""
