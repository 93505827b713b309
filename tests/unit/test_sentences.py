"""Sentence splitting: abbreviations, direct speech in four languages, hard text, and which model does it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest

from sonarkit.core.paths import asset
from sonarkit.text import sentences
from sonarkit.text.sentences import PARAMETERS, load_punkt, segmenter_name, split_sentences, train_punkt


@pytest.fixture(autouse=True)
def _our_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the models that ship: a developer may have NLTK's."""
    monkeypatch.setattr(nltk.data, "path", [])
    sentences._nltk_model.cache_clear()
    sentences._punkt.cache_clear()
    yield
    sentences._nltk_model.cache_clear()
    sentences._punkt.cache_clear()


def check(lang: str, *expected: str) -> None:
    assert split_sentences(" ".join(expected), lang) == list(expected)


def test_full_stops_and_abbreviations():
    check("eng_Latn", "Mr. Smith said.", "Mrs. Brown saw Dr. J. Smith at 5 p.m.", "She left.")
    check("eng_Latn", "Mr. Fox met Mr. Tom and Mrs. Little Bear.", "They ran.")  # "fox" and "little" are plain words too
    check("eng_Latn", "It cost 3.50 dollars.", "Version 2.0 is out!", "E.g. this one, i.e. that.")
    check("eng_Latn", "He said no.", "Tom left.", "I saw Tom.", "Tom ran.", "He was sad.", "Mia cried.")
    check("eng_Latn", "He lives in the U.S.", "He is old.")
    check("fra_Latn", "M. Renard et Mme Dupont rient.", "Il en a sept.", "Paul rit.")
    check("deu_Latn", "Am 3. Mai kam Hr. Fuchs, z.B. mit Dr. Bär.", "Es war 1990.", "Er ist 8.", "Tom ist 9.")
    check("spa_Latn", "El Sr. Zorro y la Sra. Osa ríen.", "Ud. sabe.")


def test_end_marks():
    check("eng_Latn", "What?!", "Really?!", "Yes!!!", "Good.")
    check("fra_Latn", "Quel bonheur !", "Où est-il ?", "Il rit.")
    check("spa_Latn", "¡Hola!", "¿Qué tal?", "Bien.")


def test_ellipses():
    check("eng_Latn", "Wait...", "She left.", "Wait…", "Tom came.")
    check("eng_Latn", "Well... maybe not.", "Well… maybe.", '"Hm..." said Tom.', "...and so on.")
    check("eng_Latn", "Then. . .", "She left.")


def test_english_direct_speech():
    check("eng_Latn", '"Where is it?" asked Tom.', '"I saw it," said Mia.', '"Look!"')
    check("eng_Latn", "“Where is it?” asked Tom.", "“Come here!” he said.", "‘Why?’ asked Mia.", "'Here!' cried Tom.")
    check("eng_Latn", 'He said "Stop!" and ran.', 'She cried, "No!"', "Then she left.")
    check("eng_Latn", 'He said, "Who are you?".', "Suddenly she came.")
    check("eng_Latn", 'He asked, "Where is Mr. Fox?"', "They did not know.", "(It was late.)", "Good.")


def test_french_direct_speech():
    check("fra_Latn", "« Où est-il ? » demanda Tom.", "« Viens ! » dit-elle.", "Tom rit.")
    check("fra_Latn", "Tom dit : « Où es-tu ? »", "Mia rit.", "« Je viens », dit-elle.", "« Oui. »", "Il part.")
    check("fra_Latn", "— Où est-il ? demanda Tom.")
    assert split_sentences("«\u202fOù est-il\u202f?\u202f» demanda Tom.", "fra_Latn") == ["« Où est-il ? » demanda Tom."]


def test_german_direct_speech():
    check("deu_Latn", "„Wo ist es?“ fragte Tom.", "„Wo ist es?“, fragte Tom.", "„Komm!“, rief er.")
    check("deu_Latn", "Tom sagte: „Wo?“", "Mia lachte.")
    check("deu_Latn", "»Wo ist es?« fragte Tom.", "Er lachte.", "»Komm!«", "Mia kam.")


def test_spanish_direct_speech():
    check("spa_Latn", "«¿Dónde está?», preguntó Tom.", "«¡Ven!» dijo ella.", "Tom dijo: «¿Qué?»", "Mia rió.")
    check("spa_Latn", "—¿Dónde está? —preguntó Tom.", "—Aquí —dijo Mia.")


@pytest.mark.parametrize("lang", ["eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn", "ita_Latn"])
def test_no_sentence_begins_with_what_closes_a_quotation(lang: str):
    text = "« A ? » B. « C ! » D. „E?“ F. “G.” H. «I.» J. »K!« L. « M... » N."
    assert not [s for s in split_sentences(text, lang) if s[0] in "”" or s.startswith(("» ", "“ "))]


def test_white_space_and_paragraphs():
    assert split_sentences("The  fox\tran\nhome. It\u00a0slept.\n") == ["The fox ran home.", "It slept."]
    assert split_sentences("A title\n\nthe text goes\non here\n \t\n\nEnd") == ["A title", "the text goes on here", "End"]
    assert split_sentences("One.\r\n\r\nTwo.\r\n") == ["One.", "Two."]
    for empty in ("", " ", "\n\n\n", "\u00a0\n \n"):
        assert split_sentences(empty) == []


def test_other_scripts():
    check("arb_Arab", "مرحبا.", "كيف حالك؟", "أنا بخير.")
    check("hin_Deva", "मैं ठीक हूँ।", "आप कैसे हैं?", "हाँ।")
    assert split_sentences("你好。我很好！“你好。”他说。好", "zho_Hans") == ["你好。", "我很好！", "“你好。”他说。", "好"]
    others = {"zho_Hans": "今天下雨。", "jpn_Jpan": "今日は雨です！", "hye_Armn": "Անձրև է։", "khm_Khmr": "ភ្លៀង។"}
    for lang, said in (others | {"bod_Tibt": "བཀྲ་ཤིས།", "sat_Olck": "ᱱᱚᱣᱟ᱾"}).items():
        assert split_sentences(f"{said} {said}\n{said}", lang) == [said] * 3, lang
    check("eng_Latn", "😀 Hi!", "😀😀 Bye. 👍")
    assert split_sentences("👍") == ["👍"]


def test_text_without_punctuation_and_10_000_words():
    assert split_sentences("no punctuation at all") == ["no punctuation at all"]
    assert split_sentences("hi! how are you? i am fine") == ["hi!", "how are you?", "i am fine"]
    assert split_sentences("word " * 10_000) == [("word " * 10_000).strip()]
    assert split_sentences("A fox ran home. " * 2_500) == ["A fox ran home."] * 2_500


@pytest.mark.parametrize("unit", ["a", ".", "?!", '"?" ', "». ", "Mr. ", '."', "((", " \n", "« "])
def test_hostile_text_takes_linear_time(unit: str):
    began = time.process_time()
    pieces = split_sentences(unit * 20_000)
    assert time.process_time() - began < 5
    assert "".join("".join(pieces).split()) == "".join((unit * 20_000).split())  # nothing is lost


def test_real_stories_keep_every_character(shared_data: Path):
    from sonarkit.text.corpora import open_corpus

    for document in open_corpus(shared_data / "tinystories_sample.jsonl"):
        found = split_sentences(document.text)
        assert " ".join(found) == " ".join(document.text.split())
        assert not [s for s in found if s[0].islower() and s[0].isalpha() and len(s) < 4]


def test_the_model_that_ships():
    assert asset(PARAMETERS).stat().st_size < 400_000
    assert set(sentences._our_models()) == {"eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn"}
    assert segmenter_name("eng_Latn") == segmenter_name("zul_Latn") == "sonarkit-punkt-2"


def test_nltks_own_model_is_used_where_the_user_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    (folder / "abbrev_types.txt").write_text("zyx\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert segmenter_name("eng_Latn") == "nltk-punkt-english"
    assert segmenter_name("fra_Latn") == "sonarkit-punkt-2"
    assert split_sentences('The zyx. Fox ran. "Why?" asked Mr. Fox.') == ["The zyx. Fox ran.", '"Why?" asked Mr. Fox.']


def test_training_learns_starters_and_lower_case_and_no_false_abbreviations():
    text = [f"{who} {did} the {what}." for who in ("She", "Tom", "The dog") for did in ("saw", "met") for what in ("cat", "pig")]
    more = ["At 5 p.m. she met Tom.", "I said she came.", "So Tom saw the dog.", '"She is," said Tom.']
    model = train_punkt([*text * 20, *more], "eng_Latn")
    assert {"she", "the", "dog"} <= set(model["lower_case"])
    assert "tom" not in model["lower_case"]
    assert {"mr", "mrs", "dr", "p.m"} <= set(model["abbreviations"])
    assert not {"cat", "pig", "tom"} & set(model["abbreviations"])
    assert "tom" not in model["sentence_starters"]
    assert load_punkt(model).tokenize("At 5 p.m. She met Tom. Tom saw the pig. She ran.") == [
        "At 5 p.m.", "She met Tom.", "Tom saw the pig.", "She ran.",
    ]  # fmt: skip
