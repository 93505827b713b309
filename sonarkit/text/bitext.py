"""Bitext: sentences aligned in two or more languages, read, filtered, tagged and weighed.

1. `read_bitext` streams rows `{code: sentence}` out of any of these:

        pairs.jsonl                a row a line, keyed by language, or {"translation": {"en": .., "de": ..}} as Hugging Face's
        pairs.parquet              a column `translation` of the same, or a column for each language
        pairs.tsv                  columns named by a header of languages or by `langs`; nothing is quoted, as at Tatoeba and OPUS
        pairs.tmx                  Translation Memory eXchange
        corpus                     Moses: `corpus.en`, `corpus.de`, ... hold a sentence a line; or a pair of paths
        hf:NAME[:CONFIG][@SPLIT]   a Hugging Face dataset, streamed (pip install "sonarkit[hf]")

   All but Parquet also as .gz. Languages may be written as people write them (`en`, `de-AT`, `deu_Latn`).
2. `filtered` leaves out what is hardly a translation, and counts it by reason.
3. `Bitext` is what training draws from: rows in memory and how they came about. `load_bitext` makes one.
4. `mixing_weights` says how often to draw from which.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import math
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, combinations, count, islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet

from sonarkit.text.corpora import hugging_face_rows, read_jsonl, read_lines
from sonarkit.text.languages import LANGUAGES, SONAR_LANGUAGES, UnknownLanguageError, resolve
from sonarkit.text.scripts import language_script, letters, script_share, width
from sonarkit.text.tokenizer import DATA_TAGS

Row = dict[str, str]  # one sentence in two or more languages, by FLORES-200 code
Records = Iterator[tuple[str, Iterable[tuple[str, object]]]]  # (file and line, (language as the file writes it, sentence)s)
Namer = Callable[[str], str | None]  # the code of a language as a file writes it; None for one that is not to be read

KINDS = (".jsonl", ".tsv", ".tmx", ".parquet")
SAMPLE = 1000  # rows looked at before the first is handed out
SKIP = "-"  # in `langs`: a column to leave out
WIDEST = 1000  # columns, more than there are languages
LONGEST_UNIT = 4 << 20  # bytes of a TMX file between the ends of two units, which are in memory as a tree
DEEPEST = 100  # elements of it within each other


# ---------------------------------------------------------------------- reading


def read_bitext(
    spec: str | Path | Sequence[str | Path],
    *,
    langs: Sequence[str] | None = None,
    languages: Sequence[str] = SONAR_LANGUAGES,
    dropped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Rows of two or more languages out of what `spec` names (see the module), one at a time in constant memory.

    `langs` names the columns of a TSV file without a header ("-" skips one, those to the right of the last are not read)
    and the sides of a pair of paths; of everything else it says which languages to read, where without it all are read.
    `languages` are those of the codec. Empty sides, sides of broken Unicode and a second sentence in a language are left
    out, then rows with fewer than two sides; `dropped` counts all of them.

    Raises OSError for a file, UnknownLanguageError, and ValueError, naming file and line where there is one: for sides of
    unequal length (with both lengths), one that is empty throughout, two languages that are swapped or one in a script
    that is not its own (told by the first 1000 rows; two languages of one script that are swapped cannot be told unless
    the names of Moses files say so), a file that is not what it is called, and a line of more than 64 MiB or a unit of TMX
    of more than 4. What only the end of a file shows is raised at the end: make a list before training on it.
    """
    named = None if langs is None else [lang if lang == SKIP else resolve(lang, languages) for lang in langs]
    if named is not None:
        chosen = [code for code in named if code != SKIP]
        if len(chosen) < 2 or len(set(chosen)) < len(chosen):
            raise ValueError(f"langs must be two or more languages, each once; got {', '.join(langs or ())}")
    namer = _namer(named, languages)
    name, records = _open(spec, named, namer)
    return _rows(name, records, named, namer, Counter() if dropped is None else dropped)


def read_aligned(path: str | Path, dropped: Counter[str] | None = None) -> list[Row]:
    """`read_bitext` of all languages as a list, since training draws from it at random."""
    return list(read_bitext(path, dropped=dropped))


def held_out(english: str) -> bool:
    """Whether a row belongs to the test set for good: about every 50th, by a hash of its English side."""
    return int.from_bytes(hashlib.sha256(english.encode()).digest()[:8], "big") % 50 == 0


def _namer(named: Sequence[str] | None, languages: Sequence[str]) -> Namer:
    found: dict[str, str | None] = {}

    def name(typed: str) -> str | None:
        if typed not in found:
            try:
                found[typed] = resolve(typed, languages)
            except UnknownLanguageError as error:
                if named is None:
                    raise UnknownLanguageError(f"{error} (or say with langs which languages to read)") from error
                found[typed] = None
            if named is not None and found[typed] not in named:
                found[typed] = None
        return found[typed]

    return name


def _rows(name: str, records: Records, named: Sequence[str] | None, namer: Namer, dropped: Counter[str]) -> Iterator[Row]:
    """Rows out of records, the first of them looked at before one is handed out."""
    seen: Counter[str] = Counter()  # rows that have the side
    empty: Counter[str] = Counter()
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for where, record in records:
            read += 1
            row: Row = {}
            for typed, text in record:
                if (code := _at(where, namer, typed)) is None:
                    continue
                if text is not None and not isinstance(text, str):
                    raise ValueError(f"{where}: expected a sentence for each language, got {typed!r}: {str(text)[:60]}")
                text = (text or "").strip()
                seen[code] += 1
                if not text:
                    empty[code] += 1
                    dropped["empty side"] += 1
                elif not _encodable(text):
                    dropped["broken Unicode"] += 1
                elif code in row:
                    dropped["second sentence in a language"] += 1
                else:
                    row[code] = text
            if len(row) >= 2:
                yield row
            else:
                dropped["row of fewer than two languages"] += 1

    stream = rows()
    sample = list(islice(stream, SAMPLE))
    _look_at(name, sample)
    yield from chain(sample, stream)
    missing = [code for code in named or () if code != SKIP and not seen[code]]
    if missing or not sample:
        _explain(name, read, seen, empty, missing)
    if hollow := [code for code in seen if seen[code] == empty[code] == read > 1]:
        raise ValueError(f"{name}: the side {hollow[0]} is empty in all {read} rows; leave it out or mend the file")


def _at(where: str, namer: Namer, typed: str) -> str | None:
    try:
        return namer(typed)
    except UnknownLanguageError as error:
        raise UnknownLanguageError(f"{where}: {error}") from error


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, from a JSON escape
        return False
    return True


def _explain(name: str, read: int, seen: Counter[str], empty: Counter[str], missing: Sequence[str]) -> None:
    """Raise for a file of no pairs, or without a language that was asked for."""
    if not read:
        raise ValueError(f"{name} holds no sentence pairs: it has no rows")
    there = ", ".join(f"{code} in {count} ({empty[code]} of them empty)" for code, count in seen.items()) or "no language"
    if missing:
        raise ValueError(f"{name}: none of its {read} rows has {' or '.join(missing)}; it has {there}")
    raise ValueError(f"{name} holds no sentence pairs: of its {read} rows none has two languages; it has {there}")


def _look_at(name: str, sample: Sequence[Row]) -> None:
    """Raise where the first rows show that a side is not what it is called."""
    texts: dict[str, list[str]] = {}
    for row in sample:
        for code, text in row.items():
            texts.setdefault(code, []).append(text)
    found = {code: letters(" ".join(own)) for code, own in texts.items()}
    for one, other in combinations(found, 2):
        if language_script(one) != language_script(other):
            crossed = script_share(found[one], other), script_share(found[other], one)
            straight = script_share(found[one], one), script_share(found[other], other)
            if min(crossed) > 0.8 and sum(crossed) > sum(straight) + 0.5:
                shown = f"{_shown(texts[one])} under {one}, {_shown(texts[other])} under {other}"
                raise ValueError(f"{name}: {one} and {other} look swapped ({shown}); exchange the names or the files")
    for code, own in texts.items():
        if len(own) < 10:
            continue  # too few to tell a name or a number from a mistake
        if not found[code]:
            raise ValueError(
                f"{name}: {code} has no letters in its first {len(own)} sentences (such as {_shown(own)}); is that a column "
                f"of numbers? Name the languages to read with langs, in a TSV file without a header with {SKIP!r} for columns "
                "to skip"
            )
        if (share := script_share(found[code], code)) < 0.2:
            what = LANGUAGES[code].script if code in LANGUAGES else language_script(code)
            raise ValueError(
                f"{name}: {share:.0%} of the letters under {code} are {what} (such as {_shown(own)}); "
                "is it the right column or file, and written in that script?"
            )


def _shown(texts: Sequence[str]) -> str:
    return repr(texts[0][:40])


# ---------------------------------------------------------------------- the formats


def _open(spec: str | Path | Sequence[str | Path], named: Sequence[str] | None, namer: Namer) -> tuple[str, Records]:
    """What to call a source in an error, and its records. Errors that need no reading come here."""
    if not isinstance(spec, (str, Path)):
        sides = _sides_of([Path(path) for path in spec], named, namer)
        return " and ".join(map(str, sides.values())), _moses(sides)
    name, path = str(spec), Path(spec)
    if name.startswith("hf:"):
        return name, _hugging_face(name)
    if not path.is_file():
        sides = _sides_at(path, named, namer)
        return f"{name}.*", _moses(sides)
    kind = next((kind for kind in KINDS if name.endswith((kind, f"{kind}.gz"))), None)
    if kind is None:
        endings = ", ".join(KINDS)
        raise ValueError(f"{path} is of no known kind; expected {endings} (or .gz of it), or both files of a Moses pair")
    _sniff(path)
    if kind == ".jsonl":
        return name, _jsonl(path)
    if kind == ".tsv":
        return name, _tsv(path, named, namer)
    return name, _tmx(path) if kind == ".tmx" else _parquet(path, namer)


def _sniff(path: Path) -> None:
    """Raise for a file whose first bytes are of another kind than its name."""
    with path.open("rb") as file:
        start = file.read(4)
    kinds = {b"\x1f\x8b": "gzip", b"PAR1": "Parquet", b"PK\x03\x04": "a zip archive", b"BZh": "bzip2", b"\xfd7zX": "xz"}
    found = next((kind for magic, kind in kinds.items() if start.startswith(magic)), "text")
    expected = {".gz": "gzip", ".parquet": "Parquet"}.get(path.suffix, "text")
    if found != expected and start:
        advice = "name it after what it is" if found in ("gzip", "Parquet", "text") else "unpack it"
        raise ValueError(f"{path} is not what it is called: expected {expected}, got {found}; {advice}")


def _jsonl(path: Path) -> Records:
    for number, row in read_jsonl(path):
        yield f"{path}:{number}", _inner(row)


def _inner(row: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    inner = row.get("translation")
    return (inner if isinstance(inner, Mapping) else row).items()


def _tsv(path: Path, named: Sequence[str] | None, namer: Namer) -> Records:
    columns: list[str] = []
    wide = 0
    for number, line in read_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip("\r\n"):
            continue
        where = f"{path}:{number}"
        if not columns:
            wide = len(cells)
            if wide > WIDEST:
                raise ValueError(f"{where}: expected at most {WIDEST} columns between tabs, a language each, got {wide}")
            columns, is_header = _columns(where, cells, named, namer)
            if is_header:
                continue
        if len(cells) != wide:
            raise ValueError(f"{where}: expected {wide} columns between tabs, as in the first line, got {len(cells)}")
        yield where, ((column, cell) for column, cell in zip(columns, cells) if column != SKIP)


def _columns(where: str, cells: list[str], named: Sequence[str] | None, namer: Namer) -> tuple[list[str], bool]:
    """The language of each column by the first line and `langs`, and whether that line is a header."""
    if named is None:
        known = [cell for cell in cells if _is_language(cell, namer)]
        if len(known) < 2:
            line = "\t".join(cells)[:60]
            raise ValueError(f"{where}: expected a header of two or more languages, got {line!r}; name the columns with langs")
        for cell in cells:
            _at(where, namer, cell)
        return cells, True
    codes = [namer(cell) for cell in cells]
    if set(named) - {SKIP} <= set(codes):  # "No", "Si" are languages, too, but hardly just those that were asked for
        return [cell if code else SKIP for cell, code in zip(cells, codes)], True
    if len(cells) < len(named):
        raise ValueError(f"{where}: expected {len(named)} columns between tabs for langs {', '.join(named)}, got {len(cells)}")
    return list(named), False


def _is_language(typed: str, namer: Namer) -> bool:
    """Whether it is one of SONAR or of the codec at hand."""
    for known in (lambda lang: resolve(lang, SONAR_LANGUAGES), namer):
        with suppress(UnknownLanguageError):
            return known(typed) is not None
    return False


def _parquet(path: Path, namer: Namer) -> Records:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "translation" in columns:
                columns = ["translation"]
            else:
                columns = [column for column in columns if _at(str(path), namer, column) is not None]
            for batch in file.iter_batches(256, columns=columns):
                for row in batch.to_pylist():
                    inner = row.get("translation", row) or {}
                    yield f"{path}: row {number}", inner.items() if isinstance(inner, dict) else inner  # a map comes as pairs
                    number += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: row {number} is not valid UTF-8; write the file again from the source") from error
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # of the system: no right to read it, say
            raise
        raise ValueError(f"{path} is no whole Parquet file ({error}); copy it again") from error


def _hugging_face(name: str) -> Records:
    for row, source in hugging_face_rows(name.removeprefix("hf:")):
        yield source, _inner(row)


def _sides_of(paths: Sequence[Path], named: Sequence[str] | None, namer: Namer) -> dict[str, Path]:
    """The language of each of some paths: by `langs`, in order, or by their endings."""
    if len(paths) < 2 or (named is not None and (SKIP in named or len(named) != len(paths))):
        langs = "" if named is None else f" for the languages {', '.join(named)}"
        raise ValueError(f"expected one file for each of two or more languages, got {', '.join(map(str, paths))}{langs}")
    sides: dict[str, Path] = {}
    for i, path in enumerate(paths):
        ending = _ending(path)
        by_name = namer(ending) if _is_language(ending, namer) else None
        if named is None and by_name is None:
            raise ValueError(f"{path}: the ending is no language; name the files in langs, in order")
        code = named[i] if named is not None else str(by_name)
        if by_name not in (None, code):
            raise ValueError(f"{path} ends in {ending}, but langs calls it {code}: are the languages swapped?")
        if code in sides:
            raise ValueError(f"{sides[code]} and {path} are both {code}; give one file for each language")
        _sniff(path)
        sides[code] = path
    return sides


def _sides_at(prefix: Path, named: Sequence[str] | None, namer: Namer) -> dict[str, Path]:
    """The files `prefix.LANGUAGE`, plain or .gz, by language."""
    around = sorted(prefix.parent.glob("*")) if prefix.parent.is_dir() else []
    beside = [path for path in around if path.name.removesuffix(".gz") == f"{prefix.name}.{_ending(path)}" and path.is_file()]
    ours = [path for path in beside if _is_language(_ending(path), namer)]
    found = [path for path in ours if _at(str(path), namer, _ending(path)) is not None]
    if len(found) < 2:
        there = f"; there are {', '.join(path.name for path in beside)}" if beside else ""
        endings = ", ".join(KINDS)
        raise FileNotFoundError(
            f"no bitext at {prefix}; expected a file of {endings} (or .gz of it), two or more files {prefix.name}.LANGUAGE "
            f"of a sentence a line, or hf:NAME{there}"
        )
    if named is not None:
        order = [code for code in named if code != SKIP]
        found.sort(key=lambda path: order.index(str(namer(_ending(path)))))
    return _sides_of(found, None, namer)


def _ending(path: Path) -> str:
    """ "de" of "corpus.de.gz"."""
    return Path(path.name.removesuffix(".gz")).suffix.removeprefix(".")


def _moses(sides: Mapping[str, Path]) -> Records:
    files = [read_lines(path) for path in sides.values()]
    first = next(iter(sides.values()))
    for number in count(1):
        lines = [next(file, None) for file in files]
        if None in lines:
            break
        yield f"{first}:{number}", [(code, line[1].rstrip("\r\n")) for code, line in zip(sides, lines) if line]
    lengths = [number - (line is None) + sum(1 for _ in file) for line, file in zip(lines, files)]
    if len(set(lengths)) > 1:
        told = ", ".join(f"{path} has {length}" for path, length in zip(sides.values(), lengths))
        raise ValueError(f"sides of unequal length, in lines: {told}; line by line each must be the other's translation")


_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_NATIVE_CODES = ("bpt", "ept", "it", "ph", "ut")  # their content is markup of the tool that wrote the file


def _tmx(path: Path) -> Records:
    """Translation units as they end. Expat knows no external entities, so none is ever loaded."""
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    within: list[ElementTree.Element] = []
    size = 0  # since the last unit
    try:
        for number, piece in _pieces(path):
            size += len(piece)
            parser.feed(piece) if piece else parser.close()
            for event, element in parser.read_events():
                tag = element.tag.rpartition("}")[2]
                if event == "start":
                    if not within and tag != "tmx":
                        raise ValueError(f"{path} is not what it is called: expected <tmx>, got <{tag}>")
                    within.append(element)
                    if len(within) > DEEPEST:
                        raise ValueError(f"{path}:{number}: more than {DEEPEST} elements within each other; is it a TMX file?")
                    continue
                within.pop()
                if tag == "tu":
                    yield from _unit(f"{path}:{number}", element)
                    size = 0
                    if within:
                        within[-1].clear()  # what was read is let go
            if size > LONGEST_UNIT:
                raise ValueError(f"{path}:{number}: a unit of more than {LONGEST_UNIT >> 20} MiB; is this file whole?")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}:{error.position[0]}: not well-formed XML ({error})") from error


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file by lines, the longest of them in pieces, with their numbers; at last an empty one."""
    number, piece = 1, b"..."
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while piece:
                piece = file.readline(1 << 16)
                yield number, piece
                number += piece.endswith(b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); copy it again") from error


def _unit(where: str, unit: ElementTree.Element) -> Records:
    sides: list[tuple[str, object]] = []
    for variant in unit:
        if variant.tag.rpartition("}")[2] != "tuv":
            continue
        lang = variant.get(_LANG) or variant.get("lang")  # `lang` before TMX 1.4
        if not lang:
            raise ValueError(f"{where}: a <tuv> without xml:lang, in the unit that ends here")
        segment = next((child for child in variant if child.tag.rpartition("}")[2] == "seg"), None)
        sides.append((lang, "" if segment is None else " ".join(_plain(segment).split())))
    yield where, sides


def _plain(element: ElementTree.Element) -> str:
    """The text of a segment: highlighted words stay, codes of the translator's tool go."""
    parts = [element.text or ""]
    for child in element:
        if child.tag.rpartition("}")[2] not in _NATIVE_CODES:
            parts.append(_plain(child))
        parts.append(child.tail or "")
    return "".join(parts)


# ---------------------------------------------------------------------- filters


@dataclass(frozen=True)
class FilterConfig:
    """What is hardly a translation. Lengths are of `scripts.width`: Han, kana and Hangul letters count twice.

    Where the defaults come from. Lengths of 1 to 1050 characters: NLLB's bitext filters (arXiv 2207.04672; stopes,
    pipelines/filtering, with a ratio of 9 after scaling by the lengths of FLORES). Half of the letters in the right
    script, so names and loan words pass: NLLB's monolingual ones (stopes, pipelines/monolingual); OpusFilter asks for all.
    A ratio of 3 and exact duplicates: OpusFilter, which counts words. The floor is ours.

    What they drop of clean text, in sides: Multi30K train 3 of 116 000 and 2 rows of 29 000, its val nothing, Tatoeba
    English-German 8 of 50 002 pairs and English-French 8 of 18 061: one identical pair each, 7 by length, which are free
    but right ("They all hugged."). Without the floor lengths would drop 28 and 20, with a ratio of 2 657 and 398.
    `min_number_match` of 0.5 would drop 96 and 17 more and 454 sides of Multi30K, nearly all of those that were looked at
    right ("4 kids", "Vier Jugendliche"). All of it is in Latin script: the script filter had nothing to find.
    """

    min_chars: int = 1
    max_chars: int = 1050
    max_ratio: float = 3.0  # of the longer side to the shorter
    ratio_floor: int = 15  # a shorter side counts as this long for the ratio: "Go." is "Mach, dass du wegkommst!"
    min_script_share: float = 0.5  # of a side's letters; 0 to let any script pass
    drop_identical: bool = True  # two sides that are the same but for letter case
    drop_duplicates: bool = True  # rows seen before; takes about 100 bytes a row
    min_number_match: float = 0.0  # of the digits but 0, in order, 0 to 1; 0 is off, OpusFilter has 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_chars <= self.max_chars:
            raise ValueError(f"expected 0 <= min_chars <= max_chars, got {self.min_chars} and {self.max_chars}")
        if self.max_ratio < 1 or self.ratio_floor < 1:
            raise ValueError(f"max_ratio and ratio_floor are at least 1; got {self.max_ratio} and {self.ratio_floor}")
        for name in ("min_script_share", "min_number_match"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1; got {getattr(self, name)}")


def filtered(rows: Iterable[Row], config: FilterConfig = FilterConfig(), dropped: Counter[str] | None = None) -> Iterator[Row]:
    """Rows less the sides that do not fit, and less those with fewer than two sides left; `dropped` counts both.

    Each side is judged by itself, then beside the first side of its row that is kept: in a row of two languages a side
    that does not fit takes the row with it, in a row of more the others stay.
    """
    dropped = Counter() if dropped is None else dropped
    seen: set[bytes] = set()
    for row in rows:
        kept: Row = {}
        pivot, pivot_width = "", 0
        for code, text in row.items():
            found = letters(text)
            wide = width(text, found)
            reason = _alone(text, wide, script_share(found, code), config)
            if reason is None and kept:
                reason = _beside(pivot, pivot_width, text, wide, config)
            if reason:
                dropped[reason] += 1
                continue
            if not kept:
                pivot, pivot_width = text, wide
            kept[code] = text
        if len(kept) < 2:
            dropped["row of fewer than two languages"] += 1
            continue
        if config.drop_duplicates:
            key = hashlib.blake2b("\0".join(chain(*sorted(kept.items()))).encode(), digest_size=12).digest()
            if key in seen:
                dropped["duplicate row"] += 1
                continue
            seen.add(key)
        yield kept


def _alone(text: str, wide: int, share: float, config: FilterConfig) -> str | None:
    """Why a side cannot stay, if it cannot."""
    if not text.strip():
        return "empty side"
    if wide < config.min_chars:
        return "too short"
    if wide > config.max_chars:
        return "too long"
    return "wrong script" if share < config.min_script_share else None


def _beside(pivot: str, pivot_width: int, text: str, wide: int, config: FilterConfig) -> str | None:
    """Why a side is no translation of the first one, if it is none."""
    if config.drop_identical and text.casefold() == pivot.casefold():
        return "identical sides"
    shorter, longer = sorted(max(config.ratio_floor, side) for side in (pivot_width, wide))
    if longer > config.max_ratio * shorter:
        return "length ratio"
    if config.min_number_match and _number_match(pivot, text) < config.min_number_match:
        return "numbers differ"
    return None


def _number_match(one: str, other: str) -> float:
    """Share of the digits but 0 that two sentences have in common, in order (OpusFilter's NonZeroNumerals); 1 without any."""
    here, there = ([value for char in text if (value := unicodedata.digit(char, 0))] for text in (one, other))
    return difflib.SequenceMatcher(a=here, b=there, autojunk=False).ratio()


# ---------------------------------------------------------------------- what training draws from


@dataclass(frozen=True)
class Bitext:
    """Rows in memory, and how they came about.

    `tag` is "" or one of NLLB's: `<MINED_DATA>`, `<MMT_BT_DATA>`, `<SMT_BT_DATA>` (back-translated by a multilingual or by a
    statistical model). It belongs to the source, after the language token: `__lang__ <MINED_DATA> pieces </s>`; targets
    and sentences at inference have none (fairseq, branch nllb, multilingual_data_manager.py; the modes `source_mining`,
    `source_mmt_bt` and `source_smt_bt` of fairseq2's tokenizer).

    `synthetic` are the languages that a machine wrote. Back-translations are sources only (fairseq does not reverse them,
    either): no model is to learn to write what another made up.

    Raises ValueError for another tag, and unless `synthetic` and a tag of back-translation come together.
    """

    name: str
    rows: Sequence[Row]
    tag: str = ""
    synthetic: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason, while reading and filtering

    def __post_init__(self) -> None:
        if self.tag not in ("", *DATA_TAGS):
            raise ValueError(f"{self.name}: the tag is '' or one of {', '.join(DATA_TAGS)}; got {self.tag!r}")
        if ("_BT_" in self.tag) != bool(self.synthetic):
            raise ValueError(
                f"{self.name}: `synthetic` names the languages that a machine wrote where the tag is one of back-translation, "
                f"and only there; got tag {self.tag!r} and synthetic {', '.join(self.synthetic) or 'none'}"
            )

    def may_translate(self, source: str, target: str) -> bool:
        """Whether a sentence in `target` may be learnt from its translation in `source`."""
        return not self.synthetic or (source in self.synthetic and target not in self.synthetic)

    def report(self) -> str:
        """`pairs.tsv: kept 186 rows; dropped 2 length ratio, 1 empty side`."""
        reasons = ", ".join(f"{number} {why}" for why, number in Counter(self.dropped).most_common())
        return f"{self.name}: kept {len(self.rows)} rows" + (f"; dropped {reasons}" if reasons else "")


def load_bitext(
    spec: str | Path | Sequence[str | Path],
    *,
    langs: Sequence[str] | None = None,
    languages: Sequence[str] = SONAR_LANGUAGES,
    filters: FilterConfig | None = FilterConfig(),
    tag: str = "",
    synthetic: Sequence[str] = (),
) -> Bitext:
    """Everything that `read_bitext` reads, less what `filters` drop (None keeps all).

    Errors as there and of `Bitext`; ValueError, too, when the filters leave no row.
    """
    dropped: Counter[str] = Counter()
    rows = read_bitext(spec, langs=langs, languages=languages, dropped=dropped)
    kept = list(rows if filters is None else filtered(rows, filters, dropped))
    name = str(spec) if isinstance(spec, (str, Path)) else " and ".join(map(str, spec))
    if not kept:
        raise ValueError(f"{name}: the filters leave none of its rows; they dropped {dict(dropped)}")
    return Bitext(name, kept, tag, tuple(resolve(lang, languages) for lang in synthetic), dropped)


# ---------------------------------------------------------------------- how often to draw from what


def mixing_weights(counts: Sequence[float], temperature: float) -> list[float]:
    """How often to draw from each of several sets of `counts` sentences: p_i = n_i^(1/T) / sum (arXiv 1907.05019).

    T = 1 draws in proportion, T = 5 is usual for many languages, math.inf draws evenly. Empty sets get 0; all sum to 1.
    Raises ValueError for a temperature not above 0, a negative count, and where all are 0.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is above 0, 1 for draws in proportion; got {temperature}")
    if not counts or min(counts) < 0 or not max(counts) > 0:
        raise ValueError(f"expected counts of at least 0, one of them above; got {list(counts)}")
    largest = max(counts)
    raised = [math.exp(math.log(n / largest) / temperature) if n else 0.0 for n in counts]  # no overflow at small T
    total = math.fsum(raised)
    return [value / total for value in raised]
