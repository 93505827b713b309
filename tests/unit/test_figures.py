"""What the figures show: the numbers given, the sentence on hover, text as it stands."""

from __future__ import annotations

import json
import time

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from sonarkit.evaluation.scaling import Law, fit_scaling
from sonarkit.evaluation.statistics import Interval
from sonarkit.explore import figures
from sonarkit.explore.geometry import Fragility, interpolate, spectrum

SENTENCES = [
    "The fox ran home.",
    "The fox ran home.",
    "It cost $5 & he had $3 <b>left</b>.",
    "A long one, " + "and on " * 20 + "it went.",
]
TOKENS = {"own": [("▁The", -0.1), ("▁$x", -2.0)], "another's": [("▁The", -0.2), ("▁$x", -9.0)]}
FRAGILITY = Fragility(
    "The fox ran home.", np.array([0.1, 0.5]), [["The fox ran home."] * 2, ["A <b>", "A <b>"]], np.array([1.0, 0])
)
RECORDS = [
    {"kind": "train", "step": 10, "seconds": 1.5, "loss_nats_per_token": 5.0, "loss_mt": 4.0},
    {"kind": "train", "step": 20, "seconds": 3.0, "loss_nats_per_token": None, "loss_mt": 3.0},  # every update skipped
    {"kind": "eval", "step": 20, "seconds": 4.0, "loss_nats_per_token": 4.5, "sample": "The fox."},
]
INTERVALS = {
    "sonar-llm": {"grammar": Interval(9.0, 8.5, 9.2, 100), "plot": Interval(7.0, float("nan"), float("nan"), 1)},
    "token <b>": {"plot": Interval(8.0, 7.0, 9.5, 100)},
}
SIZES = [1e5, 3e5, 1e6, 3e6, 1e7]
LAW = Law(50.0, 0.4, 0.5)
FITS = {
    "one": fit_scaling(SIZES, list(LAW(SIZES) * np.array([1.002, 0.999, 1.0, 1.001, 0.998])), resamples=30),
    "few": fit_scaling(SIZES[:2], [2.0, 1.0]),
}
POINTS = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, -1.0]])


def all_figures() -> dict[str, go.Figure]:
    similarities = POINTS @ POINTS.T / 10
    return {
        "barcodes": figures.vector_barcodes(torch.randn(4, 200), SENTENCES),
        "filter bank": figures.filter_bank(torch.randn(50, 80)),
        "heatmap": figures.similarity_heatmap(similarities, SENTENCES, SENTENCES, "Cosines"),
        "map": figures.sentence_map(POINTS, SENTENCES, ["a", "b", "a", "c"]),
        "path": figures.story_path(POINTS, SENTENCES, 2, np.array([5.0, 5.0])),
        "histogram": figures.cosine_histogram({"own": [0.9, 0.95, 1.0], "other": np.array([[0.1, 0.2]])}),
        "steps": figures.step_cosines(SENTENCES, {"a": [0.1, 0.2, 0.3, 0.99], "b": torch.tensor([0.0, 0.1, 0.1, 0.2])}, 0.98),
        "space": figures.sentence_map(np.c_[POINTS, POINTS[:, 0]], SENTENCES, ["a", "b", "a", "c"], axis="UMAP"),
        "neighbours": figures.neighbours(SENTENCES, [0.9, 0.9, 0.5, -0.1], ["a", "b", "a", "c"], "Who is near?"),
        "walk": figures.walk(interpolate(POINTS[0], POINTS[1], 4), SENTENCES),
        "spectra": figures.spectra({"all": spectrum(POINTS), "flat": np.full(5, 0.2)}),
        "fragility": figures.fragility_curves([FRAGILITY]),
        "tokens": figures.token_surprise(TOKENS),
        "pairs": figures.predicted_and_true(POINTS, POINTS + 1, SENTENCES, SENTENCES),
        "attention": figures.attention(torch.full((2, 3, 4, 4), 0.25), SENTENCES),
        "losses": figures.loss_curves({"one": RECORDS}),
        "intervals": figures.interval_figure(INTERVALS),
        "scaling": figures.scaling_figure(FITS, 1e9),
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


def test_a_map_of_space_has_markers_that_space_knows() -> None:
    space = figures.sentence_map(np.random.default_rng(0).normal(size=(6, 3)), ["s"] * 6, list("abcdef"), axis="UMAP")
    assert {trace.type for trace in space.data} == {"scatter3d"} and len({trace.marker.symbol for trace in space.data}) == 6
    assert space.layout.scene.zaxis.title.text == "UMAP 3" and space.layout.scene.bgcolor == "rgba(0, 0, 0, 0)"


def test_many_points_are_one_webgl_trace_a_group_and_quickly_made() -> None:
    points = np.random.default_rng(0).normal(size=(50_000, 2))
    began = time.perf_counter()
    many = figures.sentence_map(
        points, ["The little fox ran home to the old cottage in the forest."] * 50_000, ["a", "b"] * 25_000
    )
    assert time.perf_counter() - began < 20  # about 1.5 s alone
    assert [(trace.type, len(trace.x)) for trace in many.data] == [("scattergl", 25_000)] * 2


def test_neighbours_are_bars_in_the_order_given() -> None:
    bars = figures.neighbours(SENTENCES, np.array([0.9, 0.8, 0.5, -0.1]), ["b", "a", "b", "b"]).data
    assert [(bar.name, list(bar.y), list(bar.x)) for bar in bars] == [("b", [0, 2, 3], [0.9, 0.5, -0.1]), ("a", [1], [0.8])]
    assert len({bar.marker.color for bar in bars}) == len({bar.marker.pattern.shape for bar in bars}) == 2
    assert not figures.neighbours(SENTENCES, np.ones(4)).layout.showlegend


def test_a_walk_names_a_sentence_where_it_changes() -> None:
    walk = figures.walk(interpolate(POINTS[0], POINTS[1], 4), ["a", "a", "b", "b"])
    to_start, to_end = walk.data
    assert to_start.x[0] == to_end.x[-1] == 1.0 and to_start.x[-1] == pytest.approx(0.0)
    assert list(walk.layout.yaxis.ticktext) == ["a", "", "b", "b"]  # the end is always named


def test_spectra_tell_their_dimension() -> None:
    flat = figures.spectra({"flat": np.full(5, 0.2), "one": [1.0, 0.0]}).data
    assert [trace.name for trace in flat] == ["flat: 5.0 dimensions", "one: 1.0 dimensions"]
    assert np.isnan(flat[1].y[1])  # nothing has no logarithm


def test_fragility_tells_what_is_said_at_each_radius() -> None:
    curve = figures.fragility_curves([FRAGILITY]).data[0]
    assert list(curve.y) == [1.0, 0.0] and list(curve.text) == ["2× The fox ran home.", "2× A &lt;b&gt;"]


def test_surprise_is_minus_the_log_probability_of_each_piece() -> None:
    figure = figures.token_surprise(TOKENS)
    assert [list(bar.y) for bar in figure.data] == [[0.1, 2.0], [0.2, 9.0]]
    assert list(figure.layout.xaxis.ticktext) == ["▁The", "▁&#36;x"]


def test_predicted_and_true_are_joined_pair_by_pair() -> None:
    line, predicted, true = figures.predicted_and_true(POINTS, POINTS + 1, SENTENCES, SENTENCES[::-1]).data
    assert list(line.x[:2]) == [0.0, 1.0] and np.isnan(line.x[2]) and len(line.x) == 12
    assert list(predicted.x) == list(POINTS[:, 0]) and list(true.x) == list(POINTS[:, 0] + 1)
    assert predicted.text[0].startswith("predicted: The fox ran home.<br>true: A long one")


def test_attention_is_a_mean_or_one_head_and_nothing_lies_ahead() -> None:
    weights = np.tril(np.random.default_rng(0).uniform(0.1, 1, size=(2, 3, 4, 4)))
    weights /= weights.sum(-1, keepdims=True)
    mean, one = figures.attention(weights, SENTENCES).data[0], figures.attention(torch.tensor(weights), SENTENCES, 1, 2).data[0]
    lower = np.tril_indices(4)
    np.testing.assert_allclose(mean.z[lower], weights.mean((0, 1))[lower])
    np.testing.assert_allclose(one.z[lower], weights[1, 2][lower])
    assert np.isnan(mean.z[np.triu_indices(4, 1)]).all() and weights[0, 0, 0, 1] == 0  # the caller's array is not touched
    assert mean.zmax == np.nanmax(mean.z[1:])
    assert figures.attention(np.ones((1, 1, 1, 1)), ["a"]).data[0].zmax == 1.0


def test_loss_curves_show_training_and_evaluation_of_each_run() -> None:
    both = figures.loss_curves({"one": RECORDS, "two": RECORDS[:1]}, x="seconds").data
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in both] == [
        ("one, training", [1.5, 3.0], [5.0, None]),
        ("one, evaluation", [4.0], [4.5]),
        ("two, training", [1.5], [5.0]),
    ]
    assert both[0].line.color == both[1].line.color != both[2].line.color
    parts = figures.loss_curves({"one": RECORDS}, ["loss_nats_per_token", "loss_mt"], log=True)
    assert [trace.name for trace in parts.data][-1] == "loss_mt, training" and parts.layout.yaxis.type == "log"
    hostile = figures.loss_curves({"one": [RECORDS[0] | {"<a href='x'>y</a>": 1.0}]}, "<a href='x'>y</a>")
    assert "<a" not in hostile.layout.yaxis.title.text


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


def test_a_filter_bank_has_time_to_the_right_in_seconds() -> None:
    frames = figures.filter_bank(np.arange(12.0).reshape(4, 3)).data[0]
    assert frames.z.shape == (3, 4) and frames.z[2, 0] == 2.0 and frames.dx == 0.01


def test_intervals_stand_beside_each_other_in_the_row_of_their_metric() -> None:
    figure = figures.interval_figure(INTERVALS)
    one, other = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["grammar", "plot"]
    assert list(one.x) == [9.0, 7.0] and list(other.x) == [8.0]
    assert [round(y) for y in one.y] == [0, 1] and round(other.y[0]) == 1 and one.y[1] < other.y[0]
    np.testing.assert_allclose([one.error_x.array, one.error_x.arrayminus], [[0.2, 0], [0.5, 0]])
    assert other.name == "token &lt;b&gt;" and one.marker.color != other.marker.color
    assert one.text[0] == "grammar: 9 [8.5, 9.2], 100 stories" and "no interval" in one.text[1]


def test_laws_go_through_their_points_and_beyond_them_dashed() -> None:
    points, band, line, beyond_band, beyond, few = figures.scaling_figure(FITS, 1e9).data
    assert list(points.x) == SIZES and few.name == "few: no law" and list(few.y) == [2.0, 1.0]
    np.testing.assert_allclose(line.y, FITS["one"].law(line.x))  # type: ignore[misc]
    assert (line.x[0], line.x[-1]) == pytest.approx((1e5, 1e7)) and (beyond.x[0], beyond.x[-1]) == pytest.approx((1e7, 1e9))
    assert (line.line.dash, beyond.line.dash) == ("solid", "dash")
    half = len(band.y) // 2
    assert all(high >= low for high, low in zip(band.y[:half], band.y[half:][::-1])) and len(beyond_band.y) == len(band.y)
    assert len(figures.scaling_figure(FITS, 1e6).data) == 4  # nothing beyond what was measured


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.similarity_heatmap(POINTS, SENTENCES[:3], ["x", "y"]), "one text per row, got 3 texts for 4 rows"),
        (lambda: figures.similarity_heatmap(POINTS, SENTENCES, ["x"]), "one text per column"),
        (lambda: figures.sentence_map(np.eye(4), SENTENCES, ["a"] * 4), r"\(N, 2\) or \(N, 3\), got \(4, 4\)"),
        (lambda: figures.sentence_map(POINTS, SENTENCES, ["a"]), "one group per point"),
        (lambda: figures.story_path(POINTS, SENTENCES[:2]), "one sentence per point"),
        (lambda: figures.story_path(POINTS, SENTENCES, 1, np.zeros(3)), r"\(1, 3\)"),
        (lambda: figures.cosine_histogram({"none": []}), "each with cosines"),
        (lambda: figures.step_cosines(SENTENCES, {"a": [0.1]}), "one sentence per cosine"),
        (lambda: figures.vector_barcodes(POINTS, ["a"]), "one text per vector"),
        (lambda: figures.neighbours(SENTENCES, [0.1]), "one text per cosine"),
        (lambda: figures.neighbours(["a"], [0.1], ["a", "b"]), "one group per text"),
        (lambda: figures.walk(POINTS, SENTENCES[:3]), "one sentence per step"),
        (lambda: figures.token_surprise({}), "log-probabilities of one text"),
        (lambda: figures.token_surprise(TOKENS | {"b": [("▁A", -1.0)]}), "the same pieces"),
        (lambda: figures.predicted_and_true(POINTS, POINTS[:3], SENTENCES, SENTENCES), "got 4 and 3"),
        (lambda: figures.predicted_and_true(POINTS, POINTS, SENTENCES[:3], SENTENCES), "one decoded sentence per point"),
        (lambda: figures.attention(np.eye(4), SENTENCES), r"\(layers, heads, S, S\), got \(4, 4\)"),
        (lambda: figures.attention(np.ones((2, 3, 4, 4)), SENTENCES, layer=2), "layer must lie between 0 and 1, got 2"),
        (lambda: figures.attention(np.ones((2, 3, 4, 4)), SENTENCES[:2]), "one sentence per row"),
        (lambda: figures.loss_curves({"one": RECORDS}, "bleu"), "no record has bleu; there are loss_mt, loss_nats_per_token"),
        (lambda: figures.loss_curves({}), "there are no records"),
        (lambda: figures.interval_figure({"one": {}}), "at least one model with a metric"),
        (lambda: figures.scaling_figure({}), "at least one fit"),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
