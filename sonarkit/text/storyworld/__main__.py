"""Check StoryWorld's data, show samples, write files.

    python -m sonarkit.text.storyworld check
    python -m sonarkit.text.storyworld check --theme friendship
    python -m sonarkit.text.storyworld sample --plot lost_toy --lang fra --count 5 --seed 3
    python -m sonarkit.text.storyworld sample --theme adventure --all-langs
    python -m sonarkit.text.storyworld write valid.jsonl --split valid --count 500

`check` ends with status 1 when it finds a fault; notes are for the writer's eye.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from sonarkit.text.storyworld import CODES, SPLITS, Grammar, GrammarError, Story, load, stories, story_of
from sonarkit.text.storyworld.grammar import LANGS, Event, Plot, Slot, slots
from sonarkit.text.storyworld.planner import Plan, draw_plan

PLANS_PER_PLOT = 50
STORY_LENGTHS = range(5, 15)
MIN_VARIANTS = 3

SENTENCE_END = re.compile(r'[.!?…]+\s?["“»]?(?=\s)\s*')
FINISHED = re.compile(r'[.!?]\s?["“»]?$')
OTHER_QUOTES = {"eng": "«»„“”", "fra": '"„“”', "deu": '"«»”', "spa": '"„“”'}


def sentence_faults(sentence: str, lang: str) -> list[str]:
    """What a Punkt splitter or a reader would stumble over."""
    faults = []
    if not FINISHED.search(sentence):
        faults.append("does not end in . ! ? or these and a closing quote")
    for inner in SENTENCE_END.finditer(sentence):
        following = sentence[inner.end() : inner.end() + 1]
        if following and not following.islower():
            faults.append(f"a sentence end inside, before {sentence[inner.end() : inner.end() + 12]!r}")
    if re.search(r"[\d{}|_*]", sentence):
        faults.append("a digit, brace, bar, underscore or star")
    if re.search(r"\s\s|\s[,.]|^\s|\s$|,[^\s»“\"]", sentence):
        faults.append("a space too many or too few")
    if any(mark in sentence for mark in OTHER_QUOTES[lang]):
        faults.append("another language's quotation marks")
    if lang == "fra" and re.search(r"\w[:;!?»]|«\S|\S»", sentence):
        faults.append("French wants a space before : ; ! ? » and after «")
    if lang == "spa" and (sentence.count("¿") != sentence.count("?") or sentence.count("¡") != sentence.count("!")):
        faults.append("¿ or ¡ without its partner")
    return faults


def event_notes(event: Event) -> Iterator[str]:
    """Roles or phrases that one language mentions and another does not. (Spanish may leave a role out.)"""
    for k, variant in enumerate(event.say):
        where = f"{event.theme}.toml, event {event.name}, variant {k + 1}"
        mentioned = {lang: {role for slot in slots(pattern) for role in _mentions(slot)} for lang, pattern in variant.items()}
        for lang in LANGS[1:]:
            missing, extra = mentioned["eng"] - mentioned[lang], mentioned[lang] - mentioned["eng"]
            if extra or (missing and lang != "spa"):
                yield f"{where}: {lang} mentions {_listed(mentioned[lang])}, eng {_listed(mentioned['eng'])}"
        phrases = {lang: _listed({slot.phrase for slot in slots(pattern) if slot.phrase}) for lang, pattern in variant.items()}
        if len(set(phrases.values())) > 1:
            yield f"{where}: the languages use different phrase classes: {phrases}"
        if len({tuple(slot.roles for slot in slots(pattern) if slot.kind == "subject") for pattern in variant.values()}) > 1:
            yield f"{where}: the subject slot is not the same in all languages, so no pronoun will follow"


def _mentions(slot: Slot) -> tuple[str, ...]:
    """Roles a reader would recognise; a possessor or a pronoun may be left to the context."""
    return () if slot.kind in ("choice", "phrase") else slot.roles[:1]


def _listed(words: set[str]) -> str:
    return " ".join(sorted(words)) or "nothing"


def plan_faults(plan: Plan) -> Iterator[str]:
    """A length out of bounds, and beings that are named before they are introduced."""
    if len(plan.beats) not in STORY_LENGTHS:
        yield f"plot {plan.plot.name}: a story of {len(plan.beats)} sentences"
    for beat in plan.beats:
        for role in beat.roles.values():
            if plan.cast[role].category == "being" and role not in beat.known:
                yield f"plot {plan.plot.name}: {role} takes part in {beat.event.name} before being introduced"


def check_plot(grammar: Grammar, plot: Plot, problems: Counter[str]) -> list[Story]:
    """Plan and tell it many times. A GrammarError is a problem like the others."""
    told = []
    for i in range(PLANS_PER_PLOT):
        rng = Random(f"check-{plot.name}-{i}")
        try:
            plan = draw_plan(grammar, plot, rng)
        except GrammarError as error:
            problems[str(error).partition(" So far:")[0]] += 1
            continue
        problems.update(plan_faults(plan))
        told.append(story_of(grammar, plan, rng))
        for lang, code in CODES.items():
            for beat, sentence in zip(plan.beats, told[-1].sentences[code]):
                for fault in sentence_faults(sentence, lang):
                    problems[f"{beat.event.theme}.toml, event {beat.event.name}, {lang}: {fault}: {sentence}"] += 1
    return told


def word_forms(told: list[Story], code: str) -> set[str]:
    """Lower-case words, names included."""
    return {word for story in told for word in re.findall(r"[^\W\d_]+", story.text(code).lower())}


def check(themes: tuple[str, ...] | None, count: int) -> int:
    """Print problems and statistics; the exit status."""
    try:
        grammar = load(themes=themes)
    except GrammarError as error:
        print(error)
        print(f"{len(str(error).splitlines())} faults; nothing else can be checked until they are mended.")
        return 1
    notes = Counter(note for event in grammar.events.values() for note in event_notes(event))
    problems = Counter(
        f"{event.theme}.toml, event {event.name}: {len(event.say)} variants, expected at least {MIN_VARIANTS}"
        for event in grammar.events.values()
        if len(event.say) < MIN_VARIANTS
    )
    used = {event.name for plot in grammar.plots.values() for step in plot.steps for event, _ in step.alternatives}
    by_plot = {plot.name: check_plot(grammar, plot, problems) for plot in grammar.plots.values()}
    sound = [name for name, found in by_plot.items() if len(found) == PLANS_PER_PLOT]
    told = [story for found in by_plot.values() for story in found]
    happened = {event["event"] for story in told for event in story.events}
    notes.update(f"event {name} never happened in {PLANS_PER_PLOT} plans of each plot" for name in sorted(used - happened))
    for note in notes:
        print(f"note: {note}")
    for problem, times in problems.most_common():
        print(f"{problem} ({times} times)" if times > 1 else problem)
    if not sound:
        print("No plot can be planned without fault, so there is nothing to count.")
        return 1

    began = time.perf_counter()
    told = list(stories(count, grammar=grammar, plots=sound))
    seconds = time.perf_counter() - began
    variants = sum(len(event.say) for event in grammar.events.values())
    lengths = [len(story.events) for story in told]
    print(f"{len(grammar.plots)} plots ({len(sound)} sound), {len(grammar.events)} events ({len(used)} used)")
    print(
        f"{variants} variants; {count} stories at {count / seconds:.0f} a second, of {min(lengths)} to {max(lengths)} sentences"
    )
    for code in CODES.values():
        sentences = [sentence for story in told for sentence in story.sentences[code]]
        words = sum(len(sentence.split()) for sentence in sentences) / len(sentences)
        print(
            f"{code}: {len(set(sentences))} of {len(sentences)} sentences distinct, "
            f"{len(word_forms(told, code))} word forms, {words:.1f} words a sentence"
        )
    print(f"{len(notes)} notes, {len(problems)} problems")
    return 1 if problems else 0


def sample(grammar: Grammar, plots: list[str], langs: list[str], count: int, seed: int) -> None:
    """Print stories: as paragraphs in one language, sentence by sentence in several."""
    for i, story in enumerate(stories(count, seed, grammar=grammar, plots=plots)):
        cast = ", ".join(" ".join(value for key, value in role.items() if key != "category") for role in story.roles.values())
        print(f"--- {i}: {story.plot} ({cast})")
        if len(langs) == 1:
            print(story.text(CODES[langs[0]]))
            continue
        for k, event in enumerate(story.events):
            print(f"  [{event['event']}]")
            for lang in langs:
                print(f"    {story.sentences[CODES[lang]][k]}")


def write(out: Path, theme: str | None, split: str, count: int, seed: int) -> None:
    """Write stories with their plans, one line of JSON each."""
    grammar = load(themes=_with_common(theme))
    with out.open("w", encoding="utf-8") as file:
        for story in stories(count, seed, split, grammar=grammar, plots=_plots(grammar, theme)):
            file.write(story.to_json() + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sonarkit.text.storyworld", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="validate the data files and print statistics")
    checking.add_argument("--theme", help="only common.toml, this theme and the lexicon")
    checking.add_argument("--count", type=int, default=2000, help="stories for the statistics")
    showing = commands.add_parser("sample", help="print stories")
    which = showing.add_mutually_exclusive_group()
    which.add_argument("--plot", help="only this plot")
    which.add_argument("--theme", help="only the plots of this theme file")
    languages = showing.add_mutually_exclusive_group()
    languages.add_argument("--lang", choices=LANGS, default="eng")
    languages.add_argument("--all-langs", action="store_true", help="the languages interleaved, with the events' names")
    showing.add_argument("--count", type=int, default=3)
    showing.add_argument("--seed", type=int, default=0)
    writing = commands.add_parser("write", help="write stories with their plans, one line of JSON each")
    writing.add_argument("out", type=Path)
    writing.add_argument("--theme", help="only the plots of this theme file, such as unseen/making")
    writing.add_argument("--split", choices=SPLITS, default="train")
    writing.add_argument("--count", type=int, default=500)
    writing.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    args = _parser().parse_args(arguments)
    if args.command == "check":
        return check(_with_common(args.theme), args.count)
    try:
        if args.command == "write":
            write(args.out, args.theme, args.split, args.count, args.seed)
        else:
            grammar = load(themes=_with_common(args.theme))
            plots = _plots(grammar, args.theme)
            langs = list(LANGS) if args.all_langs else [args.lang]
            sample(grammar, [args.plot] if args.plot else plots, langs, args.count, args.seed)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _plots(grammar: Grammar, theme: str | None) -> list[str]:
    return [plot.name for plot in grammar.plots.values() if theme in (None, plot.theme)]


def _with_common(theme: str | None) -> tuple[str, ...] | None:
    """A theme can be tried before the others are written."""
    return tuple(dict.fromkeys(("common", theme))) if theme else None


if __name__ == "__main__":
    sys.exit(main())
