"""The parser: sentences of four languages to events and back, and what is not a sentence of the grammar."""

from __future__ import annotations

import math
from random import Random

import pytest

from sonarkit.evaluation.story_parser import CANDIDATES, CONTENT, NEAR, Parser, Reading, Unread, Words, parser, words
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


def plain_scores(judge: Parser, sentence: Words) -> list[float]:
    """The best scores of all patterns that share a word with the sentence."""
    here = {word for word in sentence if word.isalpha()}
    strange = {w for w in here if w not in judge.known_words and w not in judge.names}
    scores = []
    for template in judge.templates:
        common = sum(judge.weights[word] for word in here & template.literals)
        extra = sum(judge.weights.get(word, judge.unknown_weight) for word in strange - template.literals)
        if here & template.literals:
            scores.append(2 * common / (common + extra + template.weight))
    return sorted(scores, reverse=True)[:CANDIDATES]


@pytest.mark.parametrize("lang", LANGS)
def test_what_is_not_aligned_would_not_have_won(lang: str) -> None:
    """Against all candidates aligned to their ends, with few words changed and with many."""
    judge, random, credited = parser(lang), Random(2), list[bool]()
    for sentence in (sentence for story in stories(2, split="test") for sentence in story.sentences[lang]):
        for changes in (1, 3, 9):
            cut = list(words(sentence, judge.lang))
            for _ in range(changes):
                cut[random.randrange(len(cut))] = random.choice(cut)
            here, plain = tuple(cut), []
            nearest = judge._nearest(here)
            assert [score for score, _ in nearest] == pytest.approx(plain_scores(judge, here))
            for content, template in nearest:
                aligned = judge._align(here, template, math.inf)
                assert aligned is not None
                credit = min(1 - aligned[0] / max(len(here), len(template.pieces)), 1 - 1 / len(here))
                plain.append((credit if credit >= NEAR else 0.0, content, template.event.name, template.variant, aligned[1]))
            plain = [one for one in plain if one[0] or one[1] >= CONTENT]
            best = [one for one in plain if one[:2] == max(other[:2] for other in plain)]
            found = [(one.credit, one.content, one.event.name, one.variant, one.said) for one in judge._near(here)]
            if best and best[0][0]:
                assert found == best
            else:
                assert {one[:4] for one in found} == {one[:4] for one in best}
            credited.append(bool(found and found[0][0]))
    assert any(credited) and not all(credited)


def test_unknown_language() -> None:
    with pytest.raises(ValueError, match="told in eng_Latn, fra_Latn, deu_Latn, spa_Latn, .*'ita_Latn'"):
        parser("ita_Latn")
