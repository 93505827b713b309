"""Bitext: every format, bad files, filters, data tags, mixing, and the test rows that stay apart."""

from __future__ import annotations

import gzip
import json
import math
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from sonarkit.text.bitext import (
    Bitext,
    FilterConfig,
    Row,
    filtered,
    held_out,
    load_bitext,
    mixing_weights,
    read_aligned,
    read_bitext,
)
from sonarkit.text.languages import UnknownLanguageError

GO = [{"eng_Latn": "Go.", "deu_Latn": "Geh!"}, {"eng_Latn": 'He said "hi"\u2028.', "deu_Latn": "Er sagte „hi“."}]


def write(path: Path, *rows: object) -> Path:
    return put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def put(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(spec: Any, **options: Any) -> list[Row]:
    return list(read_bitext(spec, **options))


# ---------------------------------------------------------------------- JSONL


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_rows_of_two_or_more_languages(tmp_path: Path, name: str):
    rows = [{"eng_Latn": "Go.", "fra_Latn": " Va ! "}, {"eng_Latn": "Hi.", "deu_Latn": "Hallo!", "spa_Latn": "¡Hola!"}]
    assert read_aligned(write(tmp_path / name, *rows)) == [{"eng_Latn": "Go.", "fra_Latn": "Va !"}, rows[1]]


def test_rows_as_hugging_face_writes_them(tmp_path: Path):
    rows = [{"id": str(i), "translation": {"en": row["eng_Latn"], "de": row["deu_Latn"]}} for i, row in enumerate(GO)]
    assert read(write(tmp_path / "hf.jsonl", *rows)) == GO


def test_languages_may_be_chosen(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", {"id": 7, "en": "Go.", "de": "Geh!", "cs": "Jdi!", "klingon": "yIjaH"})
    assert read(path, langs=("German", "en")) == [GO[0]]
    with pytest.raises(ValueError, match=r"none of its 1 rows has fra_Latn; it has eng_Latn in 1 \(0 of them empty\)"):
        read(path, langs=("en", "fr"))
    with pytest.raises(ValueError, match="two or more languages, each once; got en, eng_Latn"):
        read_bitext(path, langs=("en", "eng_Latn"))


def test_what_is_dropped_is_counted(tmp_path: Path):
    path = write(
        tmp_path / "pairs.jsonl",
        {"eng_Latn": "Go.", "fra_Latn": "Va !", "deu_Latn": " "}, {"eng_Latn": "Hi.", "fra_Latn": None}, {"eng_Latn": "Alone."},
        {"en": "Yes.", "eng_Latn": "Aye.", "fra_Latn": "Oui."},
    )  # fmt: skip
    with path.open("a") as file:
        file.write('{"eng_Latn": "Half a pair \\ud83d", "fra_Latn": "Oh."}\n')
    dropped: Counter[str] = Counter()
    assert read_aligned(path, dropped) == [
        {"eng_Latn": "Go.", "fra_Latn": "Va !"}, {"eng_Latn": "Yes.", "fra_Latn": "Oui."},
    ]  # fmt: skip
    assert dropped == {
        "empty side": 2, "row of fewer than two languages": 3, "second sentence in a language": 1, "broken Unicode": 1,
    }  # fmt: skip
    clean: Counter[str] = Counter()
    read_aligned(write(tmp_path / "clean.jsonl", {"eng_Latn": "Go.", "fra_Latn": "Va !"}), clean)
    assert not clean


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"eng_Latn": "Go."', "not valid JSON"),
        (b'["Go.", "Va"]', "expected a JSON object"),
        (b'{"eng_Latn": 3, "fra_Latn": "trois"}', "'eng_Latn': 3"),
        (b'{"zul_Lat": "Hamba.", "fra_Latn": "Va"}', "did you mean zul_Latn .*say with langs"),
        (b'{"eng_Latn": "caf\xe9"}', "UTF-8"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"eng_Latn": "Go.", "fra_Latn": "Va !"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"bad.jsonl:2: .*{message}"):
        read_aligned(path)


def test_a_language_of_the_codecs_own(tmp_path: Path):
    here = ("eng_Latn", "tlh_Latn")
    rows = [{"eng_Latn": "Go.", "tlh_Latn": "yIjaH"}]
    assert read(put(tmp_path / "a.tsv", tsv("en\ttlh_Latn", "Go.\tyIjaH")), languages=here) == rows
    assert read(moses(tmp_path, en=["Go."], tlh_Latn=["yIjaH"]), languages=here) == rows
    with pytest.raises(ValueError, match="expected a header of two or more languages"):
        read(tmp_path / "a.tsv")


def test_a_language_that_the_codec_lacks(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", {"en": "Go.", "de": "Geh!", "cs": "Jdi!"})
    here = ("eng_Latn", "deu_Latn")
    with pytest.raises(UnknownLanguageError, match=r"pairs.jsonl:1: .*'cs'.*ces_Latn \(Czech\).*known here are eng_Latn.*langs"):
        read(path, languages=here)
    assert read(path, languages=here, langs=here) == [GO[0]]
    with pytest.raises(UnknownLanguageError, match="known here are"):
        read_bitext(path, languages=here, langs=("en", "cs"))


# ---------------------------------------------------------------------- TSV


def tsv(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_tsv_with_a_header(tmp_path: Path, name: str):
    lines = ["en\tde", *("\t".join(row.values()) for row in GO)]
    assert read(put(tmp_path / name, "\ufeff" + tsv(*lines))) == GO
    assert read(put(tmp_path / name, "\r\n".join([*lines, ""]))) == GO
    more = put(tmp_path / name, tsv("id\teng_Latn\tscore\tdeu_Latn", "1\tGo.\t0.7\tGeh!"))
    assert read(more, langs=("de", "en")) == [GO[0]]
    with pytest.raises(UnknownLanguageError, match=f"{name}:1: unknown language 'score'"):
        read(more)


def test_tsv_without_a_header(tmp_path: Path):
    """Tatoeba's own files: quotes are part of a sentence, sentence numbers lead, an attribution follows."""
    lines = ["\t".join(("1276", *list(row.values())[:1], "77", *list(row.values())[1:], "CC-BY 2.0")) for row in GO]
    path = put(tmp_path / "tatoeba.tsv", tsv(*lines))
    assert read(path, langs=("-", "en", "-", "de")) == GO
    with pytest.raises(ValueError, match=r"tatoeba.tsv:1: expected a header of two or more languages, got '1276\\tGo."):
        read(path)
    with pytest.raises(
        ValueError, match="expected 6 columns between tabs for langs -, eng_Latn, -, deu_Latn, -, fra_Latn, got 5"
    ):
        read(path, langs=("-", "en", "-", "de", "-", "fr"))
    with pytest.raises(ValueError, match=r"eng_Latn has no letters in its first 20 sentences \(such as '1276'\).*'-'"):
        read(put(path, tsv(*lines * 10)), langs=("en", "de"))


def test_sentences_that_are_language_names_are_no_header(tmp_path: Path):
    path = put(tmp_path / "pairs.tsv", tsv("No\tSi", "Go.\tVe."))  # Norwegian and Sinhala
    assert read(path, langs=("en", "es"))[0] == {"eng_Latn": "No", "spa_Latn": "Si"}


def test_tsv_of_ragged_lines(tmp_path: Path):
    path = put(tmp_path / "pairs.tsv", tsv("en\tde", "Go.\tGeh!", "", "Ta\tb\tTab"))
    with pytest.raises(ValueError, match="pairs.tsv:4: expected 2 columns between tabs, as in the first line, got 3"):
        read(path)


# ---------------------------------------------------------------------- Moses


def moses(folder: Path, name: str = "corpus", gz: str = "", **sides: Sequence[str]) -> Path:
    for lang, lines in sides.items():
        put(folder / f"{name}.{lang}{gz}", "".join(f"{line}\n" for line in lines))
    return folder / name


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_moses_files_of_a_prefix(tmp_path: Path, gz: str):
    english, german = ([row[code] for row in GO] for code in ("eng_Latn", "deu_Latn"))
    opus = moses(tmp_path, "Tatoeba.de-en", gz, en=english, de=german, ids=["1 2", "3 4"], scores=["0.5", "1"])
    assert (
        read(opus)
        == read((f"{opus}.en{gz}", f"{opus}.de{gz}"))
        == [{"deu_Latn": r["deu_Latn"], "eng_Latn": r["eng_Latn"]} for r in GO]
    )
    three = moses(tmp_path, "train", gz, en=english, de=german, fr=["Va !", "Il dit."])
    assert read(three)[0] == {"eng_Latn": "Go.", "deu_Latn": "Geh!", "fra_Latn": "Va !"}
    assert [list(row) for row in read(three, langs=("fr", "en"))] == [["fra_Latn", "eng_Latn"]] * 2


def test_moses_files_by_paths(tmp_path: Path):
    prefix = moses(tmp_path, en=["Go.", ""], de=["Geh!", "Weg."], src=["Go."], trg=["Va !"])
    dropped: Counter[str] = Counter()
    assert read((f"{prefix}.en", f"{prefix}.de"), dropped=dropped) == [GO[0]]
    assert dropped == {"empty side": 1, "row of fewer than two languages": 1}  # an empty line keeps the others in step
    assert read((f"{prefix}.src", f"{prefix}.trg"), langs=("en", "fr")) == [{"eng_Latn": "Go.", "fra_Latn": "Va !"}]
    with pytest.raises(ValueError, match="corpus.trg: the ending is no language; name the files in langs"):
        read((f"{prefix}.src", f"{prefix}.trg"))
    with pytest.raises(ValueError, match="corpus.en ends in en, but langs calls it deu_Latn: are the languages swapped?"):
        read((f"{prefix}.en", f"{prefix}.de"), langs=("de", "en"))
    with pytest.raises(ValueError, match="corpus.en and .*corpus.en are both eng_Latn"):
        read((f"{prefix}.en", f"{prefix}.en"))
    with pytest.raises(ValueError, match="one file for each of two or more languages, got .*corpus.en"):
        read((f"{prefix}.en",))


@pytest.mark.parametrize(("english", "german"), [(3, 5), (5, 3)])
def test_sides_of_unequal_length(tmp_path: Path, english: int, german: int):
    prefix = moses(tmp_path, en=["Go."] * english, de=["Geh!"] * german)
    with pytest.raises(ValueError, match=f"unequal length, in lines: .*corpus.de has {german}, .*corpus.en has {english};"):
        read(prefix)


def test_no_such_bitext(tmp_path: Path):
    moses(tmp_path, en=["Go."], txt=["Go."])
    with pytest.raises(FileNotFoundError, match="two or more files corpus.LANGUAGE .*there are corpus.en, corpus.txt"):
        read_bitext(tmp_path / "corpus")
    with pytest.raises(FileNotFoundError, match="no bitext at .*nowhere/pairs.jsonl"):
        read_bitext(tmp_path / "nowhere" / "pairs.jsonl")
    with pytest.raises(ValueError, match=r"corpus.en is of no known kind; expected .jsonl, .tsv.* both files of a Moses pair"):
        read_bitext(tmp_path / "corpus.en")


# ---------------------------------------------------------------------- TMX

TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd"{entities}>
<tmx version="1.4"><header srclang="en" segtype="sentence" datatype="plaintext"><prop type="x">about</prop></header>
<body>
{units}
</body>
</tmx>
"""
PAIR = '<tu><tuv xml:lang="EN-GB"><seg>Go.</seg></tuv><tuv xml:lang="de"><seg>Geh!</seg></tuv></tu>'


def tmx(*units: str, encoding: str = "UTF-8", entities: str = "") -> bytes:
    return TMX.format(units="\n".join(units), encoding=encoding, entities=entities).encode(encoding)


@pytest.mark.parametrize("name", ["memory.tmx", "memory.tmx.gz"])
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16", "ISO-8859-1"])
def test_tmx(tmp_path: Path, name: str, encoding: str):
    marked = """<tu tuid="2"><note>a note</note><tuv xml:lang="en"><prop type="p">x</prop><seg>
        Bread &amp; <bpt i="1">&lt;b&gt;</bpt>butter<ept i="1">&lt;/b&gt;</ept> for
        <hi type="x">Zo&#xEB;<ph>\\n</ph></hi>!</seg></tuv>
        <tuv lang="de"><seg>Brot und Butter f&#252;r Zoë!</seg></tuv></tu>"""
    twice = PAIR.replace("</tu>", '<tuv xml:lang="en-US"><seg>Leave.</seg></tuv></tu>')
    dropped: Counter[str] = Counter()
    assert read(put(tmp_path / name, tmx(PAIR, marked, twice, encoding=encoding)), dropped=dropped) == [
        GO[0], {"eng_Latn": "Bread & butter for Zoë!", "deu_Latn": "Brot und Butter für Zoë!"}, GO[0],
    ]  # fmt: skip
    assert dropped == {"second sentence in a language": 1}


def test_tmx_of_a_namespace(tmp_path: Path):
    text = tmx(PAIR).decode().replace("<tmx ", '<tmx xmlns="http://www.lisa.org/tmx14" ')
    assert read(put(tmp_path / "memory.tmx", text)) == [GO[0]]


def test_tmx_loads_nothing_from_outside(tmp_path: Path):
    secret = put(tmp_path / "secret.txt", "secret")
    inside = PAIR.replace("Go.", "Go &it;.")
    there = put(tmp_path / "memory.tmx", tmx(inside, entities=f' [<!ENTITY it SYSTEM "{secret.as_uri()}">]'))
    with pytest.raises(ValueError, match="memory.tmx:5: not well-formed XML .*undefined entity"):
        read(there)
    bomb = ' [<!ENTITY a "' + "x" * 1000 + '">' + "".join(
        f'<!ENTITY {name} "{f"&{before};" * 100}">' for before, name in zip("abcd", "bcde")
    ) + "]"  # fmt: skip
    with pytest.raises(ValueError, match="memory.tmx:.* not well-formed XML"):
        read(put(there, tmx(PAIR.replace("Go.", "&e;"), entities=bomb)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tmx(PAIR, PAIR.replace('xml:lang="de"', 'xml:lang="qqq"')), "memory.tmx:6: unknown language 'qqq'"),
        (tmx(PAIR, PAIR.replace('xml:lang="de"', "")), "memory.tmx:6: a <tuv> without xml:lang"),
        (tmx(PAIR).replace(b"</body>\n</tmx>\n", b""), "memory.tmx:6: not well-formed XML .*no element found"),
        (tmx(PAIR, "<tu>&undefined;</tu>"), "memory.tmx:6: not well-formed XML .*undefined entity"),
        (tmx(PAIR).replace(b"Geh!", b"H\xfcpf!"), "memory.tmx:5: not well-formed"),
        (b"<html><body><p>404</p></body></html>", "memory.tmx is not what it is called: expected <tmx>, got <html>"),
        (tmx(), "memory.tmx holds no sentence pairs: it has no rows"),
        (tmx(PAIR.replace("<seg>Geh!</seg>", "")), r"of its 1 rows none has two .* deu_Latn in 1 \(1 of them empty\)"),
    ],
)  # fmt: skip
def test_bad_tmx(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        read(put(tmp_path / "memory.tmx", data))


def test_big_files_take_constant_memory(tmp_path: Path):
    units = 5_000
    paths = [put(tmp_path / "memory.tmx", tmx(*[PAIR] * units)), moses(tmp_path, en=["Go."] * units, de=["Geh!"] * units)]
    for path in paths:
        tracemalloc.start()
        assert sum(1 for _ in read_bitext(path)) == units
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6, path  # the first 1000 rows take 0.3e6


# ---------------------------------------------------------------------- Parquet and Hugging Face


def test_parquet(tmp_path: Path):
    pairs = [{"en": row["eng_Latn"], "de": row["deu_Latn"]} for row in GO]
    kinds = {
        "struct": pa.array(pairs),
        "map": pa.array([list(pair.items()) for pair in pairs], pa.map_(pa.string(), pa.string())),
    }
    for kind, column in kinds.items():
        pyarrow.parquet.write_table(pa.table({"id": [1, 2], "translation": column}), tmp_path / f"{kind}.parquet")
        assert read(tmp_path / f"{kind}.parquet") == GO
    flat = tmp_path / "flat.parquet"
    pyarrow.parquet.write_table(pa.table({"score": [0.1, 0.2], **{code: [row[code] for row in GO] for code in GO[0]}}), flat)
    assert read(flat, langs=("eng_Latn", "deu_Latn")) == GO
    with pytest.raises(UnknownLanguageError, match="flat.parquet: unknown language 'score'"):
        read(flat)
    with pytest.raises(ValueError, match="flat.parquet is no whole Parquet file"):
        read(put(flat, flat.read_bytes()[:200]))


def test_hugging_face(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        calls.append((name, config, split, streaming))
        return [{"id": 1, "translation": {"en": row["eng_Latn"], "de": row["deu_Latn"]}} for row in GO]

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read("hf:Helsinki-NLP/opus-100:de-en@validation") == read("hf:x") == GO
    assert calls == [("Helsinki-NLP/opus-100", "de-en", "validation", True), ("x", None, "train", True)]
    with pytest.raises(UnknownLanguageError, match="hf:x:0: .*German.* is not known here"):
        read("hf:x", languages=("eng_Latn", "fra_Latn"))


def test_hugging_face_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "sonarkit\[hf\]"'):
        read("hf:Helsinki-NLP/opus-100:de-en")


# ---------------------------------------------------------------------- files that are not what they are called


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", gzip.compress(b"{}"), "expected text, got gzip; name it after what it is"),
        ("a.jsonl.gz", "{}", "no gzip"),
        ("a.tsv", b"PK\x03\x04...", "expected text, got a zip archive; unpack it"),
        ("a.tmx", b"PAR1....PAR1", "expected text, got Parquet; name it after what it is"),
        ("a.parquet", b"en\tde\n", "expected Parquet, got text"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, name: str, data: bytes | str, message: str):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(
        ValueError, match="expected gzip, got text" if message == "no gzip" else f"not what it is called: {message}"
    ):
        read(path)


def test_a_gzip_file_that_breaks_off(tmp_path: Path):
    for name, data in (("a.tmx.gz", tmx(*[PAIR] * 1000)), ("a.tsv.gz", b"en\tde\n" + b"Go.\tGeh!\n" * 1000)):
        (tmp_path / name).write_bytes(gzip.compress(data)[:60])
        with pytest.raises(ValueError, match=f"{name} is no whole gzip file"):
            read(tmp_path / name)


def test_a_side_that_is_empty_throughout(tmp_path: Path):
    path = put(tmp_path / "a.tsv", tsv("en\tde", *["Go.\t"] * 3))
    with pytest.raises(
        ValueError, match=r"a.tsv holds no sentence pairs: of its 3 rows none has two languages.*deu_Latn in 3 \(3 "
    ):
        read(path)
    with pytest.raises(ValueError, match="a.tsv: the side deu_Latn is empty in all 3 rows"):
        read(put(path, tsv("en\tde\tfr", *["Go.\t\tVa !"] * 3)))
    assert len(read(put(path, tsv("en\tde\tfr", *["Go.\t\tVa !"] * 3, "Go.\tGeh!\tVa !")))) == 4
    with pytest.raises(ValueError, match="holds no sentence pairs: it has no rows"):
        read(put(path, ""))


RUSSIAN, ENGLISH, CHINESE, TRADITIONAL = "Люди рождаются свободными", "All are born free", "人人在尊严上平等", "人人在尊嚴上平等"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("eng_Latn", RUSSIAN), ("rus_Cyrl", ENGLISH)),
        (("zho_Hans", TRADITIONAL), ("zho_Hant", CHINESE)),
        (("zho_Hans", "すべての人間は自由だ"), ("jpn_Jpan", CHINESE)),
        (("kor_Hang", CHINESE), ("zho_Hans", "모든 인간은 자유롭다")),
    ],
)
def test_swapped_languages(tmp_path: Path, one: tuple[str, str], other: tuple[str, str]):
    right = [{one[0]: other[1], other[0]: one[1]}] * 20
    assert read(write(tmp_path / "right.jsonl", *right)) == right
    with pytest.raises(ValueError, match=f"{one[0]} and {other[0]} look swapped.*exchange"):
        read(write(tmp_path / "pairs.jsonl", dict((one, other))))


def test_a_side_in_a_script_that_is_not_its_own(tmp_path: Path):
    rows = [{"eng_Latn": ENGLISH, "rus_Cyrl": "Vse lyudi"}] * 12
    with pytest.raises(ValueError, match="0% of the letters under rus_Cyrl are Cyrillic .such as 'Vse lyudi'"):
        read(write(tmp_path / "pairs.jsonl", *rows))
    mixed = [{"eng_Latn": ENGLISH, "rus_Cyrl": "Vse lyudi"}] * 5 + [{"eng_Latn": ENGLISH, "rus_Cyrl": RUSSIAN}] * 5
    assert len(read(write(tmp_path / "pairs.jsonl", *mixed))) == 10  # some of it is for the filters


# ---------------------------------------------------------------------- filters


def drops(row: Row, **config: Any) -> list[str]:
    dropped: Counter[str] = Counter()
    kept = list(filtered([row], FilterConfig(**config), dropped))
    assert kept == [row] or dropped.pop("row of fewer than two languages") == 1
    return list(dropped)


def test_each_filter():
    def pair(english: str, other: str, code: str = "deu_Latn") -> Row:
        return {"eng_Latn": english, code: other}

    assert drops(pair("Go.", "Geh!")) == drops(pair("It is 5 p.m.", "Es ist 17 Uhr.")) == []
    assert drops(pair("Go.", " ")) == ["empty side"]
    assert drops(pair("Go.", "Geh!"), min_chars=4) == ["too short"]
    assert drops(pair("a" * 1050, "b" * 1050)) == [] and drops(pair("a" * 1050, "b" * 1051)) == ["too long"]
    assert drops(pair("a" * 20, "b" * 60)) == [] and drops(pair("a" * 20, "b" * 61)) == ["length ratio"]
    assert drops(pair("a" * 3, "b" * 45)) == [] and drops(pair("b" * 46, "a" * 3)) == ["length ratio"]
    assert drops(pair("a" * 3, "b" * 10), ratio_floor=1) == ["length ratio"]
    assert drops(pair("b" * 100, "人" * 17, "zho_Hans")) == [] and drops(pair("b" * 103, "人" * 17, "zho_Hans")) == [
        "length ratio"
    ]
    assert drops(pair("Tom.", "tom.")) == ["identical sides"] and drops(pair("Tom.", "Tom."), drop_identical=False) == []
    assert drops(pair("Tom", "Том", "rus_Cyrl")) == [] and drops(pair("Tom", "Tim", "rus_Cyrl")) == ["wrong script"]
    assert drops(pair("Windows", "Это Windows", "rus_Cyrl")) == ["wrong script"]
    assert drops(pair("Windows", "Это Windows", "rus_Cyrl"), min_script_share=0.3) == []
    assert drops(pair("In 1990", "1909")) == [] and drops(pair("In 1990", "2837"), min_number_match=0.5) == ["numbers differ"]
    assert drops(pair("In 1990", "من ١٩٩٠", "arb_Arab"), min_number_match=1) == []
    assert drops(pair("Nobody came", "Keiner kam"), min_number_match=1) == []


def test_a_bad_side_takes_only_itself_out_of_a_row_of_many():
    row = {"eng_Latn": "Go.", "rus_Cyrl": "Go away.", "deu_Latn": "Geh!", "fra_Latn": "go."}
    dropped: Counter[str] = Counter()
    assert list(filtered([row], dropped=dropped)) == [GO[0]]
    assert dropped == {"wrong script": 1, "identical sides": 1}
    first = {"rus_Cyrl": "Go away.", "eng_Latn": "Go.", "deu_Latn": "Geh!"}
    assert list(filtered([first])) == [GO[0]]  # the next side takes its place


def test_duplicates_are_of_whole_rows():
    rows = [
        GO[0],
        {"deu_Latn": "Geh!", "eng_Latn": "Go."},
        {"eng_Latn": "Go.", "deu_Latn": "Los!"},
        {"eng_Latn": "Go.", "fra_Latn": "Geh!"},
    ]
    dropped: Counter[str] = Counter()
    assert list(filtered(rows, dropped=dropped)) == [rows[0], *rows[2:]]
    assert dropped == {"duplicate row": 1}
    assert list(filtered(rows, FilterConfig(drop_duplicates=False))) == rows


@pytest.mark.parametrize(
    "wrong", [{"min_chars": 9, "max_chars": 8}, {"max_ratio": 0.5}, {"ratio_floor": 0}, {"min_script_share": 50}]
)
def test_bad_filters_name_the_field(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FilterConfig(**wrong)


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("multi30k_val", {}),
        ("tatoeba_eng_fra", {"length ratio": 7, "identical sides": 1, "row of fewer than two languages": 8}),
    ],
)
def test_the_defaults_drop_next_to_nothing_of_clean_text(shared_data: Path, name: str, dropped: dict[str, int]):
    assert load_bitext(shared_data / f"{name}.jsonl.gz").dropped == dropped


# ---------------------------------------------------------------------- tags, loading, mixing


def test_back_translations_are_sources_only():
    plain, mined = Bitext("a", GO), Bitext("b", GO, tag="<MINED_DATA>")
    for corpus in (plain, mined):
        assert corpus.may_translate("eng_Latn", "deu_Latn") and corpus.may_translate("deu_Latn", "eng_Latn")
    back = Bitext("c", [*GO, {"eng_Latn": "Go.", "deu_Latn": "Geh!", "fra_Latn": "Va !"}], "<MMT_BT_DATA>", ("deu_Latn",))
    assert back.may_translate("deu_Latn", "eng_Latn") and back.may_translate("deu_Latn", "fra_Latn")
    assert not back.may_translate("eng_Latn", "deu_Latn") and not back.may_translate("eng_Latn", "fra_Latn")
    with pytest.raises(ValueError, match="the tag is '' or one of <MINED_DATA>.*; got 'mined'"):
        Bitext("d", GO, "mined")
    for tag, synthetic in (("<SMT_BT_DATA>", ()), ("<MINED_DATA>", ("deu_Latn",)), ("", ("deu_Latn",))):
        with pytest.raises(ValueError, match="`synthetic` names the languages that a machine wrote"):
            Bitext("e", GO, tag, synthetic)


def test_loading_reads_and_filters(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", *GO, {"en": "Tom.", "de": "Tom."}, {"en": "Go.", "de": ""})
    bitext = load_bitext(path, tag="<SMT_BT_DATA>", synthetic=["German"])
    assert (bitext.rows, bitext.tag, bitext.synthetic) == (GO, "<SMT_BT_DATA>", ("deu_Latn",))
    assert bitext.dropped == {"empty side": 1, "identical sides": 1, "row of fewer than two languages": 2}
    assert bitext.report() == f"{path}: kept 2 rows; dropped 2 row of fewer than two languages, 1 empty side, 1 identical sides"
    assert len(load_bitext(path, filters=None).rows) == 3
    with pytest.raises(ValueError, match="pairs.jsonl: the filters leave none of its rows; they dropped .*'too short': 6"):
        load_bitext(path, filters=FilterConfig(min_chars=100, max_chars=200))


def test_mixing_by_temperature():
    assert mixing_weights([100, 300], 1) == pytest.approx([0.25, 0.75])
    assert mixing_weights([100, 900], 2) == pytest.approx([0.25, 0.75])  # square roots
    assert mixing_weights([1, 32, 0], 5) == pytest.approx([1 / 3, 2 / 3, 0])
    assert mixing_weights([1, 999, 0], math.inf) == [0.5, 0.5, 0]
    assert mixing_weights([1, 999], 1e9) == pytest.approx([0.5, 0.5], abs=1e-8)
    assert mixing_weights([1e12, 2e12], 1e-3) == pytest.approx([0, 1])  # n^1000 would overflow
    assert sum(mixing_weights(range(1, 1000), 3)) == pytest.approx(1, abs=1e-12)
    for counts in ([], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="counts of at least 0, one of them above"):
            mixing_weights(counts, 1)
    for temperature in (0, -1, math.nan):
        with pytest.raises(ValueError, match="the temperature is above 0"):
            mixing_weights([1], temperature)


# ---------------------------------------------------------------------- held out


def test_held_out_is_every_fiftieth_for_good():
    assert [n for n in range(300) if held_out(f"Sentence {n}.")] == [53, 75, 132, 153]
    share = sum(held_out(f"This is sentence number {n}.") for n in range(20_000)) / 20_000
    assert 0.017 < share < 0.023


def test_tatoeba(shared_data: Path):
    rows = read_aligned(shared_data / "tatoeba_eng_fra.jsonl.gz")
    assert len(rows) == 18_061
    test = [row for row in rows if held_out(row["eng_Latn"])]
    train = {row["eng_Latn"] for row in rows if not held_out(row["eng_Latn"])}
    assert 250 < len(test) < 470
    assert not train & {row["eng_Latn"] for row in test}  # a sentence with several translations is never on both sides
