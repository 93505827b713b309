"""Laws that are recovered from points drawn from them, and none where there are too few."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest

from sonarkit.evaluation.scaling import PAPER, Law, fit_scaling

SIZES = [39e6, 100e6, 300e6, 600e6, 900e6]
ROWS = list(product(PAPER, PAPER["v1"]))


def law_of(row: tuple[str, str]) -> Law:
    return PAPER[row[0]][row[1]]


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_the_papers_laws_come_back_from_their_own_points(row: tuple[str, str]) -> None:
    law = law_of(row)
    fit = fit_scaling(SIZES, list(law(SIZES)), resamples=20)
    assert fit.law is not None and fit.r2 > 0.999999
    for name in ("a", "alpha", "b"):
        assert getattr(fit.law, name) == pytest.approx(getattr(law, name), rel=1e-6)
    assert fit.predict(1.3e9).value == pytest.approx(float(law(1.3e9)))


def test_with_noise_the_intervals_cover() -> None:
    """15 points as in version 2: of 32 intervals of 95 % some two miss; six, were they independent, in 1 case of 160."""
    missed = []
    for i, row in enumerate(ROWS):
        law, sizes = law_of(row), np.repeat(SIZES, 3)
        noise = np.random.default_rng(i).normal(0, 1e-3, len(sizes))
        fit = fit_scaling(list(sizes), list(law(sizes) * np.exp(noise)), resamples=120, seed=i)
        ahead = fit.predict(1.3e9)
        missed += [name for name, found in fit.intervals.items() if not found.low <= getattr(law, name) <= found.high]
        missed += ["ahead"] * (not ahead.low <= law(1.3e9) <= ahead.high)
        assert all(found.low < found.value < found.high for found in (*fit.intervals.values(), ahead))
    assert len(missed) < 6, missed


def test_it_is_less_sure_further_out_and_with_fewer_points() -> None:
    law, noise = PAPER["v2"]["SONAR-LLM"], np.random.default_rng(0).normal(0, 1e-3, 15)
    sizes = np.repeat(SIZES, 3)
    many = fit_scaling(list(sizes), list(law(sizes) * np.exp(noise)), resamples=100)
    few = fit_scaling(list(sizes[::3]), list((law(sizes) * np.exp(noise))[::3]), resamples=100)

    def width(fit: object, size: float) -> float:
        found = fit.predict(size)  # type: ignore[attr-defined]
        return found.high - found.low

    assert width(many, 1e11) > 2 * width(many, 3e8) and width(few, 1e9) > width(many, 1e9)


def test_a_law_without_a_floor_is_found_too() -> None:
    fit = fit_scaling(SIZES, list(Law(50.0, 0.2, 0.0)(SIZES)), resamples=5)
    assert fit.law is not None and fit.law.alpha == pytest.approx(0.2, rel=0.01) and fit.law.b < 0.01


def test_where_the_best_floor_is_none_it_may_still_be_high() -> None:
    """From four points that lie nearly on a line, those of a study's token-level models."""
    fit = fit_scaling([387_744, 1_394_080, 4_508_416, 12_392_832], [3.0832, 1.9125, 1.0149, 0.6965], resamples=60)
    assert fit.law is not None and fit.law.b == fit.intervals["b"].low == 0
    assert fit.intervals["b"].high > 0.3 and fit.predict(1e8).high > 3 * fit.predict(1e8).low


def test_too_few_sizes_give_no_numbers() -> None:
    fit = fit_scaling([1e6, 1e7, 1e8, 1e8], [3.0, 2.0, 1.5, 1.6])
    assert fit.law is None and not fit.intervals and math.isnan(fit.r2)
    assert fit.table() == "no law: three parameters need at least 4 different sizes to be doubted by, got 3"
    assert json.loads(json.dumps(fit.to_dict(), allow_nan=False)).keys() == {"sizes", "losses", "problem"}
    with pytest.raises(ValueError, match="no law to carry on: three parameters"):
        fit.predict(1e9)
    assert "do not fall" in fit_scaling(SIZES, [1, 2, 3, 4, 5]).problem
    assert "do not fall" in fit_scaling(SIZES, [2.0] * 5).problem


def test_the_result_is_json_and_a_table() -> None:
    law = PAPER["v1"]["LLM"]
    losses = law(SIZES) * np.exp(np.random.default_rng(0).normal(0, 1e-3, 5))
    fit = fit_scaling(SIZES, list(losses), resamples=50)
    assert fit == fit_scaling(SIZES, list(losses), resamples=50)
    read = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert read["law"].keys() == read["intervals"].keys() == {"a", "alpha", "b"} and read["sizes"] == SIZES
    lines = fit.table([1.3e9]).splitlines()
    assert len(lines) == 1 + 3 + 1 + 6 and "extrapolated" in lines[-1] and "extrapolated" not in lines[-2]


@pytest.mark.parametrize(
    "sizes, losses, message",
    [
        ([1, 2], [1.0], "a loss for each size"),
        ([1, 2, 3, -4], [4, 3, 2, 1], "above 0"),
        ([1, 2, 3, 4], [4, 3, math.nan, 1], "finite"),
    ],
)
def test_bad_points_are_refused(sizes: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_scaling(sizes, losses)
    with pytest.raises(ValueError, match="above 0, got -1"):
        fit_scaling(SIZES, list(PAPER["v1"]["LLM"](SIZES)), resamples=2).predict(-1)
