"""The paper's table beside ours: which of its orderings hold."""

from __future__ import annotations

import pytest

from sonarkit.evaluation.objective_study import METRICS, PAPER, orderings, table, verdicts


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
