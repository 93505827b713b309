"""How sure a number is: intervals of means and corpus statistics, and whether two systems differ.

Rows are what was sampled independently, such as documents: sentences of one story are not. A corpus statistic is a function of
the sum of rows: a mean, a ratio, BLEU from its counts. Percentiles of seeded bootstraps (Efron, 1979); paired as by Koehn (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as students_t

RESAMPLES = 1000
AT_ONCE = 2_000_000  # numbers drawn at once, 16 MB
Statistic = Callable[[np.ndarray], float]  # (K,) sums of rows -> what is reported


@dataclass(frozen=True)
class Interval:
    """A value of `count` rows and between which bounds it lies with the confidence `level`; NaN bounds where there are none."""

    value: float
    low: float
    high: float
    count: int
    level: float = 0.95

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g} (no interval)"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def overlaps(self, other: Interval) -> bool:
        """Whether they share a point. That they do is no sign that two systems are equal: `paired_bootstrap` tells.

        Raises ValueError where one has no bounds.
        """
        bounds = (self.low, self.high, other.low, other.high)
        if any(map(math.isnan, bounds)):
            raise ValueError(f"expected two intervals with bounds, got {self} and {other}; a single row gives none")
        return self.low <= other.high and other.low <= self.high

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what is not finite is None."""
        value, low, high = (x if math.isfinite(x) else None for x in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high, "count": self.count, "level": self.level}


@dataclass(frozen=True)
class Comparison:
    """Of two systems on the same rows: `difference` is the first's statistic less the second's, `p_value` two-sided."""

    difference: Interval
    p_value: float
    test: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"difference": self.difference.to_dict(), "p_value": self.p_value, "test": self.test}


def bootstrap(
    rows: ArrayLike, statistic: Statistic | None = None, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of a corpus statistic of rows (N,) or (N, K), by percentiles; the mean of (N,) where none is given.

    `statistic` takes the sum of the rows (K,), which for BLEU are the counts of n-grams. One row has no interval.
    Raises ValueError for no rows, numbers that are not finite, and rows (N, K) without a statistic.
    """
    rows_NK, statistic = _rows(rows, statistic)
    _check(resamples, level)
    value, count = float(statistic(rows_NK.sum(0))), len(rows_NK)
    if count == 1:
        return Interval(value, math.nan, math.nan, count, level)
    found = [statistic(sums_K) for counts_RN in _draws(count, resamples, seed) for sums_K in counts_RN @ rows_NK]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), count, level)


def jackknife(value: float, without_N: ArrayLike, *, level: float = 0.95) -> Interval:
    """The interval of a statistic from its N values that leave out one row each, by Student's t with N - 1 degrees of freedom.

    For what a bootstrap cannot do since it draws rows twice: how many n-grams are distinct. Fewer than two have no interval.
    """
    without = np.asarray(without_N, dtype=float)
    _check(1, level)
    count = len(without)
    if count < 2:
        return Interval(value, math.nan, math.nan, count, level)
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    half = float(students_t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(value, value - half, value + half, count, level)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Do two systems differ on the same N rows? Rows are drawn together; arguments as for `bootstrap`.

    The p-value is how often the resampled difference, centred on none, is as large as the one that was found.
    Raises ValueError for rows of different shape and fewer than two.
    """
    first_NK, second_NK, statistic = _pair(first, second, statistic)
    _check(resamples, level)
    value = float(statistic(first_NK.sum(0)) - statistic(second_NK.sum(0)))
    width = first_NK.shape[1]
    both = np.concatenate([first_NK, second_NK], 1)
    found = np.array(
        [
            statistic(sums[:width]) - statistic(sums[width:])
            for counts_RN in _draws(len(both), resamples, seed)
            for sums in counts_RN @ both
        ]
    )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    p_value = (1 + int((np.abs(found - value) >= abs(value) - _SLACK * abs(value)).sum())) / (1 + resamples)
    return Comparison(Interval(value, float(low), float(high), len(both), level), p_value, "paired bootstrap")


def permutation_test(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Do two systems differ on the same N rows? Which of them said what is swapped at random, row by row.

    With no more than `resamples` ways to swap, all are tried and the p-value is exact, else it is
    (1 + as large a difference) / (1 + resamples). The interval is that of `paired_bootstrap`. Raises as it does.
    """
    first_NK, second_NK, statistic = _pair(first, second, statistic)
    _check(resamples, level)
    interval = paired_bootstrap(first, second, statistic, resamples=resamples, level=level, seed=seed).difference
    total_K, apart_NK, count = (first_NK + second_NK).sum(0), first_NK - second_NK, len(first_NK)
    exact = count < 63 and 2**count <= resamples
    if exact:
        swaps = iter([1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)])
    else:
        swaps = _signs(count, resamples, seed)
    found = np.array(
        [
            statistic((total_K + apart_K) / 2) - statistic((total_K - apart_K) / 2)
            for signs_RN in swaps
            for apart_K in signs_RN @ apart_NK
        ]
    )
    large = int((np.abs(found) >= abs(interval.value) * (1 - _SLACK)).sum())
    p_value = large / len(found) if exact else (1 + large) / (1 + resamples)
    return Comparison(interval, p_value, "exact permutation test" if exact else "permutation test")


_SLACK = 1e-9  # sums of the same numbers in another order are as large


def _rows(rows: ArrayLike, statistic: Statistic | None) -> tuple[np.ndarray, Statistic]:
    array = np.asarray(rows, dtype=float)
    if array.ndim not in (1, 2) or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected finite rows of shape (N,) or (N, K) with N at least 1, got shape {array.shape}")
    if statistic is None:
        if array.ndim == 2:
            raise ValueError(f"rows of shape {array.shape} need a statistic of their sum; for a mean give (N,)")
        count = len(array)
        statistic = lambda sums: float(sums[0] / count)  # noqa: E731
    return array.reshape(len(array), -1), statistic


def _pair(first: ArrayLike, second: ArrayLike, statistic: Statistic | None) -> tuple[np.ndarray, np.ndarray, Statistic]:
    (first_NK, chosen), (second_NK, _) = _rows(first, statistic), _rows(second, statistic)
    if first_NK.shape != second_NK.shape or len(first_NK) < 2:
        raise ValueError(
            "expected the rows of two systems on the same two or more documents, "
            f"got shapes {first_NK.shape} and {second_NK.shape}"
        )
    return first_NK, second_NK, chosen


def _check(resamples: int, level: float) -> None:
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level between 0 and 1, got {resamples} and {level}")


def _draws(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (R, N) of how often each of N rows was drawn."""
    generator, size = np.random.default_rng(seed), max(1, AT_ONCE // count)
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def _signs(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator, size = np.random.default_rng(seed), max(1, AT_ONCE // count)
    for start in range(0, resamples, size):
        yield 2 * generator.integers(2, size=(min(size, resamples - start), count)) - 1
