"""Geometry of sentence vectors: arrays in, arrays out.

Every function takes NumPy arrays or torch tensors, most of shape (N, D), on any device, and computes in float64 with NumPy.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor
CHUNK_COSINES = 1 << 22  # held at a time by what compares many with many: 32 MiB


def as_matrix(vectors: Array, name: str = "vectors") -> np.ndarray:
    """A matrix (N, D) in float64. ValueError unless it is one, with at least one row and finite."""
    array = vectors.detach().cpu().double().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"expected {name} of shape (N, D), one row per sentence, got {array.shape}; one vector z is z[None]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity; check what produced them")
    return array


def as_vector(vector: Sequence[float] | Array, name: str = "vector") -> np.ndarray:
    """One vector (D,) in float64. ValueError unless it is one, not empty and finite."""
    array = vector if isinstance(vector, Tensor) else np.asarray(vector, dtype=np.float64)
    if array.ndim != 1 or 0 in array.shape:
        raise ValueError(f"expected {name} of shape (D,), got {tuple(array.shape)}; one row of a matrix x is x[0]")
    return as_matrix(array[None], name)[0]


def _same_width(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"expected vectors of one width, got {x.shape[-1]} for {x_name} and {y.shape[-1]} for {y_name}; "
            "encode all with the same codec"
        )


def _same_vectors(*vectors: Array) -> list[np.ndarray]:
    arrays = [as_vector(vector, name) for vector, name in zip(vectors, "abc")]
    for array, name in zip(arrays[1:], "bc"):
        _same_width(arrays[0], array, "a", name)
    return arrays


def _chunks(rows: int, columns: int) -> list[slice]:
    """Slices of `rows` such that a slice times `columns` stays within CHUNK_COSINES."""
    step = max(1, CHUNK_COSINES // columns)
    return [slice(start, start + step) for start in range(0, rows, step)]


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
    _same_width(x, y, "x", "y")
    return np.clip(x @ y.T, -1.0, 1.0)


def paired_cosines(x_ND: Array, y_ND: Array) -> np.ndarray:
    """(N, D) and (N, D) -> (N,) cosine of each row to the row beside it; a single row is held against every other.

    Raises ValueError when the shapes do not fit.
    """
    x, y = _directions(x_ND, "x"), _directions(y_ND, "y")
    if x.shape[1] != y.shape[1] or (len(x) != len(y) and 1 not in (len(x), len(y))):
        raise ValueError(f"expected two matrices of one shape, or one of them with a single row, got {x.shape} and {y.shape}")
    return np.clip((x * y).sum(1), -1.0, 1.0)


# ---------------------------------------------------------------------- maps and variance


@dataclass(frozen=True)
class Axes:
    """K directions through the mean of some vectors, at right angles and of length 1, with the share of variance along each."""

    mean_D: np.ndarray
    directions_KD: np.ndarray
    shares_K: np.ndarray

    def project(self, x_ND: Array) -> np.ndarray:
        """(N, D) -> (N, K) coordinates; other vectors than those the axes were made from may be put on the map, too."""
        x = as_matrix(x_ND, "x")
        _same_width(x, self.directions_KD, "x", "the axes")
        return (x - self.mean_D) @ self.directions_KD.T

    def lift(self, points_NK: Array) -> np.ndarray:
        """(N, K) -> (N, D) the vectors at these places of the map: the inverse of `project` for what lies within it."""
        points = as_matrix(points_NK, "points")
        if points.shape[1] != len(self.directions_KD):
            raise ValueError(f"expected points with {len(self.directions_KD)} coordinates, one per axis, got {points.shape}")
        return self.mean_D + points @ self.directions_KD


def principal_axes(x_ND: Array, dimensions: int = 2) -> Axes:
    """The directions of largest variance of (N, D) vectors, the first the largest.

    By singular value decomposition of the centred vectors. A direction's sign is arbitrary; it is chosen so that its
    largest component is positive, and the same vectors always give the same axes. Raises ValueError when
    there are fewer than `dimensions` directions, of which N points have at most N and D-wide vectors at most D.
    """
    x = as_matrix(x_ND, "x")
    if not 1 <= dimensions <= min(x.shape):
        raise ValueError(f"dimensions must lie between 1 and {min(x.shape)} for vectors of shape {x.shape}, got {dimensions}")
    mean_D = x.mean(0)
    # The triangle has the singular values and directions of all N rows, and is small however many they are.
    _, scale_K, right_KD = np.linalg.svd(np.linalg.qr(x - mean_D, mode="r"), full_matrices=False)
    largest_K = np.abs(right_KD).argmax(1)
    signs_K = np.where(right_KD[np.arange(len(right_KD)), largest_K] < 0, -1.0, 1.0)
    variances_K = scale_K**2
    shares_K = variances_K / (variances_K.sum() or 1.0)  # all vectors the same: no variance along any axis
    return Axes(mean_D, (signs_K[:, None] * right_KD)[:dimensions], shares_K[:dimensions])


def principal_components(x_ND: Array, dimensions: int = 2) -> np.ndarray:
    """(N, D) -> (N, dimensions) coordinates along the directions of largest variance; see `principal_axes`."""
    return principal_axes(x_ND, dimensions).project(x_ND)


def umap_map(x_ND: Array, dimensions: int = 2, *, neighbours: int = 15, seed: int = 42) -> np.ndarray:
    """(N, D) -> (N, dimensions) coordinates that keep near what is near by cosine (UMAP, arXiv 1802.03426).

    Begins from the principal components, and is the same on every run. Distances between far groups mean little.
    Few points have few neighbours: at most N - 1 are looked at. The first call of a process compiles for some
    5 seconds. Raises ValueError for fewer than `dimensions` + 2 points, ImportError without umap-learn.
    """
    x = as_matrix(x_ND, "x")
    if dimensions < 1 or neighbours < 2 or len(x) < dimensions + 2 or x.shape[1] < dimensions:
        raise ValueError(
            f"UMAP in {dimensions} dimensions needs at least {dimensions + 2} points, {dimensions} components each, and "
            f"neighbours of at least 2; got {x.shape} and {neighbours}. principal_components maps fewer points"
        )
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("this map needs umap-learn: pip install umap-learn") from error
    near_NK, cosines_NK = nearest(x, x, min(neighbours, len(x) - 1))
    with warnings.catch_warnings():
        # Our neighbours come without an index to search: no matter, since no further point is ever put on this map.
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)
        reducer = UMAP(
            n_components=dimensions,
            n_neighbors=near_NK.shape[1],
            metric="cosine",
            init="pca",  # spectral, the default, fails on few points and warns when groups do not touch
            random_state=seed,
            n_jobs=1,  # more threads: another map on every run
            precomputed_knn=(near_NK, 1.0 - cosines_NK),  # UMAP's own search compiles for longer
        )
        return np.asarray(reducer.fit_transform(x), dtype=np.float64)


def variance_kept(points_NK: Array, x_ND: Array) -> float:
    """Share of the variance of x that its map `points` shows, between 0 and 1 for principal components.

    Raises ValueError when the two do not have as many rows, or x has no variance.
    """
    points, x = as_matrix(points_NK, "points"), as_matrix(x_ND, "x")
    total = x.var(0).sum()
    if len(points) != len(x) or not total:
        raise ValueError(f"expected one point for each of at least two different vectors, got {len(points)} and {len(x)}")
    return float(points.var(0).sum() / total)


def spectrum(x_ND: Array) -> np.ndarray:
    """Share of the variance along each principal direction, largest first: (min(N, D),), their sum is 1.

    Raises ValueError when x has no variance.
    """
    x = as_matrix(x_ND, "x")
    shares_K = principal_axes(x, min(x.shape)).shares_K
    if not shares_K.any():
        raise ValueError(f"expected at least two different vectors, got {len(x)} without any variance")
    return shares_K


def participation_ratio(shares_K: Array) -> float:
    """1 / sum of squares of shares that sum to 1: K when all are equal, 1 when one has everything."""
    shares = as_vector(shares_K, "shares")
    return float(shares.sum() ** 2 / (shares**2).sum())


def effective_dimension(x_ND: Array) -> float:
    """In how many directions x spreads: the participation ratio of its spectrum, between 1 and min(N - 1, D)."""
    return participation_ratio(spectrum(x_ND))


# ---------------------------------------------------------------------- neighbours


def nearest(queries_QD: Array, x_ND: Array, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of x nearest to each query by cosine, best first -> their indices and cosines, (Q, K) each.

    K is k, or N where x has fewer rows. A query that is itself a row of x finds itself first. Memory is bounded, however
    many queries and rows there are. Raises ValueError for vectors of different widths.
    """
    queries, x = _directions(queries_QD, "queries"), _directions(x_ND, "x")
    _same_width(queries, x, "queries", "x")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, len(x))
    indices_QK, cosines_QK = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k))
    for rows in _chunks(len(queries), len(x)):
        cosines = np.clip(queries[rows] @ x.T, -1.0, 1.0)
        found = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        order = np.lexsort((found, -np.take_along_axis(cosines, found, 1)), axis=1)  # of equals the first in x
        indices_QK[rows] = np.take_along_axis(found, order, 1)
        cosines_QK[rows] = np.take_along_axis(cosines, indices_QK[rows], 1)
    return indices_QK, cosines_QK


def next_vector_ranks(predicted_ND: Array, true_ND: Array) -> np.ndarray:
    """(N,) place, from 1, of each true next vector among all N of them, by cosine to its prediction.

    Equal vectors share the better place. Raises ValueError when the shapes differ.
    """
    predicted, true = _directions(predicted_ND, "predicted"), _directions(true_ND, "true")
    if predicted.shape != true.shape:
        raise ValueError(f"expected one prediction for each true vector, got shapes {predicted.shape} and {true.shape}")
    own_N1 = (predicted * true).sum(1, keepdims=True)
    better = [(predicted[rows] @ true.T > own_N1[rows] + 1e-12).sum(1) for rows in _chunks(len(true), len(true))]
    return 1 + np.concatenate(better)


# ---------------------------------------------------------------------- between sentences


def interpolate(a_D: Array, b_D: Array, steps: int = 9, spherical: bool = False) -> np.ndarray:
    """(steps, D) vectors from a to b in equal steps, both ends exact.

    Straight, or with `spherical` along the arc: the direction turns evenly and the length goes evenly from one to the
    other (a straight line cuts through shorter vectors than either end). Raises ValueError for fewer than two steps, for
    different widths, and for an arc between opposite vectors, which could go round on any side.
    """
    a, b = _same_vectors(a_D, b_D)
    if steps < 2:
        raise ValueError(f"expected at least 2 steps, the two ends, got {steps}")
    t_S1 = np.linspace(0.0, 1.0, steps)[:, None]
    walk_SD = (1 - t_S1) * a + t_S1 * b
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    if spherical and length_a and length_b:  # from or to zero the straight line is the arc: one direction throughout
        from_D = a / length_a
        cosine = float(from_D @ b / length_b)
        across_D = b / length_b - cosine * from_D
        sine = float(np.linalg.norm(across_D))
        if sine < 1e-9 and cosine < 0:
            raise ValueError("a and b point in opposite directions, and no arc is the shortest; interpolate straight")
        if sine >= 1e-9:
            turn_S1 = t_S1 * np.arctan2(sine, cosine)
            lengths_S1 = (1 - t_S1) * length_a + t_S1 * length_b
            walk_SD = lengths_S1 * (np.cos(turn_S1) * from_D + np.sin(turn_S1) * across_D / sine)
    walk_SD[0], walk_SD[-1] = a, b
    return walk_SD


def analogy(a_D: Array, b_D: Array, c_D: Array) -> np.ndarray:
    """(D,) the vector d for which a is to b as c is to d: c + b - a."""
    a, b, c = _same_vectors(a_D, b_D, c_D)
    return c + b - a


def step_lengths(story_SD: Array) -> np.ndarray:
    """(S - 1,) how far each sentence of a story lies from the one before it."""
    return np.linalg.norm(np.diff(as_matrix(story_SD, "the story"), axis=0), axis=1)


# ---------------------------------------------------------------------- languages


def language_centroids(x_ND: Array, languages: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean vector (D,) of each language, in the order met; `languages` has one code per vector, else ValueError."""
    x = as_matrix(x_ND, "x")
    if isinstance(languages, str) or len(languages) != len(x):
        raise ValueError(f"expected one language for each of {len(x)} vectors, got {languages!r:.60}")
    codes_N = np.array(languages)
    return {code: x[codes_N == code].mean(0) for code in dict.fromkeys(languages)}


def without_centroids(x_ND: Array, languages: Sequence[str]) -> np.ndarray:
    """(N, D) what is left of the vectors when the mean of each language is moved to the mean of all."""
    x = as_matrix(x_ND, "x")
    centroids = language_centroids(x, languages)
    return x - np.stack([centroids[code] for code in languages]) + x.mean(0)


# ---------------------------------------------------------------------- how much a sentence bears


@dataclass(frozen=True)
class Fragility:
    """What a vector says under growing noise. `sentences[i]` are the draws at `radii_R[i]`; see `fragility`."""

    sentence: str  # what the clean vector says
    radii_R: np.ndarray
    sentences: list[list[str]]
    intact_R: np.ndarray  # share of the draws that still say it

    @property
    def _broken(self) -> int | None:
        return next((i for i, share in enumerate(self.intact_R) if share < 0.5), None)

    @property
    def breaking_radius(self) -> float | None:
        """The first radius at which fewer than half of the draws are intact; None when they hold throughout."""
        return None if self._broken is None else float(self.radii_R[self._broken])

    @property
    def breaks_into(self) -> str | None:
        """The most frequent other sentence at the breaking radius."""
        if self._broken is None:
            return None
        return Counter(said for said in self.sentences[self._broken] if said != self.sentence).most_common(1)[0][0]


def fragility(
    z_D: Array, decode: Callable[[np.ndarray], list[str]], radii_R: Sequence[float] | Array, draws: int = 8, seed: int = 0
) -> Fragility:
    """Decode a vector with noise of growing size: at which radius does its sentence break, and into what?

    A radius r adds noise of length r times that of z. The `draws` directions are Gaussian, drawn with `seed`, and the same
    at every radius, so that each is followed outwards. `decode` turns (n, D) vectors into n sentences and is called once.
    Raises ValueError for a zero vector and for radii that do not grow.
    """
    z, radii = as_vector(z_D, "z"), as_vector(radii_R, "radii")
    if radii[0] < 0 or (np.diff(radii) <= 0).any() or draws < 1:
        raise ValueError(f"expected growing radii, none negative, and at least one draw, got {radii.tolist()} and {draws}")
    length = np.linalg.norm(z)
    if not length:
        raise ValueError("z is zero, and noise relative to its length is none; pass the vector of a sentence")
    noise_KD = _directions(np.random.default_rng(seed).normal(size=(draws, len(z))), "noise")
    noisy_RKD = z + length * radii[:, None, None] * noise_KD
    clean, *said = decode(np.concatenate([z[None], noisy_RKD.reshape(-1, len(z))]))
    if len(said) != noisy_RKD[..., 0].size:
        raise ValueError(f"decode must give one sentence per vector, got {len(said) + 1} for {noisy_RKD[..., 0].size + 1}")
    sentences = [said[i : i + draws] for i in range(0, len(said), draws)]
    intact = np.array([[one == clean for one in drawn] for drawn in sentences])
    return Fragility(clean, radii, sentences, intact.mean(1))
