"""Plotly figures of sentence vectors and of the way a story is told.

Each function takes arrays and texts, and returns a figure that shows itself at the end of a notebook cell. The colours are
Okabe and Ito's, which colour-blind readers can tell apart; groups differ by their marker as well. Backgrounds are
transparent and lines grey, so that a figure is legible in a light and in a dark notebook.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from sonarkit.explore.geometry import Array, as_matrix

# Okabe and Ito's palette without black and yellow, which vanish on one background or the other.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "star")
INK = "#7c7c7c"  # contrast about 4.2 to 1 against white and against JupyterLab's dark grey alike
GRID = "rgba(128, 128, 128, 0.25)"
LABEL_LETTERS, HOVER_LETTERS = 38, 60


# ---------------------------------------------------------------------- one sentence, one vector


def vector_barcodes(vectors_ND: Array, texts: Sequence[str], components: int = 128) -> go.Figure:
    """Each vector as a stripe of its first `components` numbers, blue where negative and orange where positive."""
    vectors = as_matrix(vectors_ND)[:, :components]
    _check_one_each(texts, len(vectors), "text", "vector")
    limit = float(np.quantile(np.abs(vectors), 0.99)) or 1.0  # a few large components would leave the rest pale
    bars = go.Heatmap(
        z=vectors,
        zmin=-limit,
        zmax=limit,
        colorscale=[[0, COLOURS[0]], [0.5, "#f7f7f7"], [1, COLOURS[5]]],
        customdata=np.repeat([[_hover(text)] for text in texts], vectors.shape[1], axis=1),
        ygap=3,
        hovertemplate="%{customdata}<br>component %{x}: %{z:.3f}<extra></extra>",
        colorbar={"title": "value", "thickness": 12},
    )
    figure = _figure([bars], height=130 + 30 * len(texts))
    _label_axis(figure, "y", texts)
    return figure.update_xaxes(title="component of the vector", showgrid=False).update_layout(margin_t=30)


def similarity_heatmap(
    similarities_NM: Array, row_texts: Sequence[str], column_texts: Sequence[str], title: str = ""
) -> go.Figure:
    """Cosines between row and column sentences, written into the cells while there are at most 150."""
    similarities = as_matrix(similarities_NM, "similarities")
    _check_one_each(row_texts, len(similarities), "text", "row")
    _check_one_each(column_texts, similarities.shape[1], "text", "column")
    pairs = [[f"{_hover(row)}<br>{_hover(column)}" for column in column_texts] for row in row_texts]
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
    figure = _figure([cells], title, height=280 + 30 * len(similarities))
    _label_axis(figure, "y", row_texts)
    _label_axis(figure, "x", column_texts)
    return figure.update_xaxes(tickangle=-35)


# ---------------------------------------------------------------------- maps


def sentence_map(points_N2: Array, texts: Sequence[str], groups: Sequence[str], title: str = "") -> go.Figure:
    """Sentences as points of a plane, with the sentence on hover; colour and marker tell the group, in the order met."""
    points = _check_plane(points_N2)
    _check_one_each(texts, len(points), "text", "point")
    _check_one_each(groups, len(points), "group", "point")
    figure = _figure([], title, height=480)
    for i, group in enumerate(dict.fromkeys(groups)):
        members = [n for n, name in enumerate(groups) if name == group]
        figure.add_scattergl(
            x=points[members, 0],
            y=points[members, 1],
            mode="markers",
            name=_escape(group),
            text=[_hover(texts[n]) for n in members],
            marker={"size": 9, "opacity": 0.9} | _look(i),
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    return _as_plane(figure)


def story_path(
    points_S2: Array, sentences: Sequence[str], prompt_sentences: int = 0, end_2: Array | None = None, title: str = ""
) -> go.Figure:
    """A story's way through the plane, its sentences numbered from 1 and read on hover.

    The first `prompt_sentences` are the prompt's; `end_2` is where "End of sequence." lies in the same plane.
    """
    points = _check_plane(points_S2)
    _check_one_each(sentences, len(points), "sentence", "point")
    figure = _figure([], title, height=480)
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
                customdata=[_hover(s) for s in sentences[part]],
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


# ---------------------------------------------------------------------- cosines


def cosine_histogram(cosines: Mapping[str, Array], bins: int = 40, title: str = "") -> go.Figure:
    """How the cosines of each group are spread: the share of the group's pairs in each of `bins` equal steps."""
    arrays = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in cosines.items()}
    if not arrays or any(len(values) == 0 for values in arrays.values()):
        raise ValueError(f"expected at least one group, each with cosines, got { ({n: len(v) for n, v in arrays.items()}) }")
    low = min(values.min() for values in arrays.values())
    edges = np.linspace(min(low, 0.99), 1.0, bins + 1)
    figure = _figure([], title, height=360)
    for i, (name, values) in enumerate(arrays.items()):
        counts, _ = np.histogram(values, edges)
        figure.add_scatter(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts / len(values),
            name=f"{_escape(name)} ({len(values):,})",
            fill="tozeroy",
            line={"color": COLOURS[i % len(COLOURS)], "shape": "hvh", "dash": ("solid", "dash", "dot", "dashdot")[i % 4]},
            hovertemplate="cosine %{x:.2f}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="cosine")
    return figure.update_yaxes(title="share of the pairs", tickformat=".0%", rangemode="tozero")


def step_cosines(
    sentences: Sequence[str], cosines: Mapping[str, Array], threshold: float | None = None, title: str = ""
) -> go.Figure:
    """One or several cosines for each step of a story, (S,) each, over the sentences told; `threshold` is a dashed line."""
    figure = _figure([], title, height=400)
    numbers = list(range(1, len(sentences) + 1))
    for i, (name, values) in enumerate(cosines.items()):
        values_S = np.asarray(values, dtype=np.float64)
        _check_one_each(sentences, len(values_S), "sentence", "cosine")
        figure.add_scatter(
            x=numbers,
            y=values_S,
            mode="lines+markers",
            name=_escape(name),
            text=[_hover(s) for s in sentences],
            line={"color": COLOURS[i % len(COLOURS)]},
            marker={"size": 9} | _look(i),
            hovertemplate="%{text}<br>%{fullData.name}: %{y:.3f}<extra></extra>",
        )
    if threshold is not None:
        figure.add_hline(y=threshold, line={"color": INK, "dash": "dash"}, annotation_text=f"{threshold:g}")
    figure.update_xaxes(title="sentence told", dtick=1 if len(numbers) <= 20 else None)
    return figure.update_yaxes(title="cosine")


# ---------------------------------------------------------------------- shared looks


def _figure(traces: Sequence[go.Heatmap], title: str = "", height: int = 420) -> go.Figure:
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        title=_escape(title),
        height=height,
        autosize=True,
        margin={"l": 10, "r": 10, "t": 90 if title else 60, "b": 10},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": INK, "size": 13},
        hoverlabel={"align": "left", "font": {"size": 13}},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0.0},
        modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": INK},
    )
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}
    return figure.update_xaxes(axis).update_yaxes(axis)


def _as_plane(figure: go.Figure) -> go.Figure:
    """Principal components have one unit: a step to the right is as far as the same step upwards."""
    figure.update_xaxes(title="component 1").update_yaxes(title="component 2", scaleanchor="x")
    return figure


def _look(index: int) -> dict[str, str]:
    return {"color": COLOURS[index % len(COLOURS)], "symbol": MARKERS[index % len(MARKERS)]}


def _label_axis(figure: go.Figure, axis: str, texts: Sequence[str]) -> None:
    """Positions 0, 1, ... labelled with the sentences: equal sentences would be merged if they were categories."""
    labels = [_escape(text if len(text) <= LABEL_LETTERS else text[: LABEL_LETTERS - 1].rstrip() + "…") for text in texts]
    layout = {"tickmode": "array", "tickvals": list(range(len(texts))), "ticktext": labels, "showgrid": False}
    figure.update_layout({f"{axis}axis": layout | ({"autorange": "reversed"} if axis == "y" else {})})


def _escape(text: str) -> str:
    """Text as it stands: plotly reads <tags> as HTML, and what lies between two dollar signs as TeX."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def _hover(text: str) -> str:
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
