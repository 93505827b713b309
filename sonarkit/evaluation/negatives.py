"""Hard negatives for xsim++: English sentences that differ in little and mean something else (arXiv 2306.12907).

1. `entity_pool` collects the corpus' named entities by kind: months, weekdays, peoples and their languages, places, names.
2. `hard_negatives` alters one thing of a sentence at a time:

   | kind | what is altered |
   |---|---|
   | `causality` | an adjective or adverb becomes its antonym, a negation is added or taken away, a modal is strengthened |
   | `entity` | a named entity becomes another one of the same kind in the corpus |
   | `number` | a number, in digits or words, becomes another of the same form |

The paper's kinds by rules and word lists of ours: no tagger, no WordNet, nothing to download. It therefore finds fewer
places, and mistakes some: entities are what is written with a capital inside a sentence, places what stands after "in".
The numbers of one implementation do not compare with another's, nor those of different corpora or of another `most`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

Kind = Literal["causality", "entity", "number"]
KINDS: tuple[Kind, ...] = ("causality", "entity", "number")


def _words(text: str) -> list[str]:
    return text.split()


MONTHS = _words("January February March April May June July August September October November December")
WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
PEOPLES = _words("""African American Arab Arabic Asian Australian Austrian Belgian Brazilian British Canadian Chinese Czech Danish
Dutch Egyptian English European Finnish French German Greek Hebrew Hungarian Indian Iranian Irish Israeli Italian Japanese
Korean Latin Mexican Norwegian Persian Polish Portuguese Roman Russian Scottish Spanish Swedish Swiss Turkish Ukrainian
Vietnamese Welsh""")
PLACES = _words("""Africa America Asia Australia Austria Belgium Berlin Boston Brazil Canada Chicago China Egypt England Europe
Florida France Germany Greece India Ireland Israel Italy Japan Kyoto London Mexico Moscow Munich Paris Poland Rome Russia
Scotland Spain Sweden Switzerland Tokyo Turkey Vienna""")
_CLOSED = {**dict.fromkeys(MONTHS, "month"), **dict.fromkeys(WEEKDAYS, "weekday"), **dict.fromkeys(PEOPLES, "people")}
_BEFORE_PLACES = set(_words("in near into across throughout around visit visited visiting"))
_NO_ENTITIES = set(_words("I Mr Mrs Ms Miss Dr Prof Sir Lady Lord St A.M. P.M. AM PM OK TV CD DVD PC"))

ANTONYMS = """
old/young new/used big/small large/tiny long/short tall/short high/low wide/narrow thick/thin deep/shallow heavy/light
good/bad better/worse best/worst right/wrong true/false hot/cold warm/cool wet/dry hard/soft rough/smooth sharp/blunt
strong/weak fast/slow quick/slow quickly/slowly early/late earlier/later rich/poor happy/sad glad/sorry kind/cruel
friendly/hostile nice/nasty polite/rude brave/cowardly clever/stupid wise/foolish beautiful/ugly pretty/ugly clean/dirty
full/empty open/closed opened/closed easy/difficult simple/complicated cheap/expensive safe/dangerous loud/quiet
loudly/quietly noisy/silent bright/dark sweet/bitter fresh/stale healthy/sick well/badly alive/dead asleep/awake
near/far nearby/distant inside/outside indoors/outdoors up/down above/below before/after first/last more/less most/least
many/few much/little always/never often/rarely sometimes/never everything/nothing everybody/nobody everyone/nobody
everywhere/nowhere both/neither with/without possible/impossible important/unimportant necessary/unnecessary
famous/unknown lucky/unlucky patient/impatient honest/dishonest careful/careless carefully/carelessly useful/useless
afraid/unafraid tired/rested busy/idle lazy/diligent proud/ashamed angry/calm boring/interesting
same/different similar/different together/alone modern/ancient public/private guilty/innocent present/absent left/right
wonderful/terrible great/terrible remarkable/ordinary special/ordinary strange/familiar gentle/rough mild/harsh
good-natured/ill-natured modest/boastful cheerful/gloomy merry/gloomy shy/bold timid/bold tidy/messy
love/hate loves/hates loved/hated like/dislike likes/dislikes liked/disliked remember/forget remembered/forgot
win/lose won/lost found/lost begin/end began/ended start/stop started/stopped laughed/cried laugh/cry buy/sell bought/sold
arrived/left accept/refuse accepted/refused increase/decrease increased/decreased succeed/fail succeeded/failed
because/although
"""
_STRONGER = {"may": "will", "might": "will", "could": "will", "should": "must", "would": "will"}

_AUXILIARIES = set(_words("is are was were am will would can could should must may might"))
_NEGATED = {"isn't": "is", "aren't": "are", "wasn't": "was", "weren't": "were", "won't": "will", "wouldn't": "would",
            "can't": "can", "cannot": "can", "couldn't": "could", "shouldn't": "should", "mustn't": "must", "don't": "do",
            "doesn't": "does", "didn't": "did", "haven't": "have", "hasn't": "has", "hadn't": "had"}  # fmt: skip
_SUBJECTS = set(_words("i you he she it we they who"))
_PAST = set(
    _words("""ate became began bent blew bought broke brought built burnt came caught chose clung crept dealt drank drew drove dug
    fell felt fought flew forgot forgave froze gave got grew heard held hid kept knew laid led lent lost made met paid rang
    ran rode rose said sang sank sat saw sent shook shone slept slid sold spoke spent sprang stole stood struck swam swept swore
    taught thought threw told took understood went wept woke won wore wrote""")
)  # not left, found, lit, felled: these are often something else
_PRESENT = set(
    _words("""agree believe buy care come drink drive eat feel forget get give go hate hear help hope keep know laugh learn like
    live love make mean meet need play read remember run say see sing sleep speak study swim take talk tell think travel trust
    understand use wait walk want watch work write""")
)
_PRESENT |= {f"{verb}es" if verb in ("go", "watch") else f"{verb}s" for verb in _PRESENT} | {"studies", "studied"}

_SMALL = _words("two three four five six seven eight nine ten eleven twelve")
_TEENS = _words("thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_SCALES = _words("hundred thousand million billion")
_ORDINALS = _words("second third fourth fifth sixth seventh eighth ninth tenth")
_TIMES = _words("once twice")
_NUMBERS = {word: words for words in (_SMALL, _TEENS, _TENS, _SCALES, _ORDINALS, _TIMES) for word in words}

_WORD = re.compile(r"\d[\d.,:]*\d(?:st|nd|rd|th)?|\d(?:st|nd|rd|th)?|[^\W\d_]+(?:['’-][^\W\d_]+)*")
# What stands before a word that has its capital from its place.
_ENDS = re.compile(r"(?:^|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.]|[!?:…\"“”„«»'‘])\W*$")


@dataclass(frozen=True)
class EntityPool:
    """Named entities by their kind, and the kind of each."""

    names: Mapping[str, Sequence[str]]
    kinds: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", {name: kind for kind, names in self.names.items() for name in names})


def entity_pool(sentences: Iterable[str]) -> EntityPool:
    """The named entities of an English corpus by kind ("month", "weekday", "people", "place", "name"), sorted.

    Months, weekdays and peoples are closed lists, of which the pool has all. A place is what is known for one, or follows a
    word like "in" at least once in four times; others are names.
    """
    counts: Counter[str] = Counter()
    placed: Counter[str] = Counter()
    for sentence in sentences:
        for start, end in _capitalised(sentence):
            name = sentence[start:end]
            counts[name] += 1
            before = sentence[:start].split()
            owned = sentence[end:].startswith(("'s", "’s"))
            placed[name] += name in PLACES or bool(before) and before[-1].lower() in _BEFORE_PLACES and not owned
    pool: dict[str, list[str]] = {"month": MONTHS, "weekday": WEEKDAYS, "people": PEOPLES}
    for name in sorted(counts):
        if name not in _CLOSED:
            pool.setdefault("place" if 4 * placed[name] >= counts[name] else "name", []).append(name)
    return EntityPool(pool)


def hard_negatives(sentence: str, pool: EntityPool, seed: int = 0, most: int = 5) -> list[tuple[Kind, str]]:
    """At most `most` altered copies of an English sentence of each kind, all different; [] where nothing can be altered.

    What is altered and into what is drawn at random by `seed` and the sentence, so that the same sentence has the same
    negatives wherever it stands. `pool` is that of `entity_pool`.
    """
    found: list[tuple[Kind, str]] = []
    seen = {sentence}
    for kind, changes in (("causality", _causality), ("entity", _entities), ("number", _numbers)):
        draw = random.Random(f"{seed} {kind} {sentence}")
        options = [list(alternatives) for alternatives in changes(sentence, pool, draw, most)]
        for alternatives in options:
            draw.shuffle(alternatives)
        draw.shuffle(options)
        fresh = dict.fromkeys(text for text in _in_turns(options) if text not in seen)
        kept = list(islice(fresh, most))
        seen.update(kept)
        found += [(kind, text) for text in kept]  # type: ignore[misc]
    return found


def _in_turns(options: list[list[str]]) -> Iterator[str]:
    """The first of each list, then the second of each, ..."""
    for turn in range(max(map(len, options), default=0)):
        yield from (alternatives[turn] for alternatives in options if turn < len(alternatives))


# ---------------------------------------------------------------------- the three kinds: for each place its alternatives


def _causality(sentence: str, pool: EntityPool, draw: random.Random, most: int) -> Iterator[list[str]]:
    words = list(_WORD.finditer(sentence))
    lower = [word[0].lower().replace("’", "'") for word in words]
    question = sentence.rstrip("\"'”’ ").endswith("?")
    for i, word in enumerate(words):
        here, before = lower[i], lower[i - 1] if i else ""
        after = lower[i + 1] if i + 1 < len(words) else ""
        if here in _ANTONYMS and not _is_entity(word, words, i) and (here, after) not in _FIXED:
            yield [_replaced(sentence, word.span(), other) for other in _ANTONYMS[here]]
        if here in _STRONGER and before not in ("if", "wish"):
            yield [_replaced(sentence, word.span(), _STRONGER[here])]
        if here in _NEGATED:
            yield [_replaced(sentence, word.span(), _NEGATED[here])]
        elif here == "not" and i and sentence[words[i - 1].end() : word.start()].isspace():
            yield [sentence[: words[i - 1].end()] + sentence[word.end() :]]
        elif here in _AUXILIARIES and after not in ("not", "never", "") and not (question and i == 0) and before != "and":
            subject_follows = after in _SUBJECTS or (i + 1 < len(words) and words[i + 1][0] in pool.kinds)
            if not subject_follows:
                yield [sentence[: word.end()] + " not" + sentence[word.end() :]]
        elif i and (before in _SUBJECTS or words[i - 1][0] in pool.kinds) and not (i > 1 and lower[i - 2] in _INVERTED):
            adjacent = sentence[words[i - 1].end() : word.start()] == " "
            past = here in _PAST or (len(here) > 4 and here.endswith("ed"))
            if adjacent and not question and (past or here in _PRESENT):
                yield [sentence[: word.start()] + "never " + sentence[word.start() :]]


_INVERTED = set(_words("do does did don't doesn't didn't can could will would should must may might has have had let make makes"))
_FIXED = {("well", "as"), ("left", "the"), ("left", "for"), ("last", "night"), ("last", "week"), ("last", "year"),
          ("right", "now"), ("like", "a"), ("like", "an"), ("like", "the"), ("much", "more"), ("first", "name")}  # fmt: skip


def _entities(sentence: str, pool: EntityPool, draw: random.Random, most: int) -> Iterator[list[str]]:
    for start, end in _mentions(sentence, pool):
        others = [name for name in pool.names[pool.kinds[sentence[start:end]]] if name not in sentence]
        yield [_replaced(sentence, (start, end), name) for name in draw.sample(others, min(most, len(others)))]


def _numbers(sentence: str, pool: EntityPool, draw: random.Random, most: int) -> Iterator[list[str]]:
    for word in _WORD.finditer(sentence):
        here = word[0].lower()
        if here in _NUMBERS:
            if here == "second" and sentence[: word.start()].lower().rstrip().endswith((" a", " one")):
                continue  # of time
            yield [_replaced(sentence, word.span(), other) for other in _NUMBERS[here] if other != here]
        elif here[0].isdigit():
            others = {_other_number(word[0], draw) for _ in range(20)} - {word[0]}
            yield [_replaced(sentence, word.span(), other) for other in sorted(others)]


def _other_number(number: str, draw: random.Random) -> str:
    """Another number of the same form: as many digits, the first not 0; a year stays in its century, an hour in the day."""
    digits = number.rstrip("stndrh")
    if re.fullmatch(r"1[5-9]\d\d|20\d\d", digits):
        return digits[:2] + f"{draw.randrange(100):02d}" + number[len(digits) :]
    if time := re.fullmatch(r"(\d\d?):(\d\d)", digits):
        return f"{draw.randrange(1, 13)}:{draw.randrange(0, 60, 5):02d}" + number[time.end() :]
    drawn = "".join(c if not c.isdigit() else str(draw.randrange(1 if i == 0 else 0, 10)) for i, c in enumerate(digits))
    return drawn if digits == number else drawn + _ordinal(int(re.sub(r"\D", "", drawn)))


def _ordinal(number: int) -> str:
    return "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


# ---------------------------------------------------------------------- words and names


def _antonyms() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for pair in ANTONYMS.split():
        one, other = pair.split("/")
        table.setdefault(one, []).append(other)
        if one not in table.get(other, []):
            table.setdefault(other, []).append(one)
    return {word: list(dict.fromkeys(others)) for word, others in table.items()}


_ANTONYMS = _antonyms()


def _initial(sentence: str, start: int) -> bool:
    """Whether a word has its capital from where it stands: at the beginning, or after an end or an opening quote."""
    return bool(_ENDS.search(sentence[:start]))


def _capitalised(sentence: str) -> Iterator[tuple[int, int]]:
    """Where runs of words stand that have a capital inside the sentence."""
    run: tuple[int, int] | None = None
    for word in _WORD.finditer(sentence):
        text = re.split(r"['’]", word[0])[0]
        end = word.start() + len(text)
        fits = text[0].isupper() and len(text) > 1 and text not in _NO_ENTITIES and not _initial(sentence, word.start())
        joins = run is not None and sentence[run[1] : word.start()] == " " and not {text, sentence[slice(*run)]} & _CLOSED.keys()
        if run and not (fits and joins):
            yield run
            run = None
        if fits:
            run = (run[0] if run else word.start(), end)
    if run:
        yield run


def _mentions(sentence: str, pool: EntityPool) -> Iterator[tuple[int, int]]:
    """Where the pool's entities stand, and at the beginning, too."""
    inside = list(_capitalised(sentence))
    for word in _WORD.finditer(sentence):
        text = re.split(r"['’]", word[0])[0]
        if _initial(sentence, word.start()) and text in pool.kinds and text != "May":
            yield word.start(), word.start() + len(text)
    yield from (place for place in inside if sentence[slice(*place)] in pool.kinds)


def _is_entity(word: re.Match[str], words: list[re.Match[str]], i: int) -> bool:
    return i > 0 and word[0][0].isupper() and word[0] != "I" and not _initial(word.string, word.start())


def _replaced(sentence: str, span: tuple[int, int], other: str) -> str:
    """The sentence with another word there, its capital and the article before it made to fit."""
    start, end = span
    if sentence[start].isupper() and other[0].islower():
        other = other[0].upper() + other[1:]
    before = sentence[:start]
    if article := re.search(r"\b(an?) $", before, re.IGNORECASE):
        fitting = "an" if other[0].lower() in "aeiou" and not other.lower().startswith(("use", "uni", "eu", "one")) else "a"
        before = before[: article.start()] + (fitting.capitalize() if article[1][0].isupper() else fitting) + " "
    return before + other + sentence[end:]
