"""Hard negatives on sentences made by hand: what must come out, and what must be left alone."""

from __future__ import annotations

import pytest

from sonarkit.evaluation.negatives import KINDS, MONTHS, EntityPool, entity_pool, hard_negatives

CORPUS = [
    "Yesterday Tom met Mary in Boston.",
    "I saw Anna near Lyon, and Tom laughed.",
    "We met Peter Smith there.",
    "She went to Lyon by train.",
    "“Hello,” said Dr. Weber. “Bring the bread.”",
    "Do you speak German?",
]
POOL = entity_pool(CORPUS)


def altered(sentence: str, kind: str, most: int = 100, seed: int = 0) -> set[str]:
    return {text for one, text in hard_negatives(sentence, POOL, seed, most) if one == kind}


def test_the_pool_knows_names_from_places_and_from_first_words() -> None:
    assert POOL.names["name"] == ["Anna", "Mary", "Peter Smith", "Tom", "Weber"]
    assert POOL.names["place"] == ["Boston", "Lyon"]  # Lyon stands once after "near", once after "to"
    assert POOL.names["month"] == MONTHS and "German" in POOL.names["people"]
    for word in ("Yesterday", "Bring", "Hello", "I", "Dr"):
        assert all(word not in names for names in POOL.names.values())


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("She was happy.", {"She was sad.", "She was not happy."}),
        ("It is not possible.", {"It is possible.", "It is not impossible."}),
        ("Tom can't swim.", {"Tom can swim."}),
        ("Tom cannot swim.", {"Tom can swim."}),
        ("He may come.", {"He will come.", "He may not come."}),
        ("They never laughed.", {"They always laughed.", "They sometimes laughed.", "They never cried."}),
        ("Mary ran home.", {"Mary never ran home."}),
        ("Everyone slept.", {"Nobody slept."}),
        ("I like tea.", {"I dislike tea.", "I never like tea."}),
        ("A tall tree grew there.", {"A short tree grew there."}),
        ("He found an open box.", {"He found a closed box.", "He lost an open box."}),
        ("He has a quiet dog.", {"He has a loud dog."}),
        ("He is a kind man.", {"He is a cruel man.", "He is not a kind man."}),
        ("We stayed because it rained.", {"We stayed although it rained.", "We never stayed because it rained.",
                                           "We stayed because it never rained."}),
        ("Tom works as well as you.", {"Tom never works as well as you."}),
        ("The garden of roses.", set()),
    ],
)  # fmt: skip
def test_causality(sentence: str, expected: set[str]) -> None:
    assert altered(sentence, "causality") == expected


@pytest.mark.parametrize("question", ["Do you work here?", "Is he at home?", "Can Tom swim?"])
def test_questions_get_no_negation_where_it_would_not_stand(question: str) -> None:
    assert not altered(question, "causality")


def test_entities_are_swapped_within_their_kind() -> None:
    assert altered("Tom lives in Boston.", "entity") == {
        "Anna lives in Boston.",
        "Mary lives in Boston.",
        "Peter Smith lives in Boston.",
        "Weber lives in Boston.",
        "Tom lives in Lyon.",
    }
    assert "Tom's dog barked." not in altered("Tom's dog barked.", "entity") and "Anna's dog barked." in altered(
        "Tom's dog barked.", "entity"
    )
    assert altered("We met in March.", "entity") == {f"We met in {month}." for month in MONTHS if month != "March"}
    assert all(text.endswith("o'clock on Friday.") is False for text in altered("Come at two o'clock on Friday.", "entity"))
    assert not altered("Bread is good.", "entity") and not altered("I know that I am right.", "entity")
    assert "Anna met Anna." not in altered("Tom met Anna.", "entity")
    assert "He is an English man." in altered("He is a German man.", "entity")  # the article fits


def test_numbers_keep_their_form() -> None:
    words = ["three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    assert altered("She has two cats.", "number") == {f"She has {n} cats." for n in words}
    assert all(text.split()[-1][:2] == "19" and len(text.split()[-1]) == 5 for text in altered("He was born in 1987.", "number"))
    for text in altered("It costs 1,250.50 euros.", "number"):
        number = text.split()[2]
        assert [c if not c.isdigit() else "0" for c in number] == list("0,000.00") and number[0] != "0" and number != "1,250.50"
    for text in altered("On the 3rd of May.", "number"):
        number = text.split()[2]
        assert number in {"1st", "2nd", "4th", "5th", "6th", "7th", "8th", "9th"}
    assert all(1 <= int(text.split()[-1].split(":")[0]) <= 12 for text in altered("Come at 10:30.", "number"))
    assert altered("Two men came.", "number") >= {"Three men came.", "Twelve men came."}
    assert not altered("Wait a second.", "number") and not altered("No one came.", "number")


def test_they_are_few_different_and_the_same_each_time() -> None:
    sentence = "Tom was happy because Mary gave him 12 old books in Boston in May."
    found = hard_negatives(sentence, POOL, seed=3)
    assert found == hard_negatives(sentence, POOL, seed=3) and found != hard_negatives(sentence, POOL, seed=4)
    texts = [text for _, text in found]
    assert len(set(texts)) == len(texts) and sentence not in texts
    assert [kind for kind, _ in found] == [kind for kind in KINDS for _ in range(5)]
    assert len(hard_negatives(sentence, POOL, most=2)) == 6
    swapped = [text for kind, text in found if kind == "entity"]
    assert any(not text.startswith("Tom") for text in swapped) and any(
        "Boston" not in text for text in swapped
    )  # all places in turn
    assert (
        not hard_negatives("", POOL) and not hard_negatives("...", POOL) and not hard_negatives("Tom met Mary.", EntityPool({}))
    )
