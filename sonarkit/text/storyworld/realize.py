"""Plan -> sentences in four languages, aligned one to one.

1. Noun phrases: determiner, adjective and noun, inflected.
2. Sound rules at word joints: a/an, élision, du/au, al/del, zum, y -> e.
3. Patterns, compiled once into tuples of strings and functions of the scene.
4. The telling: which variant, which phrases, name or pronoun; the same choices in all languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from random import Random
from typing import TypeVar

from sonarkit.text.storyworld.grammar import LANGS, Event, Grammar, Inflection, Noun, Pattern, Phrase, Slot, slots
from sonarkit.text.storyworld.planner import Beat, Entity, Plan

V = TypeVar("V")

PRONOUN_PROBABILITY = 0.5
PRONOUNS = {"eng": ("he", "she"), "fra": ("il", "elle"), "deu": ("er", "sie"), "spa": ("él", "ella")}  # (male, female)

ARTICLE = "\ue000"  # after an article that a slot made: `de le` contracts before a noun, never before a verb
ASPIRATED = "\ue001"  # before a French noun whose h forbids elision

# 1. Noun phrases

# French and Spanish: (masculine, feminine).
DETERMINERS = {
    "fra": {
        "a": ("un", "une"),
        "the": ("le" + ARTICLE, "la"),
        "this": ("ce" + ARTICLE, "cette"),
        "my": ("mon", "ma"),
        "your": ("ton", "ta"),
        "poss": ("son", "sa"),
    },
    "spa": {
        "a": ("un", "una"),
        "the": ("el" + ARTICLE, "la"),
        "this": ("este", "esta"),
        "my": ("mi", "mi"),
        "your": ("tu", "tu"),
        "poss": ("su", "su"),
    },
}
# German endings by case and gender.
GERMAN_THE = {
    "nom": {"m": "der", "f": "die", "n": "das"},
    "acc": {"m": "den", "f": "die", "n": "das"},
    "dat": {"m": "dem", "f": "der", "n": "dem"},
}
GERMAN_STRONG = {
    "nom": {"m": "er", "f": "e", "n": "es"},
    "acc": {"m": "en", "f": "e", "n": "es"},
    "dat": {"m": "em", "f": "er", "n": "em"},
}
GERMAN_WEAK = {
    "nom": {"m": "e", "f": "e", "n": "e"},
    "acc": {"m": "en", "f": "e", "n": "e"},
    "dat": {"m": "en", "f": "en", "n": "en"},
}
GERMAN_BARE_EIN = {("nom", "m"), ("nom", "n"), ("acc", "n")}  # `ein` has no ending here, so the adjective takes the strong one


def _german(determiner: str, noun: Noun, adjective: Inflection | None, case: str, owner_female: bool) -> str:
    strong = GERMAN_STRONG[case][noun.gender]
    bare_ein = (case, noun.gender) in GERMAN_BARE_EIN
    if determiner == "the":
        article, ending = GERMAN_THE[case][noun.gender] + ARTICLE, GERMAN_WEAK[case][noun.gender]
    elif determiner == "this":
        article, ending = "dies" + strong, GERMAN_WEAK[case][noun.gender]
    elif determiner == "n":
        article, ending = "", strong
    else:
        stem = {"a": "ein", "my": "mein", "your": "dein", "poss": "ihr" if owner_female else "sein"}[determiner]
        article = stem if bare_ein else stem + strong
        ending = strong if bare_ein else GERMAN_WEAK[case][noun.gender]
    described = ""
    if adjective:
        described = adjective.masculine + ending if adjective.masculine else adjective.predicate
    return _words(article, described, noun.form if case == "nom" else noun.oblique)


def _romance(lang: str, determiner: str, noun: Noun, adjective: Inflection | None) -> str:
    feminine = noun.gender == "f"
    form = ASPIRATED + noun.form if lang == "fra" and noun.special else noun.form
    before = after = ""
    if adjective:
        described = adjective.feminine if feminine else adjective.masculine
        if adjective.precedes and not feminine and FRENCH_VOWEL.match(form):
            described = adjective.before_vowel
        before, after = (described, "") if adjective.precedes else ("", described)
    if determiner == "n":
        return _words(before, form, after)
    # Spanish el agua, un águila: the masculine article right before a stressed a.
    masculine_article = not feminine or (lang == "spa" and noun.special and not before and determiner in ("a", "the"))
    return _words(DETERMINERS[lang][determiner][0 if masculine_article else 1], before, form, after)


def _english(determiner: str, noun: Noun, adjective: Inflection | None, owner_female: bool) -> str:
    article = {"n": "", "poss": "her" if owner_female else "his"}.get(determiner, determiner)
    return _words(article, adjective.predicate if adjective else "", noun.form)


def _words(*words: str) -> str:
    return " ".join(filter(None, words))


@lru_cache(maxsize=1 << 16)
def noun_phrase(
    lang: str, determiner: str, noun: Noun, adjective: Inflection | None = None, case: str = "nom", owner_female: bool = False
) -> str:
    """Determiner, adjective and noun, inflected; still with ARTICLE and ASPIRATED marks, which `polish` takes out.

    `determiner`: a, the, this, my, your, poss (his or her, by `owner_female`) or n (none). `case`: nom, acc, dat (German).
    """
    if lang == "deu":
        return _german(determiner, noun, adjective, case, owner_female)
    if lang == "eng":
        return _english(determiner, noun, adjective, owner_female)
    return _romance(lang, determiner, noun, adjective)


# 2. Sound rules at word joints

WORD_START = r"(?<![\w'’-])"  # not `prends-le avec toi`, not `aujourd'hui`
ENGLISH_VOWEL = r"(?!uni(?![mn])|us[eu]|eu|one\b|once\b|uk)(?:[aeiou]|hour|honest|honou?r|heir)"
ENGLISH_A = re.compile(rf"{WORD_START}(a) (?={ENGLISH_VOWEL})", re.IGNORECASE)

# French words with aspirated h that patterns may use; nouns of the lexicon carry their own mark.
FRENCH_ASPIRATED = (
    "hach|hai[eln]|haï|halet|hall|halo|halte|hamac|hameau|hamster|hanch|hangar|hannet|hant|happ|haras|harcel|hard|hargn|haricot|"
    "harnais|harp|hasard|hât|hauss|haut|havre|hay|hérisson|hériss|hernie|héron|héros|hêtre|heurt|hibou|hic|hideu|hiss|hoch|hockey|"
    "homard|hont|hoquet|horde|hors|hott|houle|houpp|houss|houx|hubl|huch|huer|huée|huit|hul|hurl|hutt|onz|oui\\b|ouistiti|un\\b-deux"
)
FRENCH_VOWEL = re.compile(rf"(?!{FRENCH_ASPIRATED})(?:[aàâäeéèêëiîïoôöuùûühœæ]|y(?![aeou]))", re.IGNORECASE)
VOWEL = FRENCH_VOWEL.pattern
FRENCH_ELISION = re.compile(
    rf"{WORD_START}(l(?=[ae])|(?:d|qu|n|s|m|t|j|jusqu|lorsqu|puisqu|quoiqu)(?=e))[ae]{ARTICLE}? (?={VOWEL})|"
    rf"{WORD_START}(s)i (?=ils?\b)|{WORD_START}(c)e (?=est\b|étai)",
    re.IGNORECASE,
)
FRENCH_POSSESSIVE = re.compile(rf"{WORD_START}([mts])a (?={VOWEL})", re.IGNORECASE)
FRENCH_CET = re.compile(rf"{WORD_START}(ce){ARTICLE} (?={VOWEL})", re.IGNORECASE)
FRENCH_CONTRACTION = re.compile(rf"(?<!\w)(de|à) le{ARTICLE} ", re.IGNORECASE)
GERMAN_CONTRACTION = re.compile(rf"(?<!\w)(?:(zu|von|bei|an|in) (dem)|(zu) (der)|(an|in) (das)){ARTICLE} ", re.IGNORECASE)
GERMAN_SHORT = {"von dem": "vom", "in dem": "im", "an dem": "am", "bei dem": "beim", "zu dem": "zum", "zu der": "zur"}
SPANISH_CONTRACTION = re.compile(rf"(?<!\w)(a|de) el{ARTICLE} ", re.IGNORECASE)
SPANISH_AND = re.compile(r"(?<!\w)y (?=h?[ií](?![aeoáéó]))", re.IGNORECASE)
SPANISH_OR = re.compile(r"(?<!\w)o (?=h?[oó])", re.IGNORECASE)
FIRST_LETTER = re.compile(r"[^\W\d_]")


def _elide(found: re.Match[str]) -> str:
    return (found[1] or found[2] or found[3]) + "'"


def _contract_french(found: re.Match[str]) -> str:
    return {"de": "du ", "De": "Du ", "à": "au ", "À": "Au "}[found[1]]


def _contract_german(found: re.Match[str]) -> str:
    preposition, article = found[0].rstrip(ARTICLE + " ").split(" ")
    short = GERMAN_SHORT.get(f"{preposition.lower()} {article}", f"{preposition.lower()}s")
    return preposition[0] + short[1:] + " "


def _polish_english(text: str) -> str:
    return ENGLISH_A.sub(r"\1n ", text)


def _polish_french(text: str) -> str:
    text = FRENCH_POSSESSIVE.sub(r"\1on ", text)
    text = FRENCH_CET.sub(r"\1t ", text)
    text = FRENCH_ELISION.sub(_elide, text)
    text = FRENCH_CONTRACTION.sub(_contract_french, text)
    return text.replace(ARTICLE, "").replace(ASPIRATED, "")


def _polish_german(text: str) -> str:
    return GERMAN_CONTRACTION.sub(_contract_german, text).replace(ARTICLE, "") if ARTICLE in text else text


def _polish_spanish(text: str) -> str:
    if ARTICLE in text:
        text = SPANISH_CONTRACTION.sub(lambda found: found[1] + "l ", text).replace(ARTICLE, "")
    return SPANISH_OR.sub("u ", SPANISH_AND.sub("e ", text)).replace("  ", " ").strip()  # where a pronoun was left out


POLISH = {"eng": _polish_english, "fra": _polish_french, "deu": _polish_german, "spa": _polish_spanish}


def polish(lang: str, text: str) -> str:
    """Apply the language's sound rules, take the marks out, and begin with a capital."""
    text = POLISH[lang](text)
    first = FIRST_LETTER.search(text)
    assert first, "a sentence without a letter"
    return text[: first.start()] + first[0].upper() + text[first.end() :]


# 3. Patterns


@dataclass(slots=True)
class Scene:
    """What the slots of one sentence look at: its cast by the event's letters, its phrases by class.

    `pronoun`: say the subject by a pronoun; `alone`: no one else was in the sentence before, so that Spanish needs none.
    """

    cast: Mapping[str, Entity]
    pronoun: bool = False
    alone: bool = True
    phrases: Mapping[str, Phrase] = field(default_factory=dict)


Segment = str | Callable[[Scene], str]


def _noun_phrase_segment(slot: Slot, lang: str) -> Callable[[Scene], str]:
    role, owner = slot.roles[0], slot.roles[-1]

    def say(scene: Scene) -> str:
        entity = scene.cast[role]
        noun = entity.entry.nouns[lang][entity.female]
        adjective = entity.adjective.forms[lang] if slot.adjective else None
        return noun_phrase(lang, slot.determiner, noun, adjective, slot.case, scene.cast[owner].female)

    return say


def _choice_segment(slot: Slot, lang: str, before_noun: bool) -> Callable[[Scene], str]:
    """Beings choose by sex, things and places by grammatical gender."""
    # `de {t?le|la} {t.n}` contracts, `de {t?le|la} garder` does not.
    options = [option + ARTICLE if before_noun and option in ("le", "ce", "el") else option for option in slot.options]

    def say(scene: Scene) -> str:
        entities = [scene.cast[role] for role in slot.roles]
        if entities[0].category == "being":
            return options[all(entity.female for entity in entities)]
        return options["mfn".index(entities[0].entry.nouns[lang][0].gender)]

    return say


def _trait_segment(slot: Slot, lang: str) -> Callable[[Scene], str]:
    role = slot.roles[0]

    def say(scene: Scene) -> str:
        entity = scene.cast[role]
        assert entity.trait, "only beings have traits, and the grammar checked that this is one"
        form = entity.trait.forms[lang]
        return form.feminine if entity.female and lang != "deu" else form.predicate

    return say


def _subject_segment(slot: Slot, lang: str) -> Callable[[Scene], str]:
    role, pronouns = slot.roles[0], PRONOUNS[lang]

    def say(scene: Scene) -> str:
        if not scene.pronoun:
            return scene.cast[role].name
        return "" if scene.alone and lang == "spa" else pronouns[scene.cast[role].female]

    return say


def _phrase_segment(slot: Slot, lang: str) -> Callable[[Scene], str]:
    if not slot.roles:
        return lambda scene: scene.phrases[slot.phrase].forms[lang][0]
    role = slot.roles[0]
    return lambda scene: scene.phrases[slot.phrase].forms[lang][scene.cast[role].female]


def _segment(slot: Slot, lang: str, before_noun: bool) -> Callable[[Scene], str]:
    role = slot.roles[0] if slot.roles else ""
    if slot.kind == "np":
        return _noun_phrase_segment(slot, lang)
    if slot.kind == "choice":
        return _choice_segment(slot, lang, before_noun)
    if slot.kind == "trait":
        return _trait_segment(slot, lang)
    if slot.kind == "subject":
        return _subject_segment(slot, lang)
    if slot.kind == "phrase":
        return _phrase_segment(slot, lang)
    if slot.kind == "name":
        return lambda scene: scene.cast[role].name
    place_phrase = ("at", "to", "from").index(slot.kind)
    return lambda scene: scene.cast[role].entry.phrases[lang][place_phrase]


def _capitalized(say: Callable[[Scene], str]) -> Callable[[Scene], str]:
    def capitalize(scene: Scene) -> str:
        text = say(scene)
        return text[:1].upper() + text[1:]

    return capitalize


OPENS_QUOTE = re.compile(r'(?:^|\s)["«„]\s?[¡¿]*$')


def compile_pattern(pattern: Pattern, lang: str) -> tuple[Segment, ...]:
    """Strings and functions of a scene; joined, they give the sentence before `polish`."""
    segments: list[Segment] = []
    said = ""
    for i, piece in enumerate(pattern):
        if isinstance(piece, str):
            segments.append(piece)
            said += piece
            continue
        noun_follows = pattern[i + 1 : i + 2] == (" ",) and [s.determiner for s in slots(pattern[i + 2 : i + 3])] == ["n"]
        segment = _segment(piece, lang, noun_follows)
        first_quotation = len(re.findall('["«„]', said)) == 1  # a later one goes on: "Yes," he said, "a kite."
        segments.append(_capitalized(segment) if first_quotation and OPENS_QUOTE.search(said) else segment)
        said += "x"
    return tuple(segments)


def render(segments: tuple[Segment, ...], lang: str, scene: Scene) -> str:
    """The sentence that `compile_pattern`'s segments give in a scene, polished."""
    return polish(lang, "".join([segment if isinstance(segment, str) else segment(scene) for segment in segments]))


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One way to say an event, ready to be told."""

    segments: Mapping[str, tuple[Segment, ...]]
    subject: str  # the role of `{h}`, the same in all languages, else empty
    topic: str  # whom the next sentence may call he or she: the subject, or who is introduced alone
    mentions: frozenset[str]
    mentions_before_subject: frozenset[str]
    phrases: tuple[str, ...]


def _mentions(pieces: Iterable[str | Slot]) -> set[str]:
    return {role for slot in slots(tuple(pieces)) if slot.kind != "choice" for role in slot.roles}


def _compile_variant(say: Mapping[str, Pattern]) -> Variant:
    subjects = {tuple(slot.roles[0] for slot in slots(pattern) if slot.kind == "subject") for pattern in say.values()}
    subject = "".join(next(iter(subjects))) if len(subjects) == 1 else ""
    used = [slot for pattern in say.values() for slot in slots(pattern)]
    introduced = {slot.roles[0] for slot in used if slot.determiner == "a"}
    mentions = _mentions(used)
    before = [
        _mentions(takewhile(lambda piece: isinstance(piece, str) or piece.kind != "subject", pattern)) for pattern in say.values()
    ]
    return Variant(
        {lang: compile_pattern(pattern, lang) for lang, pattern in say.items()},
        subject,
        subject or ("".join(introduced) if len(mentions) == 1 else ""),
        frozenset(mentions),
        frozenset().union(*before),
        tuple(sorted({slot.phrase for slot in used if slot.kind == "phrase"})),
    )


@lru_cache(maxsize=4096)
def variants(event: Event) -> tuple[Variant, ...]:
    """The event's variants, compiled at first use."""
    return tuple(map(_compile_variant, event.say))


# 4. The telling


def tell(grammar: Grammar, plan: Plan, rng: Random) -> dict[str, list[str]]:
    """Sentences by short language code, one per beat; sentence i means the same in every language."""
    told: dict[str, list[str]] = {lang: [] for lang in LANGS}
    used_variants: set[Variant] = set()
    used_phrases: set[Phrase] = set()
    topic, present = "", frozenset[str]()  # of the sentence before: whom it was about, and all beings in it
    for beat in plan.beats:
        variant = _draw_unused(variants(beat.event), used_variants, rng)
        phrases = {kind: _draw_unused(grammar.phrases[kind], used_phrases, rng) for kind in variant.phrases}
        scene = Scene({letter: plan.cast[role] for letter, role in beat.roles.items()}, phrases=phrases)
        subject = beat.roles.get(variant.subject, "")
        if subject and subject == topic:
            others = (present | _beings(variant.mentions_before_subject, beat, plan)) - {subject}
            clear = all(plan.cast[other].sex != plan.cast[subject].sex for other in others)
            scene.pronoun = clear and rng.random() < PRONOUN_PROBABILITY
            scene.alone = not others
        for lang, segments in variant.segments.items():
            told[lang].append(render(segments, lang, scene))
        topic, present = beat.roles.get(variant.topic, ""), _beings(variant.mentions, beat, plan)
    return told


def _beings(letters: Iterable[str], beat: Beat, plan: Plan) -> frozenset[str]:
    """The plot's roles behind an event's letters, beings only."""
    roles = [beat.roles[letter] for letter in letters]
    return frozenset(role for role in roles if plan.cast[role].category == "being")


def _draw_unused(options: tuple[V, ...], used: set[V], rng: Random) -> V:
    """One not yet used in this story, while there is one."""
    drawn = rng.choice([option for option in options if option not in used] or options)
    used.add(drawn)
    return drawn
