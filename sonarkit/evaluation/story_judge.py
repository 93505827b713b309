"""A judge of stories that needs no other model: StoryWorld's grammar read backwards; scores from 0 to 10, counts behind them.

    judge_story(sentences, "eng_Latn", prompt_sentences=2)  # one story
    judge_stories(stories, "eng_Latn", training=training_elements(20000))  # many: creativity too, means, per-story arrays

1. Every sentence is read as one of the grammar's events with its fillers (`story_parser`).
2. The plot that most of the story's events belong to is the story's plot; each of its roles is cast with the name, kind, sex,
   adjective and trait that most sentences give it.
3. The events are run against a world of facts, as the planner did that made the corpus.

The scores:

- grammar: the share of words in place, by the nearest pattern; a sentence that the grammar says to the letter has 10, one
  with half of its words to change none.
- consistency: the share of sentences, of those that were read, that contradict nothing: no other name, kind, sex, adjective,
  place or thing than the rest of the story tells, nobody in another's part unless the facts bear it, no unknown name, nobody
  in two places.
- plot: half for the order, the share of events whose preconditions hold, none after the end (a gap counts once); half for
  the end, the share of the plot's wants that hold, a closing sentence counted as one.
- creativity: half for diversity, the mean distance between stories; half for novelty, what the nearest training story does
  not have of a story's events, names and kinds; both times the share of sentences that were read.
- repetition: the share of sentences that repeat none, nor an event with the same fillers; consistency and plot skip those
  that do.

What controlled damage does (400 test stories, 100 a language; creativity against 20 000 training stories; a third of the
sentences with names swapped, three dropped, three repeated, half of them with their words shuffled):

| | grammar | consistency | plot | creativity | repetition |
|---|---|---|---|---|---|
| intact | 10.00 | 10.00 | 10.00 | 5.98 | 10.00 |
| sentences shuffled | 10.00 | 10.00 | **5.02** | 5.98 | 10.00 |
| names swapped | 10.00 | **7.52** | 9.98 | 5.98 | 10.00 |
| events dropped | 10.00 | 10.00 | **7.88** | 6.23 | 10.00 |
| sentences repeated | 10.00 | 10.00 | 10.00 | 5.98 | **7.83** |
| word salad | **5.25** | 9.69 | 9.97 | 5.99 | 10.00 |
| `mini`, 20 English stories after two sentences | 8.50 | 6.76 | 8.59 | 5.92 | 9.90 |
| `mini`, 30 in French, German, Spanish | 5.31 | 6.60 | 3.83 | 4.25 | 9.65 |

Two effects are inherent: in word salad it is lost who did what to whom, and a shorter story shares less with the others.

Blind spots. Good prose that is not StoryWorld's scores 0: of 784 handwritten sentences none is read. Of a theme that the
grammar lacks only the common events are read (pass `grammar=load(themes=...)`). An order without consequences, such as of
two feelings, is free; a dropped event that nothing needs costs nothing. Two people who change parts in an event that would
suit both are no contradiction. What a sentence that was not read may have told is unknown: its people count as introduced
and as having met, and whatever else it made true is missing later. An event that is not the plot's is judged by the facts
alone. The score says nothing of style, nor of what a child would like.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from sonarkit.evaluation.story_parser import Parser, Reading, Said, Unread, parser
from sonarkit.text.storyworld import Story, stories
from sonarkit.text.storyworld.grammar import CATEGORIES, Event, Fact, Grammar, Plot, load
from sonarkit.text.storyworld.planner import MUTUAL

SCORES = ("grammar", "consistency", "plot", "creativity", "repetition")
NEARLY = 0.9  # plots whose events fit nearly as well as the best one's are tried, too
ANY = "*"
BOTH_WAYS = (*MUTUAL, "quarrel", "swapped")  # also where the planner did not need it: whoever quarrels, the other does
INTRODUCED = 3  # votes that a name has in the sentence that introduces it


@dataclass(frozen=True)
class StoryScores:
    """Scores of one story, 0 to 10, over the `sentences` after the prompt, and what they were counted from.

    Of these sentences `exact` are the grammar's to the letter and `near` nearly so; `unread` could not be read as an event.
    Where none was read, consistency and plot are 0. `contradictions`, `unmet` and `unresolved` say in words what cost
    points, with the sentence's number, from 1 and the prompt's included. `events` has one for each sentence, the prompt's
    too, or None. `elements`: the events told and the names and kinds in them, for creativity.
    """

    grammar: float
    consistency: float
    plot: float
    repetition: float
    sentences: int
    exact: int
    near: int
    unread: int
    plot_name: str
    events: tuple[str | None, ...]
    contradictions: tuple[str, ...]
    unmet: tuple[str, ...]
    unresolved: tuple[str, ...]
    repeated_sentences: int
    repeated_events: int
    elements: frozenset[str]


@dataclass(frozen=True)
class Report:
    """`per_story` has an array (stories,) for each of `SCORES`, so that any statistics can be put on top; `means` are theirs.

    Those of creativity, which is of all stories together, are `diversity_rows` (and novelty): no scores of single stories.
    """

    scores: list[StoryScores]
    per_story: dict[str, np.ndarray]
    counts: dict[str, float]

    @property
    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.per_story.items()}

    def table(self) -> str:
        """Means and counts, one a line."""
        rows = [*self.means.items(), *self.counts.items()]
        return "\n".join(f"{name:24s}{value:10.2f}" for name, value in rows)


# The cast


@dataclass
class Role:
    """Who or what fills a role, by most votes: empty where nothing was said."""

    name: str = ""
    kind: str = ""
    sex: str = ""
    adjectives: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()


Binding = Mapping[str, str]  # an event's letters -> the plot's roles


@lru_cache(maxsize=8)
def _bindings(grammar: Grammar) -> dict[str, dict[str, list[dict[str, str]]]]:
    """By plot and event: the different ways in which the plot's steps cast the event."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for plot in grammar.plots.values():
        ways = found[plot.name] = defaultdict(list)
        for step in plot.steps:
            for event, roles in step.alternatives:
                if roles not in ways[event.name]:
                    ways[event.name].append(dict(roles))
    return found


def _cast(plot: Plot, told: Sequence[list[Reading]], grammar: Grammar) -> dict[str, Role]:
    """Names go by votes of the sentences, each for the roles of its event; no two roles share a name, or a kind, and on a tie
    the first one stays. What is said of a name beside it ("a fox named Mia") counts for that name's role."""
    ways, sexes = _bindings(grammar)[plot.name], _sexes(grammar)
    mentions = [
        (Fraction(1, len(options)), reading, roles)
        for readings in told
        if (options := [(reading, roles) for reading in readings for roles in ways.get(reading.event.name, ())])
        for reading, roles in options
    ]
    cast = {name: Role() for name in plot.roles}
    votes: dict[str, dict[str, Any]] = {role: defaultdict(Counter) for role in cast}
    for weight, reading, roles in mentions:
        for letter, said in reading.said:
            if said.name:
                votes[roles[letter]]["name"][said.name] += weight * (
                    INTRODUCED if ("introduced", letter) in reading.event.add else 1
                )
    for role, name in _claims(votes, "name"):
        cast[role].name = name
    by_name = {role.name: key for key, role in cast.items() if role.name}
    for weight, reading, roles in mentions:
        names = {letter: said.name for letter, said in reading.said if said.name}
        for letter, said in reading.said:
            role = by_name.get(names.get(letter, ""), roles[letter])
            for what in ("kinds", "sex", "adjectives", "traits"):
                if value := getattr(said, what):
                    votes[role][what][value] += weight
    for role, kinds in _claims(votes, "kinds"):
        cast[role].kind = min(kinds)
    for key, filled in cast.items():
        for what in ("sex", "adjectives", "traits"):
            if votes[key][what]:
                setattr(filled, what, votes[key][what].most_common(1)[0][0])
        filled.sex = sexes.get(filled.name, filled.sex)
    return cast


def _claims(votes: Mapping[str, Mapping[str, Any]], what: str) -> Iterator[tuple[str, Any]]:
    """Roles and what they get, the most votes first; each once."""
    claims = [(count, role, value) for role, counted in votes.items() for value, count in counted[what].items()]
    roles, taken = set(), set()
    for _, role, value in sorted(claims, key=lambda claim: -claim[0]):
        if role not in roles and value not in taken:
            roles.add(role)
            taken.add(value)
            yield role, value


@lru_cache(maxsize=8)
def _sexes(grammar: Grammar) -> dict[str, str]:
    return {name: sex for sex, names in grammar.names.items() for name in names}


def _contradictions(said: Said, role: Role, genders: Mapping[str, str]) -> list[str]:
    """What a mention says against what is known of its role."""
    who = role.name or role.kind or "another"
    found = []
    if said.name and role.name != said.name:
        found.append(f"{said.name} stands where {who} belongs")
    if said.kinds and role.kind and role.kind not in said.kinds:
        found.append(f"{who} is called {'/'.join(said.kinds)}, elsewhere {role.kind}")
    if said.sex and role.sex and said.sex != role.sex:
        found.append(f"{who} is {role.sex}, here {said.sex}")
    if said.gender and role.kind and genders[role.kind] != said.gender:
        found.append(f"the pronoun for {who} has gender {said.gender}, not {genders[role.kind]}")
    for what in ("adjectives", "traits"):
        here, known = getattr(said, what), getattr(role, what)
        if here and known and not here & known:
            found.append(f"{who} is {'/'.join(sorted(here))}, elsewhere {'/'.join(sorted(known))}")
    return found


# The world


@dataclass
class World:
    """Facts about the plot's roles, and about who or what takes part without having one (`~Mia`, `~kite`)."""

    facts: dict[Fact, None]  # in the order in which they came about, so that the first one found is always the same
    ended: bool = False

    def holds(self, fact: Fact) -> bool:
        """Whether the fact is known; `*` in it stands for anything."""
        return any(_equal(fact, known) for known in self._like(fact))

    def _like(self, fact: Fact) -> list[Fact]:
        return [known for known in self.facts if known[0] == fact[0] and len(known) == len(fact)]

    def unmet(self, event: Event, roles: Binding) -> tuple[list[Fact], list[Fact]]:
        """The facts that the event needs and misses, and those that should not hold but do."""
        missing, present = [], []
        for condition in event.pre:
            fact = _ground(condition.fact, roles)
            if condition.negated:
                if ANY not in fact and self.holds(fact):
                    present.append(fact)
            elif not self.holds(fact):
                missing.append(fact)
        return missing, present

    def contradicts(self, fact: Fact) -> Fact | None:
        """A fact that holds of the same one, or of the same thing, with another filler: he is elsewhere, another has it."""
        for known in self._like(fact):
            if len(fact) == 3 and (_equal(fact[1:2], known[1:2]) or (fact[0] == "has" and _equal(fact[2:], known[2:]))):
                return known
        return None

    def of_another(self, fact: Fact, cast: Mapping[str, Role]) -> Fact | None:
        """The same fact of other people."""

        def place(word: str) -> str:
            return ANY if word in cast and cast[word].name else word

        return next(
            (known for known in self._like(fact) if known != fact and all(place(a) == place(b) for a, b in zip(fact, known))),
            None,
        )

    def learn(self, facts: Iterable[Fact]) -> None:
        """Hold facts that are about someone in particular."""
        self.facts |= dict.fromkeys(fact for fact in facts if ANY not in fact)

    def happen(self, event: Event, roles: Binding, assumed: Iterable[Fact] = ()) -> None:
        """Assume what was missing, so that a gap counts once; take away and add what the event does."""
        self.learn(assumed)
        for pattern in (_ground(fact, roles) for fact in event.remove):
            for known in [known for known in self._like(pattern) if _equal(pattern, known)]:
                del self.facts[known]
        self.learn(_ground(fact, roles) for fact in event.add)
        self.ended = event.name.startswith("end_")


def _ground(fact: Fact, roles: Binding) -> Fact:
    arguments = [roles.get(word, word) for word in fact[1:]]
    return (fact[0], *(sorted(arguments) if fact[0] in BOTH_WAYS and ANY not in arguments else arguments))


def _equal(pattern: Fact, fact: Fact) -> bool:
    """`*` stands for anything; mutual facts hold in both directions."""
    if all(p in (ANY, f) for p, f in zip(pattern, fact)):
        return True
    return pattern[0] in BOTH_WAYS and all(p in (ANY, f) for p, f in zip((pattern[0], *reversed(pattern[1:])), fact))


def _show(fact: Fact, cast: Mapping[str, Role]) -> str:
    named = [(cast[word].name or cast[word].kind or word) if word in cast else word.removeprefix("~") for word in fact[1:]]
    return " ".join([fact[0], *named])


# The judge


@dataclass
class _Run:
    """A story run as one plot."""

    contradictions: dict[int, list[str]] = field(default_factory=dict)  # by sentence
    unmet: dict[int, str] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    unresolved: list[str] = field(default_factory=list)
    chosen: dict[int, Reading] = field(default_factory=dict)
    goals: int = 1


class _Option(NamedTuple):
    """One way to take a sentence: what it contradicts, and what its event needs and misses (or finds, and must not)."""

    reading: Reading
    roles: Binding
    foreign: bool
    against: list[str]
    missing: list[Fact]
    present: list[Fact]

    @property
    def gaps(self) -> int:
        return len(self.missing) + len(self.present)


def _option(reading: Reading, roles: Binding, foreign: bool, cast: Mapping[str, Role], world: World, judge: Parser) -> _Option:
    against = [
        fault
        for letter, said in reading.said
        if roles[letter] in cast
        for fault in _contradictions(said, cast[roles[letter]], judge.gender_of)
    ]
    twice = [role for role, count in Counter(roles.values()).items() if count > 1 and role != ANY]
    against += [f"{_show(('', role), cast).strip()} takes two parts" for role in twice]
    return _Option(reading, roles, foreign, against, *world.unmet(reading.event, roles))


def _own(reading: Reading, roles: Binding, cast: Mapping[str, Role], world: World, judge: Parser) -> _Option:
    """An event of the plot, in the plot's roles; or with its people, things or places in each other's, as the sentence names
    them, where the world bears that as well: it was Tom who was sorry, so let him be the one who apologizes."""
    as_planned = _option(reading, roles, False, cast, world, judge)
    names = {letter: said.name for letter, said in reading.said if said.name}
    kinds = {letter: min(said.kinds) for letter, said in reading.said if said.kinds and letter not in names}
    moved = _moved(roles, names, {known.name: role for role, known in cast.items() if known.name})
    moved |= _moved(roles, kinds, {known.kind: role for role, known in cast.items() if known.kind and not known.name})
    if not moved:
        return as_planned
    as_named = _option(reading, {letter: moved.get(role, role) for letter, role in roles.items()}, False, cast, world, judge)
    somewhere = {fact[1] for fact in world.facts if fact[0] == "at"}
    missing = [fact for fact in as_named.missing if fact[0] != "at" or fact[1] in somewhere]  # he may have been there
    as_named = as_named._replace(missing=missing)
    return min(as_planned, as_named, key=lambda option: (option.gaps, len(option.against)))


def _moved(roles: Binding, told: Mapping[str, str], owners: Mapping[str, str]) -> dict[str, str]:
    """The roles that stand for others so that each letter gets the owner of what is told of it, the others keeping theirs where
    they can; empty where nothing moves, or two would become one."""
    moved = {roles[letter]: owners[label] for letter, label in told.items() if label in owners}
    if all(role == other for role, other in moved.items()) or len(set(moved.values())) < len(moved):
        return {}
    everyone = list(dict.fromkeys([*owners.values(), *moved]))
    free = [role for role in everyone if role not in moved.values()]
    for role in sorted((role for role in everyone if role not in moved), key=lambda role: role not in free):
        moved[role] = free.pop(free.index(role) if role in free else 0)
    return moved


def _foreign(reading: Reading, plot: Plot, cast: Mapping[str, Role], judge: Parser) -> dict[str, str]:
    """An event that the plot does not have, cast by what its sentence says: roles of the plot that have that name or kind, or
    that have none yet, `~Name` and `~kind` for others, `*` for whom it does not tell."""
    roles = dict.fromkeys(reading.event.roles, ANY)
    for letter, said in reading.said:
        if said.name:
            roles[letter] = next((role for role, known in cast.items() if known.name == said.name), f"~{said.name}")
    for letter, said in reading.said:
        if roles[letter] == ANY and said.kinds:
            kind = min(said.kinds)
            same = [role for role, known in cast.items() if known.kind == kind]
            open_ = [
                r for r, known in cast.items() if not known.kind and plot.roles[r].category == judge.category_of[kind] != "being"
            ]
            roles[letter] = next((role for role in same + open_ if role not in roles.values()), f"~{kind}")
    for letter, said in reading.said:
        if roles[letter] == ANY and said.sex and "being" in judge.categories[reading.event.name].get(letter, ()):
            fitting = [role for role, known in cast.items() if known.sex == said.sex and role not in roles.values()]
            roles[letter] = fitting[0] if len(fitting) == 1 else ANY
    return roles


def _run(plot: Plot, sentences: Sequence[list[Reading] | Unread], judge: Parser) -> _Run:
    told = [reading if isinstance(reading, list) else [] for reading in sentences]
    ways, cast = _bindings(judge.grammar)[plot.name], _cast(plot, told, judge.grammar)
    world, run, happened = World(dict.fromkeys(_ground(fact, {}) for fact in plot.start)), _Run(), set()
    recast = False  # did people take each other's parts?
    for i, readings in enumerate(sentences):
        if isinstance(readings, Unread):
            named = [role for role, known in cast.items() if known.name in readings.names]
            world.learn(("introduced", role) for role in named)
            world.learn(("met", *sorted(pair)) for pair in combinations(named, 2))
            continue
        options = [_own(one, roles, cast, world, judge) for one in readings for roles in ways.get(one.event.name, ())]
        if not options:
            options = [_option(one, _foreign(one, plot, cast, judge), True, cast, world, judge) for one in readings]
        best = min(options, key=lambda option: (len(option.against), option.gaps))
        run.chosen[i] = best.reading
        act = (best.reading.event.name, *best.roles.values())
        if act in happened:
            run.repeated.add(i)
            continue
        if ANY not in act:
            happened.add(act)
        recast |= best.roles not in ways.get(best.reading.event.name, ())
        for letter, said in best.reading.said:
            role = cast.get(best.roles[letter])
            if role and said.kinds and not role.kind:
                role.kind = min(said.kinds)
        clashes = _clashes(best, world, cast, recast)
        if best.against or clashes:
            run.contradictions[i] = list(dict.fromkeys([*best.against, *clashes.values()]))
        needs = [_show(fact, cast) for fact in best.missing if fact not in clashes]
        needs += [f"not {_show(fact, cast)}" for fact in best.present] + ["that the story had not ended"] * world.ended
        if needs:
            run.unmet[i] = f"{best.reading.event.name} needs {'; '.join(needs)}"
        world.happen(best.reading.event, best.roles, best.missing)
    for goal in plot.want:
        fact = _ground(goal.fact, {})
        reached = world.holds(fact) or (recast and not goal.negated and world.of_another(fact, cast) is not None)
        if reached == goal.negated:
            run.unresolved.append("not " * goal.negated + _show(goal.fact, cast))
    last = max(set(range(len(sentences))) - run.repeated, default=0)
    if last not in run.chosen or not run.chosen[last].event.name.startswith("end_"):
        run.unresolved.append("a closing sentence")
    run.goals = len(plot.want) + 1
    return run


def _clashes(option: _Option, world: World, cast: Mapping[str, Role], recast: bool) -> dict[Fact, str]:
    """Of the facts that an event misses, those that something speaks against, rather than that nothing spoke for them yet:
    for an event foreign to the plot, that he is elsewhere or another has it, or that nobody introduced the one it names;
    once people took each other's parts, that another did it."""
    found = {}
    for fact in option.missing:
        names = [word for word in fact[1:] if word[:1] == "~" and (word[1:].istitle() or fact[0] == "introduced")]
        strangers = [name for name in names if ("introduced", name) not in world.facts]
        known = world.contradicts(fact) if option.foreign else None
        if recast and not known:
            known = world.of_another(fact, cast)
        if option.foreign and strangers:
            found[fact] = f"{strangers[0][1:]} was never introduced"
            world.learn(("introduced", name) for name in strangers)
        elif known:
            found[fact] = f"{_show(fact, cast)} is needed, but {_show(known, cast)}"
    return found


def _plots(told: Sequence[list[Reading]], grammar: Grammar) -> list[Plot]:
    """The plots that the story's events fit best, an event weighing more as fewer plots have it."""
    ways = _bindings(grammar)
    frequency = Counter(event for events in ways.values() for event in events)
    names = {reading.event.name for readings in told for reading in readings}
    fit = {
        plot: sum(math.log(1 + len(ways) / frequency[name]) for name in names if name in events) for plot, events in ways.items()
    }
    best = max(fit.values(), default=0)
    return [grammar.plots[plot] for plot, value in fit.items() if best and value >= NEARLY * best]


def judge_story(sentences: Sequence[str], lang: str, *, prompt_sentences: int = 0, grammar: Grammar | None = None) -> StoryScores:
    """Judge one story, a list of sentences in `eng_Latn`, `fra_Latn`, `deu_Latn` or `spa_Latn`.

    The first `prompt_sentences` are read for facts and not scored; they may be free text, of which only names are understood:
    these count as introduced and as having met. A story that is all prompt scores 0 everywhere. Raises
    ValueError for no sentences, a string in place of a list, a prompt longer than the story, and a language that StoryWorld
    is not told in.
    """
    if isinstance(sentences, str) or not len(sentences):
        raise ValueError("expected a list of at least one sentence; split a text with sonarkit.text.sentences.split_sentences")
    if not 0 <= prompt_sentences <= len(sentences):
        raise ValueError(
            f"prompt_sentences must lie between 0 and the story's {len(sentences)} sentences, got {prompt_sentences}"
        )
    judge = parser(lang, grammar)
    read = [judge.read(sentence) for sentence in sentences]
    told = [readings if isinstance(readings, list) else [] for readings in read]
    scored = range(prompt_sentences, len(sentences))
    runs = [(plot.name, _run(plot, read, judge)) for plot in _plots(told, judge.grammar)] or [("", _Run())]
    plot_name, run = max(runs, key=lambda one: sum(_consistency_and_plot(one[1], scored)))
    credit = [one[0].credit if isinstance(one, list) else one.credit for one in read[prompt_sentences:]]
    consistency, plot = _consistency_and_plot(run, scored)
    earlier = {i for i in scored if sentences[i] in sentences[:i]}
    repeated = run.repeated & set(scored)
    return StoryScores(
        grammar=_share(sum(credit), len(scored)),
        consistency=consistency,
        plot=plot,
        repetition=_share(len(scored) - len(earlier | repeated), len(scored)),
        sentences=len(scored),
        exact=sum(one == 1 for one in credit),
        near=sum(0 < one < 1 for one in credit),
        unread=sum(i not in run.chosen for i in scored),
        plot_name=plot_name,
        events=tuple(run.chosen[i].event.name if i in run.chosen else None for i in range(len(sentences))),
        contradictions=tuple(f"{i + 1}: {fault}" for i in scored for fault in run.contradictions.get(i, ())),
        unmet=tuple(f"{i + 1}: {run.unmet[i]}" for i in scored if i in run.unmet),
        unresolved=tuple(run.unresolved),
        repeated_sentences=len(earlier),
        repeated_events=len(repeated),
        elements=_elements(run.chosen[i] for i in scored if i in run.chosen),
    )


def _share(part: float, whole: int) -> float:
    return 10 * part / whole if whole else 0.0


def _consistency_and_plot(run: _Run, scored: range) -> tuple[float, float]:
    read = [i for i in scored if i in run.chosen and i not in run.repeated]
    sound = sum(i not in run.contradictions for i in read)
    possible = sum(i not in run.unmet for i in read)
    reached = run.goals - len(run.unresolved) if read else 0
    return _share(sound, len(read)), (_share(possible, len(read)) + _share(reached, run.goals)) / 2


# Creativity


def _elements(readings: Iterable[Reading]) -> frozenset[str]:
    found = set()
    for reading in readings:
        found.add(f"event {reading.event.name}")
        for _, said in reading.said:
            found |= {said.name} if said.name else set()
            found |= said.kinds
    return frozenset(found)


def elements_of(story: Story, grammar: Grammar | None = None) -> frozenset[str]:
    """A StoryWorld story's events, names and kinds, as the judge finds them in a told story, in any language."""
    keys = _keys_by_noun(grammar or load())
    events = {f"event {event['event']}" for event in story.events}
    cast = story.roles.values()
    return frozenset(
        events | {role["name"] for role in cast if "name" in role} | {keys[role.get("kind") or role["noun"]] for role in cast}
    )


@lru_cache(maxsize=8)
def _keys_by_noun(grammar: Grammar) -> dict[str, str]:
    entries = (entry for category in CATEGORIES for entry in grammar.entries[category])
    return {noun.form: entry.key for entry in entries for noun in entry.nouns["eng"]}


def training_elements(count: int, seed: int = 0, grammar: Grammar | None = None) -> list[frozenset[str]]:
    """Those of the first `count` training stories of a seed, made anew: 44 s for 20 000 on one core."""
    return [elements_of(story, grammar) for story in stories(count, seed, grammar=grammar)]


def _matrix(sets: Sequence[frozenset[str]], columns: Mapping[str, int]) -> np.ndarray:
    found = np.zeros((len(sets), len(columns)), dtype=np.float32)
    for row, elements in enumerate(sets):
        found[row, [columns[element] for element in elements if element in columns]] = 1
    return found


def novelty(told: Sequence[frozenset[str]], training: Sequence[frozenset[str]]) -> np.ndarray:
    """For each story, the share of its elements that the training story nearest to it does not have: 0 is a copy, 1 all new;
    0 for a story without any."""
    columns = {element: i for i, element in enumerate(sorted(set().union(*told)))}
    told_NE, sizes_N = _matrix(told, columns), np.array([len(elements) for elements in told])
    most_N = np.zeros(len(told))
    for start in range(0, len(training), 4096):
        most_N = np.maximum(most_N, (told_NE @ _matrix(training[start : start + 4096], columns).T).max(1))
    return np.where(sizes_N > 0, 1 - most_N / np.maximum(sizes_N, 1), 0.0)


def diversity(told: Sequence[frozenset[str]]) -> np.ndarray:
    """For each story, its mean distance to the others: 1 less what two have in common, relative to what either has (Jaccard).
    Its expectation does not depend on the number of stories; 0 for a story alone or without elements."""
    return np.where([bool(elements) for elements in told], _distances(told).sum(1) / max(1, len(told) - 1), 0.0)


def diversity_rows(told: Sequence[frozenset[str]], weight_N: np.ndarray) -> np.ndarray:
    """Rows (N,) whose mean is that of weight times `diversity`, and that an interval or a paired test may be put on.

    A story counts in its own diversity and in that of each other one, so the diversities themselves scatter half as much as
    their mean does (over 100 StoryWorld stories their 95 % intervals had it in 67 %). What a story adds to both does not:
    Hajek's projection of a U-statistic of order 2 (van der Vaart, Asymptotic Statistics, 12.1), good to the order 1 / N.
    """
    own_N = weight_N * diversity(told)
    weighed_N = weight_N * np.array([bool(elements) for elements in told])
    return own_N + _distances(told) @ weighed_N / max(1, len(told) - 1) - own_N.mean()


def _distances(told: Sequence[frozenset[str]]) -> np.ndarray:
    """(N, N) Jaccard distances, 0 of a story to itself."""
    columns = {element: i for i, element in enumerate(sorted(set().union(*told)))}
    told_NE = _matrix(told, columns)
    sizes_N, common_NN = told_NE.sum(1), told_NE @ told_NE.T
    distance_NN = 1 - common_NN / np.maximum(sizes_N[:, None] + sizes_N - common_NN, 1)
    np.fill_diagonal(distance_NN, 0)
    return distance_NN


def judge_stories(
    told: Sequence[Sequence[str]],
    lang: str | Sequence[str],
    *,
    training: Sequence[frozenset[str]] | None = None,
    prompt_sentences: int | Sequence[int] = 0,
    grammar: Grammar | None = None,
) -> Report:
    """Judge many stories; `lang` and `prompt_sentences` are one for all or one for each.

    `training`: what to measure novelty against, from `training_elements` or `elements_of`; without it creativity is
    diversity alone. Raises ValueError as `judge_story` does, for no stories, and for not as many languages or prompts.
    """
    if isinstance(told, str) or not len(told) or isinstance(told[0], str):
        raise ValueError("expected a list of stories, each a list of sentences")
    langs = [lang] * len(told) if isinstance(lang, str) else list(lang)
    prompts = [prompt_sentences] * len(told) if isinstance(prompt_sentences, int) else list(prompt_sentences)
    if not len(langs) == len(prompts) == len(told):
        raise ValueError(f"{len(told)} stories need as many languages and prompt lengths, got {len(langs)} and {len(prompts)}")
    scores = [
        judge_story(story, code, prompt_sentences=prompt, grammar=grammar) for story, code, prompt in zip(told, langs, prompts)
    ]
    elements = [one.elements for one in scores]
    read_N = np.array([(one.sentences - one.unread) / max(1, one.sentences) for one in scores])
    per_story = {name: np.array([getattr(one, name) for one in scores]) for name in SCORES if name != "creativity"}
    per_story["creativity"] = 10 * diversity_rows(elements, read_N)
    if training:
        new_N = novelty(elements, training)
        per_story["creativity"] = (per_story["creativity"] + 10 * read_N * new_N) / 2
    counts: dict[str, float] = {"stories": len(told)}
    counts |= {
        name: sum(getattr(one, name) for one in scores)
        for name in ("sentences", "exact", "near", "unread", "repeated_sentences", "repeated_events")
    }
    counts |= {name: sum(len(getattr(one, name)) for one in scores) for name in ("contradictions", "unmet", "unresolved")}
    counts["distinct_events"] = len({element for one in elements for element in one if element.startswith("event ")})
    counts["distinct_plots"] = len({one.plot_name for one in scores} - {""})
    counts["diversity"] = float(diversity(elements).mean())
    if training:
        counts["novelty"] = float(new_N.mean())
    return Report(scores, {name: per_story[name] for name in SCORES}, counts)
