"""xsim, BLEU over a codec, and the counts about stories, each on cases worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sonarkit.evaluation.codec import codec_report, corpus_bleu, distinct_rows, space_report
from sonarkit.evaluation.stories import story_report
from sonarkit.evaluation.xsim import xsim_error
from sonarkit.models.rollout import Step, Story


def test_xsim_of_identical_and_of_permuted_vectors() -> None:
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    assert xsim_error(x, x) == 0
    swapped = x.clone()
    swapped[[0, 1]] = x[[1, 0]]
    assert xsim_error(x, swapped) == 2 / 50
    assert xsim_error(x, 3 * x + 0.01, chunk=7) == 0  # margins do not depend on length, nor on the chunk


def test_xsim_uses_the_margin_not_the_cosine() -> None:
    """A translation shrunk towards a common direction loses by cosine to hubs, and wins by its margin over the neighbourhood."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=noise)
    y = x + 0.8 * torch.randn(200, 12, generator=noise) + torch.rand(200, 1, generator=noise) * 3
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    by_cosine = (cosine.argmax(1) != torch.arange(200)).float().mean().item()
    near_x, near_y = cosine.topk(4, 1).values.mean(1), cosine.T.topk(4, 1).values.mean(1)
    by_margin = ((2 * cosine / (near_x[:, None] + near_y)).argmax(1) != torch.arange(200)).float().mean().item()
    assert xsim_error(x, y) == pytest.approx(by_margin)
    assert by_margin < by_cosine


def test_xsim_refuses_what_is_not_aligned() -> None:
    with pytest.raises(ValueError, match="one shape"):
        xsim_error(torch.zeros(3, 2), torch.zeros(4, 2))


def test_bleu_is_sacrebleus() -> None:
    assert corpus_bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
    assert 0 < corpus_bleu(["the cat sat on a mat"], ["the cat sat on the mat"]) < 100


class Points:
    """A codec that encodes every sentence to the point it is told."""

    def __init__(self, vectors: dict[str, torch.Tensor]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], lang: str) -> torch.Tensor:
        return self.vectors[lang][[int(text) for text in texts]]


def test_the_space_report_knows_one_space_two_and_none() -> None:
    x, y, z = torch.randn(3, 400, 8, generator=torch.Generator().manual_seed(0))
    rows = [{"eng_Latn": str(i), "fra_Latn": str(i)} for i in range(400)]
    one = space_report(Points({"eng_Latn": x, "fra_Latn": x}), rows)  # type: ignore[arg-type]
    assert one["language_gap"] == 0
    assert one["spread"] == pytest.approx(8**0.5, rel=0.05) and one["effective_dimension"] == pytest.approx(8, rel=0.05)
    assert space_report(Points({"eng_Latn": x, "fra_Latn": y}), rows)["language_gap"] == pytest.approx(1, abs=0.06)  # type: ignore[arg-type]
    near = space_report(Points({"eng_Latn": x, "fra_Latn": x + 0.1 * z}), rows)  # type: ignore[arg-type]
    assert near["language_gap"] == pytest.approx(0.01 / 2, rel=0.1)
    line = space_report(Points({"eng_Latn": 0.01 * x[:, :1] * torch.ones(8), "fra_Latn": y * 0}), rows)  # type: ignore[arg-type]
    assert line["effective_dimension"] == pytest.approx(1) and line["spread"] < 0.05


class Parrot:
    """A codec that remembers its sentences perfectly: auto-encoding and translation must score 100 and xsim 0."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def encode(self, texts: list[str], lang: str) -> torch.Tensor:
        return torch.eye(len(self.rows))[[next(i for i, row in enumerate(self.rows) if row[lang] == text) for text in texts]]

    def decode(self, z: torch.Tensor, lang: str, beam_size: int) -> list[str]:
        return [self.rows[int(i)][lang] for i in z.argmax(1)]


def test_a_perfect_codec_has_a_perfect_report() -> None:
    rows = [
        {"eng_Latn": f"the {n} ran home last night", "deu_Latn": f"der {n} lief gestern nach Hause"}
        for n in ("fox", "bear", "owl", "cat", "hen")
    ]
    report = codec_report(Parrot(rows), rows)  # type: ignore[arg-type]
    assert report["bleu_eng_Latn"] == report["bleu_deu_Latn-eng_Latn"] == report["bleu_translation"] == pytest.approx(100)
    assert report["xsim_mean"] == 0


def test_rows_that_repeat_a_sentence_do_not_count_in_xsim() -> None:
    rows = [{"a": "x", "b": "1"}, {"a": "y", "b": "1"}, {"a": "z", "b": "2"}, {"a": "x", "b": "3"}]
    assert distinct_rows(rows) == [0, 2]


def story(sentences: list[str], prompt: int, stopped: str, last: str = "") -> Story:
    step = Step(0, torch.zeros(1), last, torch.zeros(1), 0.0, 0.0, stopped)  # type: ignore[arg-type]
    return Story("", sentences, prompt, torch.zeros(len(sentences), 1), stopped, [step])  # type: ignore[arg-type]


def test_story_report_counts_ends_and_repetitions() -> None:
    report = story_report(
        [
            story(["a", "b", "c"], 1, "end", "End of sequence."),  # told b c
            story(["a", "b"], 1, "loop", "a"),  # told b, and a again
            story(["a", "b", "b", "d", "e"], 1, "max_sentences", "e"),  # told b b d e
        ]
    )
    assert report["stopped_end"] == report["stopped_loop"] == report["stopped_max_sentences"] == pytest.approx(1 / 3)
    assert report["repeated_sentences"] == pytest.approx(2 / 8)
    assert report["sentences_per_story"] == pytest.approx(8 / 3)
    with pytest.raises(ValueError, match="at least one story"):
        story_report([])
