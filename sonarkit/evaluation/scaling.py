"""Scaling laws: the loss L(N) = a N^-alpha + b of models of N parameters, fitted, doubted and carried on (arXiv 2508.05305).

Losses of different families are in different units; laws compare slopes, only bits per byte compares losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, nnls

from sonarkit.evaluation.statistics import Interval

LEAST_SIZES = 4  # three parameters, and something left to doubt them by
LEAST = 1e-6  # a limit b below this share of the least loss is none: 0


@dataclass(frozen=True)
class Law:
    """L(N) = a N^-alpha + b; b is the loss that no size goes below."""

    a: float
    alpha: float
    b: float

    def __call__(self, parameters: ArrayLike) -> np.ndarray:
        """Losses of models of so many parameters."""
        return self.a * np.asarray(parameters, dtype=float) ** -self.alpha + self.b


# Validation loss after epoch 4 on TinyStories, in nats per token (LLM, SONAR-LLM) and in the units of their own losses.
PAPER = {
    "v1": {  # one run a size, R^2 > 0.995
        "LLM": Law(4.06e5, 0.791, 1.24),
        "MSE-LCM": Law(3.21e4, 0.515, 199.0),
        "Diffusion-LCM": Law(1.58e5, 0.485, 84.0),
        "SONAR-LLM": Law(2.09e3, 0.569, 1.73),
    },
    "v2": {  # three seeds, 15 points, R^2 > 0.97
        "LLM": Law(1.44e5, 0.724, 1.04),
        "MSE-LCM": Law(3.71e4, 0.525, 199.0),
        "Diffusion-LCM": Law(2.70e5, 0.515, 84.1),
        "SONAR-LLM": Law(2.86e3, 0.596, 1.70),
    },
}


@dataclass(frozen=True)
class ScalingFit:
    """A law fitted to points, or why there is none: then `law` is None and `problem` says it.

    `r2` is the share of the losses' variance that the law explains. `draws` (R, 3) are the bootstrap's log a, alpha and b.
    """

    sizes: list[float]
    losses: list[float]
    law: Law | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    r2: float = math.nan
    problem: str = ""
    draws: np.ndarray = field(default_factory=lambda: np.empty((0, 3)), repr=False, compare=False)
    level: float = 0.95

    def predict(self, parameters: float) -> Interval:
        """The loss of a model of that size with the uncertainty of the law (not that of a single run around it).

        Beyond the fitted sizes it also takes for granted that the law goes on. Raises ValueError where there is no law, and for
        a size that is not above 0.
        """
        if self.law is None:
            raise ValueError(f"there is no law to carry on: {self.problem}")
        if not (math.isfinite(parameters) and parameters > 0):
            raise ValueError(f"expected a number of parameters above 0, got {parameters}")
        log_a, alpha, b = self.draws.T
        losses = np.exp(log_a - alpha * math.log(parameters)) + b
        low, high = np.quantile(losses, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(float(self.law(parameters)), float(low), float(high), len(self.sizes), self.level)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the bootstrap's draws; `problem` in place of the law where there is none."""
        points = {"sizes": self.sizes, "losses": self.losses}
        if self.law is None:
            return points | {"problem": self.problem}
        intervals = {name: interval.to_dict() for name, interval in self.intervals.items()}
        return points | {"law": asdict(self.law), "intervals": intervals, "r2": self.r2}

    def table(self, sizes: Sequence[float] = ()) -> str:
        """The law, then the loss at each fitted size and at `sizes`, measured (the mean of seeds) and by the law."""
        if self.law is None:
            return f"no law: {self.problem}"
        lines = [f"L(N) = a N^-alpha + b, R^2 {self.r2:.4f}, {len(self.sizes)} points"]
        lines += [f"{name:<6}{interval}" for name, interval in self.intervals.items()]
        lines.append(f"{'N':>10}{'measured':>12}   by the law")
        for size in sorted({*self.sizes, *map(float, sizes)}):
            seen = [loss for at, loss in zip(self.sizes, self.losses) if at == size]
            beyond = "" if min(self.sizes) <= size <= max(self.sizes) else "  (extrapolated)"
            lines.append(f"{size:>10.3g}{f'{np.mean(seen):.4f}' if seen else '':>12}   {self.predict(size)}{beyond}")
        return "\n".join(lines)


def fit_scaling(
    sizes: Sequence[float], losses: Sequence[float], *, resamples: int = 300, level: float = 0.95, seed: int = 0
) -> ScalingFit:
    """Fit the law to points, of which several may have one size (seeds), by least squares of log L from several starts.

    Intervals are by a parametric bootstrap: errors of log L are normal, with the variance that the residuals tell
    over n - 3 degrees of freedom, which is itself uncertain by as much: few points give wide intervals. Fewer than four sizes
    or losses that do not fall give no law, and `problem` says so. Losses on a straight line in logarithms have no limit: b is 0,
    and its interval begins there.

    Raises ValueError for sizes or losses that are not above 0, and different numbers of both.
    """
    n_P, loss_P = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    if n_P.ndim != 1 or n_P.shape != loss_P.shape:
        raise ValueError(f"expected a loss for each size, got {n_P.shape} sizes and {loss_P.shape} losses")
    if not (np.isfinite(n_P).all() and np.isfinite(loss_P).all() and (n_P > 0).all() and (loss_P > 0).all()):
        raise ValueError("sizes and losses must be finite and above 0")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level between 0 and 1, got {resamples} and {level}")
    points = ([float(n) for n in n_P], [float(loss) for loss in loss_P])
    different = len(set(points[0]))
    if different < LEAST_SIZES:
        return ScalingFit(
            *points,
            problem=f"three parameters need at least {LEAST_SIZES} different sizes to be doubted by, got {different}",
        )
    x_P, log_loss_P = np.log(n_P), np.log(loss_P)
    if (x_P - x_P.mean()) @ log_loss_P >= -1e-12:
        return ScalingFit(*points, problem="the losses do not fall with size, which is what the law describes")
    x_P = x_P - (centre := float(x_P.mean()))
    theta, squares = min((_solve(x_P, log_loss_P, start) for start in _starts(x_P, loss_P)), key=lambda found: found[1])
    fitted_P = log_loss_P - _residuals(theta, x_P, log_loss_P)
    generator = np.random.default_rng(seed)
    deviations = np.sqrt(squares / generator.chisquare(len(x_P) - 3, resamples))
    noise_RP = deviations[:, None] * generator.standard_normal((resamples, len(x_P)))
    least = LEAST * float(loss_P.min())
    begun = [theta]
    if math.exp(theta[2]) < least:  # b has no slope there: from theta alone no draw would leave it
        begun = _starts(x_P, loss_P)[1::3]
    draws = []
    for noise_P in noise_RP:
        drawn = (_solve(x_P, fitted_P + noise_P, start, 200) for start in begun)
        draws.append(min(drawn, key=lambda found: found[1])[0])
    named = np.array([_named(draw, centre, least) for draw in draws])
    log_a, alpha, b = _named(theta, centre, least)
    law = Law(math.exp(log_a), alpha, b)
    intervals = {}
    for column, (name, value) in enumerate(asdict(law).items()):
        low, high = np.quantile(named[:, column], [(1 - level) / 2, (1 + level) / 2])
        if name == "a":
            low, high = np.exp([low, high])
        intervals[name] = Interval(value, float(low), float(high), len(x_P), level)
    r2 = 1 - float(np.square(loss_P - law(n_P)).sum() / np.square(loss_P - loss_P.mean()).sum())
    return ScalingFit(*points, law=law, intervals=intervals, r2=r2, draws=named, level=level)


# theta: log a at the centre of log N, log alpha and log b, so that all of them stay above 0.


def _starts(x_P: np.ndarray, loss_P: np.ndarray) -> list[np.ndarray]:
    """For several alphas the a and b that fit best, which are not negative."""
    starts = []
    for alpha in (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5):
        (a, b), _ = nnls(np.stack([np.exp(-alpha * x_P), np.ones_like(x_P)], 1), loss_P)
        least = 1e-3 * loss_P.min()
        starts.append(np.log([max(a, least), alpha, max(b, least)]))
    return starts


def _solve(x_P: np.ndarray, log_loss_P: np.ndarray, start: np.ndarray, most: int = 2000) -> tuple[np.ndarray, float]:
    """theta and the sum of its squared residuals, after at most `most` evaluations."""
    found = least_squares(
        _residuals, start, _slopes, method="lm", args=(x_P, log_loss_P), xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=most
    )
    return found.x, 2 * float(found.cost)


def _parts(theta: np.ndarray, x_P: np.ndarray) -> tuple[np.ndarray, float]:
    """a N^-alpha and b; steps that overshoot are held where exp() can follow."""
    log_a, log_alpha, log_b = np.clip(theta, -40, 40)
    return np.exp(np.clip(log_a - math.exp(min(log_alpha, 5)) * x_P, -300, 300)), math.exp(log_b)


def _residuals(theta: np.ndarray, x_P: np.ndarray, log_loss_P: np.ndarray) -> np.ndarray:
    falling_P, rest = _parts(theta, x_P)
    return log_loss_P - np.log(falling_P + rest)


def _slopes(theta: np.ndarray, x_P: np.ndarray, log_loss_P: np.ndarray) -> np.ndarray:
    falling_P, rest = _parts(theta, x_P)
    share_P = falling_P / (falling_P + rest)
    return -np.stack([share_P, -share_P * math.exp(min(theta[1], 5)) * x_P, 1 - share_P], 1)


def _named(theta: np.ndarray, centre: float, least: float) -> tuple[float, float, float]:
    """log a, alpha and b, of which what is below `least` is 0."""
    alpha, b = math.exp(theta[1]), math.exp(theta[2])
    return float(theta[0] + alpha * centre), alpha, b if b > least else 0.0
