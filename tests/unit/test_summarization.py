"""Summaries end to end: with a model that is known, and with the shipped one."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sonarkit.evaluation.nlg import meteor, rouge_l
from sonarkit.evaluation.summarization import PAPER, SETS, Pair, SummaryConfig, read_pairs, summarize, summary_report
from sonarkit.models.rollout import Story
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.text.corpora import ColumnError
from sonarkit.text.sentences import split_sentences

PAIRS = [
    Pair("Tom found a map. It was old. He went to sea. He came home.", "Tom found an old map.", "a"),
    Pair("The fox ran home.", "The fox ran home.", "b"),
    Pair("Mia slept. Night fell.", "Mia slept.\nNight fell.", "c"),
]


class Repeater:
    """Tells the first sentence of its prompt again, and then ends; nothing after a document of one sentence."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def generate(self, prompt: list[str], lang: str = "eng_Latn", *, max_sentences: int = 32, **_: Any) -> list[Story]:
        heads = [split_sentences(text, lang) for text in prompt]
        self.asked.append((len(prompt), max_sentences))
        assert {len(head) for head in heads} == {len(heads[0])} and max_sentences > len(heads[0])
        told = [head[:1] if len(head) > 1 else [] for head in heads]
        return [Story(p, h + t, len(h), torch.zeros(len(h + t), 4), "end", []) for p, h, t in zip(prompt, heads, told)]


def test_a_report_by_hand() -> None:
    report = summary_report(Repeater(), PAIRS, config=SummaryConfig(6, 3), mode="exact_stem", resamples=20)
    assert report.summaries == ["Tom found a map.", "", "Mia slept."]
    assert report.counts == {"pairs": 3, "documents_cut": 1, "sentences_cut": 1, "empty_summaries": 1, "sentences_told": 2}
    assert report.stopped_by == {"end": 3}
    true = ["Tom found an old map.", "The fox ran home.", "Mia slept. Night fell."]
    assert report.scores["rouge_l"].value == pytest.approx(sum(map(rouge_l, report.summaries, true)) / 3)
    want = sum(meteor(a, b, "exact_stem") for a, b in zip(report.summaries, true)) / 3
    assert report.scores["meteor_exact_stem"].value == pytest.approx(want)
    leads = ["Tom found a map.", "The fox ran home.", "Mia slept. Night fell."]  # as many sentences as the reference
    assert report.scores["lead_rouge_l"].value == pytest.approx(sum(map(rouge_l, leads, true)) / 3)
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["versions"]["nltk"] == version("nltk") and read["scores"].keys() == read["labels"].keys()
    table = report.table("xsum")
    assert "1 documents cut" in table and "paper, SONAR-LLM" in table and "19.3" in table and "paper" not in report.table()
    with pytest.raises(ValueError, match="no set 'news'; expected one of xsum, cnn_dailymail"):
        report.table("news")


def test_batches_have_one_length_and_room_for_the_summary() -> None:
    model = Repeater()
    documents = ["One. Two. Three.", "One.", "One. Two. Three.", "Mia ran. Tom ran. He fell. She fell. All slept. It was late."]
    stories, cut, sentences = summarize(model, documents, config=SummaryConfig(8, 5, batch=2))
    assert model.asked == [(1, 6), (2, 8), (1, 8)] and (cut, sentences) == (1, 3)
    assert [story.prompt_sentences for story in stories] == [3, 1, 3, 3]
    assert stories[3].sentences == ["Mia ran.", "Tom ran.", "He fell.", "Mia ran."]


def test_a_cue_stands_before_the_summary() -> None:
    stories, cut, _ = summarize(Repeater(), ["Mia ran. Tom ran. He fell. She fell."], config=SummaryConfig(6, 3, cue="In short:"))
    assert stories[0].sentences[:3] == ["Mia ran.", "Tom ran.", "In short:"] and cut == 1


def test_sentences_stay_as_they_were_split() -> None:
    """Joined by spaces, "He saw Mr." and "Fox slept." would be one."""
    texts: list[Sequence[str]] = []

    class Listener(Repeater):
        def generate(self, prompt: list[str], lang: str = "eng_Latn", **options: Any) -> list[Story]:
            texts.extend(split_sentences(text, lang) for text in prompt)
            return super().generate(prompt, lang, **options)

    document = "He saw Mr.\n\nFox slept. It was late"
    summarize(Listener(), [document])
    assert texts == [split_sentences(document)] == [["He saw Mr.", "Fox slept.", "It was late"]]


def test_the_shipped_model_end_to_end(tmp_path: Path) -> None:
    stories = [
        "Once upon a time there was a little fox named Mia. One day, Mia found a red kite in the forest.",
        "Tom found an old key.",
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"document": s, "summary": "Mia found a kite."}) + "\n" for s in stories))
    pairs, dropped = read_pairs(file)
    report = summary_report(
        SonarLLM.from_pretrained("mini"), pairs, config=SummaryConfig(4, 2), mode="exact_stem", beam_size=1, resamples=10
    )
    assert not dropped and report.counts["pairs"] == 2 and report.counts["sentences_told"] <= 4
    assert sum(report.stopped_by.values()) == 2 and 0 <= report.scores["rouge_l"].value <= 100


# ---------------------------------------------------------------------- reading


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def test_pairs_are_read_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    rows = [{"text": "A.", "short": "a"}, {"text": "", "short": "b"}, {"text": "C.", "short": None}, {"text": "D.", "short": "d"}]
    file = write(tmp_path / "pairs.jsonl.gz", rows)
    pairs, dropped = read_pairs(file, document="text", summary="short")
    assert pairs == [Pair("A.", "a", "pairs.jsonl.gz:1"), Pair("D.", "d", "pairs.jsonl.gz:4")]
    assert dropped == {"empty": 1, "not a text": 1}
    assert len(read_pairs(file, document="text", summary="short", limit=1)[0]) == 1


def test_hugging_face_sets_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, config, split, streaming))
        return [{"document": "D.", "summary": "s", "article": "A.", "highlights": "h"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_pairs("xsum")[0] == [Pair("D.", "s", "hf:EdinburghNLP/xsum:0")]
    assert read_pairs("cnn_dailymail")[0] == [Pair("A.", "h", "hf:abisee/cnn_dailymail:0")]
    read_pairs("hf:some/set@validation")
    assert asked == [
        ("EdinburghNLP/xsum", None, "test", True),
        ("abisee/cnn_dailymail", "3.0.0", "test", True),
        ("some/set", None, "validation", True),
    ]
    assert SETS.keys() == PAPER.keys()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "sonarkit\[hf\]"'):
        read_pairs("xsum")


def test_bad_input_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [{"text": "A.", "summary": " "}])
    with pytest.raises(ColumnError, match="pairs.jsonl:1: no column 'document'; the columns are text, summary"):
        read_pairs(file)
    with pytest.raises(ValueError, match="no pair of document and summary .*'empty': 1"):
        read_pairs(file, document="text")
    with pytest.raises(FileNotFoundError, match="expected a .jsonl file, xsum, cnn_dailymail or hf:"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="of no known kind"):
        read_pairs(write(tmp_path / "pairs.csv", []))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        read_pairs(file, limit=0)
    with pytest.raises(ValueError, match="got none"):
        summary_report(Repeater(), [])
    with pytest.raises(ValueError, match="b has an empty summary"):
        summary_report(Repeater(), [PAIRS[0], Pair("A.", " ", "b")])
    with pytest.raises(ValueError, match="document 1 holds no sentence"):
        summarize(Repeater(), ["A.", " "])
    for settings in ({"max_sentences": 8}, {"summary_sentences": 0}, {"batch": 0}, {"max_sentences": 9, "cue": "So:"}):
        with pytest.raises(ValueError, match="max_sentences must hold a sentence"):
            SummaryConfig(**settings)  # type: ignore[arg-type]
