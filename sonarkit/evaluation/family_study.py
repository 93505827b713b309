"""What a study of the four families says: whether an order of them holds, metric by metric.

`study.py families` keeps all it found in `rows.json`; `evaluations_in` reads it back. `orderings` sets each family of a claimed
order beside the next one: do their intervals overlap, and does a paired test, story by story, tell them apart?
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sonarkit.evaluation.statistics import Comparison
from sonarkit.evaluation.story_evaluation import SURE, StoryEvaluation, comparisons

# The order that is put to the test, best first: that of arXiv 2508.05305, whose token-level LLM stands above all three.
ORDER = ("sonar-llm", "diffusion-lcm", "mse-lcm")
ORDERED = ("grammar", "consistency", "plot")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")  # within a sentence, where English has capitals for names alone


@dataclass(frozen=True)
class Ordering:
    """A metric of two families, of which `higher` should be the better; `comparison` is `higher` less `lower`.

    `apart` says whether their intervals have no point in common.
    """

    metric: str
    higher: str
    lower: str
    comparison: Comparison
    apart: bool

    @property
    def verdict(self) -> str:
        """ "holds" or "reversed" where the intervals are apart, the same "by the paired test" where that alone is sure, else
        "undecided".
        """
        sure = self.apart or self.comparison.p_value < SURE
        difference = self.comparison.difference.value
        if not sure or not difference:
            return "undecided"
        return ("holds" if difference > 0 else "reversed") + ("" if self.apart else " by the paired test")

    def __str__(self) -> str:
        overlap = "intervals apart" if self.apart else "intervals overlap"
        return (
            f"{self.metric}: {self.higher} less {self.lower} {self.comparison.difference.value:+.2f}, {overlap}, "
            f"p {self.comparison.p_value:.3f}: {self.verdict}"
        )


def evaluations_in(file: str | Path) -> tuple[dict[str, Any], list[StoryEvaluation]]:
    """The settings and the evaluations in a study's `rows.json`. ValueError for another file."""
    try:
        told = json.loads(Path(file).read_text(encoding="utf-8"))
        return told["study"], [StoryEvaluation.from_dict(one) for one in told["report"]["models"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected the rows.json of study.py families ({error!r})") from error


def orderings(
    evaluations: Sequence[StoryEvaluation], order: Sequence[str] = ORDER, metrics: Sequence[str] = ORDERED
) -> list[Ordering]:
    """Each family of `order` against the next one, in each of `metrics`, of which more is better.

    Raises ValueError for a family that was not evaluated, and where they went on from different prompts.
    """
    by_name = {one.model: one for one in evaluations}
    if missing := set(order) - set(by_name):
        raise ValueError(f"no evaluation of {', '.join(sorted(missing))}; there are {', '.join(by_name)}")
    found = []
    for higher, lower in pairwise(order):
        compared = comparisons(by_name[lower], by_name[higher])
        for metric in metrics:
            overlap = by_name[higher].scores[metric].overlaps(by_name[lower].scores[metric])
            found.append(Ordering(metric, higher, lower, compared[metric], not overlap))
    return sorted(found, key=lambda one: metrics.index(one.metric))


def verdicts(found: Sequence[Ordering]) -> str:
    """A line for each ordering, and one that counts them."""
    counted = Counter(one.verdict for one in found).most_common()
    return "\n".join([*map(str, found), f"of {len(found)}: " + ", ".join(f"{count} {verdict}" for verdict, count in counted)])


def leaders(evaluations: Sequence[StoryEvaluation], metrics: Sequence[str] = ORDERED) -> dict[str, str]:
    """By metric the family with the highest score, whether or not the others are surely below it."""
    return {metric: max(evaluations, key=lambda one: one.scores[metric].value).model for metric in metrics}


def claims(evaluation: StoryEvaluation) -> dict[str, float]:
    """How much there is that consistency could find fault with.

    Names that a told sentence brings in on average (capitals within a sentence that the prompt does not have), the share of
    sentences that the judge reads, and contradictions by sentence read.
    """
    brought, counts = list[float](), evaluation.counts
    for story in evaluation.stories:
        known = {word.strip('.,!?"') for word in story["prompt"].split()}
        names = {word for sentence in story["told"] for word in NAME.findall(sentence)} - known
        brought.append(len(names) / max(1, len(story["told"])))
    read = counts["exact"] + counts["near"]
    return {
        "names brought in, a sentence": sum(brought) / len(brought),
        "sentences read": read / counts["sentences"],
        "contradictions, a sentence read": counts["contradictions"] / read,
    }


def side_by_side(evaluations: Sequence[StoryEvaluation], which: Sequence[int]) -> str:
    """Markdown: a row for each of these prompts, beside it how each family goes on. IndexError for a story that there is not."""
    lines = ["| prompt | " + " | ".join(one.model for one in evaluations) + " |", "|---" * (1 + len(evaluations)) + "|"]
    for i in which:
        told = [" ".join(one.stories[i]["told"]) for one in evaluations]
        lines.append("| " + " | ".join(text.replace("|", "/") for text in (evaluations[0].stories[i]["prompt"], *told)) + " |")
    return "\n".join(lines)
