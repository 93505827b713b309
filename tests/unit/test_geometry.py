"""Every function against its definition at toy size."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch

from sonarkit.explore import geometry
from sonarkit.explore.geometry import as_matrix, cosine_similarities, paired_cosines, principal_components, variance_kept


@pytest.fixture
def x_ND() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)) * [9.0, 4.0, 1.0, 0.5, 0.2, 0.1] + 3.0  # one direction after another, off the origin


def test_cosines_are_those_of_torch_and_lie_between_minus_one_and_one(x_ND: np.ndarray) -> None:
    x, y = torch.tensor(x_ND[:5]), torch.tensor(x_ND[5:12])
    expected = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2)
    np.testing.assert_allclose(cosine_similarities(x, y), expected.numpy(), rtol=1e-12)
    same = cosine_similarities(x_ND, x_ND)
    np.testing.assert_allclose(same.diagonal(), 1.0, rtol=1e-12)
    assert same.max() <= 1.0  # rounding must not leave the range: arccos of it stays a number


def test_arrays_and_tensors_of_any_precision_give_the_same(x_ND: np.ndarray) -> None:
    half = x_ND.astype(np.float16)
    tensor = torch.tensor(half).requires_grad_()  # as a model returns it
    np.testing.assert_array_equal(cosine_similarities(half, half), cosine_similarities(tensor, tensor))
    assert as_matrix(tensor.bfloat16()).dtype == np.float64  # NumPy has no bfloat16


def test_paired_cosines_are_the_diagonal_and_one_row_serves_all(x_ND: np.ndarray) -> None:
    x, y = x_ND[:5], x_ND[5:10]
    np.testing.assert_allclose(paired_cosines(x, y), cosine_similarities(x, y).diagonal())
    np.testing.assert_allclose(paired_cosines(x, y[:1]), cosine_similarities(x, y)[:, 0])
    np.testing.assert_allclose(paired_cosines(x[:1], y), cosine_similarities(x, y)[0])


def test_a_zero_vector_has_cosine_zero() -> None:
    assert cosine_similarities(np.zeros((1, 3)), np.ones((1, 3))) == [[0.0]]


def test_principal_components_are_the_eigenvectors_of_the_covariance(x_ND: np.ndarray) -> None:
    points = principal_components(x_ND, 3)
    variances, directions = np.linalg.eigh(np.cov(x_ND.T, bias=True))
    np.testing.assert_allclose(points.var(0), variances[::-1][:3])
    projected = (x_ND - x_ND.mean(0)) @ directions[:, ::-1][:, :3]
    np.testing.assert_allclose(np.abs(points), np.abs(projected), atol=1e-9)
    np.testing.assert_allclose(points.mean(0), 0.0, atol=1e-9)


def test_all_components_keep_all_distances_and_all_variance(x_ND: np.ndarray) -> None:
    points = principal_components(x_ND, 6)
    np.testing.assert_allclose(np.linalg.norm(points[0] - points[1]), np.linalg.norm(x_ND[0] - x_ND[1]))
    assert variance_kept(points, x_ND) == pytest.approx(1.0)
    assert 0.8 < variance_kept(points[:, :1], x_ND) < variance_kept(points[:, :2], x_ND) < 1.0


def test_the_sign_does_not_depend_on_the_order_of_the_points(x_ND: np.ndarray) -> None:
    points = principal_components(x_ND, 2)
    np.testing.assert_allclose(principal_components(x_ND[::-1], 2)[::-1], points, atol=1e-9)
    np.testing.assert_allclose(principal_components(-x_ND, 2), -points, atol=1e-9)  # the mirror image, not the same map


def test_axes_take_vectors_to_the_map_and_back(x_ND: np.ndarray) -> None:
    axes = geometry.principal_axes(x_ND, 2)
    np.testing.assert_allclose(axes.directions_KD @ axes.directions_KD.T, np.eye(2), atol=1e-12)
    points = axes.project(torch.tensor(x_ND))
    np.testing.assert_allclose(points, principal_components(x_ND, 2))
    assert axes.shares_K.sum() == pytest.approx(variance_kept(points, x_ND))
    np.testing.assert_allclose(axes.project(axes.lift(points)), points, atol=1e-9)
    whole = geometry.principal_axes(x_ND, 6)
    np.testing.assert_allclose(whole.lift(whole.project(x_ND)), x_ND, atol=1e-9)
    few = geometry.principal_axes(x_ND[:3], 2)  # fewer points than components
    np.testing.assert_allclose(few.lift(few.project(x_ND[:3])), x_ND[:3], atol=1e-9)
    assert not geometry.principal_axes(x_ND[[0, 0]], 1).shares_K.any()


def test_spectrum_is_the_covariance_s_and_its_participation_ratio_counts_directions(x_ND: np.ndarray) -> None:
    variances = np.linalg.eigvalsh(np.cov(x_ND.T))[::-1]
    np.testing.assert_allclose(geometry.spectrum(x_ND), variances / variances.sum())
    assert geometry.effective_dimension(x_ND) == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    assert geometry.effective_dimension(np.vstack([np.eye(5), -np.eye(5)])) == pytest.approx(5)  # evenly in five
    assert geometry.effective_dimension(np.outer(np.arange(4), np.ones(3))) == pytest.approx(1)  # along a line


def test_nearest_is_the_full_sort_whatever_the_chunks(x_ND: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = cosine_similarities(x_ND[:7], x_ND)
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
    for chunk in (1 << 22, 80, 1):
        monkeypatch.setattr(geometry, "CHUNK_COSINES", chunk)
        indices, found = geometry.nearest(x_ND[:7], torch.tensor(x_ND), 5)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_allclose(found, np.take_along_axis(cosines, expected, 1))
    assert list(indices[:, 0]) == list(range(7))
    assert geometry.nearest(x_ND[:1], x_ND[:3], 9)[0].shape == (1, 3)  # no more neighbours than there are
    assert geometry.nearest(np.ones((1, 2)), np.ones((4, 2)), 4)[0].tolist() == [[0, 1, 2, 3]]  # of equals the first


def test_ranks_count_the_true_vectors_that_are_nearer(x_ND: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    true = x_ND[:10]
    assert geometry.next_vector_ranks(2 * true, true).tolist() == [1] * 10
    predicted = x_ND[10:20]
    cosines = cosine_similarities(predicted, true)
    expected = [1 + int((row > row[i]).sum()) for i, row in enumerate(cosines)]
    assert geometry.next_vector_ranks(predicted, true).tolist() == expected and max(expected) > 1
    monkeypatch.setattr(geometry, "CHUNK_COSINES", 30)
    assert geometry.next_vector_ranks(predicted, true).tolist() == expected
    assert geometry.next_vector_ranks(true[[0, 0]], true[[0, 0]]).tolist() == [1, 1]  # equals share the better place


def test_a_straight_walk_has_equal_steps_and_exact_ends(x_ND: np.ndarray) -> None:
    a, b = torch.tensor(x_ND[0]), x_ND[1]
    walk = geometry.interpolate(a, b, 5)
    np.testing.assert_allclose(walk[2], (x_ND[0] + x_ND[1]) / 2)
    for spherical in (False, True):
        walk = geometry.interpolate(a, b, 5, spherical)
        assert (walk[0] == x_ND[0]).all() and (walk[-1] == b).all() and walk.shape == (5, 6)


def test_a_spherical_walk_turns_and_grows_evenly(x_ND: np.ndarray) -> None:
    a, b = x_ND[0], 3 * x_ND[1]
    walk = geometry.interpolate(a, b, 9, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(walk, axis=1), np.linspace(np.linalg.norm(a), np.linalg.norm(b), 9))
    angles = np.arccos(paired_cosines(walk[1:], walk[:-1]))
    np.testing.assert_allclose(angles, np.arccos(paired_cosines(a[None], b[None])[0]) / 8)
    np.testing.assert_allclose(geometry.interpolate(a, 2 * a, 3, spherical=True)[1], 1.5 * a)
    np.testing.assert_allclose(geometry.interpolate(0 * a, a, 3, spherical=True)[1], 0.5 * a)


def test_analogy_closes_the_parallelogram(x_ND: np.ndarray) -> None:
    a, b, c = x_ND[:3]
    np.testing.assert_allclose(geometry.analogy(a, b, c) - c, b - a)
    np.testing.assert_allclose(geometry.analogy(a, torch.tensor(b), a), b)


def test_without_centroids_languages_share_a_mean_and_all_keep_theirs(x_ND: np.ndarray) -> None:
    languages = ["fra_Latn", "eng_Latn", "eng_Latn", "fra_Latn"] * 10
    shift = np.where(np.array(languages) == "eng_Latn", 5.0, 0.0)[:, None]
    centroids = geometry.language_centroids(x_ND + shift, languages)
    assert list(centroids) == ["fra_Latn", "eng_Latn"]
    np.testing.assert_allclose(centroids["eng_Latn"], (x_ND + shift)[[code == "eng_Latn" for code in languages]].mean(0))
    left = geometry.without_centroids(x_ND + shift, languages)
    for mean in geometry.language_centroids(left, languages).values():
        np.testing.assert_allclose(mean, (x_ND + shift).mean(0))
    np.testing.assert_allclose(left - left.mean(0), geometry.without_centroids(x_ND, languages) - x_ND.mean(0), atol=1e-9)


def test_step_lengths_are_distances_to_the_sentence_before() -> None:
    assert geometry.step_lengths(np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])).tolist() == [5.0, 0.0]
    assert geometry.step_lengths(np.ones((1, 2))).shape == (0,)


def test_fragility_follows_each_direction_outwards_in_one_call() -> None:
    """A decoder of two sentences, told apart by the first component: what breaks, and where, is known."""
    calls: list[np.ndarray] = []

    def decode(vectors: np.ndarray) -> list[str]:
        calls.append(vectors)
        return ["left" if v[0] < -20 else "right" if v[0] > 0 else "between" for v in vectors]

    z = np.array([10.0, 0.0])
    found = geometry.fragility(torch.tensor(z), decode, [0.0, 0.5, 2.0, 8.0], draws=64, seed=1)
    assert len(calls) == 1 and calls[0].shape == (1 + 4 * 64, 2)
    noise = (calls[0][1:] - z).reshape(4, 64, 2)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=2), 10 * np.tile([[0.0], [0.5], [2.0], [8.0]], 64), atol=1e-9)
    np.testing.assert_allclose(noise[3], 16 * noise[1])
    assert found.sentence == "right" and found.intact_R[:2].tolist() == [1.0, 1.0]  # noise of 5 cannot turn 10 below 0
    assert [said.count("right") / 64 for said in found.sentences] == found.intact_R.tolist()
    assert found.intact_R[2] > 0.5  # more than half of all directions stay right of 0
    again = geometry.fragility(z, decode, [0.0, 0.5, 2.0, 8.0], draws=64, seed=1)
    assert again.sentences == found.sentences
    assert geometry.fragility(z, decode, [2.0], draws=64, seed=2).sentences[0] != found.sentences[2]


def test_breaking_radius_is_the_first_where_most_are_broken() -> None:
    made = geometry.Fragility("a", np.array([0.1, 0.2]), [["a", "b"], ["c", "b", "c", "a"]], np.array([0.5, 0.25]))
    assert (made.breaking_radius, made.breaks_into) == (0.2, "c")
    held = geometry.Fragility("a", np.array([0.1]), [["a"]], np.array([1.0]))
    assert held.breaking_radius is None and held.breaks_into is None


def test_umap_keeps_near_what_is_near_and_repeats_itself() -> None:
    """Two far groups stay apart; few points, and equal ones, do not trouble it."""
    pytest.importorskip("umap", reason="UMAP needs umap-learn: pip install umap-learn")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8)) + np.repeat([[9.0] * 8, [-9.0] * 8], 30, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        points = geometry.umap_map(x, 2, neighbours=10)
        few = [geometry.umap_map(x[:n], d) for n, d in ((4, 2), (5, 3))]
        same = geometry.umap_map(x[[0] * 6], 2)
    assert points.shape == (60, 2) and points.dtype == np.float64
    np.testing.assert_array_equal(geometry.umap_map(torch.tensor(x), 2, neighbours=10), points)
    near = np.argsort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)[:, 1:6]
    assert ((near < 30) == (np.arange(60) < 30)[:, None]).all()
    assert [map_.shape for map_ in few] == [(4, 2), (5, 3)] and all(np.isfinite(map_).all() for map_ in [*few, same])


def test_without_umap_learn_its_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        geometry.umap_map(np.eye(6), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cosine_similarities(x[0], x), r"shape \(N, D\).*got \(6,\)"),
        (lambda x: cosine_similarities(x, x[:, :5]), "one width, got 6 for x and 5 for y"),
        (lambda x: cosine_similarities(x[:0], x), r"got \(0, 6\)"),
        (lambda x: paired_cosines(x[:3], x[:4]), r"got \(3, 6\) and \(4, 6\)"),
        (lambda x: cosine_similarities(x * np.nan, x), "NaN"),
        (lambda x: principal_components(x, 7), "between 1 and 6"),
        (lambda x: principal_components(x[:1], 2), "between 1 and 1"),
        (lambda x: principal_components(x, 0), "got 0"),
        (lambda x: variance_kept(x[:3], x), "got 3 and 40"),
        (lambda x: variance_kept(x[[0, 0]], x[[0, 0]]), "different vectors"),
        (lambda x: geometry.principal_axes(x).project(x[:, :5]), "one width, got 5 for x and 6 for the axes"),
        (lambda x: geometry.principal_axes(x).lift(x), r"2 coordinates, one per axis, got \(40, 6\)"),
        (lambda x: geometry.umap_map(x[:3]), r"at least 4 points.*got \(3, 6\)"),
        (lambda x: geometry.spectrum(x[[0, 0]]), "different vectors"),
        (lambda x: geometry.nearest(x[:1], x, 0), "at least 1, got 0"),
        (lambda x: geometry.nearest(x[:1, :5], x), "one width, got 5 for queries"),
        (lambda x: geometry.next_vector_ranks(x[:3], x[:4]), "one prediction for each"),
        (lambda x: geometry.interpolate(x[0], x[1], 1), "two ends, got 1"),
        (lambda x: geometry.interpolate(x[:2], x[1]), r"a of shape \(D,\), got \(2, 6\)"),
        (lambda x: geometry.interpolate(x[0], -2 * x[0], spherical=True), "opposite directions"),
        (lambda x: geometry.analogy(x[0], x[1], x[2, :5]), "6 for a and 5 for c"),
        (lambda x: geometry.language_centroids(x, ["eng_Latn"]), "one language for each of 40"),
        (lambda x: geometry.without_centroids(x, "eng_Latn"), "got 'eng_Latn'"),
        (lambda x: geometry.fragility(x[0], list, [0.2, 0.1]), "growing radii"),
        (lambda x: geometry.fragility(x[0], list, [0.1], draws=0), "one draw"),
        (lambda x: geometry.fragility(0 * x[0], list, [0.1]), "z is zero"),
        (lambda x: geometry.fragility(x[0], lambda z: ["a"], [0.1]), "one sentence per vector, got 1 for 9"),
    ],
)
def test_unfit_input_is_named(call, message: str, x_ND: np.ndarray) -> None:
    with pytest.raises(ValueError, match=message):
        call(x_ND)
