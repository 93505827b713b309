"""The space explorer without a browser: the planes, and what each control does."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.core import distributed
from sonarkit.encode import encode_into
from sonarkit.explore import geometry
from sonarkit.explore.widgets import space_explorer
from sonarkit.explore.widgets.space_explorer import Plane, SpaceExplorer, blend_nearest, principal_plane, umap_plane
from sonarkit.store.reader import Store

TEXTS = ["The little fox ran home.", "Mia found a <b>red</b> kite.", "Le petit renard rentra.", "End of sequence."]
LANGUAGES = ["eng_Latn", "eng_Latn", "fra_Latn", "eng_Latn"]


@pytest.fixture
def explorer(sonar: Sonar) -> SpaceExplorer:
    return SpaceExplorer(sonar, TEXTS, LANGUAGES)


def traces(explorer: SpaceExplorer) -> dict[str, tuple[list[float], list[float]]]:
    return {trace.name: (list(trace.x), list(trace.y)) for trace in explorer.figure.data[1:]}


def fake_umap(x_ND: np.ndarray, seed: int = 42) -> np.ndarray:
    """The real one takes seconds to compile; test_geometry has it."""
    return 10 * np.asarray(x_ND)[:, :2]


# ---------------------------------------------------------------------- planes


def test_the_principal_plane_leads_back_exactly_within_itself() -> None:
    x_ND = np.random.default_rng(0).normal(size=(9, 5))
    plane = principal_plane(x_ND)
    np.testing.assert_allclose(plane.points_N2, geometry.principal_components(x_ND, 2))
    np.testing.assert_allclose(plane.place(plane.vectors_at(plane.points_N2)), plane.points_N2, atol=1e-12)
    assert "other 3 dimensions" in plane.note


def test_blending_by_distance() -> None:
    keys, values = np.array([[0.0], [1.0], [5.0]]), np.array([[10.0], [20.0], [90.0]])
    assert blend_nearest(np.array([[0.0], [1.0]]), keys, values).tolist() == [[10.0], [20.0]]
    np.testing.assert_allclose(blend_nearest(np.array([[0.5]]), keys, values, 2), [[15.0]])
    np.testing.assert_allclose(blend_nearest(np.array([[0.25]]), keys, values, 2), [[11.0]])  # weights 9 to 1
    np.testing.assert_allclose(blend_nearest(np.array([[2.0]]), np.zeros((3, 1)), values), [[40.0]])  # all as near


def test_umap_has_its_ways_by_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "umap_map", fake_umap)
    x_ND = np.random.default_rng(0).normal(size=(9, 5))
    plane = umap_plane(x_ND)
    np.testing.assert_allclose(plane.vectors_at(plane.points_N2), x_ND)
    np.testing.assert_allclose(plane.place(3 * x_ND), plane.points_N2)  # by direction, as UMAP's neighbours are


# ---------------------------------------------------------------------- the controls


def test_selecting_a_sentence_lists_its_neighbours(explorer: SpaceExplorer) -> None:
    explorer.point.value = 1
    cosines = geometry.cosine_similarities(explorer.vectors_ND[1:2], explorer.vectors_ND)[0]
    assert explorer.chosen == 1 and [i for i, _ in explorer.neighbours] == [i for i in np.argsort(-cosines) if i != 1]
    assert "Mia found a &lt;b&gt;red&lt;/b&gt; kite." in explorer.near.value and "<b>red" not in explorer.near.value
    assert f"{explorer.neighbours[0][1]:.3f}" in explorer.near.value and "(fra_Latn)" in explorer.near.value
    np.testing.assert_allclose(traces(explorer)["mark"], explorer.points_N2[1][:, None])
    explorer.select(99)
    assert explorer.status.text == "There is no sentence 99; there are 4, counted from 0." and explorer.chosen == 1


def test_clicks_choose_the_sentence_or_the_place_that_was_clicked(explorer: SpaceExplorer) -> None:
    names = [trace.name for trace in explorer.figure.data]
    assert names == ["ground", "eng_Latn", "fra_Latn", "yours", "way", "mark"]
    for number, index, sentence in ((1, 2, 3), (2, 0, 2)):  # the third English sentence, the first French one
        explorer._clicked(number, None, SimpleNamespace(point_inds=[index], xs=[0], ys=[0]), None)
        assert explorer.chosen == explorer.point.value == sentence
    explorer._clicked(0, None, SimpleNamespace(point_inds=[[3, 4]], xs=[0.5], ys=[-0.25]), None)
    explorer.wait()
    assert "At (0.50, -0.25)" in explorer.out.value and traces(explorer)["mark"] == ([0.5], [-0.25])
    ground = explorer.figure.data[0]
    assert ground.opacity == 0 and ground.hoverinfo == "none"
    low, high = explorer.points_N2.min(0), explorer.points_N2.max(0)
    assert ground.x[0] < low[0] and ground.x[-1] > high[0] and ground.y[0] < low[1] and ground.y[-1] > high[1]


def test_what_lies_at_a_place_is_the_lifted_vector_decoded(explorer: SpaceExplorer, sonar: Sonar) -> None:
    explorer.lang.value = "deu_Latn"
    explorer.decode_at(0.1, 0.2)
    explorer.wait()
    lifted = geometry.principal_axes(explorer.vectors_ND, 2).lift(np.array([[0.1, 0.2]]))
    assert explorer.said == sonar.decode(tensor(lifted), "deu_Latn")


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).float()


def test_walking_from_one_sentence_to_another(explorer: SpaceExplorer, sonar: Sonar) -> None:
    explorer.start.value, explorer.end.value, explorer.steps.value, explorer.way.value = 0, 2, 4, "arc"
    explorer.walk_button.click()
    explorer.wait()
    walk_SD = geometry.interpolate(explorer.vectors_ND[0], explorer.vectors_ND[2], 4, spherical=True)
    assert explorer.said == sonar.decode(tensor(walk_SD), "eng_Latn") and len(explorer.said) == 4
    np.testing.assert_allclose(traces(explorer)["way"], explorer.plane.place(walk_SD).T)
    assert all(f"<td>{share}</td>" in explorer.out.value for share in ("0%", "33%", "67%", "100%"))
    explorer.walk(0, -1)
    assert "no sentence -1" in explorer.status.text


def test_a_drawn_line_begins_and_ends_at_sentences_beside_its_ends(explorer: SpaceExplorer) -> None:
    points = explorer.points_N2
    reach = 0.5 * space_explorer.REACH * np.ptp(points, axis=0).max()
    line = {"type": "line", "x0": points[0, 0] + reach, "y0": points[0, 1], "x1": points[1, 0], "y1": points[1, 1] - reach}
    explorer.figure.plotly_relayout({"shapes": [line]})  # as the page tells of it
    explorer.wait()
    snapped = list(explorer.said)
    assert "From “The little fox ran home.” to “Mia found" in explorer.out.value and not explorer.figure.to_dict()["layout"].get(
        "shapes"
    )
    explorer.walk(0, 1)
    explorer.wait()
    assert explorer.said == snapped
    middle = points.mean(0)
    explorer.draw(*points[0], *middle)
    explorer.wait()
    assert f"to ({middle[0]:.2f}, {middle[1]:.2f})" in explorer.out.value
    np.testing.assert_allclose([axis[-1] for axis in traces(explorer)["way"]], middle, atol=1e-9)


def test_noise_is_added_to_the_chosen_sentence(explorer: SpaceExplorer, sonar: Sonar) -> None:
    explorer.noise.value = 0.5
    assert explorer.status.text == "Choose a sentence first; the noise is added to its vector."
    explorer.select(0)
    assert explorer.noise.value == 0
    explorer.noise.value = 0.3
    explorer.wait()
    assert explorer.said[0] == sonar.decode(tensor(explorer.vectors_ND[:1]), "eng_Latn")[0]
    assert len(explorer.said) == 1 + space_explorer.DRAWS and "noise of 0.3 times" in explorer.out.value
    again = list(explorer.said)
    explorer.shake(0.3)
    explorer.wait()
    assert explorer.said == again, "the same directions each time"


def test_sentences_of_ones_own(explorer: SpaceExplorer, sonar: Sonar) -> None:
    before = explorer.points_N2.copy()
    explorer.start.value = 3
    explorer.add_text.value, explorer.add_lang.value = "Der <i>Fuchs</i> lief. Er schlief.", "deu_Latn"
    explorer.add_button.click()
    explorer.wait()
    assert explorer.texts[4:] == ["Der <i>Fuchs</i> lief.", "Er schlief."] and explorer.languages[4:] == ["deu_Latn"] * 2
    assert explorer.chosen == 4 and explorer.add_text.value == "" and explorer.start.value == 3
    assert "Der &lt;i&gt;Fuchs" in explorer.near.value and "deu_Latn, yours" in explorer.near.value
    np.testing.assert_allclose(explorer.points_N2[:4], before)
    expected = explorer.plane.place(geometry.as_matrix(sonar.encode(explorer.texts[4:], "deu_Latn")))
    np.testing.assert_allclose(traces(explorer)["yours"], expected.T)
    explorer._clicked(3, None, SimpleNamespace(point_inds=[1], xs=[0], ys=[0]), None)
    assert explorer.chosen == 5
    for text, lang, told in (
        ("  ", "deu_Latn", "There is no sentence to add"),
        ("Hi.", "xyz_Latn", "Unknown language 'xyz_Latn'"),
    ):
        explorer.add(text, lang)
        explorer.wait()
        assert explorer.status.text.startswith(told) and len(explorer.texts) == 6


def test_switching_the_map(explorer: SpaceExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    monkeypatch.setattr(geometry, "umap_map", lambda x, seed: fitted.append(len(x)) or fake_umap(x))
    explorer.add("The bear slept.", "eng_Latn")
    explorer.wait()
    explorer.kind.value = "umap"
    explorer.wait()
    assert fitted == [4] and explorer.plane.axis == "UMAP" and len(explorer.points_N2) == 5
    assert explorer.figure.layout.xaxis.title.text == "UMAP 1" and "UMAP keeps together" in explorer.note.value
    np.testing.assert_allclose(traces(explorer)["mark"], explorer.points_N2[4][:, None])
    explorer.decode_at(*explorer.points_N2[2])
    explorer.wait()
    explorer.map_by("pca")
    explorer.map_by("umap")
    explorer.wait()
    assert fitted == [4] and explorer.plane.axis == "UMAP"
    explorer.map_by("tsne")
    assert "'pca' or 'umap', got 'tsne'" in explorer.status.text


def test_a_map_that_fails_is_a_sentence_and_the_old_one_stays(explorer: SpaceExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(x_ND: np.ndarray, seed: int) -> Plane:
        raise ImportError("this map needs umap-learn: pip install umap-learn")

    monkeypatch.setattr(geometry, "umap_map", missing)
    explorer.kind.value = "umap"
    explorer.wait()
    assert explorer.status.text == "This map needs umap-learn: pip install umap-learn." and isinstance(
        explorer.work.error, ImportError
    )
    assert explorer.kind.value == "pca" and explorer.plane.axis == "component"
    explorer.decode_at(0, 0)
    explorer.wait()
    assert explorer.status.text == "Done." and explorer.work.error is None


def test_of_what_is_to_be_read_only_the_newest_waits_and_nothing_else_is_lost(
    explorer: SpaceExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, decoded = threading.Event(), []

    def decode(z, lang):
        assert go_on.wait(10)
        decoded.append(len(z))
        return ["Said."] * len(z)

    monkeypatch.setattr(explorer.sonar, "decode", decode)
    explorer.decode_at(0, 0)
    while explorer.work._waiting:  # until it is taken up
        pass
    explorer.add("The bear slept.")
    explorer.walk(0, 1)
    explorer.add("The wolf slept.")
    explorer.decode_at(1, 1)
    go_on.set()
    explorer.wait()
    assert decoded == [1, 1] and "At (1.00, 1.00)" in explorer.out.value
    assert explorer.texts[-2:] == ["The bear slept.", "The wolf slept."]


def test_a_click_is_read_on_the_map_that_was_clicked(explorer: SpaceExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, said = threading.Event(), []

    def decode(z, lang):
        said.append(z)
        return ["Said."] * len(z)

    def slow(x_ND: np.ndarray, seed: int) -> Plane:
        assert go_on.wait(10)
        return replace(principal_plane(x_ND), axis="UMAP", vectors_at=lambda places_M2: x_ND[:1] + 1)

    monkeypatch.setattr(explorer.sonar, "decode", decode)
    monkeypatch.setattr("sonarkit.explore.widgets.space_explorer.umap_plane", slow)
    clicked = explorer.plane.vectors_at(np.array([[0.5, 0.25]]))
    explorer.map_by("umap")
    explorer.decode_at(0.5, 0.25)
    go_on.set()
    explorer.wait()
    assert explorer.plane.axis == "UMAP" and not len(explorer._mark_N2), "a place of the other map is not marked on this one"
    np.testing.assert_allclose(said[0].numpy(), clicked, atol=1e-5)


def test_from_a_store(sonar: Sonar, tmp_path: Path) -> None:
    encode_into("storyworld:3", tmp_path / "store", sonar, distributed.start("cpu"), documents_per_shard=2)
    store = Store(tmp_path / "store")
    explorer = SpaceExplorer.from_store(sonar, store, limit=9)
    assert len(explorer.texts) == len(set(explorer.texts)) == 9 and explorer.texts[0] == store[0].texts[0]
    np.testing.assert_array_equal(explorer.vectors_ND[0], store[0].vectors_SD[0])
    sonar.encoder.embedding.weight.data += 1
    with pytest.raises(ValueError, match="was made by codec"):
        SpaceExplorer.from_store(sonar, tmp_path / "store")


def test_what_does_not_fit_is_named(sonar: Sonar) -> None:
    with pytest.raises(ValueError, match="at least 3 sentences, got 2"):
        SpaceExplorer(sonar, TEXTS[:2])
    with pytest.raises(ValueError, match=r"one vector of width 32 for each of 4 texts, got shape \(4, 7\)"):
        SpaceExplorer(sonar, TEXTS, LANGUAGES, vectors=np.ones((4, 7)))
    with pytest.raises(ValueError, match="unknown language 'klingon'"):
        SpaceExplorer(sonar, TEXTS, "klingon")


def test_a_closed_explorer_lets_go_of_codec_and_vectors(explorer: SpaceExplorer) -> None:
    explorer.close()
    said = "This SpaceExplorer is closed; run its cell again, or make another one."
    explorer.select(0)
    assert explorer.status.text == said
    explorer.add("The fox ran home.")
    explorer.wait()
    assert explorer.status.text == said
    with pytest.raises(ValueError, match="closed"):
        explorer.decode_at(0.0, 0.0)
    with pytest.raises(AttributeError, match="'SpaceExplorer' object has no attribute 'sonars'"):
        explorer.sonars  # noqa: B018
