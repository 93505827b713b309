"""Cosines and principal components against their definitions at toy size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cosine_similarities(x[0], x), r"shape \(N, D\).*got \(6,\)"),
        (lambda x: cosine_similarities(x, x[:, :5]), "one width, got 6 and 5"),
        (lambda x: cosine_similarities(x[:0], x), r"got \(0, 6\)"),
        (lambda x: paired_cosines(x[:3], x[:4]), r"got \(3, 6\) and \(4, 6\)"),
        (lambda x: cosine_similarities(x * np.nan, x), "NaN"),
        (lambda x: principal_components(x, 7), "between 1 and 6"),
        (lambda x: principal_components(x[:1], 2), "between 1 and 1"),
        (lambda x: principal_components(x, 0), "got 0"),
        (lambda x: variance_kept(x[:3], x), "got 3 and 40"),
        (lambda x: variance_kept(x[[0, 0]], x[[0, 0]]), "different vectors"),
    ],
)
def test_unfit_input_is_named(call, message: str, x_ND: np.ndarray) -> None:
    with pytest.raises(ValueError, match=message):
        call(x_ND)
