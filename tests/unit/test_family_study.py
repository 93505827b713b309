"""Orders of families, on evaluations whose differences are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonarkit.evaluation.family_study import claims, evaluations_in, leaders, orderings, side_by_side, verdicts
from sonarkit.evaluation.statistics import Interval
from sonarkit.evaluation.story_evaluation import COMPARED, QUOTIENTS, StoryEvaluation, report_of, score_of

COUNT = 40


def found(name: str, **shifts: float) -> StoryEvaluation:
    """Stories whose scores spread from 2 to 6, by metric moved by so much; bits per byte are quotients."""
    rows = {}
    for metric in COMPARED:
        base = 2 + np.arange(COUNT) % 5 + shifts.get(metric, 0.0) + 0.1 * (np.arange(COUNT) % 3)
        rows[metric] = np.stack([base, np.full(COUNT, 10.0)], 1) if metric in QUOTIENTS else base
    scores = {metric: score_of(metric, values) for metric, values in rows.items()}
    stories = [{"prompt": f"A fox {i}.", "told": ["It ran."], "stopped_by": "end"} for i in range(COUNT)]
    counts = {"parameters": 1.0, "embedding_parameters": 0.0}
    return StoryEvaluation(name, name, scores, rows, {}, counts, {"seed": 0}, stories)


@pytest.fixture
def families() -> list[StoryEvaluation]:
    """Grammar as claimed, consistency by a little, plot the other way round for the first two and level for the last two."""
    return [
        found("token-llm", grammar=9),
        found("sonar-llm", grammar=5, consistency=0.2, plot=-3),
        found("diffusion-lcm", grammar=2.5, consistency=0.1),
        found("mse-lcm"),
    ]


def test_what_holds_what_only_a_paired_test_tells_and_what_is_reversed(families: list[StoryEvaluation]) -> None:
    by = {(one.metric, one.higher): one for one in orderings(families)}
    assert list(by)[:2] == [("grammar", "sonar-llm"), ("grammar", "diffusion-lcm")] and len(by) == 6
    assert by["grammar", "sonar-llm"].verdict == by["grammar", "diffusion-lcm"].verdict == "holds"
    assert by["grammar", "sonar-llm"].comparison.difference.value == pytest.approx(2.5)
    assert by["consistency", "sonar-llm"].verdict == "holds by the paired test" and not by["consistency", "sonar-llm"].apart
    assert by["plot", "sonar-llm"].verdict == "reversed" and by["plot", "diffusion-lcm"].verdict == "undecided"
    lines = verdicts(list(by.values())).splitlines()
    assert lines[0].startswith("grammar: sonar-llm less diffusion-lcm +2.50, intervals apart, p 0.0")
    assert lines[0].endswith(": holds") and len(lines) == 7
    assert lines[-1] == "of 6: 2 holds, 2 holds by the paired test, 1 reversed, 1 undecided"


def test_reversed_by_a_paired_test_alone(families: list[StoryEvaluation]) -> None:
    (one,) = orderings(families, ("mse-lcm", "diffusion-lcm"), ["consistency"])
    assert one.verdict == "reversed by the paired test"


def test_who_claims_much() -> None:
    """The prompt's names bring nothing in, nor does a sentence's first word."""
    told = ["Mia ran to Tom, and Tom ran to Mia.", "Then Ida, who knew Tom, came.", "It rained."]
    stories = [
        {"prompt": 'A fox named "Mia" ran.', "told": told, "stopped_by": "end"},
        {"prompt": "A fox.", "told": [], "stopped_by": "end"},
    ]
    counts = {"exact": 3, "near": 1, "sentences": 8, "contradictions": 2}
    assert claims(replace(found("one"), stories=stories, counts=counts)) == {
        "names brought in, a sentence": pytest.approx((2 / 3 + 0) / 2),
        "sentences read": 0.5,
        "contradictions, a sentence read": 0.5,
    }


def test_who_leads(families: list[StoryEvaluation]) -> None:
    assert leaders(families, ["grammar", "consistency"]) == {"grammar": "token-llm", "consistency": "sonar-llm"}


def test_stories_stand_side_by_side(families: list[StoryEvaluation]) -> None:
    families[0].stories[3] = {"prompt": "A fox 3.", "told": ["It ran.", "It | fell."], "stopped_by": "end"}
    lines = side_by_side(families, (0, 3)).splitlines()
    assert lines[0] == "| prompt | token-llm | sonar-llm | diffusion-lcm | mse-lcm |" and len(lines) == 4
    assert lines[3] == "| A fox 3. | It ran. It / fell. | It ran. | It ran. | It ran. |"


def test_a_study_is_read_back(families: list[StoryEvaluation], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"study": {"steps": 3}, "report": report_of(families)}), encoding="utf-8")
    settings, read = evaluations_in(file)
    assert settings == {"steps": 3} and [one.model for one in read] == [one.model for one in families]
    assert orderings(read) == orderings(families)
    file.write_text('{"rows": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.json: expected the rows\.json of study\.py families"):
        evaluations_in(file)


def test_what_cannot_be_ordered_is_refused(families: list[StoryEvaluation]) -> None:
    with pytest.raises(ValueError, match="no evaluation of mse-lcm; there are token-llm, sonar-llm, diffusion-lcm"):
        orderings(families[:3])
    with pytest.raises(ValueError, match="different prompts"):
        orderings([*families[:3], replace(families[3], stories=families[3].stories[1:])])
    lone = replace(families[3], scores={**families[3].scores, "plot": Interval(1, float("nan"), float("nan"), 1)})
    with pytest.raises(ValueError, match="two intervals with bounds"):
        orderings([*families[:3], lone])
