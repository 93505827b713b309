"""The parser: sentences of four languages to events and back, and what is not a sentence of the grammar."""

from __future__ import annotations

from random import Random

import pytest

from sonarkit.evaluation.story_parser import NEAR, Reading, Unread, parser, words
from sonarkit.text.storyworld import CODES, stories

LANGS = tuple(CODES.values())


def read(text: str, lang: str = "eng_Latn") -> Reading:
    readings = parser(lang).read(text)
    assert isinstance(readings, list), f"{text!r} was not read"
    return readings[0]


def told(reading: Reading, what: str) -> dict[str, object]:
    return {letter: getattr(said, what) for letter, said in reading.said if getattr(said, what)}


def test_joints_are_taken_apart_alike_in_patterns_and_sentences() -> None:
    assert words("L'ours alla au parc.", "fra") == ("le", "ours", "alla", "à", "le", "parc", ".")
    assert words("Mia ging zum Park.", "deu") == ("mia", "ging", "zu", "dem", "park", ".")
    assert words("Fue al bosque del oso.", "spa") == ("fue", "a", "el", "bosque", "de", "el", "oso", ".")
    assert words("An owl's tail", "eng") == ("a", "owl", "'s", "tail")


@pytest.mark.parametrize("lang", LANGS)
def test_every_sentence_of_the_grammar_is_read_as_its_event(lang: str) -> None:
    for story in stories(25, seed=5):
        names = {role: cast["name"] for role, cast in story.roles.items() if "name" in cast}
        for event, sentence in zip(story.events, story.sentences[lang], strict=True):
            readings = parser(lang).read(sentence)
            assert isinstance(readings, list) and all(one.exact for one in readings), sentence
            assert {one.event.name for one in readings} == {event["event"]}
            for letter, name in told(readings[0], "name").items():
                assert names[event["roles"][letter]] == name


@pytest.mark.parametrize(
    "lang, sentence, name, kind",
    [
        ("eng_Latn", "Once upon a time there was a shy owl named Mia.", "Mia", "owl"),
        ("fra_Latn", "Il était une fois une renarde timide qui s'appelait Mia.", "Mia", "fox"),
        ("deu_Latn", "Es war einmal ein kleiner Fuchs namens Tom.", "Tom", "fox"),
        ("spa_Latn", "Había una vez un zorro tímido que se llamaba Tom.", "Tom", "fox"),
    ],
)
def test_fillers(lang: str, sentence: str, name: str, kind: str) -> None:
    reading = read(sentence, lang)
    assert reading.exact and reading.event.name == "intro"
    assert told(reading, "name") == {"h": name} and told(reading, "kinds") == {"h": frozenset([kind])}


@pytest.mark.parametrize(
    "lang, slip",
    [
        ("eng_Latn", "Once upon a time there was an shy fox named Mia."),
        ("fra_Latn", "Il était une fois un petite renard qui s'appelait Tom."),
        ("deu_Latn", "Es war einmal eine kleiner Fuchs namens Tom."),
        ("spa_Latn", "Había una vez una zorro tímido que se llamaba Tom."),
        ("eng_Latn", "once upon a time there was a shy fox named Mia."),
    ],
)
def test_a_slip_costs_some_credit_and_not_the_event(lang: str, slip: str) -> None:
    reading = read(slip, lang)
    assert reading.event.name == "intro" and 0.8 < reading.credit < 1


def test_contradictions_within_a_sentence_are_no_matter_of_grammar() -> None:
    reading = read("Tom had been given a red kite for her birthday.")
    assert reading.exact and told(reading, "sex") == {"h": "f"} and told(reading, "name") == {"h": "Tom"}


def test_a_pronoun_for_a_thing_must_have_the_gender_of_its_noun() -> None:
    assert read("Mia hatte einen roten Ball und nahm ihn überallhin mit.", "deu_Latn").exact
    assert not read("Mia hatte einen roten Ball und nahm sie überallhin mit.", "deu_Latn").exact


def test_word_salad_is_read_without_credit_and_strangers_are_not_read() -> None:
    sentence = "It was getting late, so Mia walked back to the mill."
    heap = sentence.split()
    Random(1).shuffle(heap)
    reading = read(" ".join(heap))
    assert reading.event.name == "go_home" and reading.credit == 0 and told(reading, "name") == {"h": "Mia"}
    stranger = parser("eng_Latn").read("Mia and Tom filed their taxes long after midnight.")
    assert isinstance(stranger, Unread) and stranger.names == ("Mia", "Tom") and stranger.credit < NEAR
    for nothing in ("", "...", "Zzz"):
        assert parser("eng_Latn").read(nothing) == Unread(())


def test_unknown_language() -> None:
    with pytest.raises(ValueError, match="told in eng_Latn, fra_Latn, deu_Latn, spa_Latn, .*'ita_Latn'"):
        parser("ita_Latn")
