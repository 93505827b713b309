"""Plotly figures of sentence vectors and of the way a story is told.

Each function takes arrays and texts, and returns a figure that shows itself at the end of a notebook cell. The colours are
Okabe and Ito's, which colour-blind readers can tell apart; groups differ by their marker as well. Backgrounds are
transparent and lines grey, so that a figure is legible in a light and in a dark notebook. They raise ValueError where there
is not a text for each row, or an array has another shape than its name says.
"""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

from sonarkit.evaluation.scaling import ScalingFit
from sonarkit.evaluation.statistics import Interval
from sonarkit.explore.geometry import Array, Fragility, as_matrix, as_vector, paired_cosines, participation_ratio

# Okabe and Ito's palette without black and yellow, which vanish on one background or the other.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "star")
MARKERS_3D = ("circle", "diamond", "square", "cross", "x", "circle-open")  # there are no others in space
PATTERNS = ("", "/", ".", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
INK = "#7c7c7c"  # contrast about 4.2 to 1 against white and against JupyterLab's dark grey alike
GRID = "rgba(128, 128, 128, 0.25)"
LABEL_LETTERS, HOVER_LETTERS = 38, 60


# ---------------------------------------------------------------------- one sentence, one vector


def vector_barcodes(vectors_ND: Array, texts: Sequence[str], components: int = 128) -> go.Figure:
    """Each vector as a stripe of its first `components` numbers, blue where negative and orange where positive."""
    whole = as_matrix(vectors_ND)
    vectors = whole[:, :components]
    _check_one_each(texts, len(vectors), "text", "vector")
    limit = float(np.quantile(np.abs(vectors), 0.99)) or 1.0  # a few large components would leave the rest pale
    bars = go.Heatmap(
        z=vectors,
        zmin=-limit,
        zmax=limit,
        colorscale=[[0, COLOURS[0]], [0.5, "#f7f7f7"], [1, COLOURS[5]]],
        customdata=np.repeat([[hover_text(text)] for text in texts], vectors.shape[1], axis=1),
        ygap=3,
        hovertemplate="%{customdata}<br>component %{x}: %{z:.3f}<extra></extra>",
        colorbar={"title": "value", "thickness": 12},
    )
    figure = plain([bars], height=130 + 30 * len(texts))
    _label_axis(figure, "y", texts)
    shown = f" (the first {components} of {whole.shape[1]})" if components < whole.shape[1] else ""
    return figure.update_xaxes(title=f"component of the vector{shown}", showgrid=False).update_layout(margin_t=30)


def filter_bank(features_LF: Array, title: str = "", seconds_per_frame: float = 0.01) -> go.Figure:
    """(L, F) log-mel energies of an utterance, as a speech encoder reads them: time to the right, pitch upwards."""
    features = as_matrix(features_LF, "features")
    frames = go.Heatmap(
        z=features.T.astype(np.float32),
        dx=seconds_per_frame,
        zmin=-2.5,  # deviations; digital silence lies far below and would take the colours for itself
        zmax=2.5,
        colorscale="Cividis",
        hovertemplate="%{x:.2f} s, band %{y}: %{z:.1f}<extra></extra>",
        colorbar={"title": "energy", "thickness": 12},
    )
    figure = plain([frames], title, height=300)
    return figure.update_xaxes(title="seconds", showgrid=False).update_yaxes(title="mel band", showgrid=False)


def similarity_heatmap(
    similarities_NM: Array, row_texts: Sequence[str], column_texts: Sequence[str], title: str = ""
) -> go.Figure:
    """Cosines between row and column sentences, written into the cells while there are at most 150."""
    similarities = as_matrix(similarities_NM, "similarities")
    _check_one_each(row_texts, len(similarities), "text", "row")
    _check_one_each(column_texts, similarities.shape[1], "text", "column")
    pairs = [[f"{hover_text(row)}<br>{hover_text(column)}" for column in column_texts] for row in row_texts]
    cells = go.Heatmap(
        z=similarities,
        zmax=1.0,
        colorscale="Cividis",
        customdata=pairs,
        xgap=1,
        ygap=1,
        hovertemplate="%{customdata}<br>cosine %{z:.3f}<extra></extra>",
        colorbar={"title": "cosine", "thickness": 12},
        texttemplate="%{z:.2f}" if similarities.size <= 150 else None,
    )
    figure = plain([cells], title, height=280 + 30 * len(similarities))
    _label_axis(figure, "y", row_texts)
    _label_axis(figure, "x", column_texts)
    return figure.update_xaxes(tickangle=-35)


# ---------------------------------------------------------------------- maps


def sentence_map(
    points_NK: Array, texts: Sequence[str], groups: Sequence[str], title: str = "", axis: str = "component"
) -> go.Figure:
    """Sentences as points of a plane, (N, 2), or of space, (N, 3), with the sentence on hover.

    Colour and marker tell the group, in the order met; `axis` names the axes ("component", "UMAP"). One WebGL trace per
    group: 50 000 points stay fluid.
    """
    points = as_matrix(points_NK, "points")
    if points.shape[1] not in (2, 3):
        raise ValueError(f"expected points of shape (N, 2) or (N, 3), got {points.shape}; principal_components(x, 2) makes such")
    _check_one_each(texts, len(points), "text", "point")
    _check_one_each(groups, len(points), "group", "point")
    solid = points.shape[1] == 3
    coordinates = dict(zip("xyz", points.T.astype(np.float32)))
    hovers, groups_N = np.array([hover_text(text) for text in texts], dtype=object), np.array(groups, dtype=object)
    size = (5 if solid else 9) if len(points) <= 2000 else 3 if solid else 5
    figure = plain(title=title, height=600 if solid else 480)
    for i, group in enumerate(dict.fromkeys(groups)):
        members = groups_N == group
        trace = {
            "mode": "markers",
            "name": _escape(group),
            "text": hovers[members],
            "marker": {"size": size, "opacity": 0.9} | _look(i, MARKERS_3D if solid else MARKERS),
            "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
        } | {letter: values[members] for letter, values in coordinates.items()}
        figure.add_trace(go.Scatter3d(trace) if solid else go.Scattergl(trace))
    return _as_space(figure, axis) if solid else _as_plane(figure, axis)


def story_path(
    points_S2: Array, sentences: Sequence[str], prompt_sentences: int = 0, end_2: Array | None = None, title: str = ""
) -> go.Figure:
    """A story's way through the plane, its sentences numbered from 1 and read on hover.

    The first `prompt_sentences` are the prompt's; `end_2` is where "End of sequence." lies in the same plane.
    """
    points = _check_plane(points_S2)
    _check_one_each(sentences, len(points), "sentence", "point")
    figure = plain(title=title, height=480)
    figure.add_scatter(
        x=points[:, 0], y=points[:, 1], mode="lines", line={"color": INK, "width": 1.5}, hoverinfo="skip", showlegend=False
    )
    for i, (name, part) in enumerate({"prompt": slice(prompt_sentences), "told": slice(prompt_sentences, None)}.items()):
        numbers = range(1, len(points) + 1)[part]
        if numbers:
            figure.add_scatter(
                x=points[part, 0],
                y=points[part, 1],
                mode="markers+text",
                name=name,
                customdata=[hover_text(s) for s in sentences[part]],
                text=[str(number) for number in numbers],
                textposition="top center",
                marker={"size": 11} | _look(i),
                hovertemplate="%{text}. %{customdata}<extra></extra>",
            )
    if end_2 is not None:
        end = _check_plane(np.reshape(np.asarray(end_2, dtype=np.float64), (1, -1)))[0]
        figure.add_scatter(
            x=[end[0]],
            y=[end[1]],
            mode="markers",
            name="End of sequence.",
            marker={"size": 15, "symbol": "x", "color": COLOURS[5]},
            hovertemplate="the vector of “End of sequence.”<extra></extra>",
        )
    return _as_plane(figure)


def predicted_and_true(
    predicted_N2: Array, true_N2: Array, said: Sequence[str], sentences: Sequence[str], title: str = ""
) -> go.Figure:
    """Predicted next vectors and the true ones in one plane, a line joining each pair.

    On hover what the prediction decodes to (`said`) and the true next sentence.
    """
    predicted, true = _check_plane(predicted_N2), _check_plane(true_N2)
    if len(predicted) != len(true):
        raise ValueError(f"expected one prediction for each true vector, got {len(predicted)} and {len(true)}")
    _check_one_each(said, len(true), "decoded sentence", "point")
    _check_one_each(sentences, len(true), "sentence", "point")
    figure = plain(title=title, height=480)
    ends = np.stack([predicted, true, np.full_like(true, np.nan)], 1).reshape(-1, 2)  # NaN: the pen is lifted
    figure.add_scattergl(
        x=ends[:, 0], y=ends[:, 1], mode="lines", line={"color": INK, "width": 1}, hoverinfo="skip", showlegend=False
    )
    pairs = [f"predicted: {hover_text(one)}<br>true: {hover_text(other)}" for one, other in zip(said, sentences)]
    for i, (name, points) in enumerate({"predicted": predicted, "true": true}.items()):
        figure.add_scattergl(
            x=points[:, 0],
            y=points[:, 1],
            mode="markers",
            name=name,
            text=pairs,
            marker={"size": 9} | _look(i),
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    return _as_plane(figure)


# ---------------------------------------------------------------------- cosines


def neighbours(texts: Sequence[str], cosines_K: Array, groups: Sequence[str] | None = None, title: str = "") -> go.Figure:
    """The neighbours of a sentence (put it into the title), best first from the top, a bar for each cosine.

    `groups`, such as the languages, tell them apart by colour and pattern.
    """
    cosines = as_vector(cosines_K, "cosines")
    _check_one_each(texts, len(cosines), "text", "cosine")
    names = ["neighbours"] * len(texts) if groups is None else list(groups)
    _check_one_each(names, len(texts), "group", "text")
    figure = plain(title=title, height=150 + 40 * len(texts))
    for i, group in enumerate(dict.fromkeys(names)):
        places = [n for n, name in enumerate(names) if name == group]
        figure.add_bar(
            x=cosines[places],
            y=places,
            orientation="h",
            width=0.75,
            name=_escape(group),
            text=[f"{cosine:.3f}" for cosine in cosines[places]],
            textposition="inside",
            insidetextanchor="end",
            customdata=[hover_text(texts[n]) for n in places],
            marker={"color": COLOURS[i % len(COLOURS)], "pattern": {"shape": PATTERNS[i % len(PATTERNS)], "fgopacity": 0.4}},
            hovertemplate="%{customdata}<br>cosine %{x:.3f}<extra></extra>",
        )
    _label_axis(figure, "y", texts, lines=2)
    figure.update_layout(
        barmode="overlay", showlegend=groups is not None, yaxis={"range": [len(texts) - 0.5, -0.5], "autorange": False}
    )
    return figure.update_xaxes(title="cosine", range=[min(0.0, cosines.min() * 1.05), 1.0])


def walk(vectors_SD: Array, sentences: Sequence[str], title: str = "") -> go.Figure:
    """From one vector to another, read downwards: what each step decodes to, and its cosine to both ends.

    A step that says the same as the one before it is left blank, so that one sees where the meaning turns.
    """
    vectors = as_matrix(vectors_SD)
    _check_one_each(sentences, len(vectors), "sentence", "step")
    steps = list(range(len(vectors)))
    figure = plain(title=title, height=150 + 36 * len(steps))
    for i, (name, end) in enumerate({"to the start": vectors[:1], "to the end": vectors[-1:]}.items()):
        figure.add_scatter(
            x=paired_cosines(vectors, end),
            y=steps,
            mode="lines+markers",
            name=f"cosine {name}",
            text=[hover_text(sentence) for sentence in sentences],
            line={"color": COLOURS[i], "dash": DASHES[i]},
            marker={"size": 9} | _look(i),
            hovertemplate="%{text}<br>%{fullData.name}: %{x:.3f}<extra></extra>",
        )
    turns = [i in (0, steps[-1]) or said != sentences[i - 1] for i, said in enumerate(sentences)]
    _label_axis(figure, "y", [said if turn else "" for said, turn in zip(sentences, turns)], lines=2)
    return figure.update_xaxes(title="cosine")


def cosine_histogram(cosines: Mapping[str, Array], bins: int = 40, title: str = "") -> go.Figure:
    """How the cosines of each group are spread: the share of the group's pairs in each of `bins` equal steps."""
    arrays = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in cosines.items()}
    if not arrays or any(len(values) == 0 for values in arrays.values()):
        raise ValueError(f"expected at least one group, each with cosines, got { ({n: len(v) for n, v in arrays.items()}) }")
    low = min(values.min() for values in arrays.values())
    edges = np.linspace(min(low, 0.99), 1.0, bins + 1)
    figure = plain(title=title, height=360)
    for i, (name, values) in enumerate(arrays.items()):
        counts, _ = np.histogram(values, edges)
        figure.add_scatter(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts / len(values),
            name=f"{_escape(name)} ({len(values):,})",
            fill="tozeroy",
            line={"color": COLOURS[i % len(COLOURS)], "shape": "hvh", "dash": DASHES[i % len(DASHES)]},
            hovertemplate="cosine %{x:.2f}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="cosine")
    return figure.update_yaxes(title="share of the pairs", tickformat=".0%", rangemode="tozero")


def step_cosines(
    sentences: Sequence[str], cosines: Mapping[str, Array], threshold: float | None = None, title: str = ""
) -> go.Figure:
    """One or several cosines for each step of a story, (S,) each, over the sentences told; `threshold` is a dashed line."""
    figure = plain(title=title, height=400)
    numbers = list(range(1, len(sentences) + 1))
    for i, (name, values) in enumerate(cosines.items()):
        values_S = np.asarray(values, dtype=np.float64)
        _check_one_each(sentences, len(values_S), "sentence", "cosine")
        figure.add_scatter(
            x=numbers,
            y=values_S,
            mode="lines+markers",
            name=_escape(name),
            text=[hover_text(s) for s in sentences],
            line={"color": COLOURS[i % len(COLOURS)]},
            marker={"size": 9} | _look(i),
            hovertemplate="%{text}<br>%{fullData.name}: %{y:.3f}<extra></extra>",
        )
    if threshold is not None:
        figure.add_hline(y=threshold, line={"color": INK, "dash": "dash"}, annotation_text=f"{threshold:g}")
    figure.update_xaxes(title="sentence told", dtick=1 if len(numbers) <= 20 else None)
    return figure.update_yaxes(title="cosine")


# ---------------------------------------------------------------------- how the variance is spread


def spectra(shares: Mapping[str, Array], title: str = "") -> go.Figure:
    """The share of variance along each principal direction, as `geometry.spectrum` gives it, of one or several sets.

    Both axes are logarithmic; the legend gives each set's effective dimension.
    """
    figure = plain(title=title, height=400)
    for i, (name, values) in enumerate(shares.items()):
        shares_K = as_vector(values, "shares")
        figure.add_scatter(
            x=np.arange(1, len(shares_K) + 1),
            y=np.where(shares_K > 1e-9, shares_K, np.nan),  # rounding: the last direction of centred vectors holds nothing
            mode="lines",
            name=f"{_escape(name)}: {participation_ratio(shares_K):.1f} dimensions",
            customdata=np.cumsum(shares_K),
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)], "width": 2.5},
            hovertemplate="direction %{x}: %{y:.2%}, the first %{x} together %{customdata:.1%}<extra></extra>",
        )
    figure.update_xaxes(title="principal direction", type="log", dtick=1)
    return figure.update_yaxes(title="share of the variance", type="log", tickformat="~%", dtick=1)


# ---------------------------------------------------------------------- how much a sentence bears


def fragility_curves(found: Sequence[Fragility], title: str = "") -> go.Figure:
    """The share of noisy copies that still say the sentence, against the radius of the noise; on hover what they say."""
    figure = plain(title=title, height=420)
    for i, one in enumerate(found):
        figure.add_scatter(
            x=one.radii_R,
            y=one.intact_R,
            mode="lines+markers",
            name=_label(one.sentence),
            text=[_tally(said) for said in one.sentences],
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)]},
            marker={"size": 9} | _look(i),
            hovertemplate="noise of %{x:.0%} of the length: %{y:.0%} intact<br>%{text}<extra></extra>",
        )
    figure.add_hline(y=0.5, line={"color": INK, "dash": "dash", "width": 1})
    figure.update_xaxes(title="length of the noise over that of the vector", tickformat=".0%", rangemode="tozero")
    return figure.update_yaxes(title="intact", tickformat=".0%", range=[-0.04, 1.04])


def token_surprise(tokens: Mapping[str, Sequence[tuple[str, float]]], title: str = "") -> go.Figure:
    """How surprising each piece of one text is under one or several vectors: minus its log-probability, in nats.

    Values are as `Sonar.token_log_probs` gives them, of the same text. A low bar is what the vector pins down.
    """
    pieces = [piece for piece, _ in next(iter(tokens.values()), [])]
    if not pieces or any([piece for piece, _ in values] != pieces for values in tokens.values()):
        raise ValueError("expected the log-probabilities of one text, the same pieces for each name")
    figure = plain(title=title, height=380)
    for i, (name, values) in enumerate(tokens.items()):
        figure.add_bar(
            x=list(range(len(pieces))),
            y=[-log_prob for _, log_prob in values],
            name=_escape(name),
            customdata=[[_escape(piece), np.exp(log_prob)] for piece, log_prob in values],
            marker={"color": COLOURS[i % len(COLOURS)], "pattern": {"shape": PATTERNS[i % len(PATTERNS)], "fgopacity": 0.4}},
            hovertemplate="%{customdata[0]}: probability %{customdata[1]:.3g}, %{y:.2f} nats<extra>%{fullData.name}</extra>",
        )
    _label_axis(figure, "x", pieces)
    figure.update_layout(barmode="group", bargap=0.25, showlegend=True)
    return figure.update_xaxes(tickangle=-45).update_yaxes(title="surprise (nats)", rangemode="tozero")


# ---------------------------------------------------------------------- models


def attention(
    weights_LHSS: Array, sentences: Sequence[str], layer: int | None = None, head: int | None = None, title: str = ""
) -> go.Figure:
    """What a story's sentences (down) attend to among those before them (across), from `SonarLLM.attention`.

    The weights are (layers, heads, S, S). `layer` and `head` pick one, from 0; None is the mean of all. The first row, which
    can only see itself, does not set the colours. Raises ValueError for a layer or head that is not there.
    """
    weights = np.asarray(weights_LHSS.detach().cpu() if hasattr(weights_LHSS, "detach") else weights_LHSS, dtype=np.float64)
    if weights.ndim != 4 or weights.shape[2] != weights.shape[3] or 0 in weights.shape:
        raise ValueError(f"expected attention weights of shape (layers, heads, S, S), got {weights.shape}")
    for name, picked, count in (("layer", layer, weights.shape[0]), ("head", head, weights.shape[1])):
        if picked is not None and not 0 <= picked < count:
            raise ValueError(f"{name} must lie between 0 and {count - 1}, got {picked}")
    _check_one_each(sentences, weights.shape[2], "sentence", "row")
    weights_SS = weights[slice(None) if layer is None else [layer]][:, slice(None) if head is None else [head]].mean((0, 1))
    weights_SS[np.triu_indices(len(weights_SS), 1)] = np.nan
    labels = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1)]
    cells = go.Heatmap(
        z=weights_SS,
        zmin=0.0,
        zmax=float(np.nanmax(weights_SS[1:])) if len(weights_SS) > 1 else 1.0,
        colorscale="Cividis",
        customdata=[[f"after: {hover_text(row)}<br>looks at: {hover_text(column)}" for column in labels] for row in labels],
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="%{customdata}<br>weight %{z:.3f}<extra></extra>",
        colorbar={"title": "weight", "thickness": 12},
    )
    figure = plain([cells], title, height=170 + 26 * len(sentences))
    _label_axis(figure, "y", labels)
    numbers = [str(number) for number in range(1, len(labels) + 1)]
    _label_axis(figure, "x", numbers)
    return figure.update_xaxes(title="attends to sentence")


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    values: str | Sequence[str] = "loss_nats_per_token",
    x: str = "step",
    log: bool = False,
    title: str = "",
) -> go.Figure:
    """One or several runs, from the records that `training.metrics.read_metrics` gives: lines in training, markers in evaluation.

    `values` names the numbers to show, `x` what they stand over: "step" or "seconds". Records without a number, as when
    every update was skipped, leave a gap. Raises ValueError when no run has any of the values.
    """
    names = [values] if isinstance(values, str) else list(values)
    figure = plain(title=title, height=420)
    shown = [(run, name) for run, records in runs.items() for name in names if any(name in record for record in records)]
    if not shown:
        there = sorted({key for records in runs.values() for record in records for key in record} - {"kind"})
        raise ValueError(f"no record has {' or '.join(names)}; there are {', '.join(there) or 'no records'}")
    for i, (run, name) in enumerate(shown):
        label = " ".join(filter(None, (run if len(runs) > 1 or len(names) == 1 else "", name if len(names) > 1 else "")))
        for kind, mode in (("train", "lines"), ("eval", "lines+markers")):
            records = [record for record in runs[run] if record["kind"] == kind and name in record]
            if not records:
                continue
            figure.add_scatter(
                x=[record[x] for record in records],
                y=[record[name] for record in records],
                mode=mode,
                name=_escape(f"{label}, {'training' if kind == 'train' else 'evaluation'}"),
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)], "width": 2 if kind == "train" else 1},
                marker={"size": 9} | _look(i),
                hovertemplate=f"{x} %{{x:,}}: %{{y:.4f}}<extra>%{{fullData.name}}</extra>",
            )
    figure.update_layout(showlegend=True).update_xaxes(title=x, rangemode="tozero")
    return figure.update_yaxes(title=_escape(", ".join(names).replace("_", " ")), type="log" if log else "linear")


def interval_figure(
    intervals: Mapping[str, Mapping[str, Interval]], title: str = "", axis: str = "score, 0 to 10", counted: str = "stories"
) -> go.Figure:
    """Models side by side: `intervals` has by model and metric what was measured on how many `counted`; bars are its interval
    where it has one.

    All metrics share one axis, so they should be of one unit. Read downwards: a row for each metric that any model has, the
    models beside each other in it, in the order given. Raises ValueError where there is nothing to show.
    """
    metrics = list(dict.fromkeys(metric for of_model in intervals.values() for metric in of_model))
    if not metrics:
        raise ValueError(
            f"expected at least one model with a metric, got { ({model: list(m) for model, m in intervals.items()}) }"
        )
    figure = plain(title=title, height=150 + (30 + 16 * len(intervals)) * len(metrics))
    for i, (model, of_model) in enumerate(intervals.items()):
        shift = 0.7 * ((i + 0.5) / len(intervals) - 0.5)
        shown = [(place, metric, of_model[metric]) for place, metric in enumerate(metrics) if metric in of_model]
        bounds = [(0.0, 0.0) if np.isnan(one.low) else (one.high - one.value, one.value - one.low) for _, _, one in shown]
        figure.add_scatter(
            x=[one.value for _, _, one in shown],
            y=[place + shift for place, _, _ in shown],
            mode="markers",
            name=_escape(model),
            error_x={
                "type": "data",
                "array": [up for up, _ in bounds],
                "arrayminus": [down for _, down in bounds],
                "thickness": 2,
            },
            text=[f"{_escape(metric)}: {_escape(str(one))}, {one.count} {counted}" for _, metric, one in shown],
            marker={"size": 10} | _look(i),
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    _label_axis(figure, "y", [metric.replace("_", " ") for metric in metrics])
    return figure.update_layout(showlegend=True).update_xaxes(title=axis)


def scaling_figure(
    fits: Mapping[str, ScalingFit], up_to: float | None = None, title: str = "", unit: str = "bits per byte", points: int = 40
) -> go.Figure:
    """Losses against parameters, both logarithmic: what was measured, each law through it, and how sure the law is (a band).

    Beyond the largest size measured, up to `up_to` parameters, a law is carried on, dashed. A family without a law shows its
    points. `fits` should have losses of one unit. Raises ValueError where there is nothing to show.
    """
    if not fits:
        raise ValueError("expected at least one fit, got none")
    figure = plain(title=title, height=460)
    for i, (name, fit) in enumerate(fits.items()):
        colour = COLOURS[i % len(COLOURS)]
        law = f": exponent {fit.law.alpha:.2f}, limit {fit.law.b:.3g}" if fit.law else ": no law"
        figure.add_scatter(
            x=fit.sizes,
            y=fit.losses,
            mode="markers",
            name=_escape(name) + law,
            legendgroup=name,
            marker={"size": 9} | _look(i),
            hovertemplate="%{x:.3s} parameters: %{y:.4f}<extra>%{fullData.name}</extra>",
        )
        if fit.law is None:
            continue
        least, most = min(fit.sizes), max(fit.sizes)
        parts = [("solid", least, most)] + ([("dash", most, up_to)] if up_to and up_to > most else [])
        for dash, start, end in parts:
            sizes = np.geomspace(start, end, points)
            found = [fit.predict(size) for size in sizes]
            shared = {"legendgroup": name, "showlegend": False, "mode": "lines", "hoverinfo": "skip"}
            figure.add_scatter(
                x=np.concatenate([sizes, sizes[::-1]]),
                y=[one.high for one in found] + [one.low for one in found[::-1]],
                fill="toself",
                fillcolor=colour,
                opacity=0.15,
                line={"width": 0},
                **shared,
            )
            figure.add_scatter(x=sizes, y=fit.law(sizes), line={"color": colour, "dash": dash, "width": 2}, **shared)
    figure.update_layout(showlegend=True).update_xaxes(title="trained parameters", type="log")
    return figure.update_yaxes(title=unit, type="log")


# ---------------------------------------------------------------------- shared looks


def plain(traces: Sequence[BaseTraceType] = (), title: str = "", height: int = 420) -> go.Figure:
    """A figure that looks like the others here: of these traces, or to add some to."""
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        title=_escape(title),
        height=height,
        autosize=True,
        margin={"l": 10, "r": 10, "t": 90 if title else 60, "b": 10},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        colorway=COLOURS,
        font={"color": INK, "size": 13},
        hoverlabel={"align": "left", "font": {"size": 13}},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0.0},
        modebar={
            "bgcolor": "rgba(0, 0, 0, 0)",
            "color": INK,
            "activecolor": COLOURS[0],  # plotly's own is white on white here
            "remove": ["sendChartToCloud"],  # it would upload the sentences
        },
    )
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}
    return figure.update_xaxes(axis).update_yaxes(axis)


def _as_plane(figure: go.Figure, axis: str = "component") -> go.Figure:
    """A map's axes have one unit: a step to the right is as far as the same step upwards."""
    figure.update_xaxes(title=f"{axis} 1").update_yaxes(title=f"{axis} 2", scaleanchor="x")
    return figure


def _as_space(figure: go.Figure, axis: str) -> go.Figure:
    """The same in three dimensions: turn it with the mouse."""
    looks = {"showbackground": False, "gridcolor": INK, "zeroline": False, "showspikes": False}  # no alpha in space
    axes = {f"{letter}axis": looks | {"title": f"{axis} {i}"} for i, letter in enumerate("xyz", 1)}
    figure.update_layout(legend_itemsizing="constant")
    return figure.update_layout(scene={"aspectmode": "data", "bgcolor": "rgba(0, 0, 0, 0)"} | axes)


def _look(index: int, markers: Sequence[str] = MARKERS) -> dict[str, str]:
    return {"color": COLOURS[index % len(COLOURS)], "symbol": markers[index % len(markers)]}


def _label_axis(figure: go.Figure, axis: str, texts: Sequence[str], lines: int = 1) -> None:
    """Positions 0, 1, ... labelled with the sentences: equal sentences would be merged if they were categories."""
    labels = [_label(text, lines) for text in texts]
    ticks = {"tickmode": "array", "tickvals": list(range(len(texts))), "ticktext": labels}
    layout = ticks | {"showgrid": False, "zeroline": False}
    figure.update_layout({f"{axis}axis": layout | ({"autorange": "reversed"} if axis == "y" else {})})


def _label(text: str, lines: int = 1) -> str:
    """A text short enough to stand beside a figure in some lines."""
    letters = LABEL_LETTERS if lines == 1 else LABEL_LETTERS * lines - 10  # words do not fill a line
    short = text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
    return _escape(short) if lines == 1 else "<br>".join(_escape(line) for line in textwrap.wrap(short, LABEL_LETTERS))


def _tally(sentences: Sequence[str], most: int = 4) -> str:
    """The most frequent sentences with how often each occurs, for hovering."""
    return "<br>".join(f"{times}× {hover_text(said)}" for said, times in Counter(sentences).most_common(most))


def _escape(text: str) -> str:
    """Text as it stands: plotly reads <tags> as HTML, and what lies between two dollar signs as TeX."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def hover_text(text: str) -> str:
    """Text as it stands, in lines short enough for a label under the mouse."""
    return "<br>".join(_escape(line) for line in textwrap.wrap(text, HOVER_LETTERS)) or " "


# ---------------------------------------------------------------------- checks


def _check_plane(points: Array) -> np.ndarray:
    plane = as_matrix(points, "points")
    if plane.shape[1] != 2:
        raise ValueError(f"expected points of shape (N, 2), got {plane.shape}; principal_components(x, 2) makes such")
    return plane


def _check_one_each(items: Sequence[str], count: int, item: str, of: str) -> None:
    if len(items) != count:
        raise ValueError(f"expected one {item} per {of}, got {len(items)} {item}s for {count} {of}s")
