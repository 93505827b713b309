"""Geometry of sentence vectors: arrays in, arrays out.

Every function takes NumPy arrays or torch tensors of shape (N, D), on any device, and returns float64 NumPy arrays.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor


def as_matrix(vectors: Array, name: str = "vectors") -> np.ndarray:
    """A matrix (N, D) in float64. ValueError unless it is one, with at least one row and finite."""
    array = vectors.detach().cpu().double().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"expected {name} of shape (N, D), one row per sentence, got {array.shape}; one vector z is z[None]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity; check what produced them")
    return array


def _directions(vectors: Array, name: str) -> np.ndarray:
    """Rows scaled to length 1. A zero vector has no direction; it stays zero, and so its cosines are 0."""
    array = as_matrix(vectors, name)
    lengths_N1 = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(lengths_N1 > 0, lengths_N1, 1.0)


def cosine_similarities(x_ND: Array, y_MD: Array) -> np.ndarray:
    """(N, D) and (M, D) -> (N, M) cosines between all pairs.

    Raises ValueError when the widths differ: such vectors come from different codecs.
    """
    x, y = _directions(x_ND, "x"), _directions(y_MD, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected vectors of one width, got {x.shape[1]} and {y.shape[1]}; encode both with the same codec")
    return np.clip(x @ y.T, -1.0, 1.0)


def paired_cosines(x_ND: Array, y_ND: Array) -> np.ndarray:
    """(N, D) and (N, D) -> (N,) cosine of each row to the row beside it; a single row is held against every other.

    Raises ValueError when the shapes do not fit.
    """
    x, y = _directions(x_ND, "x"), _directions(y_ND, "y")
    if x.shape[1] != y.shape[1] or (len(x) != len(y) and 1 not in (len(x), len(y))):
        raise ValueError(f"expected two matrices of one shape, or one of them with a single row, got {x.shape} and {y.shape}")
    return np.clip((x * y).sum(1), -1.0, 1.0)


def principal_components(x_ND: Array, dimensions: int = 2) -> np.ndarray:
    """(N, D) -> (N, dimensions) coordinates along the directions of largest variance, the first the largest.

    By singular value decomposition of the centred vectors. A direction's sign is arbitrary; it is chosen so that its
    largest component is positive, and the same vectors always give the same map. Raises ValueError when
    there are fewer than `dimensions` directions, of which N points have at most N and D-wide vectors at most D.
    """
    x = as_matrix(x_ND, "x")
    if not 1 <= dimensions <= min(x.shape):
        raise ValueError(f"dimensions must lie between 1 and {min(x.shape)} for vectors of shape {x.shape}, got {dimensions}")
    left_NK, scale_K, right_KD = np.linalg.svd(x - x.mean(0), full_matrices=False)
    largest_K = np.abs(right_KD).argmax(1)
    signs_K = np.where(right_KD[np.arange(len(right_KD)), largest_K] < 0, -1.0, 1.0)
    return (left_NK * scale_K * signs_K)[:, :dimensions]


def variance_kept(points_NK: Array, x_ND: Array) -> float:
    """Share of the variance of x that its map `points` shows, between 0 and 1 for principal components.

    Raises ValueError when the two do not have as many rows, or x has no variance.
    """
    points, x = as_matrix(points_NK, "points"), as_matrix(x_ND, "x")
    total = x.var(0).sum()
    if len(points) != len(x) or not total:
        raise ValueError(f"expected one point for each of at least two different vectors, got {len(points)} and {len(x)}")
    return float(points.var(0).sum() / total)
