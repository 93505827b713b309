"""Aligned corpora: reading, bad rows, and the test rows that stay apart."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from sonarkit.text.bitext import held_out, read_aligned


def write(path: Path, *rows: object) -> Path:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_rows_of_two_or_more_languages(tmp_path: Path, name: str):
    rows = [{"eng_Latn": "Go.", "fra_Latn": " Va ! "}, {"eng_Latn": "Hi.", "deu_Latn": "Hallo!", "spa_Latn": "¡Hola!"}]
    assert read_aligned(write(tmp_path / name, *rows)) == [{"eng_Latn": "Go.", "fra_Latn": "Va !"}, rows[1]]


def test_what_is_dropped_is_counted(tmp_path: Path):
    path = write(
        tmp_path / "pairs.jsonl",
        {"eng_Latn": "Go.", "fra_Latn": "Va !", "deu_Latn": " "}, {"eng_Latn": "Hi.", "fra_Latn": ""}, {"eng_Latn": "Alone."},
    )  # fmt: skip
    dropped: Counter[str] = Counter()
    assert read_aligned(path, dropped) == [{"eng_Latn": "Go.", "fra_Latn": "Va !"}]
    assert dropped == {"empty side": 2, "row of fewer than two languages": 2}
    clean: Counter[str] = Counter()
    read_aligned(write(tmp_path / "clean.jsonl", {"eng_Latn": "Go.", "fra_Latn": "Va !"}), clean)
    assert not clean


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"eng_Latn": "Go."', "not valid JSON"),
        (b'["Go.", "Va"]', "expected a JSON object"),
        (b'{"eng_Latn": 3, "fra_Latn": "trois"}', "'eng_Latn': 3"),
        (b'{"en": "Go.", "fra_Latn": "Va"}', "did you mean eng_Latn"),
        (b'{"eng_Latn": "caf\xe9"}', "UTF-8"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"eng_Latn": "Go.", "fra_Latn": "Va !"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"bad.jsonl:2: .*{message}"):
        read_aligned(path)


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
