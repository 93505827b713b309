"""What the figures show: the numbers given, the sentence on hover, text as it stands."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from sonarkit.explore import figures

SENTENCES = [
    "The fox ran home.",
    "The fox ran home.",
    "It cost $5 & he had $3 <b>left</b>.",
    "A long one, " + "and on " * 20 + "it went.",
]
POINTS = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, -1.0]])


def all_figures() -> dict[str, go.Figure]:
    similarities = POINTS @ POINTS.T / 10
    return {
        "barcodes": figures.vector_barcodes(torch.randn(4, 200), SENTENCES),
        "heatmap": figures.similarity_heatmap(similarities, SENTENCES, SENTENCES, "Cosines"),
        "map": figures.sentence_map(POINTS, SENTENCES, ["a", "b", "a", "c"]),
        "path": figures.story_path(POINTS, SENTENCES, 2, np.array([5.0, 5.0])),
        "histogram": figures.cosine_histogram({"own": [0.9, 0.95, 1.0], "other": np.array([[0.1, 0.2]])}),
        "steps": figures.step_cosines(SENTENCES, {"a": [0.1, 0.2, 0.3, 0.99], "b": torch.tensor([0.0, 0.1, 0.1, 0.2])}, 0.98),
    }


@pytest.mark.parametrize("name", list(all_figures()))
def test_every_figure_is_valid_json_and_legible_on_any_background(name: str) -> None:
    figure = all_figures()[name]
    assert json.loads(figure.to_json())["data"]  # what a notebook is handed
    layout = figure.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)" and layout.width is None
    for background in (1.0, luminance("#111111")):
        lighter, darker = sorted([luminance(layout.font.color), background], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_heatmap_holds_the_cosines_and_equal_sentences_stay_apart() -> None:
    heat = figures.similarity_heatmap(POINTS, SENTENCES, ["x", "y"])
    np.testing.assert_array_equal(heat.data[0].z, POINTS)
    assert list(heat.layout.yaxis.tickvals) == [0, 1, 2, 3] and heat.layout.yaxis.autorange == "reversed"
    assert heat.data[0].customdata[0][1] == "The fox ran home.<br>y"
    assert heat.data[0].texttemplate and not figures.similarity_heatmap(np.eye(13), ["s"] * 13, ["s"] * 13).data[0].texttemplate


def test_text_is_shown_as_it_stands() -> None:
    """Neither as HTML, nor as TeX between two dollar signs, which would come out blank; long text is wrapped or cut."""
    heat = figures.similarity_heatmap(POINTS, SENTENCES, ["x", "y"])
    hover, label = heat.data[0].customdata[2][0], heat.layout.yaxis.ticktext[2]
    for shown in (hover, label):
        assert "&#36;5 &amp; he" in shown and "&lt;b&gt;" in shown and "$" not in shown
    assert max(len(line) for line in heat.data[0].customdata[3][0].split("<br>")) <= figures.HOVER_LETTERS
    assert len(heat.layout.yaxis.ticktext[3]) <= figures.LABEL_LETTERS and heat.layout.yaxis.ticktext[3].endswith("…")


def test_groups_of_a_map_differ_by_colour_and_by_marker() -> None:
    map_ = figures.sentence_map(POINTS, SENTENCES, ["b", "a", "b", "c"])
    assert [trace.name for trace in map_.data] == ["b", "a", "c"]
    assert list(map_.data[0].x) == [0.0, 2.0] and map_.data[0].text[0] == SENTENCES[0]
    assert len({trace.marker.color for trace in map_.data}) == len({trace.marker.symbol for trace in map_.data}) == 3


def test_path_numbers_the_sentences_and_tells_prompt_from_story() -> None:
    path = figures.story_path(POINTS, SENTENCES, 1, torch.tensor([5.0, 6.0]))
    line, prompt, told, end = path.data
    assert list(line.x) == [0.0, 1.0, 2.0, 3.0]
    assert (prompt.name, list(prompt.text)) == ("prompt", ["1"]) and (told.name, list(told.text)) == ("told", ["2", "3", "4"])
    assert (end.x[0], end.y[0]) == (5.0, 6.0)
    assert [trace.name for trace in figures.story_path(POINTS, SENTENCES).data] == [None, "told"]


def test_histogram_shows_shares_of_each_group() -> None:
    histogram = figures.cosine_histogram({"own": [0.9, 0.95, 1.0], "other": [0.1, 0.2, 0.3, 0.4]}, bins=10)
    assert [sum(trace.y) for trace in histogram.data] == pytest.approx([1.0, 1.0])
    assert [trace.name for trace in histogram.data] == ["own (3)", "other (4)"]


def test_barcodes_are_symmetric_about_zero_whatever_the_outliers() -> None:
    vectors = np.ones((2, 200))
    vectors[0, 0] = -1e6
    bars = figures.vector_barcodes(vectors, ["a", "b"], components=150).data[0]
    assert bars.z.shape == (2, 150) and bars.zmin == -bars.zmax == -1.0
    assert figures.vector_barcodes(np.zeros((1, 4)), ["zero"]).data[0].zmax == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.similarity_heatmap(POINTS, SENTENCES[:3], ["x", "y"]), "one text per row, got 3 texts for 4 rows"),
        (lambda: figures.similarity_heatmap(POINTS, SENTENCES, ["x"]), "one text per column"),
        (lambda: figures.sentence_map(np.eye(4), SENTENCES, ["a"] * 4), r"shape \(N, 2\), got \(4, 4\)"),
        (lambda: figures.sentence_map(POINTS, SENTENCES, ["a"]), "one group per point"),
        (lambda: figures.story_path(POINTS, SENTENCES[:2]), "one sentence per point"),
        (lambda: figures.story_path(POINTS, SENTENCES, 1, np.zeros(3)), r"\(1, 3\)"),
        (lambda: figures.cosine_histogram({"none": []}), "each with cosines"),
        (lambda: figures.step_cosines(SENTENCES, {"a": [0.1]}), "one sentence per cosine"),
        (lambda: figures.vector_barcodes(POINTS, ["a"]), "one text per vector"),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
