"""Bringing sentence vectors to one scale: what models that learn by distance read and write (arXiv 2412.08821, section 2.3.1).

A dimension's median becomes 0 and its inter-quartile range 1. Unlike a standard deviation, neither moves when a few vectors
lie far away.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from sonarkit.store.reader import Store

QUARTILES = (0.25, 0.5, 0.75)
BLOCK_VALUES = 2**26  # sorted at once, in float32


class Normalizer(nn.Module):
    """`(z - center_D) / scale_D`, dimension by dimension; both are fitted once and are part of a model's weights.

    A new one changes nothing until weights are loaded; `of` and `fit` make one that does.
    """

    center_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    @classmethod
    def of(cls, vectors_ND: np.ndarray | Tensor) -> Normalizer:
        """Fitted on these vectors, of any float type; quartiles as numpy's, interpolated between two vectors.

        A dimension in which half of the vectors are equal has a range of 0: it takes the median range of the others, which
        neither divides by 0 nor lets an error there outweigh all others in raw space. Raises ValueError for fewer than two
        vectors, for values that are not finite, and where that range is 0 in every dimension.
        """
        vectors = np.asarray(vectors_ND.cpu() if isinstance(vectors_ND, Tensor) else vectors_ND)
        if vectors.ndim != 2 or len(vectors) < 2:
            raise ValueError(f"expected at least two vectors, of shape (N, D), got shape {vectors.shape}")
        step = max(1, BLOCK_VALUES // len(vectors))
        found = [_quartiles(vectors[:, i : i + step].astype(np.float32), i) for i in range(0, vectors.shape[1], step)]
        low_D, center_D, high_D = np.concatenate(found, axis=1)
        scale_D = high_D - low_D
        if not scale_D.any():
            raise ValueError(f"half or more of these {len(vectors)} vectors are equal in every dimension; pass others")
        scale_D[scale_D == 0] = np.median(scale_D[scale_D > 0])
        fitted = cls(vectors.shape[1])
        fitted.center_D.copy_(torch.from_numpy(center_D))
        fitted.scale_D.copy_(torch.from_numpy(scale_D))
        return fitted

    @classmethod
    def fit(cls, store: Store, most: int = 1_000_000) -> Normalizer:
        """Fitted on at most about `most` sentences of a store: those of every k-th document, the end sentence not among them.

        Takes 2 bytes of memory a value (2 GB for a million vectors of 1 024), and twice the block being sorted.
        """
        every = max(1, math.ceil(store.manifest["sentences"] / most))
        found = [store[i].vectors_SD for i in range(0, len(store), every)]
        return cls.of(np.concatenate(found) if found else np.empty((0, store.width), np.float16))

    def normalize(self, z: Tensor) -> Tensor:
        """(..., D) raw SONAR vectors -> the same in units of the inter-quartile range."""
        return (z - self.center_D) / self.scale_D

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse: (..., D) -> raw SONAR space."""
        return x * self.scale_D + self.center_D


def _quartiles(block_NK: np.ndarray, first: int) -> np.ndarray:
    """(3, K) quartiles of the dimensions from `first` on. ValueError when a value is not finite."""
    if not np.isfinite(block_NK).all():
        row, column = np.argwhere(~np.isfinite(block_NK))[0]
        raise ValueError(f"vector {row} is {block_NK[row, column]} in dimension {first + column}; encode its text again")
    return np.quantile(block_NK, QUARTILES, axis=0)
