"""Corpus readers: every kind of source, what is dropped, and errors that name file, line and columns."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from sonarkit.text import corpora, storyworld
from sonarkit.text.corpora import ColumnError, open_corpus
from sonarkit.text.languages import UnknownLanguageError
from sonarkit.text.storyworld import Story


def read(spec: str | Path, **options: Any) -> list[tuple[str, str]]:
    return [(document.text, document.source) for document in open_corpus(spec, **options)]


def jsonl(path: Path, *rows: object) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_text_files_are_split_at_blank_lines(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\ufeff\nOne.\nTwo.\n\n \t\nThree.\r\n\r\n\n", encoding="utf-8")
    assert [(text.split(), source) for text, source in read(tmp_path / "a.txt")] == [
        (["One.", "Two."], "a.txt:2"), (["Three."], "a.txt:6"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl(tmp_path: Path, name: str):
    path = jsonl(tmp_path / name, {"text": "One.", "id": 1}, {"text": "Two."})
    assert read(path) == [("One.", f"{name}:1"), ("Two.", f"{name}:2")]
    assert read(str(jsonl(tmp_path / name, {"story": "S."})), column="story") == [("S.", f"{name}:1")]


def test_byte_order_mark_and_blank_lines(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "One."}\n\n{"text": "Two."}')
    assert read(tmp_path / "a.jsonl") == [("One.", "a.jsonl:1"), ("Two.", "a.jsonl:3")]


def test_parquet(tmp_path: Path):
    texts = [f"Story {n}." for n in range(150_000)]
    found = read(parquet(tmp_path / "a.parquet", text=texts, n=list(range(150_000))))
    assert len(found) == 150_000
    assert found[-1] == ("Story 149999.", "a.parquet:149999")
    words = pa.array(["x", "y", "x"]).dictionary_encode()
    assert [text for text, _ in read(parquet(tmp_path / "b.parquet", text=words))] == ["x", "y", "x"]
    assert [text for text, _ in read(parquet(tmp_path / "c.parquet", text=pa.array(["x"], pa.large_string())))] == ["x"]


def test_two_columns_are_one_text_after_the_other(tmp_path: Path):
    rows = [
        {"document": "He ran.", "summary": "A run."},
        {"document": "He fell.", "summary": " "},
        {"document": 3, "summary": "."},
    ]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    corpus = open_corpus(path, column="document+summary")
    assert [(document.text, document.source) for document in corpus] == [("He ran.\n\nA run.", "a.jsonl:1")]
    assert corpus.dropped == {"empty": 1, "not a text": 1}
    texts = {"document": ["He ran.", "He fell."], "summary": ["A run.", None], "a+b": ["x", "y"]}
    table = parquet(tmp_path / "a.parquet", **texts)
    assert read(table, column="summary+document") == [("A run.\n\nHe ran.", "a.parquet:0")]
    assert [text for text, _ in read(table, column="a+b")] == ["x", "y"], "a column of that very name"
    for name in (path, table):
        with pytest.raises(ColumnError, match="no column 'highlights' of text"):
            read(name, column="document+highlights")


def test_folder_in_the_order_of_names(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    jsonl(tmp_path / "b.jsonl", {"text": "2"})
    jsonl(tmp_path / "a.jsonl.gz", {"text": "1"})
    parquet(tmp_path / "sub" / "c.parquet", text=["3"])
    (tmp_path / "notes.md").write_text("not a corpus")
    jsonl(tmp_path / ".hidden" / "d.jsonl", {"text": "no"})
    assert [text for text, _ in read(tmp_path)] == ["1", "2", "3"]


def test_dropped_documents_are_counted_and_reported(tmp_path: Path):
    rows = [{"text": t} for t in ("One.", "", " \n", None, 3, ["x"], "half \ud83d", "Two.")]
    corpus = open_corpus(jsonl(tmp_path / "a.jsonl", *rows))
    for _ in range(2):  # counted anew at each reading
        assert [document.text for document in corpus] == ["One.", "Two."]
        assert corpus.kept == 2
        assert corpus.dropped == {"not a text": 3, "empty": 2, "broken Unicode": 1}
    assert corpus.report() == "kept 2 documents, dropped 6 (3 not a text, 2 empty, 1 broken Unicode)"
    whole = open_corpus(jsonl(tmp_path / "b.jsonl", {"text": "One."}))
    list(whole)
    assert whole.report() == "kept 1 documents, dropped 0"


def test_limit_counts_what_is_kept_and_reads_no_further(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "One."}\n{"text": "Two."}\nbroken\n')
    assert [text for text, _ in read(tmp_path / "a.jsonl", limit=2)] == ["One.", "Two."]
    with pytest.raises(ValueError, match="limit .* at least 1; got 0"):
        open_corpus(tmp_path / "a.jsonl", limit=0)


def test_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The first document is there before the last line is read."""
    lines: list[int] = []

    def counted(path: Path) -> Iterator[tuple[int, bytes]]:
        for number in range(1, 1000):
            lines.append(number)
            yield number, b'{"text": "x"}\n'

    monkeypatch.setattr(corpora, "_raw_lines", counted)
    (tmp_path / "a.jsonl").touch()
    next(iter(open_corpus(tmp_path / "a.jsonl")))
    assert lines == [1]


@pytest.mark.parametrize("column", ["txt", "n"])
def test_wrong_column_lists_the_columns(tmp_path: Path, column: str):
    path = parquet(tmp_path / "a.parquet", story=["x"], n=[1])
    columns = r"the columns are story \(string\), n \(int64\)"
    with pytest.raises(ColumnError, match=f"a.parquet: no column '{column}' of text; {columns}"):
        read(path, column=column)


def test_missing_column_names_file_line_and_columns(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "One."}, {"title": "x", "story": "Two."})
    with pytest.raises(ColumnError, match="a.jsonl:2: no column 'text' of text; the columns are title, story"):
        read(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"One.\n\nTwo \xff.\n", r"a.txt:3: not valid UTF-8 \(byte 0xff in column 5\)"),
        ("a.jsonl", b'{"text": "One."}\n{"text": "\xe9"}\n', "a.jsonl:2: not valid UTF-8"),
        ("a.jsonl", b'{"text": "One."}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'"One."\n', "a.jsonl:1: expected a JSON object"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "One."}\n' * 9)[:-9], "no whole gzip file: it breaks off after line 9"),
        ("a.jsonl.gz", b'{"text": "One."}\n', "a.jsonl.gz is no whole gzip file"),
        ("a.parquet", b"PAR1 and no more", "a.parquet is no whole Parquet file"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes, message: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_invalid_utf8_in_parquet_names_the_row(tmp_path: Path):
    broken = pa.array([b"One.", b"\xff"]).view(pa.string())
    with pytest.raises(ValueError, match="a.parquet: row 1 is not valid UTF-8"):
        read(parquet(tmp_path / "a.parquet", text=broken))


def test_no_such_corpus(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no corpus at .*none.jsonl; expected a file or folder of .txt"):
        open_corpus(tmp_path / "none.jsonl")
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match="a.csv is of no known kind; expected .txt, .jsonl, .jsonl.gz, .parquet"):
        open_corpus(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="holds no corpus file; expected some of .txt"):
        open_corpus(tmp_path)


def told(n: int) -> Story:
    return Story("plot", {}, [], {"eng_Latn": [f"One {n}.", "Two."], "fra_Latn": [f"Un {n}.", "Deux."]})


def test_storyworld_from_the_seed(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[int, int]] = []

    def stories(count: int, seed: int = 0) -> Iterator[Story]:
        calls.append((count, seed))
        return (told(n) for n in range(count))

    monkeypatch.setattr(storyworld, "stories", stories)
    assert read("storyworld:2") == [("One 0. Two.", "storyworld/train@0:0"), ("One 1. Two.", "storyworld/train@0:1")]
    assert read("storyworld:1@7", lang="fra_Latn") == [("Un 0. Deux.", "storyworld/train@7:0")]
    assert calls == [(2, 0), (1, 7)]


def test_fixed_sets_and_handwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "storyworld").mkdir()
    (tmp_path / "storyworld" / "valid.jsonl").write_text(told(5).to_json() + "\n")
    jsonl(tmp_path / "handwritten.jsonl", {"title": "T", "eng_Latn": ["A.", "B."], "deu_Latn": ["C.", "D."]})
    monkeypatch.setattr(corpora, "data_folder", lambda: tmp_path)
    assert read("storyworld:valid", lang="fra_Latn") == [("Un 5. Deux.", "storyworld/valid:1")]
    assert read("handwritten", lang="deu_Latn") == [("C. D.", "handwritten:1")]
    (tmp_path / "handwritten_letters.txt").write_text("Привет.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read("handwritten_letters.txt", lang="rus_Cyrl") == [("Привет.", "handwritten_letters.txt:1")]
    with pytest.raises(UnknownLanguageError, match="French. is not known here; known here are eng_Latn .English., deu_Latn"):
        read("handwritten", lang="fra_Latn")


def test_storyworld_errors_come_at_once():
    for spec in ("storyworld:", "storyworld:many", "storyworld:5@x", "storyworld:train"):
        with pytest.raises(ValueError, match="expected storyworld:COUNT"):
            open_corpus(spec)
    assert read("storyworld:1@7", lang="French") == read("storyworld:1@7", lang="fra_Latn")
    with pytest.raises(UnknownLanguageError, match="known here are eng_Latn"):
        open_corpus("storyworld:5", lang="it")


def test_hugging_face(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        calls.append((name, config, split, streaming))
        return [{"text": "One."}, {"text": None}, {"text": "Two."}]

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert read("hf:roneneldan/TinyStories@validation") == [
        ("One.", "hf:roneneldan/TinyStories:0"), ("Two.", "hf:roneneldan/TinyStories:2"),
    ]  # fmt: skip
    list(open_corpus("hf:wikitext:wikitext-103-v1"))
    assert calls == [
        ("roneneldan/TinyStories", None, "validation", True), ("wikitext", "wikitext-103-v1", "train", True),
    ]  # fmt: skip
    with pytest.raises(ColumnError, match="no column 'story' of text; the columns are text"):
        read("hf:x", column="story")
    monkeypatch.setenv("SONARKIT_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="hf:x comes from the Hugging Face hub, and SONARKIT_OFFLINE forbids"):
        read("hf:x")


def test_hugging_face_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "sonarkit\[hf\]"'):
        read("hf:roneneldan/TinyStories")


def test_real_stories(shared_data: Path):
    corpus = open_corpus(shared_data / "tinystories_sample.jsonl")
    assert len(list(corpus)) == corpus.kept == 186
    assert corpus.report() == "kept 186 documents, dropped 0"


# ---------------------------------------------------------------------- behind a URL


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of fsspec's memory, with the same stories in every kind of file, one of them hidden."""
    memory = fsspec.filesystem("memory")
    rows = [{"text": f"Story {i}. It ends."} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), table)
    files = {"a.jsonl": lines, "deep/b.jsonl.gz": gzip.compress(lines), "c.parquet": table.getvalue(), "d.txt": b"One.\n\nTwo.\n"}
    for name, data in {**files, ".hidden/e.jsonl": lines, "readme.md": b"no corpus"}.items():
        memory.pipe_file(f"/corpus/{name}", data)
    yield "memory://corpus"
    memory.rm("/corpus", recursive=True)


@pytest.mark.parametrize("name,count", [("a.jsonl", 3), ("deep/b.jsonl.gz", 3), ("c.parquet", 3), ("d.txt", 2), ("", 11)])
def test_a_corpus_behind_a_url(bucket: str, name: str, count: int) -> None:
    spec = f"{bucket}/{name}" if name else bucket
    texts = [document.text.strip() for document in open_corpus(spec)]
    assert len(texts) == count
    assert texts[0] == ("One." if name == "d.txt" else "Story 0. It ends.")
    assert [document.text.strip() for document in open_corpus(Path(spec))] == texts, "a path made of a URL is one"


def test_what_is_not_behind_a_url_is_told(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at memory://corpus/none"):
        open_corpus(f"{bucket}/none")
    with pytest.raises(ValueError, match=r"memory://corpus/readme.md holds no corpus file; expected some of .txt"):
        open_corpus(f"{bucket}/readme.md")
    fsspec.filesystem("memory").pipe_file("/corpus/bad.jsonl", b"{")
    with pytest.raises(ValueError, match="memory://corpus/bad.jsonl:1: not valid JSON"):
        list(open_corpus(f"{bucket}/bad.jsonl"))
