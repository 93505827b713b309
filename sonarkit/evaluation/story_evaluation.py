"""Everything about a model's stories as one report, and several models side by side.

1. `prompts_for` cuts the stories of a set after two sentences.
2. `evaluate_stories` lets a model go on, and measures how its stories end, the judge's five scores (`story_judge`), how near
   they come to the true stories (`nlg`, as published and as one should), and the bits it needs for a byte of these.
3. `comparisons` tests one model against another, story by story; `table` and `comparison_table` are Markdown.

The same prompts, settings and seed give the same numbers on the same machine.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonarkit.core.config import to_dict
from sonarkit.evaluation import story_judge
from sonarkit.evaluation.bits_per_byte import quotient, text_bits
from sonarkit.evaluation.llm_judge import Told
from sonarkit.evaluation.nlg import meteor_mode, meteor_name, nlg_report, prompts_of
from sonarkit.evaluation.sets import stories_of
from sonarkit.evaluation.statistics import RESAMPLES, Comparison, Interval, Statistic, bootstrap, permutation_test
from sonarkit.evaluation.stories import repeats
from sonarkit.models.family import Model, family_name, seeds_for, trained_parameters
from sonarkit.models.rollout import Story

PREFIX = 2  # sentences of a prompt
BATCH = 50  # stories told at once
# What rows a statistic has if it is a quotient of two sums; all others are means.
QUOTIENTS = ("repeated_sentences", "bits_per_byte")
ENDINGS = {"ended": "end", "looped": "loop"}
# The table's columns and how many decimals they have; those of the judge and of bits per byte have their intervals.
HEADS = {
    **{name: (name, 2) for name in story_judge.SCORES},
    "ended": ("ended, %", 0), "looped": ("looped, %", 0), "repeated_sentences": ("repeated, %", 1),
    "bits_per_byte": ("bits/byte", 3),
    "bleu_first": ("BLEU, 1st", 1), "rouge_l_first": ("ROUGE-L, 1st", 1),
    "meteor_first": ("METEOR, 1st", 1), "meteor_exact_stem_first": ("METEOR (exact, stem), 1st", 1),
    "bleu": ("BLEU", 1), "chrf": ("chrF", 1), "rouge_l": ("ROUGE-L", 1),
    "meteor": ("METEOR", 1), "meteor_exact_stem": ("METEOR (exact, stem)", 1),
}  # fmt: skip
COMPARED = (*story_judge.SCORES, *ENDINGS, "bits_per_byte", "rouge_l")
SURE = 0.05  # p-values below are marked


@dataclass(frozen=True)
class StoryPrompts:
    """N beginnings and how the true stories go on, each a list of sentences in `lang`; `source` is the set."""

    beginnings: list[list[str]]
    references: list[list[str]]
    lang: str
    source: str


@dataclass(frozen=True)
class StoryEvaluation:
    """What was found of one model.

    `scores` by metric, `HEADS` among others; judge and NLG from 0 to 10 and to 100. `rows` has what a metric was counted from
    where it can be told story by story: (N,) values to take the mean of, or (N, 2) for QUOTIENTS, so that other statistics and
    tests can be put on top. `labels` says how each NLG metric was counted, `counts` what went in, `settings` how it was told.
    """

    model: str
    family: str
    scores: dict[str, Interval]
    rows: dict[str, np.ndarray]
    labels: dict[str, str]
    counts: dict[str, float]
    settings: dict[str, Any]
    stories: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, rows as lists."""
        scores = {name: score.to_dict() for name, score in self.scores.items()}
        return {**vars(self), "scores": scores, "rows": {name: rows.tolist() for name, rows in self.rows.items()}}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> StoryEvaluation:
        """What `to_dict` gave."""
        scores = {name: interval_of(score) for name, score in told["scores"].items()}
        return cls(**{**told, "scores": scores, "rows": {name: np.array(rows) for name, rows in told["rows"].items()}})


def interval_of(told: Mapping[str, Any]) -> Interval:
    """What `Interval.to_dict` gave."""
    value, low, high = (math.nan if told[key] is None else told[key] for key in ("value", "low", "high"))
    return Interval(value, low, high, told["count"], told["level"])


def prompts_for(on: str, count: int | None = None, lang: str = "eng_Latn") -> StoryPrompts:
    """The first `count` stories of a shipped set (`sets.stories_of`) that go on after two sentences, in one of its languages.

    Raises ValueError for a set or a language that there is not, and a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count is the number of stories, at least 1; got {count}")
    stories = stories_of(on)
    if lang not in stories[0]:
        raise ValueError(f"{on} has no stories in {lang}; its languages are {', '.join(sorted(stories[0]))}")
    found = prompts_of([story[lang] for story in stories], PREFIX)
    return StoryPrompts(found.prefixes[:count], found.references[:count], lang, on)


def tell_stories(
    model: Model, prompts: StoryPrompts, *, beam_size: int | None = None, max_sentences: int = 32, seed: int = 0, **options: Any
) -> list[Story]:
    """How a model goes on. `beam_size` None leaves each family its own: 5 to decode a vector, 1 for a token-level model.

    Further `options` go to `generate`. A diffusion LCM draws for each story from a seed of its own, from `seed` on, so that no
    story depends on its batch.
    """
    # a blank line ends a sentence: cut again, they are the same
    texts = ["\n\n".join(beginning) for beginning in prompts.beginnings]
    beam_size = own_beam(model) if beam_size is None else beam_size
    stories: list[Story] = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        seeds = seeds_for(model, seed, range(start, start + len(part)))
        told = model.generate(part, prompts.lang, beam_size=beam_size, max_sentences=max_sentences, seed=seeds, **options)
        stories += told
    return stories


def own_beam(model: Model) -> int:
    """The beam that a family is told with unless asked otherwise."""
    return 1 if family_name(model) == "token-llm" else 5


def evaluate_stories(
    model: Model,
    prompts: StoryPrompts,
    name: str = "",
    *,
    training: Sequence[frozenset[str]] | None = None,
    beam_size: int | None = None,
    max_sentences: int = 32,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> StoryEvaluation:
    """Let a model go on from the prompts, and measure; see the module. `training` is for the judge's novelty (`judge_stories`).

    `beam_size`, `max_sentences` and further options are those of `tell_stories`.

    Raises what `generate` and the judges raise: ValueError for a language that the judge or the model does not know.
    """
    stories = tell_stories(model, prompts, beam_size=beam_size, max_sentences=max_sentences, seed=seed, **options)
    heads = [story.prompt_sentences for story in stories]
    judged = story_judge.judge_stories(
        [story.sentences for story in stories], prompts.lang, training=training, prompt_sentences=heads
    )
    nlg = nlg_report([story.continuation for story in stories], prompts.references, resamples=resamples, seed=seed)
    whole = [[*beginning, *rest] for beginning, rest in zip(prompts.beginnings, prompts.references)]
    rows = dict(judged.per_story)
    rows |= {name: np.array([100.0 * (story.stopped_by == why) for story in stories]) for name, why in ENDINGS.items()}
    rows["repeated_sentences"] = np.array([[100.0 * again, told] for again, told in map(repeats, stories)])
    rows["sentences"] = np.array([float(len(story.continuation)) for story in stories])
    drawn = {"sampling": options["sampling"]} if "sampling" in options else {}
    rows["bits_per_byte"] = text_bits(model, whole, prompts.lang, seed=seed, **drawn)
    rows |= {key: np.array(values) for key, values in nlg.of_story.items()}
    scores = {key: score_of(key, values, resamples=resamples, seed=seed) for key, values in rows.items()} | nlg.scores
    parameters, embedding = trained_parameters(model)
    return StoryEvaluation(
        name,
        family_name(model),
        scores,
        rows,
        dict(nlg.labels),
        {**nlg.counts, **judged.counts, "parameters": parameters, "embedding_parameters": embedding},
        {
            "on": prompts.source,
            "lang": prompts.lang,
            "prompt_sentences": PREFIX,
            "beam_size": own_beam(model) if beam_size is None else beam_size,
            "max_sentences": max_sentences,
            "seed": seed,
            "options": {key: to_dict(value) if is_dataclass(value) else value for key, value in options.items()},
            "novelty_against": len(training or ()),
            "versions": nlg.versions,
            "stopped_by": dict(Counter(story.stopped_by for story in stories).most_common()),
        },
        [
            {"prompt": " ".join(b), "told": s.continuation, "stopped_by": s.stopped_by}
            for b, s in zip(prompts.beginnings, stories)
        ],
    )


def statistic_of(metric: str) -> Statistic | None:
    """How a metric's rows become its number: None is the mean."""
    return quotient if metric in QUOTIENTS else None


def score_of(metric: str, rows: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """A metric of `rows` with its interval over stories."""
    if metric in QUOTIENTS:
        rows = rows[rows[:, 1] > 0]
        if not len(rows):
            return Interval(0.0, math.nan, math.nan, 0)
    return bootstrap(rows, statistic_of(metric), resamples=resamples, seed=seed)


# ---------------------------------------------------------------------- side by side


def pooled(seeds: Sequence[StoryEvaluation]) -> StoryEvaluation:
    """Trainings of one model with several seeds, judged on the same prompts, as one: each story's mean over the seeds.

    Intervals are over stories still; scores that are not told by story, such as BLEU, are means without one. The stories kept
    are the first seed's.
    """
    first = seeds[0]
    if len(seeds) == 1:
        return first
    rows = {name: np.mean([one.rows[name] for one in seeds], axis=0) for name in first.rows}
    scores = {
        name: score_of(name, rows[name])
        if name in rows
        else Interval(float(np.mean([one.scores[name].value for one in seeds])), math.nan, math.nan, score.count)
        for name, score in first.scores.items()
        if all(name in one.scores for one in seeds)
    }
    given = [one.settings.get("options", {}) for one in seeds]
    shared = {key: value for key, value in given[0].items() if all(options.get(key) == value for options in given)}
    settings = {**first.settings, "options": shared}
    return StoryEvaluation(first.model, first.family, scores, rows, first.labels, first.counts, settings, first.stories)


def comparisons(
    first: StoryEvaluation, other: StoryEvaluation, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """`other` against `first`, of COMPARED: differences with intervals, and the p-values of paired permutation tests.

    The stories are paired, so both must be of the same prompts; a p-value is of one test, whatever the number of them.
    Raises ValueError for other prompts.
    """
    if [story["prompt"] for story in first.stories] != [story["prompt"] for story in other.stories]:
        raise ValueError(f"{first.model} and {other.model} went on from different prompts; evaluate both on the same set")
    return {
        name: permutation_test(other.rows[name], first.rows[name], statistic_of(name), resamples=resamples, seed=seed)
        for name in COMPARED
    }


def table(evaluations: Sequence[StoryEvaluation]) -> str:
    """Markdown: a row for each model. Scores of the judge and bits per byte have half the width of their interval beside them."""
    columns = [name for name in HEADS if all(name in one.scores for one in evaluations)]
    heads = ["model", "parameters", *(HEADS[name][0] for name in columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in evaluations:
        cells = [one.model, _parameters(one.counts), *(_cell(name, one.scores[name]) for name in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parameters(counts: Mapping[str, float]) -> str:
    beside = counts["embedding_parameters"]
    return f"{counts['parameters'] / 1e6:.2f}M" + (f" + {beside / 1e6:.2f}M embedding" if beside else "")


def _cell(name: str, score: Interval) -> str:
    decimals = HEADS[name][1]
    told = f"{score.value:.{decimals}f}"
    if name in (*story_judge.SCORES, "bits_per_byte") and not math.isnan(score.low):
        told += f" ± {(score.high - score.low) / 2:.{decimals}f}"
    return told


def comparison_table(evaluations: Sequence[StoryEvaluation], *, resamples: int = RESAMPLES, seed: int = 0) -> str:
    """Markdown: how each further model differs from the first, with the p-value, marked below SURE; "" for one model."""
    first, *others = evaluations
    if not others:
        return ""
    heads = [f"less {first.model}", *(HEADS[name][0] for name in COMPARED)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for other in others:
        found = comparisons(first, other, resamples=resamples, seed=seed)
        cells = []
        for name, comparison in found.items():
            mark = "**" if comparison.p_value < SURE else ""
            cells.append(f"{mark}{comparison.difference.value:+.{HEADS[name][1]}f}{mark} (p {comparison.p_value:.3f})")
        lines.append("| " + " | ".join([other.model, *cells]) + " |")
    return "\n".join(lines)


def notes(evaluations: Sequence[StoryEvaluation]) -> list[str]:
    """What a reader of the tables must know."""
    first = evaluations[0]
    beams = ", ".join(f"{one.model} {one.settings['beam_size']}" for one in evaluations)
    novelty = first.settings["novelty_against"]
    told = [
        f"{len(first.stories)} stories of {first.settings['on']} ({first.settings['lang']}) after {PREFIX} sentences, at most "
        f"{first.settings['max_sentences']} sentences, seed {first.settings['seed']}; beams: {beams}",
        "the judge's scores are from 0 to 10; ± is half the width of the 95 % interval over stories",
        "creativity is diversity and novelty against " + f"{novelty} training stories"
        if novelty
        else "creativity is diversity alone",
        "1st: of the first sentence told, as published; the others are of the whole continuation",
    ]
    if meteor_name(meteor_mode()) != "meteor":
        told.append("METEOR without WordNet, which is not on this machine: exact matches and stems only")
    if len(evaluations) > 1:
        told.append(f"p: paired permutation tests, story by story, each on its own; bold below {SURE}")
    for one in evaluations:
        if sampling := one.settings["options"].get("sampling"):
            told.append(f"{one.model} by guidance {sampling['guidance']:g}, {sampling['steps']} steps")
    if any(one.family == "diffusion-lcm" for one in evaluations):
        told.append("bits per byte of a diffusion LCM are of one draw a sentence: no less, on average, than of all its draws")
    return told


def report_of(evaluations: Sequence[StoryEvaluation], *, seed: int = 0) -> dict[str, Any]:
    """Everything as JSON: `models`, and `against_first`, by model and metric, for all but the first."""
    first, *others = evaluations
    against = {
        other.model: {name: found.to_dict() for name, found in comparisons(first, other, seed=seed).items()} for other in others
    }
    return {"models": [one.to_dict() for one in evaluations], "first": first.model, "against_first": against}


def told_in(file: Path) -> dict[str, list[Told]]:
    """By model, the stories in a file that `report_of` was written to, for `llm_judge`. ValueError for another file."""
    try:
        models = json.loads(file.read_text(encoding="utf-8"))["models"]
        return {one["model"]: [Told(s["prompt"], " ".join(s["told"])) for s in one["stories"]] for one in models}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected what sonarkit evaluate stories --out wrote ({error!r})") from error
