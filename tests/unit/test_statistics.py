"""Intervals that cover as often as they say, and tests that find a difference when there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel

from sonarkit.evaluation import statistics
from sonarkit.evaluation.statistics import Interval, bootstrap, jackknife, paired_bootstrap, permutation_test


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(values, resamples=4000)
    half = norm.ppf(0.975) * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean()) and found.count == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.02) and found.high == pytest.approx(
        values.mean() + half, abs=0.02
    )


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_as_often_as_they_say(level: float) -> None:
    generator = np.random.default_rng(1)
    intervals = [bootstrap(generator.normal(3, 1, 60), resamples=200, level=level, seed=i) for i in range(300)]
    share = np.mean([one.low <= 3 <= one.high for one in intervals])
    assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 300)


def test_a_ratio_is_that_of_the_sums() -> None:
    rows = np.array([[1, 2], [3, 4], [0, 10]])
    found = bootstrap(rows, lambda sums: sums[0] / sums[1])
    assert found.value == 4 / 16 and 0 <= found.low < 0.25 < found.high <= 0.75


def test_the_same_seed_gives_the_same_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30.0) ** 2
    whole = bootstrap(values, seed=3)
    assert whole == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    monkeypatch.setattr(statistics, "AT_ONCE", 100)
    assert bootstrap(values, seed=3) == whole


def test_one_row_has_a_value_and_no_interval() -> None:
    one = bootstrap([4.0])
    assert one.value == 4 and math.isnan(one.low) and str(one) == "4 (no interval)"
    assert one.to_dict() == {"value": 4.0, "low": None, "high": None, "count": 1, "level": 0.95}
    with pytest.raises(ValueError, match="two intervals with bounds"):
        one.overlaps(one)


def test_overlap() -> None:
    a, b, c = Interval(1, 0, 2, 9), Interval(3, 2, 4, 9), Interval(5, 4.5, 6, 9)
    assert a.overlaps(b) and b.overlaps(a) and not b.overlaps(c) and not c.overlaps(a)


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = jackknife(values.mean(), (values.sum() - values) / 3)
    half = 3.182446 * values.std(ddof=1) / 2  # t of 3 degrees of freedom
    assert found.low == pytest.approx(4 - half, abs=1e-5) and found.high == pytest.approx(4 + half, abs=1e-5)


def test_a_difference_is_found_pair_by_pair() -> None:
    """Small beside the spread of the rows, large beside that of their differences: intervals overlap, tests tell."""
    generator = np.random.default_rng(0)
    a = generator.normal(50, 20, 80)
    b = a - 1 + generator.normal(0, 2, 80)
    assert bootstrap(a).overlaps(bootstrap(b))
    for test in (paired_bootstrap, permutation_test):
        found = test(a, b)
        assert found.p_value < 0.01 and 0 < found.difference.low < found.difference.value < found.difference.high
        assert test(b, a).difference.value == pytest.approx(-found.difference.value)
    assert permutation_test(a, b, resamples=4000).p_value == pytest.approx(ttest_rel(a, b).pvalue, abs=0.002)


@pytest.mark.parametrize("test", [paired_bootstrap, permutation_test])
def test_equal_systems_seldom_differ(test: object) -> None:
    generator = np.random.default_rng(5)
    p = [test(*generator.normal(0, 1, (2, 40)), resamples=199, seed=i).p_value for i in range(200)]  # type: ignore[operator]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.11  # 0.05 but for 4 standard errors
    same = generator.normal(0, 1, 40)
    assert test(same, same).p_value == 1  # type: ignore[operator]


def test_few_rows_are_permuted_exactly() -> None:
    """All differences are 1: of the 2^4 ways to swap, two give a mean of 1 or -1."""
    found = permutation_test([2, 3, 4, 5], [1, 2, 3, 4])
    assert found.test == "exact permutation test" and found.p_value == 2 / 16
    assert found.to_dict()["difference"]["value"] == 1


def test_a_corpus_statistic_is_compared_by_its_sums() -> None:
    a, b = np.array([[9, 10], [1, 1], [7, 9]]), np.array([[5, 10], [1, 1], [2, 9]])
    found = permutation_test(a, b, lambda sums: sums[0] / sums[1])
    assert found.difference.value == pytest.approx(17 / 20 - 8 / 20)
    assert found.p_value == 4 / 8  # the middle pair is equal, so that swapping it changes nothing


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap([]), "N at least 1"),
        (lambda: bootstrap([1.0, math.nan]), "finite"),
        (lambda: bootstrap([[1, 2]]), "need a statistic"),
        (lambda: bootstrap([1, 2], level=1.5), "level between"),
        (lambda: bootstrap([1, 2], resamples=0), "resamples"),
        (lambda: paired_bootstrap([1, 2], [1, 2, 3]), r"shapes \(2, 1\) and \(3, 1\)"),
        (lambda: permutation_test([1], [2]), "two or more documents"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
