"""Language codes: SONAR's list, and the errors that help."""

from __future__ import annotations

import pytest

from sonarkit.text.languages import SONAR_LANGUAGES, UnknownLanguageError, check_language, per_text

FOUR = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")


def test_sonar_speaks_202_languages_in_nllbs_order():
    assert len(SONAR_LANGUAGES) == len(set(SONAR_LANGUAGES)) == 202
    assert SONAR_LANGUAGES[:2] == ("ace_Arab", "ace_Latn")
    assert SONAR_LANGUAGES[-1] == "zul_Latn"
    assert SONAR_LANGUAGES.index("als_Latn") == 161  # not where the alphabet would put it: NLLB's token 256162 of 256001...
    assert "sat_Beng" in SONAR_LANGUAGES
    assert not {"arb_Latn", "min_Arab", "sat_Olck"} & set(SONAR_LANGUAGES)


def test_known_code_is_returned():
    assert check_language("fra_Latn", FOUR) == "fra_Latn"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("en", "eng_Latn"), ("eng", "eng_Latn"), ("eng_latn", "eng_Latn"), ("eng-Latn", "eng_Latn"), ("English", "eng_Latn"),
        ("en-US", "eng_Latn"), ("fr", "fra_Latn"), ("fr_FR.UTF-8", "fra_Latn"), ("de", "deu_Latn"), ("ger", "deu_Latn"),
        ("es", "spa_Latn"), ("zho", "zho_Hans or zho_Hant"), ("zul_Lat", "zul_Latn"), ("eng_Cyrl", "eng_Latn"),
    ],
)  # fmt: skip
def test_nearest_code_is_named(typed: str, meant: str):
    with pytest.raises(UnknownLanguageError, match=f"did you mean {meant}"):
        check_language(typed, SONAR_LANGUAGES)


def test_a_real_language_that_the_model_lacks_gets_no_false_friend():
    with pytest.raises(UnknownLanguageError, match="'ita_Latn': known here are eng_Latn, fra_Latn, deu_Latn, spa_Latn"):
        check_language("ita_Latn", FOUR)


@pytest.mark.parametrize("typed", ["", "???"])
def test_nothing_alike_lists_what_is_known(typed: str):
    with pytest.raises(UnknownLanguageError, match="known here are ace_Arab.*, \\.\\.\\. .*202"):
        check_language(typed, SONAR_LANGUAGES)


def test_one_code_for_all_or_one_per_text():
    assert per_text("eng_Latn", 3, FOUR) == ["eng_Latn"] * 3
    assert per_text(["eng_Latn", "fra_Latn"], 2, FOUR) == ["eng_Latn", "fra_Latn"]
    assert per_text("eng_Latn", 0, FOUR) == []


def test_wrong_count_names_both():
    with pytest.raises(ValueError, match="2 codes for 3 texts"):
        per_text(["eng_Latn", "fra_Latn"], 3, FOUR)


def test_one_wrong_code_among_many():
    with pytest.raises(UnknownLanguageError, match="'fr'.*fra_Latn"):
        per_text(["eng_Latn", "fr"], 2, FOUR)
    with pytest.raises(UnknownLanguageError):
        per_text("xx", 0, FOUR)
