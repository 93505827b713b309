"""The paper's table beside ours: which of its orderings hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sonarkit.evaluation.objective_study import METRICS, PAPER, beside_the_paper, orderings, rows_in, table, verdicts


def of_paper(spread: float = 0.0) -> dict[str, list[list[float]]]:
    """Seeds that found what the paper did, up to so much."""
    return {name: [[value + shift for value in row] for shift in (-spread, 0.0, spread)] for name, row in PAPER.items()}


def test_the_papers_own_numbers_keep_its_orderings() -> None:
    found = orderings(of_paper())
    assert {one.verdict for one in found} == {"holds"}
    assert {one.metric for one in found} == set(METRICS)
    assert all(one.ours == pytest.approx(one.paper) and one.paper >= 1.0 for one in found)
    # MT + AE says a sentence back best and loses the space: it is the highest of five in three columns.
    assert sum(one.higher == "MT + AE" and one.metric in ("auto-enc", "xsim", "xsim++") for one in found) == 15


def test_a_difference_within_the_seeds_is_undecided_and_one_the_other_way_reversed() -> None:
    rows = of_paper(spread=1.0)
    by_pair = {(one.metric, one.higher, one.lower): one.verdict for one in orderings(rows)}
    assert by_pair["auto-enc", "+ tuned decoder", "MT"] == "holds"
    assert by_pair["X-eng", "MT", "MT + 0.1 MSE"] == "undecided"  # 1.5 apart, each within 1
    rows["MT + AE"], rows["MT"] = rows["MT"], rows["MT + AE"]
    by_pair = {(one.metric, one.higher, one.lower): one.verdict for one in orderings(rows)}
    assert by_pair["xsim++", "MT + AE", "MT"] == "reversed"
    told = verdicts(orderings(rows))
    assert "reversed: MT + AE above MT (paper +46.1, here -46.1)" in told
    assert len(told.splitlines()) == len(METRICS)


def test_rows_that_were_not_run_are_left_out() -> None:
    two = {name: of_paper()[name] for name in ("MT", "MT + AE")}
    assert [one for one in orderings(two) if {one.higher, one.lower} != {"MT", "MT + AE"}] == []
    assert orderings({"MT": [[1.0] * 5]}) == []


def test_the_table_shows_means_spread_and_the_paper() -> None:
    rows = {"MT": [[30.0, 20.0, 10.0, 1.0, 20.0], [34.0, 20.0, 10.0, 1.0, 20.0]], "max pooling": [[1.0, 2.0, 3.0, 4.0, 5.0]]}
    lines = table(rows).splitlines()
    assert lines[2] == "| MT | 32.0 ± 2.0 (33.2) | 20.0 ± 0.0 (21.1) | 10.0 ± 0.0 (28.6) | 1.0 ± 0.0 (1.3) | 20.0 ± 0.0 (19.6) |"
    assert lines[3] == "| max pooling | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 |"


def test_a_metric_stands_beside_the_papers_with_the_span_of_its_seeds() -> None:
    rows = {"MT": [[30.0, 20.0, 10.0, 1.0, 20.0], [34.0, 20.0, 13.0, 1.0, 20.0]], "max pooling": [[1.0, 2.0, 3.0, 4.0, 5.0]]}
    beside = beside_the_paper(rows, "auto-enc")
    assert {name: list(of) for name, of in beside.items()} == {"the paper": ["MT"], "here": ["MT"]}
    here, paper = beside["here"]["MT"], beside["the paper"]["MT"]
    assert (here.value, here.low, here.high, here.count) == (11.5, 10.0, 13.0, 2)
    assert paper.value == paper.low == paper.high == PAPER["MT"][2]
    with pytest.raises(ValueError, match="unknown metric 'loss'; there are X-eng"):
        beside_the_paper(rows, "loss")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"study": {}}', '{"study": {}, "rows": {"MT": [[1.0]]}}', '{"study": {}, "rows": 1}']
)
def test_another_file_is_no_study(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"rows.json: expected the rows.json of study.py objectives"):
        rows_in(file)
    file.write_text(json.dumps({"study": {"steps": 3}, "rows": of_paper()}))
    assert rows_in(file) == ({"steps": 3}, of_paper())
