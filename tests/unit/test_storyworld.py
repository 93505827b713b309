"""StoryWorld: morphology on a tiny grammar, the planner's logic, and the shipped data."""

# ruff: noqa: E501  (tables of examples)
from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest

from sonarkit.text.storyworld import CODES, GrammarError, Story, load, split_of, stories, story
from sonarkit.text.storyworld.__main__ import main, sentence_faults
from sonarkit.text.storyworld.grammar import LANGS, Grammar, parse_pattern, parse_slot
from sonarkit.text.storyworld.planner import Entity, draw_plan
from sonarkit.text.storyworld.realize import Scene, compile_pattern, render, tell

LEXICON = """
[names]
f = ["Anna", "Mia"]
m = ["Oskar", "Tom"]

[beings]
fox = { is = "animal", eng = "fox", fra = "m renard | f renarde", deu = "m Fuchs | f Füchsin", spa = "m zorro | f zorra" }
owl = { is = "animal wise", eng = "owl", fra = "m* hibou", deu = "f Eule", spa = "m búho" }
bear = { is = "animal big", eng = "bear", fra = "m ours | f ourse", deu = "m Bär/Bären | f Bärin", spa = "m oso | f osa" }
child = { is = "human", eng = "boy | girl", fra = "m garçon | f fille", deu = "m Junge/Jungen | n Mädchen", spa = "m niño | f niña" }
queen = { is = "human f", eng = "queen", fra = "f reine", deu = "f Königin", spa = "f reina" }

[things]
kite = { is = "toy", eng = "kite", fra = "m cerf-volant", deu = "m Drachen", spa = "f cometa" }
ship = { is = "toy", eng = "ship", fra = "m bateau", deu = "n Schiff", spa = "m barco" }
scarf = { is = "clothing", eng = "scarf", fra = "f écharpe", deu = "m Schal", spa = "f bufanda" }
axe = { is = "tool", eng = "axe", fra = "f* hache", deu = "f Axt", spa = "f* hacha" }
tree = { is = "plant", eng = "tree", fra = "m arbre", deu = "m Baum", spa = "m árbol" }
apple = { is = "food", eng = "apple", fra = "f pomme", deu = "m Apfel", spa = "f manzana" }

[places.forest]
is = "wild"
eng = ["forest", "in the forest", "to the forest", "out of the forest"]
fra = ["f forêt", "dans la forêt", "dans la forêt", "de la forêt"]
deu = ["m Wald", "im Wald", "in den Wald", "aus dem Wald"]
spa = ["m bosque", "en el bosque", "al bosque", "del bosque"]

[places.school]
is = "home"
eng = ["school", "at school", "to school", "from school"]
fra = ["f école", "à l'école", "à l'école", "de l'école"]
deu = ["f Schule", "in der Schule", "in die Schule", "aus der Schule"]
spa = ["f escuela", "en la escuela", "a la escuela", "de la escuela"]

[adjectives]
little = { of = "being thing", eng = "little", fra = "petit petite <", deu = "klein", spa = "pequeño pequeña <" }
old = { of = "being thing", eng = "old", fra = "vieux vieil vieille <", deu = "alt", spa = "viejo vieja" }
dark = { of = "place thing", eng = "dark", fra = "sombre", deu = "dunkel/dunkl", spa = "oscuro oscura" }
pink = { of = "thing", eng = "pink", fra = "rose rose", deu = "rosa!", spa = "rosa rosa" }
tired = { of = "being", eng = "tired", fra = "fatigué fatiguée", deu = "müde", spa = "cansado cansada" }
brave = { of = "trait", eng = "brave", fra = "courageux courageuse", deu = "mutig", spa = "valiente" }
clever = { of = "trait", eng = "clever", fra = "malin maligne", deu = "klug", spa = "listo lista" }
ripe = { of = "food", eng = "ripe", fra = "mûr mûre", deu = "reif", spa = "maduro madura" }

[phrases.when]
one_day = { eng = "one day", fra = "un jour", deu = "eines Tages", spa = "un día" }

[phrases.joy]
hooray = { eng = "hooray", fra = "hourra", deu = "hurra", spa = "hurra" }

[phrases.feeling_up]
glad = { eng = "glad", fra = "content|contente", deu = "froh", spa = "contento|contenta" }
"""


def say(eng: str, fra: str, deu: str, spa: str) -> str:
    return f"say = [{{ eng = '''{eng}''', fra = '''{fra}''', deu = '''{deu}''', spa = '''{spa}''' }}]\n"


COMMON = (
    "[events.intro]\nroles = 'h'\npre = ['not introduced h']\nadd = ['introduced h']\n"
    + say(
        "{@when} there was {h.a+} named {h.name}.",
        "{@when}, il y avait {h.a+} qui s'appelait {h.name}.",
        "{@when} lebte da {h.a+} mit dem Namen {h.name}.",
        "{@when} había {h.a+} que se llamaba {h.name}.",
    )
    + "[events.take]\nroles = 'h t'\npre = ['introduced h', 'not has h t']\nadd = ['has h t']\n"
    + say("{h} took {t.the+}.", "{h} prit {t.the+}.", "{h} nahm {t.the+:acc}.", "{h} tomó {t.the+}.")
    + "[events.put_down]\nroles = 'h t'\npre = ['has h t']\ndel = ['has h *', 'feels h *']\n"
    + say("{h} put it down.", "{h} {t?le|la} posa.", "{h} legte {t?ihn|sie|es} hin.", "{h} {t?lo|la} dejó.")
    + "[events.cheer]\nroles = 'h'\npre = ['introduced h']\nadd = ['feels h happy']\n"
    + say('"{@joy}!" cried {h.name}.', "« {@joy} ! » cria {h.name}.", "„{@joy}!“ rief {h.name}.", "«¡{@joy}!», gritó {h.name}.")
    + "[events.end_glad]\nroles = 'h'\nadd = ['ended h']\n"
    + say("{h} was {@feeling_up h}.", "{h} était {@feeling_up h}.", "{h} war {@feeling_up h}.", "{h} estaba {@feeling_up h}.")
    + """
[plots.toy]
roles = { h = "being animal", f = "being f", t = "thing toy", p = "place -home" }
start = ["at h p"]
want = ["ended h"]
steps = ["intro h", "take h t", "put_down h t ?", "take h t ?", "cheer h", "cheer h | put_down h t", "end_glad h"]
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storyworld")
    (folder / "themes").mkdir()
    (folder / "lexicon.toml").write_text(LEXICON, encoding="utf-8")
    (folder / "themes" / "common.toml").write_text(COMMON, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Grammar:
    return load(folder)


@pytest.fixture
def tell_with(tiny: Grammar):
    """Render one pattern: roles written `t = "kite pink"`, beings `h = "fox little Anna f"`."""

    def tell_with(lang: str, pattern: str, pronoun: bool = False, **roles: str) -> str:
        cast = {}
        for role, spec in roles.items():
            key, adjective, *person = spec.split()
            entry = next(e for entries in tiny.entries.values() for e in entries if e.key == key)
            looks = next(a for group in tiny.adjectives.values() for a in group if a.key == adjective)
            name, sex = person or ("", "m")
            cast[role] = Entity(entry, looks, name, sex, tiny.adjectives["trait"][0] if name else None)
        phrases = {kind: found[0] for kind, found in tiny.phrases.items()}
        return render(compile_pattern(parse_pattern(pattern), lang), lang, Scene(cast, pronoun, phrases=phrases))

    return tell_with


# Morphology: one sentence per rule, every expectation written out.

NOUN_PHRASES = [
    ("deu", "m", "kite little", ["ein kleiner Drachen", "einen kleinen Drachen", "einem kleinen Drachen"], "a"),
    ("deu", "n", "ship little", ["ein kleines Schiff", "ein kleines Schiff", "einem kleinen Schiff"], "a"),
    ("deu", "f", "axe little", ["eine kleine Axt", "eine kleine Axt", "einer kleinen Axt"], "a"),
    ("deu", "m", "kite little", ["der kleine Drachen", "den kleinen Drachen", "dem kleinen Drachen"], "the"),
    ("deu", "n", "ship little", ["das kleine Schiff", "das kleine Schiff", "dem kleinen Schiff"], "the"),
    ("deu", "f", "axe little", ["die kleine Axt", "die kleine Axt", "der kleinen Axt"], "the"),
    ("deu", "m", "kite little", ["kleiner Drachen", "kleinen Drachen", "kleinem Drachen"], "n"),
    ("deu", "f", "axe little", ["kleine Axt", "kleine Axt", "kleiner Axt"], "n"),
    ("deu", "n", "ship little", ["kleines Schiff", "kleines Schiff", "kleinem Schiff"], "n"),
    ("deu", "m", "kite dark", ["dieser dunkle Drachen", "diesen dunklen Drachen", "diesem dunklen Drachen"], "this"),
    ("deu", "f", "axe pink", ["meine rosa Axt", "meine rosa Axt", "meiner rosa Axt"], "my"),
    ("deu", "m weak", "bear tired", ["dein müder Bär", "deinen müden Bären", "deinem müden Bären"], "your"),
]


@pytest.mark.parametrize(("lang", "gender", "thing", "expected", "determiner"), NOUN_PHRASES)
def test_german_declension(tell_with, lang, gender, thing, expected, determiner) -> None:
    pattern = "Hier " + ", ".join(f"{{t.{determiner}+:{case}}}" for case in ("nom", "acc", "dat")) + "."
    assert tell_with(lang, pattern, t=thing) == f"Hier {', '.join(expected)}."


SENTENCES = [
    # English: a or an, possessives
    ("eng", "He saw {t.a}, {t.a+} and {u.a}.", {"t": "axe little", "u": "kite old"}, "He saw an axe, a little axe and a kite."),
    ("eng", "A {t.n}, a unicorn, a useful uncle, a hour.", {"t": "axe old"}, "An axe, a unicorn, a useful uncle, an hour."),
    ("eng", "{h.name} lost {t.poss_h+}.", {"h": "fox old Anna f", "t": "kite pink"}, "Anna lost her pink kite."),
    ("eng", "{h.name} lost {t.poss_h}.", {"h": "fox old Tom m", "t": "kite pink"}, "Tom lost his kite."),
    # French: élision, aspirated h, contraction
    ("fra", "Il vit {t.the}.", {"t": "tree old"}, "Il vit l'arbre."),
    ("fra", "Il vit {t.the+}.", {"t": "tree old"}, "Il vit le vieil arbre."),
    ("fra", "Il vit {t.the+}.", {"t": "kite old"}, "Il vit le vieux cerf-volant."),
    ("fra", "Il vit {t.the+}.", {"t": "scarf old"}, "Il vit la vieille écharpe."),
    ("fra", "Il vit {t.a+}.", {"t": "kite pink"}, "Il vit un cerf-volant rose."),
    ("fra", "Il prit {t.the} de {h.the}.", {"t": "axe old", "h": "owl old Tom m"}, "Il prit la hache du hibou."),
    ("fra", "Il parla à {h.the} et de {t.the}.", {"h": "fox old Tom m", "t": "tree old"}, "Il parla au renard et de l'arbre."),
    ("fra", "Il parla jusqu'à {t.the}, de {u.the}.", {"t": "kite old", "u": "apple ripe"}, "Il parla jusqu'au cerf-volant, de la pomme."),
    ("fra", "Il prit {t.poss_h} et {t.poss_h+}.", {"h": "fox old Tom m", "t": "scarf pink"}, "Il prit son écharpe et son écharpe rose."),
    ("fra", "Il prit {t.my+} et {u.my}.", {"t": "scarf old", "u": "axe old"}, "Il prit ma vieille écharpe et ma hache."),
    ("fra", "Il aimait {t.this}, {u.this}, {v.this}.", {"t": "tree old", "u": "kite old", "v": "scarf old"}, "Il aimait cet arbre, ce cerf-volant, cette écharpe."),
    ("fra", "Il décida de {t?le|la} garder.", {"t": "kite old"}, "Il décida de le garder."),
    ("fra", "Il décida de {t?le|la} aimer.", {"t": "axe old"}, "Il décida de l'aimer."),
    ("fra", "Il rêva de {t?le|la} {t.n}.", {"t": "kite old"}, "Il rêva du cerf-volant."),
    ("fra", "Le ami de {h.name} dit que {h.name} se ennuyait.", {"h": "fox old Anna f"}, "L'ami d'Anna dit qu'Anna s'ennuyait."),
    ("fra", "Donne-le à {h.name}, si il vient, et ce était tout.", {"h": "fox old Tom m"}, "Donne-le à Tom, s'il vient, et c'était tout."),
    ("fra", "Il se hâta, parce que elle hurlait.", {}, "Il se hâta, parce qu'elle hurlait."),
    # Spanish: contraction, el agua, y -> e, o -> u, adjectives
    ("spa", "Habló a {t.the} de {u.the}.", {"t": "ship old", "u": "kite old"}, "Habló al barco de la cometa."),
    ("spa", "Vio {t.the}, {t.a}, {t.a+}, {t.this}.", {"t": "axe little"}, "Vio el hacha, un hacha, una pequeña hacha, esta hacha."),
    ("spa", "Vio {t.the+} y {u.a+}.", {"t": "ship old", "u": "kite dark"}, "Vio el barco viejo y una cometa oscura."),
    ("spa", "Padre y hija, nieve y hielo, siete o ocho.", {}, "Padre e hija, nieve y hielo, siete u ocho."),
    ("spa", "De {t.the} salió {h.name}.", {"t": "ship old", "h": "fox old Tom m"}, "Del barco salió Tom."),
    # German: weak nouns, short forms of preposition and article, sex and grammatical gender
    ("deu", "Er sprach mit {h.the+:dat}.", {"h": "child little Tom m"}, "Er sprach mit dem kleinen Jungen."),
    ("deu", "Da kam {h.a+}.", {"h": "child little Anna f"}, "Da kam ein kleines Mädchen."),
    ("deu", "Er ging zu {t.the:dat}, zu {u.the:dat} und von {t.the+:dat}.", {"t": "tree old", "u": "axe old"}, "Er ging zum Baum, zur Axt und vom alten Baum."),
    ("deu", "{h.name} nahm {t.poss_h+:acc} und {t?ihn|sie|es} sah {h?er|sie}.", {"h": "owl old Mia f", "t": "kite old"}, "Mia nahm ihren alten Drachen und ihn sah sie."),
    # Agreement of traits, phrases and pairs with the sex
    ("fra", "{h.name} était {h.trait} et {@feeling_up h}.", {"h": "owl old Mia f"}, "Mia était courageuse et contente."),
    ("fra", "{h+f?Ils|Elles} partirent.", {"h": "owl old Mia f", "f": "fox old Anna f"}, "Elles partirent."),
    ("fra", "{h+f?Ils|Elles} partirent.", {"h": "owl old Mia f", "f": "fox old Tom m"}, "Ils partirent."),
    ("deu", "{h.name} war {h.trait}.", {"h": "owl old Mia f"}, "Mia war mutig."),
    # Places, and capitals at the start of sentence and first quotation
    ("spa", "{p.from} {@when} a {q.to}.", {"p": "forest dark", "q": "school dark"}, "Del bosque un día a a la escuela."),
    ("eng", "{@when} {h.name} said, \"{@joy}, {@joy}!\"", {"h": "fox old Tom m"}, "One day Tom said, \"Hooray, hooray!\""),
    ("spa", "«¡{@joy}!», dijo él.", {}, "«¡Hurra!», dijo él."),
    ("eng", "\"{@joy},\" he said, \"{@joy}!\"", {}, "\"Hooray,\" he said, \"hooray!\""),
]  # fmt: skip


@pytest.mark.parametrize(("lang", "pattern", "roles", "expected"), SENTENCES)
def test_sentences(tell_with, lang, pattern, roles, expected) -> None:
    assert tell_with(lang, pattern, **roles) == expected


@pytest.mark.parametrize(
    ("lang", "expected"),
    [("eng", "Then she ran."), ("fra", "Alors qu'elle courut."), ("deu", "Dann lief sie."), ("spa", "Entonces corrió.")],
)
def test_pronouns(tell_with, lang, expected) -> None:
    patterns = {"eng": "Then {h} ran.", "fra": "alors que {h} courut.", "deu": "dann lief {h}.", "spa": "entonces {h} corrió."}
    assert tell_with(lang, patterns[lang], pronoun=True, h="fox old Anna f") == expected


# Errors name the place and the remedy.


def with_change(folder: Path, tmp_path: Path, old: str, new: str) -> Path:
    (tmp_path / "themes").mkdir()
    for name in ("lexicon.toml", "themes/common.toml"):
        text = (folder / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{h} nahm", "{x} nahm", "common.toml, event take: variant 1, deu: slot {x}: role 'x' is not among"),
        ("{h} nahm {t", "{h.nam} nahm {t", r"event take: variant 1, deu: slot {h.nam} is none of the known forms"),
        ("{h} tomó", "{h} y {h} tomó", "more than one subject slot"),
        ("{t?ihn|sie|es}", "{t?ihn|sie}", "expected 3 options for a thing, got 2"),
        ("{h} put it", "{h} put {t?him|her}", "there is nothing to choose by"),
        ("{t.the+:acc}", "{t.at}", "{t.at}: needs a place, but the plot gives a thing"),
        ("{@joy} !", "{@joie} !", "no phrase class 'joie'"),
        ("{@feeling_up h}.''', deu", "{@feeling_up}.''', deu", "has two forms, so name the role"),
        ('"thing toy"', '"thing toy tool"', "no entry of the lexicon fits 'thing toy tool'"),
        ("cheer h\",", "cheers h\",", "there is no event 'cheers'"),
        ("take h t ?", "take h", "take takes 2 different roles"),
        ('"end_glad h"', '"cheer h"', "the last step must be a mandatory end_"),
        ("f écharpe", "écharpe", "lexicon.toml, being scarf|lexicon.toml, thing scarf: fra: expected a gender"),
        ("fra = \"m arbre\", ", "", "thing tree: nothing for fra"),
        ("at h p", "at h x", "'x' is not among the roles"),
    ],
)  # fmt: skip
def test_faults_in_the_data(folder: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message.replace("{", r"\{").replace("?", r"\?")):
        load(with_change(folder, tmp_path, old, new))


def test_every_fault_is_listed(folder: Path, tmp_path: Path) -> None:
    changed = with_change(folder, tmp_path, "{t.the+", "{z.the+")
    with pytest.raises(GrammarError) as error:
        load(changed)
    assert [f"event take: variant 1, {lang}" in str(error.value) for lang in LANGS] == [True] * 4


def test_an_unmet_precondition_names_plot_step_and_fact(folder: Path, tmp_path: Path) -> None:
    grammar = load(with_change(folder, tmp_path, '"intro h", "take h t"', '"take h t", "intro h"'))
    with pytest.raises(GrammarError, match="plot toy, step 'take h t': take needs 'introduced h'"):
        draw_plan(grammar, grammar.plots["toy"], Random(0))


def test_slots_that_are_not_slots() -> None:
    assert parse_slot("t.poss_h+:acc").roles == ("t", "h")
    for body in ("", "h.", "t.the:gen", "@", "h name"):
        with pytest.raises(GrammarError):
            parse_slot(body)
    with pytest.raises(GrammarError, match="unbalanced"):
        parse_pattern("{h ran.")


# Planning


def test_casts_are_distinct_and_fit_their_roles(tiny: Grammar) -> None:
    for i in range(100):
        cast = draw_plan(tiny, tiny.plots["toy"], Random(i)).cast
        assert cast["h"].entry is not cast["f"].entry and cast["h"].name != cast["f"].name
        assert "animal" in cast["h"].entry.tags and cast["f"].sex == "f" and cast["p"].entry.key == "forest"
        assert cast["t"].entry.key in ("kite", "ship")


def test_causes_hold(tiny: Grammar) -> None:
    """Replay the told facts: what an event needs was so before it."""
    orders = set()
    for found in stories(100, grammar=tiny):
        held = False
        for event in found.events:
            if event["event"] == "put_down":
                assert held and event["removed"][-1] == "has h t"
            held = held and "has h t" not in event["removed"] or "has h t" in event["added"]
        orders.add(tuple(event["event"] for event in found.events))
    assert len(orders) > 4


def test_names_give_way_to_pronouns_only_when_clear(tiny: Grammar) -> None:
    plot = tiny.plots["toy"]
    told = [tell(tiny, draw_plan(tiny, plot, Random(i)), Random(i))["eng"] for i in range(60)]
    after_intro = [sentences[1].split()[0] for sentences in told]
    assert {"He", "She"} <= set(after_intro) <= {"He", "She", "Oskar", "Tom", "Anna", "Mia"}
    after_cheer = [b for s in told for a, b in zip(s, s[1:]) if "cried" in a]
    assert after_cheer and not any(sentence.startswith(("He", "She")) for sentence in after_cheer)


# The shipped data


@pytest.fixture(scope="module")
def shipped() -> list[Story]:
    return list(stories(2000, seed=7))


def test_shipped_data_passes_its_own_check(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["check", "--count", "50"])
    assert status == 0, capsys.readouterr().out


def test_richness(shipped: list[Story]) -> None:
    grammar = load()
    assert len(grammar.plots) >= 30 and len(grammar.events) >= 60
    assert min(len(event.say) for event in grammar.events.values()) >= 3
    assert {found.plot for found in shipped} == set(grammar.plots)
    words = {word for found in shipped for word in re.findall(r"[a-z]+", found.text().lower())}
    assert len(words) >= 1500
    english = [sentence for found in shipped for sentence in found.sentences["eng_Latn"]]
    # 20 000 stories must give over 100 000: repeats grow with the number of stories, so 2 000 must give well over a tenth.
    assert len(set(english)) >= 12_000


def test_shape_of_stories(shipped: list[Story]) -> None:
    for found in shipped:
        assert list(found.sentences) == list(CODES.values())
        assert 5 <= len(found.events) <= 14
        assert all(len(sentences) == len(found.events) for sentences in found.sentences.values())
    for found in shipped[::10]:
        for lang in LANGS:
            for sentence in found.sentences[CODES[lang]]:
                assert not sentence_faults(sentence, lang), sentence


def test_no_story_twice(shipped: list[Story]) -> None:
    assert len({found.text() for found in shipped}) == len(shipped)
    assert len({json.dumps([found.plot, found.roles, found.events]) for found in shipped}) == len(shipped)


def test_a_story_depends_on_seed_split_and_place_only(shipped: list[Story]) -> None:
    assert list(stories(5, seed=7, start=3)) == shipped[3:8]
    assert story(7) == shipped[0]
    assert story(8) != shipped[0] and next(stories(1, seed=7, split="valid")) != shipped[0]


def test_splits_share_no_plan() -> None:
    def signatures(split: str, count: int) -> set[str]:
        return {json.dumps([found.plot, found.roles, found.events]) for found in stories(count, split=split)}

    train, valid, test = signatures("train", 200), signatures("valid", 10), signatures("test", 10)
    assert not train & valid and not train & test and not valid & test
    assert [split_of(signature) for signature in (0, 1, 2, 99, 100, 101)] == ["valid", "test", "train", "train", "valid", "test"]


def test_json_round_trip(tmp_path: Path, shipped: list[Story]) -> None:
    assert Story.from_json(shipped[0].to_json()) == shipped[0]
    with pytest.raises(ValueError, match="Expected one line of JSON"):
        Story.from_json('{"plot": "x"}')
    out = tmp_path / "valid.jsonl"
    assert main(["write", str(out), "--split", "valid", "--count", "3"]) == 0
    written = [Story.from_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert written == list(stories(3, split="valid"))


def test_wrong_arguments_are_named(shipped: list[Story], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="Expected a split among train, valid, test, got 'dev'"):
        stories(1, split="dev")
    with pytest.raises(ValueError, match="There is no plot 'nothing'"):
        stories(1, plots=["nothing"])
    with pytest.raises(ValueError, match="told in eng_Latn, fra_Latn"):
        shipped[0].text("ita_Latn")
    assert main(["sample", "--plot", "nothing"]) == 1
    assert "There is no plot 'nothing'" in capsys.readouterr().err


def test_samples_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--all-langs", "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert next(stories(1)).sentences["spa_Latn"][0] in shown


@pytest.mark.parametrize(
    ("lang", "sentence"),
    [
        ("eng", "No end"),
        ("eng", 'She said, "Oh no! Where is it?" and left.'),
        ("eng", "It was 3 o'clock."),
        ("eng", "Two  spaces."),
        ("fra", "« Oh! » dit-il."),
        ("deu", 'Er rief: "Ja!"'),
        ("spa", "Qué bien!"),
    ],
)
def test_faulty_sentences_are_found(lang: str, sentence: str) -> None:
    assert sentence_faults(sentence, lang)


@pytest.mark.parametrize(
    ("lang", "sentence"),
    [
        ("eng", '"Where is my kite?" asked Mia.'),
        ("fra", "« Où est-il ? » demanda Mia."),
        ("deu", "„Oh nein!“ rief Mia."),
        ("spa", "«¿Dónde está?», preguntó Mia."),
        ("spa", "Mia gritó: «¡Hurra!»."),
    ],
)
def test_good_sentences_pass(lang: str, sentence: str) -> None:
    assert not sentence_faults(sentence, lang)


def test_more_stories_than_there_are_plans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = story(0)
    monkeypatch.setattr("sonarkit.text.storyworld._draw", lambda *_: (1, one))
    drawn = stories(2)
    assert next(drawn) == one
    with pytest.raises(ValueError, match="expected 2 stories of different plans, but this grammar has hardly more than 1"):
        next(drawn)
