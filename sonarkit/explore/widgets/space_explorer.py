"""The space explorer: a map of sentences, and what lies on it between them.

Wiring, and above it the two kinds of plane as plain functions; the rest is `explore.geometry` and `codec.pipeline`.
"""

from __future__ import annotations

import html
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.explore import figures, geometry
from sonarkit.explore.widgets.common import Caught, Panel, Status, WholeFigure, Work, show_in_place
from sonarkit.store.reader import Store
from sonarkit.text.languages import per_text, resolve
from sonarkit.text.sentences import split_sentences

KINDS = {"PCA": "pca", "UMAP": "umap"}
NEIGHBOURS, BLENDED, DRAWS = 6, 5, 4
GRID = 120  # places to click on along each side of the map
REACH = 0.03  # of the map's size: the end of a drawn line is a sentence when one is as near as this
OWN = "yours"
RING, CROSS = "circle-open", "x-thin-open"  # around the chosen sentence; at a place that was clicked
LABEL_LETTERS = 60
STYLE = """<style>
.sk-explorer .sk-columns > .sk-left { flex: 3 1 400px; min-width: 0; }
.sk-explorer .sk-columns > .sk-right { flex: 2 1 340px; min-width: 0; }
.sk-explorer h4 { margin: 10px 0 2px; line-height: 1.4; }
.sk-explorer .sk-lines { border-collapse: collapse; line-height: 1.4; }
.sk-explorer .sk-lines td { padding: 1px 8px 1px 0; vertical-align: top; }
.sk-explorer .sk-lines td:first-child { text-align: right; opacity: 0.75; white-space: nowrap; }
.sk-explorer .sk-lines td:first-child { font-variant-numeric: tabular-nums; }
.sk-explorer .sk-note { line-height: 1.4; opacity: 0.85; margin: 0; }
</style>"""


# ---------------------------------------------------------------------- planes


@dataclass(frozen=True)
class Plane:
    """A map of sentence vectors, and the ways onto it and back."""

    points_N2: np.ndarray  # where the vectors lie that it was made from
    place: Callable[[np.ndarray], np.ndarray]  # other vectors (M, D) -> their places (M, 2)
    vectors_at: Callable[[np.ndarray], np.ndarray]  # places (M, 2) -> vectors (M, D)
    axis: str
    note: str  # what `vectors_at` and `place` do, for the reader


def principal_plane(x_ND: np.ndarray) -> Plane:
    """The plane of the first two principal components. The way back is exact within it, and knows nothing beside it."""
    axes = geometry.principal_axes(x_ND, 2)
    note = (
        f"The plane in which these sentences differ most; it shows {axes.shares_K.sum():.0%} of the variance. A click on it "
        f"decodes the vector at that place of the plane: what a sentence has in the other {x_ND.shape[1] - 2} dimensions is left "
        "out. Your own sentences are projected onto it."
    )
    return Plane(axes.project(x_ND), axes.project, axes.lift, "component", note)


def umap_plane(x_ND: np.ndarray, seed: int = 42) -> Plane:
    """UMAP's map. It has no way back, nor one for further vectors: both go by the nearest sentences, weighted by nearness."""
    points_N2 = geometry.umap_map(x_ND, seed=seed)
    directions_ND = _directions(x_ND)
    note = (
        "UMAP keeps together what has nearly the same direction; distances between far groups mean little. It has no way back: "
        f"a click decodes the mean of the vectors of the {BLENDED} nearest sentences, weighted by nearness. Your own sentences "
        "are placed among their nearest neighbours in the same way, and nothing else moves."
    )
    return Plane(
        points_N2,
        lambda z_MD: blend_nearest(_directions(z_MD), directions_ND, points_N2),
        lambda places_M2: blend_nearest(places_M2, points_N2, x_ND),
        "UMAP",
        note,
    )


def blend_nearest(queries_QA: np.ndarray, keys_NA: np.ndarray, values_NB: np.ndarray, count: int = BLENDED) -> np.ndarray:
    """(Q, B) for each query the mean of the values of its `count` nearest keys, weighted by one over the squared distance.

    A query that is a key gets that key's value.
    """
    squares_QN = ((queries_QA[:, None] - keys_NA) ** 2).sum(-1)
    near_QK = np.argsort(squares_QN, axis=1, kind="stable")[:, :count]
    squares_QK = np.take_along_axis(squares_QN, near_QK, 1)
    weights_QK = 1.0 / np.maximum(squares_QK, 1e-12 * squares_QK.max(1, keepdims=True) + 1e-24)
    blended = np.einsum("qk,qkb->qb", weights_QK / weights_QK.sum(1, keepdims=True), values_NB[near_QK])
    exact_Q = squares_QK[:, 0] == 0
    blended[exact_Q] = values_NB[near_QK[exact_Q, 0]]
    return blended


def _directions(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def unique_sentences(store: Store, limit: int) -> tuple[list[str], np.ndarray]:
    """The first `limit` different sentences of a store, with their vectors (N, D)."""
    found: dict[str, np.ndarray] = {}
    for i in range(len(store)):
        document = store[i]
        for text, vector_D in zip(document.texts, document.vectors_SD):
            found.setdefault(text, vector_D)
        if len(found) >= limit:
            break
    texts = list(found)[:limit]
    return texts, np.array([found[text] for text in texts], dtype=np.float64)


# ---------------------------------------------------------------------- what is shown


def map_figure(plane: Plane, points_N2: np.ndarray, texts: Sequence[str], languages: Sequence[str], own: int) -> go.Figure:
    """The map: a ground that takes clicks, a trace for each language, one for the last `own` sentences, a path, and a mark.

    plotly tells of clicks on what it draws only, so beneath the points lies a heat map that nobody sees.
    """
    given = len(texts) - own
    figure = figures.sentence_map(points_N2[:given], texts[:given], languages[:given], axis=plane.axis)
    low_2, high_2 = points_N2.min(0), points_N2.max(0)
    margin_2 = 0.08 * (high_2 - low_2) + 1e-9
    xs, ys = (np.linspace(a, b, GRID) for a, b in zip(low_2 - margin_2, high_2 + margin_2))
    ground = go.Heatmap(
        x=xs, y=ys, z=np.zeros((GRID, GRID), np.uint8), opacity=0, showscale=False, hoverinfo="none", name="ground"
    )
    yours = go.Scattergl(
        x=points_N2[given:, 0],
        y=points_N2[given:, 1],
        mode="markers",
        name=OWN,
        showlegend=own > 0,
        text=[figures.hover_text(text) for text in texts[given:]],
        marker={"size": 14, "symbol": "star", "color": figures.COLOURS[5], "line": {"width": 1, "color": "white"}},
        hovertemplate="%{text}<extra>yours</extra>",
    )
    path = go.Scatter(
        x=[],
        y=[],
        mode="lines+markers",
        name="way",
        showlegend=False,
        line={"color": figures.INK, "width": 2},
        marker={"size": 7},
        hovertemplate="%{text}<extra></extra>",
    )
    mark = go.Scatter(
        x=[],
        y=[],
        mode="markers",
        name="mark",
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
        marker={"size": 20, "symbol": RING, "color": figures.COLOURS[5], "line": {"width": 3}},
    )
    shown = go.Figure([ground, *figure.data, yours, path, mark], figure.layout)
    # Fixed ranges, so that a mark at the rim does not shift the map; and the axes end where the ground does: equal units
    # by a narrower frame (constrain), not by axes that go on to where no click is heard.
    axis = {"constrain": "domain", "showgrid": False, "autorange": False}
    shown.update_xaxes(axis, range=[xs[0], xs[-1]]).update_yaxes(axis, range=[ys[0], ys[-1]])
    return shown.update_layout(
        hovermode="closest",
        modebar={"add": ["drawline"], "remove": ["sendChartToCloud", "select2d", "lasso2d"]},
        newshape={"line": {"color": figures.INK, "width": 2}},
        shapes=[],
    )


def lines_html(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A heading and (label, sentence) pairs, all as they stand."""
    rows = "".join(f"<tr><td>{html.escape(label)}</td><td>{html.escape(text)}</td></tr>" for label, text in lines)
    return f'<h4>{html.escape(title)}</h4><table class="sk-lines"><tbody>{rows}</tbody></table>'


# ---------------------------------------------------------------------- the widget


class SpaceExplorer(Panel):
    """A map of sentences to click on, walk over and add to; what lies between the sentences is decoded.

        SpaceExplorer(sonar, texts, languages)           # languages: one code, or one per text
        SpaceExplorer.from_store(sonar, store)

    `vectors` (N, D) are those of the texts, where they are there already. A sentence is named by its number, from 0. Each
    control calls the method of its name; what decodes or fits works in the background, one after the other, and `wait` waits
    for it. What waits to be read gives place to what is to be read after it. `said` holds the sentences decoded last. What
    goes wrong is a sentence in `status`.
    ValueError for fewer than three texts and vectors of another shape, UnknownLanguageError.
    """

    let_go = ("sonar", "vectors_ND", "_planes")
    work: _Queue

    def __init__(
        self,
        sonar: Sonar,
        texts: Sequence[str],
        languages: str | Sequence[str] = "eng_Latn",
        *,
        vectors: geometry.Array | None = None,
        seed: int = 42,
    ) -> None:
        self.sonar, self.seed = sonar, seed
        self.texts, self.languages = list(texts), list(per_text(languages, len(texts), sonar.languages))
        if len(self.texts) < 3:
            raise ValueError(f"a map needs at least 3 sentences, got {len(self.texts)}")
        if vectors is None:
            vectors = sonar.encode(self.texts, self.languages, progress=len(self.texts) > 500)
        self.vectors_ND = geometry.as_matrix(vectors)
        if self.vectors_ND.shape != (len(self.texts), sonar.config.width):
            raise ValueError(
                f"expected one vector of width {sonar.config.width} for each of {len(self.texts)} texts, "
                f"got shape {self.vectors_ND.shape}; encode the texts with this codec"
            )
        self.given = len(self.texts)  # those that follow are the reader's own
        self.chosen: int | None = None
        self.neighbours: list[tuple[int, float]] = []  # of the chosen sentence: number and cosine, best first
        self.said: list[str] = []
        self._planes: dict[str, Plane] = {"pca": principal_plane(self.vectors_ND)}
        self._kind = "pca"
        self._path_S2, self._path_texts = np.empty((0, 2)), list[str]()
        self._mark_N2, self._mark_symbol = np.empty((0, 2)), RING
        self._setting = False  # we set the controls now, not the reader
        self.status = Status()
        self.work = _Queue(self.status)
        self._build()
        super().__init__(self._layout())
        self.add_class("sk-explorer")
        self.status.say("Click on a sentence to see its neighbours, or beside one to read what lies there.")

    @classmethod
    def from_store(cls, sonar: Sonar, store: Store | str | Path, limit: int = 2000, *, seed: int = 42) -> SpaceExplorer:
        """The first `limit` different sentences of an embedding store. ValueError when another codec made it."""
        checked = Store(store.folder if isinstance(store, Store) else store, sonar.fingerprint())
        texts, vectors_ND = unique_sentences(checked, limit)
        return cls(sonar, texts, checked.lang, vectors=vectors_ND, seed=seed)

    @property
    def plane(self) -> Plane:
        """The present map."""
        return self._planes[self._kind]

    @property
    def points_N2(self) -> np.ndarray:
        """Where all sentences lie on the present map, the reader's own last."""
        return self._points_on(self.plane)

    def _points_on(self, plane: Plane) -> np.ndarray:
        own_MD = self.vectors_ND[self.given :]
        return np.concatenate([plane.points_N2, plane.place(own_MD)]) if len(own_MD) else plane.points_N2

    # ------------------------------------------------------------------ what the controls do

    def select(self, i: int) -> None:
        """Choose sentence `i`: it is marked, and its nearest neighbours are listed."""
        with Caught(self.status):
            self._select(i)

    def decode_at(self, x: float, y: float) -> None:
        """Read what lies at a place of the map."""
        plane = self.plane  # that the reader sees now
        self.work.read(lambda: self._decode_at(plane, np.array([[x, y]], dtype=np.float64)))

    def walk(self, i: int, j: int) -> None:
        """Read what lies on the way from sentence `i` to sentence `j`."""
        with Caught(self.status):
            a_D, b_D = self.vectors_ND[self._check(i)], self.vectors_ND[self._check(j)]
            title = f"From “{_short(self.texts[i])}” to “{_short(self.texts[j])}”"
            self.work.read(lambda: self._walk(a_D, b_D, title))

    def draw(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Read what lies along a line on the map. An end beside a sentence is that sentence."""
        plane = self.plane
        self.work.read(lambda: self._draw_line(plane, np.array([[x0, y0], [x1, y1]], dtype=np.float64)))

    def shake(self, radius: float) -> None:
        """Add noise of `radius` times its length to the chosen sentence's vector, in several directions, and decode it."""
        with Caught(self.status):
            if self.chosen is None:
                raise ValueError("choose a sentence first; the noise is added to its vector")
            i = self.chosen
            self.work.read(lambda: self._shake(i, radius))

    def add(self, text: str, lang: str = "eng_Latn") -> None:
        """Put sentences of one's own on the map, and choose the first of them."""
        self.work.start(lambda: self._add(text, lang))

    def map_by(self, kind: str) -> None:
        """Map by "pca" or "umap". A map that was made once is kept."""
        with Caught(self.status):
            if kind not in KINDS.values():
                raise ValueError(f"a map is made by 'pca' or 'umap', got {kind!r}")
            self.work.start(lambda: self._map_by(kind))

    def wait(self, seconds: float = 60.0) -> None:
        """Until what was asked for is done; TimeoutError when it is not in `seconds`."""
        self.work.wait(seconds)

    # ------------------------------------------------------------------ how it is done

    def _select(self, i: int) -> None:
        self.chosen = i = self._check(i)
        near_1K, cosines_1K = geometry.nearest(self.vectors_ND[i][None], self.vectors_ND, NEIGHBOURS + 1)
        pairs = zip(near_1K[0].tolist(), cosines_1K[0].tolist())
        self.neighbours = [(n, cosine) for n, cosine in pairs if n != i][:NEIGHBOURS]
        self._mark_N2, self._mark_symbol = self.points_N2[[i]], RING
        self._set(self.point, i)
        self._set(self.noise, 0.0)
        lines = [(f"{cosine:.3f}", self._named(n)) for n, cosine in self.neighbours]
        self.near.value = lines_html(f"Nearest to “{self.texts[i]}”", lines)
        self._draw_marks()
        self.status.say(f"Sentence {i + 1} of {len(self.texts)}; noise shows what its vector holds on to.")

    def _decode_at(self, plane: Plane, place_12: np.ndarray) -> None:
        self.status.say("Decoding …")
        if plane is self.plane:
            self._mark_N2, self._mark_symbol = place_12, CROSS
            self._draw_marks()
        lines = self._decode(plane.vectors_at(place_12))
        where = f"{place_12[0, 0]:.2f}, {place_12[0, 1]:.2f}"
        self._tell(f"At ({where})", [("", lines[0])])

    def _walk(self, a_D: np.ndarray, b_D: np.ndarray, title: str) -> None:
        steps = self.steps.value
        self.status.say(f"Decoding {steps} sentences …")
        walk_SD = geometry.interpolate(a_D, b_D, steps, self.way.value == "arc")
        lines = self._decode(walk_SD)
        self._path_S2, self._path_texts = self.plane.place(walk_SD), lines
        self._draw_marks()
        self._tell(title, [(f"{share:.0%}", line) for share, line in zip(np.linspace(0, 1, steps), lines)])

    def _draw_line(self, plane: Plane, ends_22: np.ndarray) -> None:
        points_N2 = self._points_on(plane)
        reach = REACH * np.ptp(points_N2, axis=0).max()
        vectors, names = [], []
        for end_2 in ends_22:
            distances_N = np.linalg.norm(points_N2 - end_2, axis=1)
            i = int(distances_N.argmin())
            at_sentence = distances_N[i] <= reach
            vectors.append(self.vectors_ND[i] if at_sentence else plane.vectors_at(end_2[None])[0])
            names.append(f"“{_short(self.texts[i])}”" if at_sentence else f"({end_2[0]:.2f}, {end_2[1]:.2f})")
        self._walk(vectors[0], vectors[1], f"From {names[0]} to {names[1]}")

    def _shake(self, i: int, radius: float) -> None:
        self.status.say("Decoding …")
        found = geometry.fragility(self.vectors_ND[i], self._decode, [radius], DRAWS, self.seed)
        (drawn,), (intact,) = found.sentences, found.intact_R
        self.said = [found.sentence, *drawn]
        lines = [("no noise", found.sentence), *((f"{n}", sentence) for n, sentence in enumerate(drawn, 1))]
        self._tell(f"With noise of {radius:g} times its length, in {DRAWS} directions", lines)
        self.status.say(f"{intact:.0%} of the directions still say the same.")

    def _add(self, text: str, lang: str) -> None:
        lang = resolve(lang, self.sonar.languages)
        sentences = split_sentences(text, lang)
        if not sentences:
            raise ValueError("there is no sentence to add; type one first")
        self.status.say("Encoding …")
        vectors_MD = geometry.as_matrix(self.sonar.encode(sentences, lang))
        first = len(self.texts)
        self.vectors_ND = np.concatenate([self.vectors_ND, vectors_MD])
        self.languages += [lang] * len(sentences)
        self.texts += sentences
        self._name_sentences()
        self._set(self.add_text, "")
        self._draw_map()
        self._select(first)

    def _map_by(self, kind: str) -> None:
        try:
            if kind not in self._planes:
                self.status.say(f"Making a UMAP of {self.given:,} sentences; the first one takes some 10 seconds …")
                self._planes[kind] = umap_plane(self.vectors_ND[: self.given], self.seed)
        finally:
            if kind in self._planes:
                self._kind = kind
            self._set(self.kind, self._kind)  # where it failed, back to the map that is there
        self._path_S2, self._path_texts = np.empty((0, 2)), []
        self._mark_N2, self._mark_symbol = self.points_N2[[] if self.chosen is None else [self.chosen]], RING
        self.note.value = _note_html(self.plane)
        self._draw_map()
        self.status.say(f"Mapped by {kind.upper()}.")

    def _decode(self, z_ND: np.ndarray) -> list[str]:
        vectors = torch.from_numpy(np.ascontiguousarray(z_ND, dtype=np.float32)).to(self.sonar.device)
        self.said = self.sonar.decode(vectors, self.lang.value)
        return self.said

    def _check(self, i: int) -> int:
        if not 0 <= i < len(self.texts):
            raise ValueError(f"there is no sentence {i}; there are {len(self.texts)}, counted from 0")
        return i

    def _named(self, i: int) -> str:
        return f"{self.texts[i]} ({self.languages[i]}{', ' + OWN if i >= self.given else ''})"

    # ------------------------------------------------------------------ showing

    def _tell(self, title: str, lines: list[tuple[str, str]]) -> None:
        self.out.value = f'<div aria-live="polite">{lines_html(title, lines)}</div>'
        self.status.say("Done.")

    def _draw_map(self) -> None:
        """Bring the figure up to date, and show the whole map again: what is new may lie anywhere."""
        figure = map_figure(self.plane, self.points_N2, self.texts, self.languages, len(self.texts) - self.given)
        self._set_marks(figure)
        show_in_place(self.figure, figure)

    def _draw_marks(self) -> None:
        """Only the path and the mark, which are small."""
        with self.figure.batch_update():
            self._set_marks(self.figure)

    def _set_marks(self, figure: go.Figure) -> None:
        path, mark = figure.data[-2:]
        path.update(x=self._path_S2[:, 0], y=self._path_S2[:, 1], text=[figures.hover_text(text) for text in self._path_texts])
        mark.update(x=self._mark_N2[:, 0], y=self._mark_N2[:, 1], marker_symbol=self._mark_symbol)

    def _clicked(self, number: int, trace: Any, points: Any, state: Any) -> None:
        """A click on trace `number` of the figure."""
        if not points.point_inds:
            return
        if number == 0:
            self.decode_at(points.xs[0], points.ys[0])
        else:
            self.select(self._members[number][points.point_inds[0]])

    def _drawn(self, layout: Any, _: object) -> None:
        """A line was drawn: read along it. The path takes the line's place."""
        shapes = layout.to_plotly_json().get("shapes")  # plotly's own attribute still has those from before
        if shapes:
            self.figure.plotly_relayout({"shapes": []})
            self.draw(*(shapes[-1][end] for end in ("x0", "y0", "x1", "y1")))

    def _set(self, control: Any, value: Any) -> None:
        """On our own account: the observers are for what the reader does."""
        self._setting = True
        try:
            control.value = value
        finally:
            self._setting = False

    def _observe(self, control: widgets.Widget, act: Callable[[Any], None]) -> None:
        def changed(change: dict[str, Any]) -> None:
            if not self._setting and change["new"] is not None:
                act(change["new"])

        control.observe(changed, "value")

    def _name_sentences(self) -> None:
        """The lists from which sentences are chosen, the reader's choices kept."""
        options = [(f"{i + 1}. {_short(text)} ({lang})", i) for i, (text, lang) in enumerate(zip(self.texts, self.languages))]
        self._setting = True
        try:
            for control, default in ((self.point, None), (self.start, 0), (self.end, 1)):
                kept = control.value if control.options else default
                control.options, control.value = options, kept
        finally:
            self._setting = False
        members: dict[str, list[int]] = {}
        for i, lang in enumerate(self.languages[: self.given]):
            members.setdefault(lang, []).append(i)
        self._members = [[], *members.values(), list(range(self.given, len(self.texts)))]

    def _build(self) -> None:
        codes = list(self.sonar.languages)
        full, wide = {"width": "auto"}, {"description_width": "70px"}
        self.kind = widgets.ToggleButtons(options=KINDS, tooltips=["principal components", "UMAP"])
        self.kind.style.button_width = "70px"
        self.lang = widgets.Dropdown(
            options=codes, value=self.languages[0], description="Decode into", style={"description_width": "initial"}
        )
        self.lang.layout.width = "220px"
        self.point = widgets.Select(options=[], rows=7, layout=full)
        self.noise = widgets.FloatSlider(
            min=0, max=1.5, step=0.05, description="Noise", continuous_update=False, style=wide, layout=full
        )
        self.start = widgets.Dropdown(options=[], description="From", style=wide, layout=full)
        self.end = widgets.Dropdown(options=[], description="To", style=wide, layout=full)
        self.steps = widgets.BoundedIntText(value=7, min=2, max=25, description="Steps", style=wide, layout={"width": "150px"})
        self.way = widgets.Dropdown(options=["line", "arc"], layout={"width": "80px"}, tooltip="straight, or along the sphere")
        self.walk_button = widgets.Button(description="Walk", tooltip="Read what lies on the way", layout={"width": "80px"})
        self.add_text = widgets.Text(placeholder="A sentence of your own", description="Add", style=wide, layout=full)
        self.add_lang = widgets.Dropdown(
            options=codes, value=self.languages[0], description="in", style=wide, layout={"width": "220px"}
        )
        self.add_button = widgets.Button(description="Add", tooltip="Put it on the map", layout={"width": "80px"})
        self.near, self.out, self.note = widgets.HTML(), widgets.HTML(), widgets.HTML(_note_html(self.plane))
        for name, control in {
            "kind": self.kind,
            "lang": self.lang,
            "point": self.point,
            "noise": self.noise,
            "from": self.start,
            "to": self.end,
            "steps": self.steps,
            "way": self.way,
            "walk": self.walk_button,
            "add": self.add_text,
            "add-lang": self.add_lang,
            "add-button": self.add_button,
            "neighbours": self.near,
            "out": self.out,
        }.items():
            control.add_class(f"sk-{name}")
        self._name_sentences()
        self.figure = WholeFigure(map_figure(self.plane, self.points_N2, self.texts, self.languages, 0)).add_class("sk-map")
        for number, trace in enumerate(self.figure.data[:-2]):
            trace.on_click(partial(self._clicked, number))
        self.figure.layout.on_change(self._drawn, "shapes")
        self._observe(self.kind, self.map_by)
        self._observe(self.point, self.select)
        self._observe(self.noise, self.shake)
        self.walk_button.on_click(lambda _: self.walk(self.start.value, self.end.value))
        self.add_button.on_click(lambda _: self.add(self.add_text.value, self.add_lang.value))

    def _layout(self) -> list[widgets.Widget]:
        row = {"flex_flow": "row wrap", "align_items": "center"}
        head = widgets.HBox([self.kind, self.lang], layout=row)
        left = widgets.VBox([head, self.figure, self.note, self.status, self.out]).add_class("sk-left")
        panel = [
            widgets.HTML("<h4>A sentence and its neighbours</h4>"),
            self.point,
            self.near,
            self.noise,
            widgets.HTML("<h4>From one sentence to another</h4>"),
            self.start,
            self.end,
            widgets.HBox([self.steps, self.way, self.walk_button], layout=row),
            widgets.HTML("<h4>Your own sentences</h4>"),
            self.add_text,
            widgets.HBox([self.add_lang, self.add_button], layout=row),
        ]
        columns = widgets.HBox([left, widgets.VBox(panel).add_class("sk-right")], layout={"flex_flow": "row wrap"})
        return [widgets.HTML(STYLE, layout={"height": "0", "margin": "0"}), columns.add_class("sk-columns")]


# ---------------------------------------------------------------------- small parts


class _Queue(Work):
    """Work whose next pieces wait until the present one is done. Of what is only to be `read`, the newest alone waits."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self._waiting: list[Callable[[], None]] = []
        self._to_read: Callable[[], None] | None = None  # among those
        self._lock, self._running = threading.Lock(), False

    def read(self, work: Callable[[], None]) -> None:
        """`start` it; what waits to be read gives place to it."""
        with self._lock:
            if self._to_read in self._waiting:
                self._waiting.remove(self._to_read)
            self._to_read = work
        self.start(work)

    def start(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(work)
            if self._running:
                return
            self._running = True
        self.wait()  # the thread before this one has done its work, but may not quite have ended
        super().start(self._all)

    def _all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                work = self._waiting.pop(0)
            with Caught(self.status) as caught:
                work()
            self.error = caught.error


def _short(text: str) -> str:
    return textwrap.shorten(text, LABEL_LETTERS, placeholder=" …")


def _note_html(plane: Plane) -> str:
    return f'<p class="sk-note">{html.escape(plane.note)}</p>'
