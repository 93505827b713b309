"""What SONAR's objectives do: the paper's six rows (arXiv 2308.11466, table 1) beside those of a small re-training."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from sonarkit.evaluation.statistics import Interval

METRICS = ("X-eng", "eng-X", "auto-enc", "xsim", "xsim++")
# FLORES-200 devtest, mean over 200 languages: spBLEU, spBLEU, spBLEU, error in percent, error in percent.
PAPER = {
    "MT": (33.2, 21.1, 28.6, 1.3, 19.6),
    "MT + AE": (17.6, 18.6, 94.6, 15.9, 65.7),
    "MT + 0.1 DAE": (31.6, 20.9, 41.6, 2.6, 26.2),
    "MT + 0.1 MSE": (31.7, 20.2, 27.2, 1.3, 14.3),
    "MT + 0.1 MSE + 0.01 DAE": (32.9, 20.7, 32.4, 1.4, 15.2),
    "+ tuned decoder": (32.7, 21.6, 41.7, 1.4, 15.2),
}
KEYS = {"X-eng": "bleu_to_pivot", "eng-X": "bleu_from_pivot", "auto-enc": "bleu", "xsim": "xsim", "xsim++": "xsim_plus_plus"}
LEAST = 1.0  # smaller differences of the paper are not taken for a finding: it has one run for each row
Rows = Mapping[str, Sequence[Sequence[float]]]  # by row: the metrics of each seed
Paper = Mapping[str, Sequence[float]]  # by row: of the first metrics, or all


@dataclass(frozen=True)
class Ordering:
    """What the paper says of two rows, and what these runs say: "holds", "reversed", or "undecided" where seeds overlap."""

    metric: str
    higher: str
    lower: str
    paper: float  # the difference
    ours: float  # of the means
    verdict: str


def rows_in(file: str | Path) -> tuple[dict[str, Any], Rows]:
    """The settings and the rows in a study's `rows.json`. ValueError for another file."""
    try:
        told = json.loads(Path(file).read_text(encoding="utf-8"))
        study, rows = told["study"], told["rows"]
        if not all(len(seed) == len(METRICS) for seeds in rows.values() for seed in seeds):
            raise ValueError(f"a seed has not the numbers {', '.join(METRICS)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected the rows.json of study.py objectives ({error!r})") from error
    return study, rows


def beside_the_paper(rows: Rows, metric: str) -> dict[str, dict[str, Interval]]:
    """For `figures.interval_figure`: a metric of each row that the paper has, the paper's, and ours from the least seed to the
    greatest. ValueError for a metric that the study lacks."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    place, both = METRICS.index(metric), [name for name in PAPER if name in rows]
    seeds = {name: [seed[place] for seed in rows[name]] for name in both}
    return {
        "the paper": {name: Interval(value := PAPER[name][place], value, value, 1) for name in both},
        "here": {name: Interval(statistics.mean(v), min(v), max(v), len(v), 1.0) for name, v in seeds.items()},
    }


def orderings(rows: Rows, paper: Paper = PAPER, metrics: Sequence[str] = METRICS) -> list[Ordering]:
    """Each pair of rows that the paper sets apart by at least LEAST in a metric. Rows that were not run are left out."""
    found = []
    for place, metric in enumerate(metrics):
        for one, other in combinations([name for name in paper if name in rows and len(paper[name]) > place], 2):
            high, low = (one, other) if paper[one][place] > paper[other][place] else (other, one)
            difference = paper[high][place] - paper[low][place]
            if difference < LEAST:
                continue
            highs, lows = [[seed[place] for seed in rows[name]] for name in (high, low)]
            verdict = "holds" if min(highs) > max(lows) else "reversed" if max(highs) < min(lows) else "undecided"
            found.append(Ordering(metric, high, low, difference, statistics.mean(highs) - statistics.mean(lows), verdict))
    return found


def verdicts(found: Sequence[Ordering]) -> str:
    """How many of the paper's orderings hold, by metric, and which do not."""
    lines = []
    for metric in dict.fromkeys(one.metric for one in found):
        of_metric = [one for one in found if one.metric == metric]
        holds = sum(one.verdict == "holds" for one in of_metric)
        other = "; ".join(
            f"{one.verdict}: {one.higher} above {one.lower} (paper {one.paper:+.1f}, here {one.ours:+.1f})"
            for one in of_metric
            if one.verdict != "holds"
        )
        lines.append(f"{metric}: {holds} of {len(of_metric)} hold" + (f"; {other}" if other else ""))
    return "\n".join(lines)


def table(rows: Rows, paper: Paper = PAPER, metrics: Sequence[str] = METRICS, of: str = "objective") -> str:
    """A Markdown table: each row's mean and half the span of its seeds, the paper's number in brackets."""
    lines = [f"| {of} | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, seeds in rows.items():
        cells = []
        for place in range(len(metrics)):
            values = [seed[place] for seed in seeds]
            half = (max(values) - min(values)) / 2
            told = f"{statistics.mean(values):.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")
            cells.append(told + (f" ({paper[name][place]:.1f})" if len(paper.get(name, ())) > place else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
