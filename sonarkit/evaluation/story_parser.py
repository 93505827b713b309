"""Sentence -> the StoryWorld event it tells, with its fillers: the grammar read backwards.

1. Words: a sentence is cut into lower-case words and marks, and what joins at word joints is taken apart again
   (du -> de le, zum -> zu dem, l' -> le, an -> a), in patterns and lexicon alike.
2. Lexicon: names, nouns, adjectives, place phrases and fixed phrases by their words.
3. Exact: a pattern whose literal words and slots cover the sentence is a reading; it is grammatical when the grammar,
   given the same fillers slot by slot, says the very same sentence again, letter by letter.
4. Near: otherwise the best alignment with the patterns that share most words (weighted by how rare they are).

What slots of one sentence say about a role is kept apart (`Said`), so that "Tom ... she" is a grammatical sentence here
and a contradiction in `story_judge`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from heapq import nlargest
from itertools import accumulate, chain, permutations
from typing import Any, Generic, TypeVar

from sonarkit.text.storyworld.grammar import CODES, Adjective, Entry, Event, Grammar, Phrase, Slot, load, slots
from sonarkit.text.storyworld.planner import Entity
from sonarkit.text.storyworld.realize import DETERMINERS, PRONOUNS, Scene, Segment, polish, variants

# Of 5 232 test sentences, 1 308 a language, with one / three / five words changed, put in or left out, 100 / 96 / 82 % have
# credit and 99 / 95 / 88 % are read as their event; with all words shuffled 0.9 % have credit and 99 % are read. Of as many
# heaps of 12 words from anywhere 0 % and 0.9 %, of 784 handwritten sentences 0.1 % (one) and 0 %.
NEAR = 0.5  # least share of words in place for a sentence to have credit
CONTENT = 0.6  # least share of words in common, rare ones counting more, for a sentence to be read as an event
CANDIDATES = 6  # patterns that are aligned with a sentence which is not exact
MOST_READINGS = 24

Words = tuple[str, ...]
T = TypeVar("T")

# 1. Words

JOINED = {
    "eng": {"an": "a"},
    "fra": {"du": "de le", "au": "à le", "la": "le", "l'": "le", "d'": "de", "n'": "ne", "s'": "se", "si": "se", "c'": "ce"}
    | {"m'": "me", "t'": "te", "j'": "je", "ma": "mon", "ta": "ton", "sa": "son", "cet": "ce"}
    | {"qu'": "que", "jusqu'": "jusque", "lorsqu'": "lorsque", "puisqu'": "puisque", "quoiqu'": "quoique"},
    "deu": {"vom": "von dem", "im": "in dem", "am": "an dem", "beim": "bei dem", "zum": "zu dem", "zur": "zu der"}
    | {"ins": "in das", "ans": "an das"},
    "spa": {"al": "a el", "del": "de el", "e": "y", "u": "o"},
}
WORD = {lang: re.compile(r"'s\b|[^\W\d_]+|\d+|\S") for lang in ("eng", "deu", "spa")} | {"fra": re.compile(r"[^\W\d_]+'?|\d+|\S")}


def surface_words(text: str, lang: str) -> Words:
    """Words and marks as they stand."""
    return tuple(WORD[lang].findall(text.replace("’", "'")))


def words(text: str, lang: str) -> Words:
    """Lower-case words and marks with joints taken apart."""
    joined = JOINED[lang]
    return tuple(part for word in surface_words(text.lower(), lang) for part in joined.get(word, word).split())


GLUED = re.compile(r"[^\W\d_]$")


# 2. Lexicon


@dataclass(frozen=True, slots=True)
class Said:
    """What some words say of one role; empty where they say nothing. Kinds, adjectives and traits are the lexicon's keys:
    those that the words may mean."""

    name: str = ""
    kinds: frozenset[str] = frozenset()
    sex: str = ""
    adjectives: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()
    gender: str = ""  # of a pronoun for a thing or place


@dataclass(frozen=True, slots=True)
class Found:
    """One way to fill a slot with the words up to `end`; `scene` makes the grammar say it again."""

    end: int
    scene: Scene
    said: tuple[tuple[str, Said], ...] = ()


class Forms(Generic[T]):
    """Things by the words they are written in; `at` finds all that stand at a position."""

    def __init__(self) -> None:
        self.by_words: dict[Words, list[T]] = defaultdict(list)
        self.longest: dict[str, int] = {}  # by first word

    def add(self, form: Words, thing: T) -> None:
        """Let `thing` be found by these words, too."""
        if form and thing not in self.by_words[form]:
            self.by_words[form].append(thing)
            self.longest[form[0]] = max(len(form), self.longest.get(form[0], 0))

    def at(self, sentence: Words, start: int) -> Iterator[tuple[int, list[T]]]:
        """Where a form that begins at `start` ends, and the things that it may be; the longest form first."""
        if start < len(sentence):
            for length in range(self.longest.get(sentence[start], 0), 0, -1):
                found = self.by_words.get(sentence[start : start + length])
                if found and start + length <= len(sentence):
                    yield start + length, found


GERMAN_ENDINGS = ("", "e", "en", "em", "er", "es")
GERMAN_STEMS = {"a": "ein", "my": "mein", "your": "dein", "this": "dies"}


def _determiners(lang: str) -> dict[str, dict[str, str]]:
    """The forms of each determiner, with the owner's sex they tell, if any."""
    if lang == "eng":
        return {one: {one: ""} for one in ("a", "the", "this", "my", "your")} | {"poss": {"his": "m", "her": "f"}}
    if lang == "deu":
        stems = {one: {stem + ending: "" for ending in GERMAN_ENDINGS} for one, stem in GERMAN_STEMS.items()}
        owned = {stem + ending: sex for stem, sex in (("sein", "m"), ("ihr", "f")) for ending in GERMAN_ENDINGS}
        return stems | {"the": dict.fromkeys(("der", "die", "das", "den", "dem"), ""), "poss": owned}
    return {one: {words(form, lang)[0]: "" for form in forms} for one, forms in DETERMINERS[lang].items()}


def _adjective_forms(adjective: Adjective, lang: str) -> set[str]:
    form = adjective.forms[lang]
    german = {form.masculine + ending for ending in GERMAN_ENDINGS} if lang == "deu" and form.masculine else set()
    return {form.predicate, form.masculine, form.before_vowel, form.feminine} | german


# 3. and 4. Readings


@dataclass(frozen=True)
class Reading:
    """A sentence as an event. `said`: what it says of the event's roles, by their letters, slot by slot. `credit`: 1 if the
    grammar says the sentence to the letter, less as more of its words must change, 0 below `NEAR`. `content`: how much of
    the rarer words it shares with the pattern, in any order."""

    event: Event
    variant: int
    said: tuple[tuple[str, Said], ...]
    credit: float
    content: float

    @property
    def exact(self) -> bool:
        """Whether the grammar says the sentence to the letter."""
        return self.credit == 1


@dataclass(frozen=True, eq=False)
class Template:
    """One variant of an event in one language. `pieces`: literal words, and slots with their segment of the grammar."""

    event: Event
    variant: int
    pieces: tuple[str | tuple[Slot, int], ...]
    segments: tuple[Segment, ...]
    literals: frozenset[str]
    weight: float = 0.0  # of its literal words


@dataclass(frozen=True)
class Unread:
    """What can still be told of a sentence that is no event: the people it names, and how near it is to a sentence of the
    grammar."""

    names: tuple[str, ...]
    credit: float = 0.0


@dataclass
class Parser:
    """Reads sentences of one language. Use `parser(lang)`, which keeps them."""

    grammar: Grammar
    lang: str
    templates: list[Template] = field(default_factory=list)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)  # lower-case name -> name, sex

    def __post_init__(self) -> None:
        grammar, lang = self.grammar, self.lang
        self.names = {name.lower(): (name, sex) for sex, names in grammar.names.items() for name in names}
        self.determiners = _determiners(lang)
        self.any_determiner = {form: "" for forms in self.determiners.values() for form in forms}
        self.categories = _categories(grammar)
        entries = list(chain.from_iterable(grammar.entries.values()))
        self.category_of = {entry.key: entry.category for entry in entries}
        self.gender_of = {entry.key: entry.nouns[lang][0].gender for entry in entries}
        self.nouns: Forms[tuple[Entry, str]] = Forms()  # with the sex that the form tells
        self.places: dict[str, Forms[Entry]] = {kind: Forms() for kind in ("at", "to", "from")}
        self.adjectives: Forms[Adjective] = Forms()
        self.phrases: dict[str, Forms[tuple[Phrase, str]]] = {}
        self._read_lexicon()
        self.known_words = {w for forms in self._all_forms() for form in forms.by_words for w in form} | set(self.any_determiner)
        self._compile()

    def _read_lexicon(self) -> None:
        lang, split = self.lang, lambda text: words(text, self.lang)
        for category, entries in self.grammar.entries.items():
            for entry in entries:
                male, female = entry.nouns[lang]
                for noun, sex in ((male, "m"), (female, "f")):
                    told = "" if category != "being" or male == female else sex
                    for form in (noun.form, noun.oblique):
                        self.nouns.add(split(form), (entry, told))
                for kind, place in zip(self.places, entry.phrases.get(lang, ())):
                    self.places[kind].add(split(place), entry)
        for adjective in dict.fromkeys(chain.from_iterable(self.grammar.adjectives.values())):
            for form in _adjective_forms(adjective, lang):
                self.adjectives.add(split(form), adjective)
        for kind, phrases in self.grammar.phrases.items():
            self.phrases[kind] = Forms()
            for phrase in phrases:
                for k, form in enumerate(phrase.forms[lang]):
                    self.phrases[kind].add(split(form), (phrase, "mf"[k] if len(set(phrase.forms[lang])) > 1 else ""))

    def _all_forms(self) -> Iterable[Forms[Any]]:
        return (self.nouns, self.adjectives, *self.places.values(), *self.phrases.values())

    def _compile(self) -> None:
        self.samples = _samples(self.grammar, self.lang)
        templates = []
        for event in self.grammar.events.values():
            for k, (say, variant) in enumerate(zip(event.say, variants(event))):
                pieces: list[str | tuple[Slot, int]] = []
                before = ""
                for i, piece in enumerate(say[self.lang]):
                    if isinstance(piece, Slot):
                        if pieces and GLUED.search(before):  # Spanish: tener{t?lo|la} is one word
                            stem = pieces.pop()
                            piece = replace(piece, options=tuple(f"{stem}{option}" for option in piece.options))
                        pieces.append((piece, i))
                    else:
                        pieces += words(piece, self.lang)
                    before = piece if isinstance(piece, str) else ""
                literals = frozenset(piece for piece in pieces if isinstance(piece, str) and piece.isalpha())
                templates.append(Template(event, k, tuple(pieces), variant.segments[self.lang], literals))
        frequency: dict[str, int] = defaultdict(int)
        for template in templates:
            for word in template.literals:
                frequency[word] += 1
        self.weights = {word: math.log(len(templates) / count) for word, count in frequency.items()}
        self.unknown_weight = math.log(len(templates))
        self.by_word: dict[str, list[Template]] = defaultdict(list)
        self.by_rarest: dict[str, list[Template]] = defaultdict(list)
        for template in templates:
            template = replace(template, weight=sum(self.weights[word] for word in sorted(template.literals)))
            self.templates.append(template)
            self.by_rarest[max(template.literals, key=lambda word: (self.weights[word], word))].append(template)
            for word in template.literals:
                self.by_word[word].append(template)

    # Slots

    def _being(self, role: str, name: str = "", sex: str = "m") -> dict[str, Entity]:
        return {role: replace(self.samples["being"], name=name, sex=sex)}

    def _noun_phrases(
        self, sentence: Words, start: int, slot: Slot, determiners: Mapping[str, str], adjective: bool | None
    ) -> Iterator[Found]:
        """`adjective`: with one, without, or (None) either."""
        owner_sex = ""
        if determiners and not (slot.determiner == "n" and determiners is not self.any_determiner):
            if start >= len(sentence) or sentence[start] not in determiners:
                return
            owner_sex = determiners[sentence[start]]
            start += 1
        options: list[tuple[int, list[tuple[Entry, str]], list[Adjective]]] = []
        if adjective is not True:
            options += [(end, found, []) for end, found in self.nouns.at(sentence, start)]
        if adjective is not False:
            for middle, described in self.adjectives.at(sentence, start):
                options += [(end, found, described) for end, found in self.nouns.at(sentence, middle)]
            if self.lang in ("fra", "spa"):
                for middle, found in self.nouns.at(sentence, start):
                    options += [(end, found, described) for end, described in self.adjectives.at(sentence, middle)]
        categories = self.categories_of(slot.roles[0])
        for end, found, described in options:
            for entry, sex in found:
                if categories and entry.category not in categories:
                    continue
                said = Said(kinds=frozenset([entry.key]), sex=sex, adjectives=frozenset(a.key for a in described))
                told = [(slot.roles[0], said)]
                if len(slot.roles) > 1 and owner_sex:
                    told.append((slot.roles[1], Said(sex=owner_sex)))
                for looks in described or [self.samples["being"].adjective]:
                    entity = Entity(entry, looks, "", sex or "m")
                    cast = {**self._being(slot.roles[-1], sex=owner_sex or "m"), slot.roles[0]: entity}
                    yield Found(end, Scene(cast), tuple(told))

    def categories_of(self, role: str) -> frozenset[str]:
        """What plots cast in a role of the event that is being read: being, thing or place."""
        return self._categories_now.get(role, frozenset())

    def _fill(self, sentence: Words, start: int, slot: Slot) -> Iterator[Found]:
        """Every way in which the words from `start` on may fill the slot."""
        role = slot.roles[0] if slot.roles else ""
        word = sentence[start] if start < len(sentence) else ""
        if slot.kind in ("subject", "name") and word in self.names:
            name, sex = self.names[word]
            yield Found(start + 1, Scene(self._being(role, name, sex)), ((role, Said(name=name)),))
        elif slot.kind == "subject":
            for pronoun, sex in zip(PRONOUNS[self.lang], "mf"):
                if word == pronoun:
                    yield Found(start + 1, Scene(self._being(role, sex=sex), True, False), ((role, Said(sex=sex)),))
            if self.lang == "spa":
                yield Found(start, Scene(self._being(role), True, True), ((role, Said()),))
        elif slot.kind == "np":
            yield from self._noun_phrases(sentence, start, slot, self.determiners.get(slot.determiner, {}), slot.adjective)
        elif slot.kind in ("at", "to", "from"):
            for end, entries in self.places[slot.kind].at(sentence, start):
                for entry in entries:
                    cast = {role: Entity(entry, self.samples["being"].adjective)}
                    yield Found(end, Scene(cast), ((role, Said(kinds=frozenset([entry.key]))),))
        elif slot.kind == "trait":
            yield from self._traits(sentence, start, role)
        elif slot.kind == "phrase":
            for end, phrases in self.phrases[slot.phrase].at(sentence, start):
                for phrase, sex in phrases:
                    said = ((role, Said(sex=sex)),) if sex and role else ()
                    yield Found(end, Scene(self._being(role, sex=sex or "m"), phrases={slot.phrase: phrase}), said)
        elif slot.kind == "choice":
            yield from self._choices(sentence, start, slot)

    def _traits(self, sentence: Words, start: int, role: str) -> Iterator[Found]:
        for end, adjectives in self.adjectives.at(sentence, start):
            traits = [adjective for adjective in adjectives if "trait" in adjective.of]
            for trait in traits:
                form = trait.forms[self.lang]
                differ = self.lang != "deu" and form.predicate != form.feminine
                for sex in "mf" if differ else "m":
                    told = Said(sex=sex if differ else "", traits=frozenset(t.key for t in traits))
                    cast = {role: replace(self.samples["being"], trait=trait, sex=sex)}
                    if sentence[start:end] == words(form.feminine if sex == "f" else form.predicate, self.lang):
                        yield Found(end, Scene(cast), ((role, told),))

    def _choices(self, sentence: Words, start: int, slot: Slot) -> Iterator[Found]:
        being = "being" in self.categories_of(slot.roles[0]) or len(slot.roles) > 1
        for k, option in enumerate(slot.options):
            form = words(option, self.lang)
            if sentence[start : start + len(form)] != form:
                continue
            if being:
                sex = "mf"[k]
                cast = {role: replace(self.samples["being"], sex=sex) for role in slot.roles}
                told = Said(sex=sex) if slot.options[0] != slot.options[1] else Said()
                # Of a pair, only the feminine tells something of each.
                said = tuple((role, told) for role in slot.roles if len(slot.roles) == 1 or sex == "f")
            else:
                gender = "mfn"[k]
                cast = {slot.roles[0]: self.samples[gender]}
                alike = slot.options.count(option) > 1
                said = ((slot.roles[0], Said(gender="" if alike else gender)),)
            yield Found(start + len(form), Scene(cast), said)

    # Exact

    def _covers(self, sentence: Words, template: Template) -> Iterator[dict[int, Found]]:
        """All ways in which the template covers the whole sentence: by segment, what fills it."""
        pieces, filled = template.pieces, dict[int, Found]()

        def go(piece: int, start: int) -> Iterator[dict[int, Found]]:
            for k, wanted in enumerate(pieces[piece:], piece):
                if not isinstance(wanted, str):
                    slot, segment = wanted
                    for found in self._fill(sentence, start, slot):
                        filled[segment] = found
                        yield from go(k + 1, found.end)
                    return
                if start >= len(sentence) or sentence[start] != wanted:
                    return
                start += 1
            if start == len(sentence):
                yield dict(filled)

        self._categories_now = self.categories[template.event.name]
        yield from go(0, 0)

    def _say(self, template: Template, filled: Mapping[int, Found]) -> str:
        said = [segment if isinstance(segment, str) else segment(filled[i].scene) for i, segment in enumerate(template.segments)]
        return polish(self.lang, "".join(said))

    def _exact(self, text: str, sentence: Words) -> list[Reading]:
        found: dict[tuple, Reading] = {}
        near: list[Reading] = []
        for template in (t for word in dict.fromkeys(sentence) for t in self.by_rarest.get(word, ())):
            if not template.literals.issubset(sentence):
                continue
            for filled in self._covers(sentence, template):
                said = tuple(pair for part in filled.values() for pair in part.said)
                again = self._say(template, filled)
                if again == text and self._agrees(said):
                    found[(template.event.name, said)] = Reading(template.event, template.variant, said, 1.0, 1.0)
                else:
                    credit = _similarity(surface_words(text, self.lang), surface_words(again, self.lang))
                    near.append(Reading(template.event, template.variant, said, min(credit, _one_off(sentence)), 1.0))
        return list(found.values())[:MOST_READINGS] or _best(near)

    def _agrees(self, said: Iterable[tuple[str, Said]]) -> bool:
        """Does a pronoun for a thing have the grammatical gender of the noun beside it?"""
        genders: dict[str, set[str]] = defaultdict(set)
        kinds: dict[str, set[str]] = defaultdict(set)
        for role, one in said:
            genders[role] |= set(one.gender)
            kinds[role] |= one.kinds
        return all(
            any(self.gender_of[kind] == gender for kind in kinds[role])
            for role, told in genders.items()
            for gender in told
            if kinds[role]
        )

    # Near

    def _nearest(self, sentence: Words) -> list[tuple[float, Template]]:
        """The templates that share most words, by the F-measure of the words' weights. Words of the lexicon that a template
        does not ask for count as fillers and do not weigh against it."""
        here = [word for word in dict.fromkeys(sentence) if word.isalpha()]
        strange = {
            word: self.weights.get(word, self.unknown_weight)
            for word in here
            if word not in self.known_words and word not in self.names
        }
        shared: dict[Template, float] = defaultdict(float)
        whole = sum(strange.values())
        foreign: dict[Template, float] = defaultdict(lambda: whole)  # to within rounding: it chooses whom to score exactly
        for word in here:
            for template in self.by_word.get(word, ()):
                shared[template] += self.weights[word]
                foreign[template] -= strange.get(word, 0.0)
        rough = [(2 * weight / (weight + foreign[template] + template.weight), template) for template, weight in shared.items()]
        least = min(nlargest(CANDIDATES, (score for score, _ in rough)), default=0.0) - 1e-9
        scored = []
        for score, template in rough:
            if score >= least:
                extra = sum(value for word, value in strange.items() if word not in template.literals)
                scored.append((2 * shared[template] / (shared[template] + extra + template.weight), template))
        scored.sort(key=lambda pair: -pair[0])
        return scored[:CANDIDATES]

    def _align(self, sentence: Words, template: Template, most: float) -> tuple[int, tuple[tuple[str, Said], ...]] | None:
        """The least number of words to change, insert or leave out, and what the filled slots say; None if it is above `most`.
        A slot filled by words that are none of its fillers costs them all, and at least 1."""
        self._categories_now = self.categories[template.event.name]
        absent = _absent(sentence, template)
        costs: list[int] = list(range(len(sentence) + 1))
        told: list[tuple] = [()] * len(costs)
        for piece, ahead in zip(template.pieces, absent[1:]):
            before, said_before = costs, told
            costs, told = [cost + 1 for cost in before], said_before.copy()  # the piece is missing
            if isinstance(piece, str):
                for j, word in enumerate(sentence):
                    cost = before[j] + (word != piece)
                    if cost < costs[j + 1]:
                        costs[j + 1], told[j + 1] = cost, said_before[j]
            else:
                slot = piece[0]
                for j, cost in enumerate(before[:-1]):
                    if cost + ahead <= most:
                        for found, price in self._fill_loosely(sentence, j, slot):
                            if cost + price < costs[found.end]:
                                costs[found.end], told[found.end] = cost + price, (said_before[j], found.said)
                    if cost + 1 < costs[j + 1]:
                        costs[j + 1], told[j + 1] = cost + 1, said_before[j]
                if self.lang == "spa" and slot.kind == "subject":
                    for j, cost in enumerate(before):
                        if cost < costs[j]:
                            costs[j], told[j] = cost, said_before[j]
            for j in range(len(sentence)):
                if costs[j] + 1 < costs[j + 1]:  # a word too many
                    costs[j + 1], told[j + 1] = costs[j] + 1, told[j]
            if min(costs) + ahead > most:
                return None
        if costs[-1] > most:
            return None
        links, said = told[-1], list[tuple[str, Said]]()
        while links:
            links, last = links
            said[:0] = last
        return costs[-1], tuple(said)

    def _fill_loosely(self, sentence: Words, start: int, slot: Slot) -> Iterator[tuple[Found, int]]:
        for found in self._fill(sentence, start, slot):
            if found.end > start:
                yield found, 0
        if slot.kind == "np":
            for found in self._noun_phrases(sentence, start, slot, self.any_determiner, None):
                yield found, 1
        elif slot.kind in ("at", "to", "from"):
            for kind in self.places:
                for found in self._fill(sentence, start, replace(slot, kind=kind)) if kind != slot.kind else ():
                    yield found, 1

    def _near(self, sentence: Words) -> list[Reading]:
        """The readings with the most credit, then content. What cannot be among them is not aligned to its end, nor is what is
        too far for credit, as its slots are filled from the bag of the sentence's words."""
        length = len(sentence)

        def credit_of(cost: int, template: Template) -> float:
            credit = min(1 - cost / max(length, len(template.pieces)), _one_off(sentence))
            return credit if credit >= NEAR else 0.0

        nearest = list(enumerate(self._nearest(sentence)))
        hopes = {i: credit_of(_absent(sentence, template)[0], template) for i, (_, template) in nearest}
        best, readings = (0.0, CONTENT), dict[int, Reading]()
        for i, (content, template) in sorted(nearest, key=lambda one: (-hopes[one[0]], one[0])):
            if (hopes[i], content) < best:
                continue
            costs = range(max(length, len(template.pieces)), -1, -1)
            credits = ((cost, credit_of(cost, template)) for cost in costs)
            most = next((cost for cost, credit in credits if credit and (credit, content) >= best), -1)
            cost, said = self._align(sentence, template, most) or (costs[0], ())
            if ((credit := credit_of(cost, template)), content) >= best:
                best = (credit, content)
                readings[i] = Reading(template.event, template.variant, said, credit, content)
        found = _best([readings[i] for i in sorted(readings)])
        if found and not found[0].credit:
            found = [replace(one, said=said) for one in found for said in self._cast_of_bag(sentence, one)]
        return found[:MOST_READINGS]

    def _cast_of_bag(self, sentence: Words, reading: Reading) -> list[tuple[tuple[str, Said], ...]]:
        """Who and what a sentence names, given to the roles in every way that their categories allow: its order is lost."""
        pattern = slots(reading.event.say[reading.variant][self.lang])
        categories = self.categories[reading.event.name]
        named = list(dict.fromkeys(self.names[word][0] for word in sentence if word in self.names))
        people = list(dict.fromkeys(slot.roles[0] for slot in pattern if slot.kind in ("name", "subject")))
        nouns: dict[str, list[Said]] = defaultdict(list)
        i = 0
        while i < len(sentence):
            end, found = next(self.nouns.at(sentence, i), (i + 1, []))
            for entry, sex in found[:1]:
                nouns[entry.category].append(Said(kinds=frozenset([entry.key]), sex=sex))
            i = end
        ways = [
            tuple((role, Said(name=name)) for role, name in zip(order, named))
            for order in permutations(people, min(len(people), len(named)))
        ]
        for category, told in nouns.items():
            roles = [
                role
                for role in dict.fromkeys(slot.roles[0] for slot in pattern if slot.kind in ("np", "at", "to", "from"))
                if category in categories.get(role, ())
            ]
            orders = list(permutations(roles, min(len(roles), len(told)))) or [()]
            ways = [way + tuple(zip(order, told)) for way in ways for order in orders]
        return ways[:MOST_READINGS] or [()]

    def read(self, text: str) -> list[Reading] | Unread:
        """The best readings of a sentence, several where it is ambiguous, all with the same credit; `Unread` where none will
        do."""
        sentence = words(text, self.lang)
        exact = self._exact(text, sentence)
        if exact and exact[0].exact:
            return exact
        readings = [*exact, *self._near(sentence)]
        if events := _best([one for one in readings if one.content >= CONTENT]):
            return events
        named = dict.fromkeys(self.names[word][0] for word in sentence if word in self.names)
        return Unread(tuple(named), max((one.credit for one in readings), default=0.0))


def _absent(sentence: Words, template: Template) -> list[int]:
    """How many words of the pattern, from each of its pieces on, the sentence lacks: no alignment costs less."""
    here = set(sentence)
    counts = accumulate(isinstance(piece, str) and piece not in here for piece in reversed(template.pieces))
    return [*reversed(list(counts)), 0]


def _one_off(sentence: Sequence[str]) -> float:
    """The credit of a sentence with one slip; none that is not exact has more."""
    return 1 - 1 / max(2, len(sentence))


def _best(readings: list[Reading]) -> list[Reading]:
    most = max(((one.credit, one.content) for one in readings), default=None)
    return [one for one in readings if (one.credit, one.content) == most]


def _similarity(a: Words, b: Words) -> float:
    """1 less the edit distance in words, relative to the longer."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return 1 - row[-1] / max(len(a), len(b), 1)


@lru_cache(maxsize=8)
def _categories(grammar: Grammar) -> dict[str, dict[str, frozenset[str]]]:
    """By event and letter, what plots cast there: being, thing or place."""
    found: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in grammar.events}
    for plot in grammar.plots.values():
        for step in plot.steps:
            for event, roles in step.alternatives:
                for letter, role in roles.items():
                    found[event.name][letter].add(plot.roles[role].category)
    return {name: {letter: frozenset(kinds) for letter, kinds in letters.items()} for name, letters in found.items()}


def _samples(grammar: Grammar, lang: str) -> dict[str, Entity]:
    """Some being, and a thing of each grammatical gender, to say a slot again that tells no more than that."""
    adjective = grammar.adjectives["being"][0]
    being = Entity(grammar.entries["being"][0], adjective, trait=grammar.adjectives["trait"][0])
    return {"being": being} | {entry.nouns[lang][0].gender: Entity(entry, adjective) for entry in grammar.entries["thing"]}


@lru_cache(maxsize=32)
def _parser(grammar: Grammar, lang: str) -> Parser:
    return Parser(grammar, lang)


def parser(lang: str, grammar: Grammar | None = None) -> Parser:
    """The parser of a language (`eng_Latn`, `fra_Latn`, `deu_Latn`, `spa_Latn`); `grammar` is the shipped one unless given.

    Raises ValueError for another language.
    """
    short = next((short for short, code in CODES.items() if code == lang), None)
    if short is None:
        raise ValueError(f"StoryWorld is told in {', '.join(CODES.values())}, so no story in {lang!r} can be judged by it.")
    return _parser(grammar or load(), short)
