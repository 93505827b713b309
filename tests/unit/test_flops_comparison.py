"""SONAR-LLM against a token-level LLM in FLOPs: the paper's comparison, and what it leaves out."""

from __future__ import annotations

import pytest

from sonarkit.codec.config import CodecConfig
from sonarkit.evaluation import flops_comparison
from sonarkit.evaluation.flops_comparison import ASSUMPTIONS, LENGTHS, PUBLISHED, Assumption, compare, crossovers
from sonarkit.models import flops
from sonarkit.recipes import SONAR_LLM_SIZES

BACKBONE = SONAR_LLM_SIZES["600M"]
BY_NAME = {assumption.name: assumption for assumption in ASSUMPTIONS}


def test_the_published_crossover_needs_a_greedy_decoder_and_no_encoder() -> None:
    found = crossovers(BACKBONE)
    near = {name for name, tokens in found.items() if PUBLISHED / 2 < tokens < 2 * PUBLISHED}
    assert near == {"greedy decoder", "greedy decoder, whole squares"}
    assert found["backbone alone"] == 60
    assert list(found.values()) == sorted(found.values())


def test_the_table_of_the_docstring_is_what_is_found() -> None:
    told = [line.split("|")[2] for line in (flops_comparison.__doc__ or "").splitlines() if line.startswith(("| a ", "| its "))]
    assert [int(cell.split(":")[0].replace(" ", "")) for cell in told] == list(crossovers(BACKBONE).values())


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "backbone alone"])
def test_rows_change_sides_at_the_crossover(name: str) -> None:
    crossing = crossovers(BACKBONE, [BY_NAME[name]])[name]
    before, at = compare(BACKBONE, BY_NAME[name], [crossing - 60, crossing])
    assert before.ratio > 1 >= at.ratio
    ratios = [row.ratio for row in compare(BACKBONE, BY_NAME[name])]
    assert ratios[0] > 1 > ratios[-1] and LENGTHS[-1] == 2**20


def test_parts_add_up_to_a_story() -> None:
    row = compare(BACKBONE, BY_NAME["beam of 5, encoder"], [6000])[0]
    assert row.sonar_llm == flops.story_flops(BACKBONE, CodecConfig(("eng_Latn",)), 100, 60)
    assert min(row.backbone, row.search, row.encoder) > 0
    greedy = compare(BACKBONE, BY_NAME["greedy decoder"], [6000])[0]
    assert (greedy.backbone, greedy.encoder) == (row.backbone, 0) and greedy.search < row.search / 4


def test_what_is_not_decoded_has_the_backbone_only_and_its_pairs_are_60_squared_fewer() -> None:
    row = compare(BACKBONE, BY_NAME["backbone alone"], [2**40])[0]
    assert row.search == row.encoder == 0
    assert 1 / row.ratio == pytest.approx(60**2, rel=1e-3)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 piece a sentence"):
        compare(BACKBONE, ASSUMPTIONS[0], [0])
    with pytest.raises(ValueError, match="0 = not decoded"):
        Assumption("none", -1, False, False)
