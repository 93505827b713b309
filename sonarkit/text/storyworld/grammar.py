"""StoryWorld's data files -> frozen dataclasses, every entry checked once.

1. The lexicon: names, beings, things, places, adjectives, fixed phrases, each in four languages.
2. Patterns: sentences with slots, `{h} found {t.the+} {p.at}.`
3. Events: roles, facts that must hold, facts added and removed, and several aligned patterns.
4. Plots: roles with the tags they ask for, facts to start from and to reach, and steps.
5. `load`: reads a folder of them and raises one error that lists every fault.

A noun is `GENDER noun` or `male | female`; `*` after the gender forbids French elision and asks for Spanish `el`; German
weak nouns are `nominative/oblique`. An adjective is `masculine [before-vowel] feminine`, a last `<` if it stands before
its noun; in German `predicative/stem`, with `!` never inflected. Slots, for roles h (a being), t (a thing), p (a place):

    {h}                        the subject: a name, or he / she when the sentence before was about h too
    {h.name} {h.trait}         the name; the trait, as predicate
    {t.a} {t.the} {t.this} {t.my} {t.your} {t.poss_h} {t.n}   with determiner, h's own, bare
    {t.the+} {t.the:acc}       with the adjective; German case nom, acc or dat (both: `+:acc`)
    {h?he|she} {h+f?ils|elles} by sex, the last one when all are female
    {t?le|la} {t?der|die|das}  by grammatical gender
    {p.at} {p.to} {p.from}     the place's phrases
    {@when} {@feeling_up h}    a fixed phrase of that class; in the form for h's sex

Facts are `predicate role role`; `met` and `friends` hold both ways; in `pre` also `not FACT`, in `pre` and `del` also `*`
for anything. A step of a plot is `event role role`; alternatives are divided by `|`; a last ` ?` makes it optional.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sonarkit.core.paths import data_folder

CODES = {"eng": "eng_Latn", "fra": "fra_Latn", "deu": "deu_Latn", "spa": "spa_Latn"}
LANGS = tuple(CODES)
GENDERS = {"eng": "n", "fra": "mf", "deu": "mfn", "spa": "mf"}
CATEGORIES = {"being": "beings", "thing": "things", "place": "places"}
MAX_STEPS, MIN_MANDATORY_STEPS = 14, 5

Fact = tuple[str, ...]
T = TypeVar("T")


class GrammarError(ValueError):
    """A fault in StoryWorld's data files; the message names the file and the entry."""


# 1. The lexicon


@dataclass(frozen=True, slots=True)
class Noun:
    """A singular noun. `gender`: m, f or n. `special`: French aspirated h (no elision), Spanish feminine with `el`."""

    gender: str
    form: str
    oblique: str  # German accusative and dative of weak nouns; elsewhere the form itself
    special: bool = False


@dataclass(frozen=True, slots=True)
class Inflection:
    """An adjective in one language. For German `masculine` is the stem that takes the endings, empty if it takes none."""

    predicate: str
    masculine: str
    before_vowel: str
    feminine: str
    precedes: bool  # stands before its noun


@dataclass(frozen=True, slots=True, eq=False)
class Adjective:
    """`of`: what it may describe (being, trait, thing, food, place); `forms[lang]`: its inflection."""

    key: str
    of: frozenset[str]
    forms: Mapping[str, Inflection]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A being, thing or place: `nouns[lang]` is (male, female), `phrases[lang]` a place's (at, to, from)."""

    key: str
    category: str
    tags: frozenset[str]
    nouns: Mapping[str, tuple[Noun, Noun]]
    phrases: Mapping[str, tuple[str, str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class Phrase:
    """`forms[lang]` is (male, female)."""

    key: str
    forms: Mapping[str, tuple[str, str]]


def _noun(spec: str, lang: str) -> Noun:
    """`m* hibou`, `m Bär/Bären`, in English the bare noun."""
    if lang == "eng":
        return Noun("n", spec.strip(), spec.strip())
    found = re.fullmatch(rf"([{GENDERS[lang]}])(\*?) (\S.*)", spec.strip())
    if not found:
        raise GrammarError(f"{lang}: expected a gender ({'/'.join(GENDERS[lang])}) and a noun, got {spec!r}")
    gender, star, noun = found.groups()
    form, _, oblique = noun.partition("/") if lang == "deu" else (noun, "", "")
    return Noun(gender, form, oblique or form, bool(star))


def _pair(spec: str, lang: str) -> tuple[Noun, Noun]:
    """`male | female`, or one form for both."""
    male, bar, female = spec.partition("|")
    return _noun(male, lang), _noun(female if bar else male, lang)


def _inflection(spec: str, lang: str) -> Inflection:
    """`petit petite <`, `vieux vieil vieille <`, `dunkel/dunkl`, `rosa!`."""
    if lang == "eng":
        return Inflection(spec, spec, spec, spec, True)
    if lang == "deu":
        predicate, _, stem = spec.rstrip("!").partition("/")
        stem = "" if spec.endswith("!") else (stem or predicate).removesuffix("e")
        return Inflection(predicate, stem, stem, stem, True)
    forms = spec.removesuffix("<").split()
    if len(forms) not in ((1, 2, 3) if lang == "fra" else (1, 2)):
        raise GrammarError(f"{lang}: expected masculine and feminine, with a last `<` if it precedes, got {spec!r}")
    return Inflection(forms[0], forms[0], forms[-2] if len(forms) > 2 else forms[0], forms[-1], spec.endswith("<"))


def _in_each_language(table: Mapping[str, Any], read: Callable[[Any, str], T]) -> dict[str, T]:
    missing = [lang for lang in LANGS if not table.get(lang)]
    if missing:
        raise GrammarError(f"nothing for {', '.join(missing)}; all of {', '.join(LANGS)} are needed")
    return {lang: read(table[lang], lang) for lang in LANGS}


def _entry(key: str, table: Mapping[str, Any], category: str) -> Entry:
    tags = frozenset(table.get("is", "").split())
    if category != "place":
        return Entry(key, category, tags, _in_each_language(table, _pair), {})

    def place_phrases(spec: Any, lang: str) -> tuple[str, str, str]:
        if not isinstance(spec, list) or len(spec) != 4:
            raise GrammarError(f"{lang}: expected [noun, at, to, from], got {spec!r}")
        return spec[1], spec[2], spec[3]

    phrases = _in_each_language(table, place_phrases)
    return Entry(key, category, tags, _in_each_language(table, lambda spec, lang: _pair(spec[0], lang)), phrases)


def _adjective(key: str, table: Mapping[str, Any]) -> Adjective:
    of = frozenset(table.get("of", "").split())
    if not of or not of <= {"being", "trait", "thing", "food", "place"}:
        raise GrammarError(f"`of` must name some of being, trait, thing, food, place; got {table.get('of')!r}")
    return Adjective(key, of, _in_each_language(table, _inflection))


def _phrase(key: str, table: Mapping[str, Any]) -> Phrase:
    def pair(spec: str, lang: str) -> tuple[str, str]:
        male, bar, female = spec.partition("|")
        return male.strip(), (female if bar else male).strip()

    return Phrase(key, _in_each_language(table, pair))


# 2. Patterns


@dataclass(frozen=True, slots=True)
class Slot:
    """One `{...}`. `kind`: subject, name, trait, at, to, from, choice, phrase or np (a noun phrase)."""

    source: str
    kind: str
    roles: tuple[str, ...] = ()
    determiner: str = ""  # of a noun phrase: a, the, this, my, your, n or poss (of roles[1])
    adjective: bool = False
    case: str = "nom"
    options: tuple[str, ...] = ()
    phrase: str = ""


Pattern = tuple[str | Slot, ...]


def parse_slot(body: str) -> Slot:
    """The slot written `{body}`. Raises GrammarError."""
    if found := re.fullmatch(r"@(\w+)(?: (\w+))?", body):
        return Slot(body, "phrase", (found[2],) if found[2] else (), phrase=found[1])
    if found := re.fullmatch(r"(\w+(?:\+\w+)*)\?([^?]*)", body):
        return Slot(body, "choice", tuple(found[1].split("+")), options=tuple(found[2].split("|")))
    if re.fullmatch(r"\w+", body):
        return Slot(body, "subject", (body,))
    if found := re.fullmatch(r"(\w+)\.(name|trait|at|to|from)", body):
        return Slot(body, found[2], (found[1],))
    if found := re.fullmatch(r"(\w+)\.(a|the|this|my|your|n|poss_(\w+?))(\+)?(?::(nom|acc|dat))?", body):
        roles = (found[1], found[3]) if found[3] else (found[1],)
        return Slot(body, "np", roles, "poss" if found[3] else found[2], bool(found[4]), found[5] or "nom")
    raise GrammarError(f"slot {{{body}}} is none of the known forms")


def parse_pattern(text: str) -> Pattern:
    """Literal strings and slots in order. Raises GrammarError."""
    if not text:
        raise GrammarError("no sentence")
    pieces = re.split(r"\{([^{}]*)\}", text)
    if any("{" in piece or "}" in piece for piece in pieces):
        raise GrammarError(f"unbalanced braces in {text!r}")
    parsed = [parse_slot(piece) if i % 2 else piece for i, piece in enumerate(pieces)]
    return tuple(piece for piece in parsed if piece != "")


def slots(pattern: Pattern) -> list[Slot]:
    """The slots of a pattern, in order."""
    return [piece for piece in pattern if isinstance(piece, Slot)]


# 3. Events


@dataclass(frozen=True, slots=True)
class Condition:
    """A fact that must hold, or must not where it is `negated`."""

    fact: Fact
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """`say[k][lang]`: the k-th variant; all languages of one variant mean the same."""

    name: str
    theme: str
    roles: tuple[str, ...]
    pre: tuple[Condition, ...]
    add: tuple[Fact, ...]
    remove: tuple[Fact, ...]
    say: tuple[Mapping[str, Pattern], ...]


def _fact(text: str, roles: tuple[str, ...]) -> Fact:
    """`at h p`: a predicate, then roles, `*` or words of three letters and more (`happy`)."""
    predicate, *arguments = text.split()
    for word in arguments:
        if word not in roles and word != "*" and len(word) < 3:
            raise GrammarError(f"fact {text!r}: {word!r} is not among the roles {' '.join(roles)}")
    return (predicate, *arguments)


def _condition(text: str, roles: tuple[str, ...]) -> Condition:
    return Condition(_fact(text.removeprefix("not "), roles), text.startswith("not "))


def _said(text: str, lang: str, roles: tuple[str, ...], phrases: Mapping[str, tuple[Phrase, ...]]) -> Pattern:
    pattern = parse_pattern(text)
    for slot in slots(pattern):
        _check_slot(slot, lang, roles, phrases)
    if sum(slot.kind == "subject" for slot in slots(pattern)) > 1:
        raise GrammarError("more than one subject slot; use `.name` for the others")
    return pattern


def _check_slot(slot: Slot, lang: str, roles: tuple[str, ...], phrases: Mapping[str, tuple[Phrase, ...]]) -> None:
    for role in slot.roles:
        if role not in roles:
            raise GrammarError(f"slot {{{slot.source}}}: role {role!r} is not among the event's roles {' '.join(roles)}")
    if slot.kind == "phrase":
        if slot.phrase not in phrases:
            raise GrammarError(f"slot {{{slot.source}}}: no phrase class {slot.phrase!r}; there are {', '.join(phrases)}")
        sexed = [phrase.key for phrase in phrases[slot.phrase] if len(set(phrase.forms[lang])) > 1]
        if sexed and not slot.roles:
            raise GrammarError(f"slot {{{slot.source}}}: {sexed[0]!r} has two forms, so name the role: {{@{slot.phrase} h}}")
    if slot.kind == "choice" and not 2 <= len(slot.options) <= len(GENDERS["deu"]):
        raise GrammarError(f"slot {{{slot.source}}}: expected two or three options, got {len(slot.options)}")


def _event(name: str, table: Mapping[str, Any], theme: str, phrases: Mapping[str, Any], problems: list[str]) -> Event:
    roles = tuple(table.get("roles", "").split())
    if not roles:
        raise GrammarError("no roles")
    if not table.get("say"):
        raise GrammarError("no [[events.*.say]] variants")
    say = []
    for k, variant in enumerate(table["say"]):
        where = f"{theme}.toml, event {name}: variant {k + 1},"
        told = {lang: variant.get(lang, "") for lang in LANGS}
        say.append(_collect(where, told, lambda lang, text: _said(text, lang, roles, phrases), problems))
    return Event(
        name,
        theme,
        roles,
        tuple(_condition(text, roles) for text in table.get("pre", [])),
        tuple(_fact(text, roles) for text in table.get("add", [])),
        tuple(_fact(text, roles) for text in table.get("del", [])),
        tuple(say),
    )


# 4. Plots


@dataclass(frozen=True, slots=True, eq=False)
class Role:
    """What may fill a role of a plot. `sexes`: of a being, "mf", "m" or "f"."""

    category: str
    sexes: str
    candidates: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Alternatives: an event and the plot's role for each of its roles."""

    source: str
    alternatives: tuple[tuple[Event, Mapping[str, str]], ...]
    optional: bool


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """Who is to be cast, the facts to `start` from, those to `want` at the end, and the steps between."""

    name: str
    theme: str
    roles: Mapping[str, Role]
    start: tuple[Fact, ...]
    want: tuple[Condition, ...]
    steps: tuple[Step, ...]


def allowed_sexes(entry: Entry, sexes: str) -> str:
    """The sexes of a role that a kind of being can have: a kind tagged `m` or `f` has only that one."""
    own = "".join(sex for sex in "mf" if sex in entry.tags) or "mf"
    return "".join(sex for sex in sexes if sex in own)


def _role(name: str, spec: str, entries: Mapping[str, tuple[Entry, ...]]) -> Role:
    category, *tags = spec.split()
    if category not in CATEGORIES:
        raise GrammarError(f"role {name}: expected being, thing or place first, got {spec!r}")
    sexes = "".join(tag for tag in tags if category == "being" and tag in ("m", "f")) or "mf"
    wanted = {tag for tag in tags if not tag.startswith("-") and not (category == "being" and tag in ("m", "f"))}
    unwanted = {tag[1:] for tag in tags if tag.startswith("-")}
    fitting = tuple(
        entry
        for entry in entries[category]
        if wanted <= entry.tags and not unwanted & entry.tags and (category != "being" or allowed_sexes(entry, sexes))
    )
    if not fitting:
        raise GrammarError(f"role {name}: no entry of the lexicon fits {spec!r}")
    return Role(category, sexes, fitting)


def _step(text: str, roles: Mapping[str, Role], events: Mapping[str, Event]) -> Step:
    optional = text.rstrip().endswith("?")
    alternatives = []
    for call in text.rstrip().removesuffix("?").split("|"):
        name, *arguments = call.split()
        if name not in events:
            raise GrammarError(f"step {text!r}: there is no event {name!r}")
        event = events[name]
        unknown = [argument for argument in arguments if argument not in roles]
        if unknown or len(arguments) != len(event.roles) or len(set(arguments)) != len(arguments):
            raise GrammarError(
                f"step {text!r}: {name} takes {len(event.roles)} different roles ({' '.join(event.roles)}) "
                f"out of the plot's {' '.join(roles)}"
            )
        bound = dict(zip(event.roles, arguments))
        _check_categories(text, event, {letter: roles[role].category for letter, role in bound.items()})
        alternatives.append((event, bound))
    return Step(text, tuple(alternatives), optional)


def _check_categories(step: str, event: Event, categories: Mapping[str, str]) -> None:
    """Does every slot of the event suit what the plot binds to it?"""
    for k, variant in enumerate(event.say):
        for lang, pattern in variant.items():
            for slot in slots(pattern):
                fault = _category_fault(slot, lang, [categories[role] for role in slot.roles])
                if fault:
                    raise GrammarError(f"step {step!r}: event {event.name}, variant {k + 1}, {lang}, {{{slot.source}}}: {fault}")


def _category_fault(slot: Slot, lang: str, categories: list[str]) -> str:
    if slot.kind in ("subject", "name", "trait", "phrase") and set(categories) - {"being"}:
        return f"needs a being, but the plot gives a {categories[0]}"
    if slot.kind in ("at", "to", "from") and categories != ["place"]:
        return f"needs a place, but the plot gives a {categories[0]}"
    if slot.determiner == "poss" and categories[1] != "being":
        return f"the owner must be a being, but the plot gives a {categories[1]}"
    if slot.kind == "choice":
        expected = 2 if "being" in categories else len(GENDERS[lang])
        if expected == 1 or len(categories) > 1 and set(categories) != {"being"}:
            return "there is nothing to choose by: English things and places are `it`; pairs are of beings"
        if len(slot.options) != expected:
            return f"expected {expected} options for a {categories[0]}, got {len(slot.options)}"
    return ""


def _plot(name: str, table: Mapping[str, Any], theme: str, entries: Mapping[str, Any], events: Mapping[str, Event]) -> Plot:
    roles = {role: _role(role, spec, entries) for role, spec in table.get("roles", {}).items()}
    letters = tuple(roles)
    steps = tuple(_step(text, roles, events) for text in table.get("steps", []))
    mandatory = sum(not step.optional for step in steps)
    if len(steps) > MAX_STEPS or mandatory < MIN_MANDATORY_STEPS:
        raise GrammarError(
            f"expected at most {MAX_STEPS} steps and at least {MIN_MANDATORY_STEPS} mandatory ones, got {len(steps)}, {mandatory}"
        )
    if steps[-1].optional or not all(event.name.startswith("end_") for event, _ in steps[-1].alternatives):
        raise GrammarError(f"the last step must be a mandatory end_* event, got {steps[-1].source!r}")
    start = tuple(_fact(text, letters) for text in table.get("start", []))
    want = tuple(_condition(text, letters) for text in table.get("want", []))
    return Plot(name, theme, roles, start, want, steps)


# 5. Loading


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """The data files, read and checked."""

    names: Mapping[str, tuple[str, ...]]  # by sex, "f" and "m"
    entries: Mapping[str, tuple[Entry, ...]]  # by category
    adjectives: Mapping[str, tuple[Adjective, ...]]  # by what they describe
    phrases: Mapping[str, tuple[Phrase, ...]]  # by class
    events: Mapping[str, Event]
    plots: Mapping[str, Plot]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GrammarError(f"{path} does not exist") from None
    except tomllib.TOMLDecodeError as error:
        raise GrammarError(f"{path.name}: {error}") from None


def _collect(where: str, tables: Mapping[str, Any], read: Callable[[str, Any], T], problems: list[str]) -> dict[str, T]:
    """Read every entry; note the faulty ones and go on."""
    good = {}
    for key, table in tables.items():
        try:
            good[key] = read(key, table)
        except GrammarError as error:
            problems.append(f"{where} {key}: {error}")
    return good


def _read(folder: Path, themes: tuple[str, ...] | None, problems: list[str]) -> Grammar:
    lexicon = _read_toml(folder / "lexicon.toml")
    names = {sex: tuple(lexicon.get("names", {}).get(sex, ())) for sex in "fm"}
    adjectives = _collect("lexicon.toml, adjective", lexicon.get("adjectives", {}), _adjective, problems).values()
    phrases = {
        kind: tuple(_collect(f"lexicon.toml, phrase {kind}", tables, _phrase, problems).values())
        for kind, tables in lexicon.get("phrases", {}).items()
    }
    entries: dict[str, tuple[Entry, ...]] = {}
    for category, plural in CATEGORIES.items():
        read = _collect(
            f"lexicon.toml, {category}",
            lexicon.get(plural, {}),
            lambda key, table, category=category: _entry(key, table, category),  # type: ignore[misc]
            problems,
        )
        entries[category] = tuple(read.values())
    by_use = {
        use: tuple(adjective for adjective in adjectives if use in adjective.of)
        for use in ("being", "trait", "thing", "food", "place")
    }
    for what, found in [*names.items(), *by_use.items()]:
        if not found:
            problems.append(f"lexicon.toml: no {'names' if what in names else 'adjectives'} for {what!r}")

    events: dict[str, Event] = {}
    plots: dict[str, Plot] = {}
    if themes is None:  # those in folders below, such as unseen/making, only when they are named
        themes = tuple(path.stem for path in sorted((folder / "themes").glob("*.toml")))
    tables = {theme: _read_toml(folder / "themes" / f"{theme}.toml") for theme in themes}
    for theme, table in tables.items():
        for name in [*(events.keys() & table.get("events", {})), *(plots.keys() & table.get("plots", {}))]:
            problems.append(f"{theme}.toml: the name {name!r} is already used in another theme")
        events |= _collect(
            f"{theme}.toml, event",
            table.get("events", {}),
            lambda name, event, theme=theme: _event(name, event, theme, phrases, problems),  # type: ignore[misc]
            problems,
        )
    for theme, table in tables.items():
        plots |= _collect(
            f"{theme}.toml, plot",
            table.get("plots", {}),
            lambda name, plot, theme=theme: _plot(name, plot, theme, entries, events),  # type: ignore[misc]
            problems,
        )
    return Grammar(names, entries, by_use, phrases, events, plots)


@lru_cache(maxsize=8)
def load(folder: Path | None = None, themes: tuple[str, ...] | None = None) -> Grammar:
    """The grammar in `folder` (default: the shipped one), of these themes, by default all directly in `themes/`. Cached.

    Raises GrammarError, a ValueError, that lists every fault: file, entry, variant, language and slot.
    """
    problems: list[str] = []
    grammar = _read(folder or data_folder() / "storyworld", themes, problems)
    if problems:
        raise GrammarError("\n".join(problems))
    return grammar
