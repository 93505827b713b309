"""Plot -> plan: who is who, and what happens in which order, with causes that hold.

The world is a set of facts such as `("has", "h", "t")`, over the plot's roles. A step may happen only
when its event's preconditions hold; its effects then change the world. Words come later, in `realize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from sonarkit.text.storyworld.grammar import (
    Adjective,
    Condition,
    Entry,
    Event,
    Fact,
    Grammar,
    GrammarError,
    Plot,
    allowed_sexes,
)

OPTIONAL_STEP_PROBABILITY = 0.5
MUTUAL = ("met", "friends")  # if h met f, then f met h


@dataclass(frozen=True, slots=True, eq=False)
class Entity:
    """What fills a role. `name`, `sex` ("m" or "f") and `trait` are those of beings only."""

    entry: Entry
    adjective: Adjective
    name: str = ""
    sex: str = "m"
    trait: Adjective | None = None

    @property
    def category(self) -> str:
        """being, thing or place."""
        return self.entry.category

    @property
    def female(self) -> bool:
        """Whether it is a female being."""
        return self.sex == "f"


@dataclass(frozen=True, slots=True, eq=False)
class Beat:
    """One event of a story: `roles` maps the event's roles to the plot's. Becomes one sentence."""

    event: Event
    roles: Mapping[str, str]
    added: tuple[Fact, ...]
    removed: tuple[Fact, ...]
    known: frozenset[str]  # the plot's roles that were introduced by the end of this beat


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A plot, who fills each of its roles, and what happens."""

    plot: Plot
    cast: Mapping[str, Entity]
    beats: tuple[Beat, ...]

    def signature(self) -> int:
        """64 bits that stand for plot, bindings and steps, equal on every machine."""
        parts = [self.plot.name]
        for role, entity in self.cast.items():
            trait = entity.trait.key if entity.trait else ""
            parts.append(f"{role} {entity.entry.key} {entity.name} {entity.sex} {trait} {entity.adjective.key}")
        parts += [f"{beat.event.name} {' '.join(beat.roles.values())}" for beat in self.beats]
        return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest(), "big")


def draw_plan(grammar: Grammar, plot: Plot, rng: Random) -> Plan:
    """Cast the plot and run its steps. Raises GrammarError naming plot, step and fact when the data do not hold together."""
    cast = _draw_cast(grammar, plot, rng)
    return Plan(plot, cast, _run(plot, rng))


def _draw_cast(grammar: Grammar, plot: Plot, rng: Random) -> dict[str, Entity]:
    """Names, nouns (in every language) and adjectives are all different within one story."""
    cast: dict[str, Entity] = {}
    taken: set[str] = set()
    adjectives: set[Adjective] = set()
    for name in sorted(plot.roles, key=lambda name: len(plot.roles[name].candidates)):  # the most demanding role first
        role = plot.roles[name]
        entry = _draw_entry(role.candidates, taken, rng, f"plot {plot.name}, role {name}")
        if role.category == "being":
            sex = rng.choice(allowed_sexes(entry, role.sexes))
            given_name = _draw_name(grammar.names[sex], taken, rng)
            taken.add(given_name)
            trait = _draw_adjective(grammar.adjectives["trait"], entry, adjectives, rng)
            looks = _draw_adjective(grammar.adjectives["being"], entry, adjectives, rng)
            cast[name] = Entity(entry, looks, given_name, sex, trait)
        else:
            use = "food" if "food" in entry.tags else role.category
            cast[name] = Entity(entry, _draw_adjective(grammar.adjectives[use], entry, adjectives, rng))
    return {name: cast[name] for name in plot.roles}


def _words(entry: Entry) -> set[str]:
    return {f"{lang} {noun.form}" for lang, nouns in entry.nouns.items() for noun in nouns}


def _draw_entry(candidates: tuple[Entry, ...], taken: set[str], rng: Random, where: str) -> Entry:
    """An entry none of whose words is taken; its words then are. The first draws nearly always fit."""
    draws = [rng.choice(candidates) for _ in range(4)]
    entry = next((entry for entry in draws if not _words(entry) & taken), None)
    if entry is None:
        free = [entry for entry in candidates if not _words(entry) & taken]
        if not free:
            raise GrammarError(f"{where}: all fitting entries are in the story already; add entries or loosen the role")
        entry = rng.choice(free)
    taken |= _words(entry)
    return entry


def _draw_adjective(adjectives: tuple[Adjective, ...], entry: Entry, used: set[Adjective], rng: Random) -> Adjective:
    """One that is not in the story yet and does not repeat the noun ("a wooden wooden spoon")."""
    noun = entry.nouns["eng"][0].form
    draws = (rng.choice(adjectives) for _ in range(20))
    adjective = next((a for a in draws if a not in used and a.forms["eng"].predicate not in noun), adjectives[0])
    used.add(adjective)
    return adjective


def _draw_name(names: tuple[str, ...], taken: set[str], rng: Random) -> str:
    while (name := rng.choice(names)) in taken:
        pass
    return name


def _ground(fact: Fact, roles: Mapping[str, str]) -> Fact:
    """The fact about the plot's roles; the arguments of mutual ones sorted, so that both directions are one fact."""
    arguments = [roles.get(word, word) for word in fact[1:]]
    return (fact[0], *(sorted(arguments) if fact[0] in MUTUAL else arguments))


def _matching(pattern: Fact, state: set[Fact]) -> list[Fact]:
    """The facts that equal the pattern, `*` standing for anything."""
    if "*" not in pattern:
        return [pattern] if pattern in state else []
    forms = [pattern, (pattern[0], *reversed(pattern[1:]))] if pattern[0] in MUTUAL else [pattern]
    return [fact for fact in state if any(_equals(form, fact) for form in forms)]


def _equals(pattern: Fact, fact: Fact) -> bool:
    return len(fact) == len(pattern) and all(p in ("*", f) for p, f in zip(pattern, fact))


def _unmet(conditions: tuple[Condition, ...], roles: Mapping[str, str], state: set[Fact]) -> Condition | None:
    for condition in conditions:
        if bool(_matching(_ground(condition.fact, roles), state)) == condition.negated:
            return condition
    return None


def _shown(condition: Condition, roles: Mapping[str, str]) -> str:
    return "not " * condition.negated + " ".join(_ground(condition.fact, roles))


def _run(plot: Plot, rng: Random) -> tuple[Beat, ...]:
    state = {_ground(fact, {}) for fact in plot.start}
    beats = []
    for step in plot.steps:
        if step.optional and rng.random() >= OPTIONAL_STEP_PROBABILITY:
            continue
        unmet = [(event, roles, _unmet(event.pre, roles, state)) for event, roles in step.alternatives]
        possible = [(event, roles) for event, roles, missing in unmet if missing is None]
        if possible:
            beats.append(_happen(*rng.choice(possible), state))
        elif not step.optional:
            missing = "; ".join(f"{event.name} needs {_shown(fact, roles)!r}" for event, roles, fact in unmet if fact)
            raise GrammarError(
                f"plot {plot.name}, step {step.source!r}: {missing}. So far: {', '.join(beat.event.name for beat in beats)}"
            )
    if goal := _unmet(plot.want, {}, state):
        raise GrammarError(f"plot {plot.name}: at its end {_shown(goal, {})!r} does not hold")
    return tuple(beats)


def _happen(event: Event, roles: Mapping[str, str], state: set[Fact]) -> Beat:
    """Change the world in place."""
    removed = sorted({fact for pattern in event.remove for fact in _matching(_ground(pattern, roles), state)})
    added = [_ground(fact, roles) for fact in event.add]
    state.difference_update(removed)
    state.update(added)
    known = frozenset(fact[1] for fact in state if fact[0] == "introduced")
    return Beat(event, roles, tuple(added), tuple(removed), known)
