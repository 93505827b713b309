"""StoryWorld: children's stories in English, French, German and Spanish, told from a plan.

A plot is cast and run against a world of facts (`planner`), then told sentence by sentence in four aligned
languages (`realize`); the words live in `data/storyworld/` (`grammar`).

    from sonarkit.text.storyworld import stories
    for story in stories(3, seed=0):
        print(story.text("fra_Latn"))

`python -m sonarkit.text.storyworld --help` checks the data, shows samples and writes files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from sonarkit.text.storyworld.grammar import CODES, Grammar, GrammarError, load
from sonarkit.text.storyworld.planner import Entity, Plan, draw_plan
from sonarkit.text.storyworld.realize import tell

__all__ = ["CODES", "Grammar", "GrammarError", "SPLITS", "Story", "aligned", "load", "stories", "story", "story_of"]

SPLITS = ("train", "valid", "test")
MOST_REPEATS = 10_000  # draws in a row that give nothing new, after which there is nothing new


def aligned(sentences: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """A story's sentences by language -> its rows, one sentence in all languages each."""
    return [dict(zip(sentences, row)) for row in zip(*sentences.values())]


@dataclass(frozen=True)
class Story:
    """A story and the plan behind it.

    `roles`: by the plot's letter, a being's name, kind, sex, trait and adjective, or a thing's or place's noun and adjective
    (English). `events`: one per sentence: its name, its roles as letters of the plot, the facts added and removed.
    `sentences`: by language code; sentence i means the same in every language.
    """

    plot: str
    roles: dict[str, dict[str, str]]
    events: list[dict[str, Any]]
    sentences: dict[str, list[str]]

    def text(self, lang: str = "eng_Latn") -> str:
        """The story as one paragraph. Raises ValueError for a language it is not told in."""
        if lang not in self.sentences:
            raise ValueError(f"StoryWorld is told in {', '.join(self.sentences)}, not in {lang!r}; choose one of these.")
        return " ".join(self.sentences[lang])

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Story:
        """The inverse of `to_json`. Raises ValueError when the line is no such story."""
        try:
            return cls(**json.loads(line))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"Expected one line of JSON as written by Story.to_json, got {line[:60]!r}: {error}") from None


def _role_as_json(entity: Entity) -> dict[str, str]:
    noun = entity.entry.nouns["eng"][entity.female].form
    adjective = entity.adjective.forms["eng"].predicate
    if entity.category != "being":
        return {"category": entity.category, "noun": noun, "adjective": adjective}
    assert entity.trait, "every being is cast with a trait"
    trait = entity.trait.forms["eng"].predicate
    return {
        "category": "being",
        "name": entity.name,
        "kind": noun,
        "sex": entity.sex,
        "trait": trait,
        "adjective": adjective,
    }


def story_of(grammar: Grammar, plan: Plan, rng: Random) -> Story:
    """Tell a plan."""
    events = [
        {
            "event": beat.event.name,
            "roles": dict(beat.roles),
            "added": [" ".join(fact) for fact in beat.added],
            "removed": [" ".join(fact) for fact in beat.removed],
        }
        for beat in plan.beats
    ]
    roles = {role: _role_as_json(entity) for role, entity in plan.cast.items()}
    told = tell(grammar, plan, rng)
    return Story(plan.plot.name, roles, events, {CODES[lang]: sentences for lang, sentences in told.items()})


def split_of(signature: int) -> str:
    """One plan in a hundred is for validation, one for testing, the others for training."""
    return {0: "valid", 1: "test"}.get(signature % 100, "train")


def _draw(seed: int, split: str, index: int, grammar: Grammar, plots: Sequence[str]) -> tuple[int, Story]:
    """The signature of the plan, and the story. Plans are redrawn until one belongs to the split."""
    rng = Random(f"{seed}-{split}-{index}")
    while True:
        plan = draw_plan(grammar, grammar.plots[rng.choice(plots)], rng)
        signature = plan.signature()
        if split_of(signature) == split:
            return signature, story_of(grammar, plan, rng)


def stories(
    count: int,
    seed: int = 0,
    split: str = "train",
    start: int = 0,
    *,
    grammar: Grammar | None = None,
    plots: Sequence[str] | None = None,
) -> Iterator[Story]:
    """`count` stories of different plans, from draw `start` on.

    Draw i depends on (seed, split, i) alone, so parts of a corpus can be made apart; one that repeats a plan of its part is
    passed over, and another is made. The three splits share no plan. `plots` keeps to these plots. Raises ValueError for an
    unknown split or plot and, while drawing, where there are not so many plans, GrammarError when the data are at fault.
    """
    grammar = grammar or load()
    if split not in SPLITS:
        raise ValueError(f"Expected a split among {', '.join(SPLITS)}, got {split!r}.")
    unknown = sorted(set(plots or ()) - grammar.plots.keys())
    if unknown:
        raise ValueError(f"There is no plot {unknown[0]!r}; the plots are {', '.join(sorted(grammar.plots))}.")
    chosen = sorted(plots or grammar.plots)
    if not chosen:
        raise ValueError("The grammar has no plots; is its `themes` folder empty?")
    return _stories(count, seed, split, start, grammar, chosen)


def _stories(count: int, seed: int, split: str, start: int, grammar: Grammar, plots: Sequence[str]) -> Iterator[Story]:
    seen: set[int] = set()
    index, repeats = start, 0
    while len(seen) < count:
        signature, found = _draw(seed, split, index, grammar, plots)
        index += 1
        repeats = repeats + 1 if signature in seen else 0
        if not repeats:
            seen.add(signature)
            yield found
        if repeats == MOST_REPEATS:
            raise ValueError(f"expected {count} stories of different plans, but this grammar has hardly more than {len(seen)}")


def story(seed: int, split: str = "train") -> Story:
    """One story; the same for the same seed."""
    return next(stories(1, seed, split))
