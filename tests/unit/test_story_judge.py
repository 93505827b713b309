"""The judge on damage done on purpose: each kind lowers its score and leaves the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest

from sonarkit.core.paths import data_folder
from sonarkit.evaluation.story_judge import (
    SCORES,
    Report,
    diversity,
    diversity_rows,
    elements_of,
    judge_stories,
    judge_story,
    novelty,
)
from sonarkit.text.corpora import read_jsonl
from sonarkit.text.storyworld import CODES, Story, stories

LANGS = tuple(CODES.values())
STORIES = [Story(**row) for _, row in read_jsonl(data_folder() / "storyworld" / "test.jsonl")][:100]
TOLERANCE = 0.1  # of the scores that a damage should leave, with two exceptions below
OTHERS = list(stories(100, seed=9))


def intact(told: list[str], names: list[str], rng: Random) -> list[str]:
    return told


def shuffled(told: list[str], names: list[str], rng: Random) -> list[str]:
    return rng.sample(told, len(told))


def swapped(told: list[str], names: list[str], rng: Random) -> list[str]:
    """The names of the cast move round by one, in a third of the sentences; who is alone gets a new name."""
    names = names if len(names) > 1 else [*names, "Zoe" if "Zoe" not in names else "Tom"]
    other, found = dict(zip(names, names[1:] + names[:1])), re.compile(rf"\b({'|'.join(names)})\b")
    hit = rng.sample(range(len(told)), len(told) // 3)
    return [found.sub(lambda name: other[name[0]], text) if i in hit else text for i, text in enumerate(told)]


def dropped(told: list[str], names: list[str], rng: Random) -> list[str]:
    gone = rng.sample(range(len(told)), 3)
    return [text for i, text in enumerate(told) if i not in gone]


def repeated(told: list[str], names: list[str], rng: Random) -> list[str]:
    told = list(told)
    for i in sorted(rng.sample(range(len(told)), 3), reverse=True):
        told.insert(rng.randint(i + 1, len(told)), told[i])
    return told


def salad(told: list[str], names: list[str], rng: Random) -> list[str]:
    hit = rng.sample(range(len(told)), len(told) // 2)
    return [" ".join(rng.sample(text.split(), len(text.split()))) if i in hit else text for i, text in enumerate(told)]


def judged(damage: Callable[[list[str], list[str], Random], list[str]]) -> Report:
    """25 test stories in each of the four languages."""
    langs = [LANGS[i % 4] for i in range(len(STORIES))]
    told = [
        damage(story.sentences[lang], [role["name"] for role in story.roles.values() if "name" in role], Random(i))
        for i, (story, lang) in enumerate(zip(STORIES, langs))
    ]
    return judge_stories(told, langs, training=[elements_of(story) for story in OTHERS])


@pytest.fixture(scope="module")
def whole() -> Report:
    return judged(intact)


def test_intact_stories_have_no_fault(whole: Report) -> None:
    assert whole.counts["exact"] == whole.counts["sentences"] > 1000
    for name in ("grammar", "consistency", "plot", "repetition"):
        assert whole.per_story[name].min() == 10
    right = [story.plot == one.plot_name for story, one in zip(STORIES, whole.scores)]
    assert np.mean(right) > 0.9
    assert all([event["event"] for event in s.events] == list(one.events) for s, one in zip(STORIES, whole.scores))


@pytest.mark.parametrize(
    "damage, hurts, by, leaks",
    [
        (shuffled, "plot", 3, {}),
        (swapped, "consistency", 1.5, {}),
        (dropped, "plot", 1.5, {"creativity": 0.4}),  # what is shorter shares less
        (repeated, "repetition", 1.5, {}),
        (salad, "grammar", 4, {"consistency": 0.5}),  # who did it to whom is lost
    ],
)
def test_damage_lowers_its_score_and_leaves_the_others(
    whole: Report, damage: Callable, hurts: str, by: float, leaks: dict[str, float]
) -> None:
    means = judged(damage).means
    assert means[hurts] < whole.means[hurts] - by
    for name in set(SCORES) - {hurts}:
        assert abs(means[name] - whole.means[name]) <= leaks.get(name, TOLERANCE), name


STORY = [
    "Once upon a time there was a shy fox named Mia.",
    "One day, Mia packed a small bag and walked to the forest.",
    "In the forest, Mia met a brave owl named Tom.",
    "From that day on, Mia and Tom were the best of friends.",
    "And so Mia and Tom stayed friends forever.",
]


def with_sentence(i: int, sentence: str) -> list[str]:
    return [*STORY[:i], sentence, *STORY[i + 1 :]]


def after(i: int, sentence: str) -> list[str]:
    return [*STORY[:i], sentence, *STORY[i:]]


def test_a_sound_story_by_hand() -> None:
    one = judge_story(STORY, "eng_Latn")
    assert (one.grammar, one.consistency, one.repetition) == (10, 10, 10) and not one.contradictions and not one.unmet
    assert one.events == ("intro", "set_out", "meet", "become_friends", "end_together")
    assert {"Mia", "Tom", "fox", "owl", "forest", "event meet"} <= one.elements


@pytest.mark.parametrize(
    "told, fault",
    [
        (with_sentence(3, "From that day on, Mia and Max were the best of friends."), "Max"),
        (after(3, "The shy bear sat down and cried bitterly."), "bear"),
        (after(3, "The noisy fox sat down and cried bitterly."), "Mia is noisy, elsewhere shy"),
        (after(3, "Mia found a quiet spot in the forest and closed his eyes for a moment."), "Mia is f, here m"),
        (after(3, "Mia rested on the beach for a little while."), "beach"),
    ],
)  # fmt: skip
def test_contradictions_are_named(told: list[str], fault: str) -> None:
    one = judge_story(told, "eng_Latn")
    assert one.grammar == 10 and one.consistency < 10 and any(fault in said for said in one.contradictions), one


def test_a_friendship_before_the_meeting_is_a_matter_of_plot() -> None:
    before = judge_story(STORY, "eng_Latn")
    one = judge_story([*STORY[:2], STORY[3], STORY[2], STORY[4]], "eng_Latn")
    assert one.plot < before.plot and one.consistency == 10 and any("become_friends needs" in said for said in one.unmet)
    assert judge_story(STORY[:-1], "eng_Latn").unresolved[-1] == "a closing sentence"


def test_the_prompt_is_read_and_not_scored() -> None:
    free = ["Mia is a fox who lives with Tom, her best friend in the world.", "They argue about everything."]
    told = [*free, *STORY[3:]]
    one, all_of_it = judge_story(told, "eng_Latn", prompt_sentences=2), judge_story(told, "eng_Latn")
    assert one.sentences == 2 and one.grammar == 10 and not one.unmet and one.unread == 0
    assert all_of_it.sentences == 4 and all_of_it.grammar == 5 and all_of_it.unread == 2
    assert judge_story(STORY[3:], "eng_Latn").unmet  # nobody has met
    again = judge_story([*STORY[:2], STORY[1], *STORY[2:]], "eng_Latn", prompt_sentences=2)
    assert again.repeated_sentences == 1 and again.repetition == 7.5


def test_stories_of_which_nothing_is_told_or_read() -> None:
    only_prompt = judge_story(STORY, "eng_Latn", prompt_sentences=5)
    assert only_prompt.sentences == 0
    assert (only_prompt.grammar, only_prompt.consistency, only_prompt.plot, only_prompt.repetition) == (0, 0, 0, 0)
    foreign = judge_story(["The committee postponed its report.", "Prices rose."], "eng_Latn")
    assert (foreign.grammar, foreign.consistency, foreign.plot, foreign.repetition) == (0, 0, 0, 10) and foreign.unread == 2
    assert judge_stories([STORY, ["Prices rose."]], "eng_Latn").means["creativity"] == 5  # the first has nothing of the other
    assert judge_stories([["Prices rose."]] * 2, "eng_Latn").means["creativity"] == 0


def test_creativity_knows_copies() -> None:
    training = [elements_of(story) for story in OTHERS]
    told = [story.sentences["spa_Latn"] for story in OTHERS[:20]]
    copies = judge_stories(told, "spa_Latn", training=training)
    new = judge_stories([story.sentences["spa_Latn"] for story in STORIES[:20]], "spa_Latn", training=training)
    same = judge_stories([STORIES[0].sentences["spa_Latn"]] * 20, "spa_Latn", training=training)
    assert copies.counts["novelty"] == 0 < new.counts["novelty"]
    assert same.counts["diversity"] == 0 < new.counts["diversity"] and same.counts["distinct_plots"] == 1
    assert new.means["creativity"] > copies.means["creativity"] > same.means["creativity"]


def test_the_interval_of_diversity_is_as_wide_as_it_scatters() -> None:
    """Over many sets of stories; the diversities themselves, taken for independent, say half of it."""
    rng = np.random.default_rng(0)
    means, widths, naive = [], [], []
    for _ in range(200):
        told = [frozenset(rng.choice(30, 6, p=np.arange(30) / 435).astype(str)) for _ in range(40)]
        weight_N = rng.uniform(0.9, 1, len(told))
        rows_N = diversity_rows(told, weight_N)
        own_N = weight_N * diversity(told)
        assert rows_N.mean() == pytest.approx(own_N.mean())
        means.append(rows_N.mean())
        widths.append(rows_N.std(ddof=1) / len(told) ** 0.5)
        naive.append(own_N.std(ddof=1) / len(told) ** 0.5)
    assert np.mean(widths) == pytest.approx(np.std(means), rel=0.12)
    assert np.mean(naive) < 0.8 * np.std(means)


def test_novelty_and_diversity_by_hand() -> None:
    a, b, none = frozenset("abcd"), frozenset("abxy"), frozenset[str]()
    assert novelty([a, b, none], [frozenset("abc"), frozenset("q")]).tolist() == [0.25, 0.5, 0]
    np.testing.assert_allclose(diversity([a, b, a]), [(4 / 6) / 2, 4 / 6, (4 / 6) / 2])
    assert diversity([a]).tolist() == [0]


@pytest.mark.parametrize(
    "told, lang, options, message",
    [
        ([], "eng_Latn", {}, "at least one sentence"),
        ("A fox ran home.", "eng_Latn", {}, "split a text"),
        (STORY, "ita_Latn", {}, "'ita_Latn'"),
        (STORY, "eng_Latn", {"prompt_sentences": 6}, "between 0 and the story's 5 sentences, got 6"),
    ],
)
def test_bad_input(told: Sequence[str], lang: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge_story(told, lang, **options)


def test_bad_sets() -> None:
    for told in ([], STORY, "A fox."):
        with pytest.raises(ValueError, match="a list of stories"):
            judge_stories(told, "eng_Latn")
    with pytest.raises(ValueError, match="2 stories need as many languages"):
        judge_stories([STORY, STORY], ["eng_Latn"])
