"""Counting what can be counted about generated stories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sonarkit.models.rollout import Story


def story_report(stories: Sequence[Story]) -> dict[str, float]:
    """How the stories ended and how much they repeat themselves.

    `stopped_end`, `stopped_loop`, `stopped_max_sentences` (or tokens): shares of the stories. `repeated_sentences`: share of
    the told sentences that stood earlier in the same story, prompt included; the sentence on which a loop
    stopped the story counts as one. `sentences_per_story` counts the told ones. ValueError for no stories.
    """
    if not stories:
        raise ValueError("story_report() needs at least one story")
    stops = Counter(story.stopped_by for story in stories)
    repeated, told = (sum(counts) for counts in zip(*map(repeats, stories)))
    return {
        "stopped_end": stops["end"] / len(stories),
        "stopped_loop": stops["loop"] / len(stories),
        "stopped_max_sentences": (stops["max_sentences"] + stops["max_tokens"]) / len(stories),
        "repeated_sentences": repeated / max(1, told),
        "sentences_per_story": told / len(stories),
    }


def repeats(story: Story) -> tuple[int, int]:
    """How many of a story's told sentences stood in it before, and how many were told; see `story_report`."""
    looped = int(story.stopped_by == "loop")  # whose last sentence is not among the story's
    earlier, repeated = set(story.sentences[: story.prompt_sentences]), looped
    for sentence in story.continuation:
        repeated += sentence in earlier
        earlier.add(sentence)
    return repeated, len(story.continuation) + looped
