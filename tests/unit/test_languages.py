"""Languages: SONAR's table, what people type, and the errors that help."""

from __future__ import annotations

import tomllib
import unicodedata
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import sonarkit
from sonarkit.codec.pipeline import Sonar
from sonarkit.text.languages import LANGUAGES, SONAR_LANGUAGES, UnknownLanguageError, check_language, per_text, resolve

FOUR = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")
PACKAGE = Path(sonarkit.__file__).parent
TABLE = PACKAGE / "text" / "languages.tsv"

# ---------------------------------------------------------------------- the table


def test_sonar_speaks_202_languages_in_nllbs_order():
    assert len(SONAR_LANGUAGES) == len(set(SONAR_LANGUAGES)) == 202
    assert SONAR_LANGUAGES[:2] == ("ace_Arab", "ace_Latn")
    assert SONAR_LANGUAGES[-1] == "zul_Latn"
    assert SONAR_LANGUAGES.index("als_Latn") == 161  # not where the alphabet would put it: NLLB's token 256162 of 256001...
    assert "sat_Beng" in SONAR_LANGUAGES
    assert not {"arb_Latn", "min_Arab", "sat_Olck"} & set(SONAR_LANGUAGES)


def test_a_row_of_the_table():
    latvian = LANGUAGES["lvs_Latn"]
    assert (latvian.name, latvian.script, latvian.family, latvian.branch) == (
        "Standard Latvian", "Latin", "Indo-European", "Balto-Slavic",
    )  # fmt: skip
    assert (latvian.iso639_1, latvian.own_name) == ("lv", "latviešu")
    assert (latvian.other_codes, latvian.other_names) == (("lav",), ("Latvian",))
    assert str(latvian) == "lvs_Latn (Standard Latvian)"
    with pytest.raises(FrozenInstanceError):
        latvian.name = "Latvian"  # type: ignore[misc]
    with pytest.raises(TypeError):
        LANGUAGES["xxx_Latn"] = latvian  # type: ignore[index]


def test_each_row_has_its_columns_and_nothing_stray():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 203
    assert all(line.count("\t") == 8 for line in lines)
    for language in LANGUAGES.values():
        assert language.code and language.name and language.script and language.family
        cells = [
            language.name, language.script, language.family, language.branch, language.own_name, *language.other_names,
        ]  # fmt: skip
        for cell in cells:
            assert cell == cell.strip() == unicodedata.normalize("NFC", cell), language
        assert len(language.iso639_1) in (0, 2), language
        spelt = [language.name, *language.other_names]
        assert len(spelt) == len(set(spelt)), language


def test_names_and_rows_are_unique():
    assert len({language.name for language in LANGUAGES.values()}) == 202
    assert Counter((language.code[:3], language.script) for language in LANGUAGES.values()).most_common(1)[0][1] == 1


def test_the_script_column_agrees_with_the_code():
    """Each script tag has one name, each name one tag; but SONAR's sat_Beng, whose texts are in Ol Chiki script."""
    pairs = {(language.code[4:], language.script) for language in LANGUAGES.values() if language.code != "sat_Beng"}
    tags, names = zip(*pairs)
    assert len(pairs) == len(set(tags)) == len(set(names)) == 28
    assert {("Latn", "Latin"), ("Hans", "Han (Simplified)"), ("Ethi", "Ethiopic"), ("Beng", "Bengali")} <= pairs
    assert LANGUAGES["sat_Beng"].script == "Ol Chiki"


def test_own_names_are_written_in_their_script():
    others = {"Han (Simplified)": "CJK", "Han (Traditional)": "CJK", "Japanese": "CJK", "Ol Chiki": "OL"}
    for language in LANGUAGES.values():
        script = others.get(language.script, language.script.split()[0].upper())
        for letter in filter(str.isalpha, language.own_name):
            assert unicodedata.name(letter).startswith((script, "MODIFIER LETTER")), (language, letter)
    assert sum(bool(language.own_name) for language in LANGUAGES.values()) > 150


def test_families_have_one_granularity():
    branches: dict[str, set[str]] = {}
    for language in LANGUAGES.values():
        branches.setdefault(language.family, set()).add(language.branch)
    assert len(branches) == 22
    assert branches["Indo-European"] == {
        "Albanian", "Armenic", "Balto-Slavic", "Celtic", "Germanic", "Graeco-Phrygian", "Indo-Aryan", "Iranian", "Italic",
    }  # fmt: skip
    assert branches["Atlantic-Congo"] == {"Benue-Congo", "Kwa Volta-Congo", "North Volta-Congo", "North-Central Atlantic"}
    assert branches["Afro-Asiatic"] == {"Berber", "Chadic", "Cushitic", "Semitic"}
    assert branches["Basque"] == {""}  # an isolate
    assert [family for family, found in branches.items() if "" in found] == ["Basque"]
    shared = [branch for branch in set().union(*branches.values()) if sum(branch in found for found in branches.values()) > 1]
    assert not shared
    by_language: dict[str, set[tuple[str, str]]] = {}
    for language in LANGUAGES.values():  # a language does not change its family with its script
        by_language.setdefault(language.code[:3], set()).add((language.family, language.branch))
    assert all(len(found) == 1 for found in by_language.values())


def test_codes_of_two_letters_mean_one_language_but_four():
    used = Counter(language.iso639_1 for language in LANGUAGES.values() if language.iso639_1)
    assert {code for code, count in used.items() if count > 1} == {"zh", "ks", "kr", "ku"}
    for code in used:
        if code in {"ks", "kr", "ku"}:
            with pytest.raises(UnknownLanguageError, match="ambiguous"):
                resolve(code, SONAR_LANGUAGES)
        else:
            assert LANGUAGES[resolve(code, SONAR_LANGUAGES)].iso639_1 == code


def test_every_row_is_found_by_its_codes_and_names():
    """By what is its own alone; what two rows share names both of them."""
    for language in LANGUAGES.values():
        typed = (
            language.name, language.own_name, *language.other_names, *language.other_codes, language.iso639_1,
            language.code[:3], language.code.upper(), language.code.replace("_", "-"), f"__{language.code}__",
        )  # fmt: skip
        for one in filter(None, typed):
            try:
                assert resolve(one, SONAR_LANGUAGES) == language.code or language.code == "zho_Hant"
            except UnknownLanguageError as error:
                assert f"ambiguous language {one!r}" in str(error)
                assert language.code in str(error)
                assert one not in (language.name, language.code)


def test_a_code_of_one_row_is_no_other_rows_standard_code():
    own = {language.code[:3] for language in LANGUAGES.values()} | {language.iso639_1 for language in LANGUAGES.values()}
    for language in LANGUAGES.values():
        assert not own & set(language.other_codes), language


def test_the_table_ships_with_the_package():
    assert TABLE.is_file()
    pyproject = PACKAGE.parent / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("installed without its source")
    wheel = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["sonarkit"]  # all files under it
    assert not {"include", "exclude", "only-include"} & set(wheel)


# ---------------------------------------------------------------------- what people type


@pytest.mark.parametrize(
    ("code", "typed"),
    [
        ("eng_Latn", "eng_Latn ENG-latn eng_latn __eng_Latn__ eng en EN en-US en_GB.UTF-8 English english"),
        ("fra_Latn", "fr fre fra fr_FR.UTF-8 fr-CA French français FRANCAIS"),
        ("deu_Latn", "de ger deu German Deutsch de_DE@euro"),
        ("spa_Latn", "es spa es-419 Spanish Castilian español"),
        ("zho_Hans", "zh zho chi cmn zh-CN zh_SG zh-Hans zh-Hans-CN zh-cmn-Hans Chinese 中文 Mandarin zho_simpl 简体中文"),
        ("zho_Hant", "zh-TW zh_TW.UTF-8 zh_HK.Big5 zh-Hant zh-Hant-TW zho-Hant 繁體中文"),
        ("yue_Hant", "yue Cantonese zh-yue yue-HK"),
        ("arb_Arab", "ar ara arb ar-EG Arabic العربية"),
        ("arz_Arab", "arz"),
        ("pes_Arab", "fa fas per pes fa-IR Persian Farsi"),
        ("prs_Arab", "prs fa-AF fa_AF.UTF-8 Dari"),
        ("nob_Latn", "no nor nb nob no-NO Norwegian Bokmål bokmal"),
        ("srp_Cyrl", "sr srp scc sr-RS sr-Cyrl sr_RS@cyrillic sh-Cyrl Serbian"),
        ("azj_Latn", "az aze azj az-AZ Azerbaijani Azeri"),
        ("azb_Arab", "azb az-IR az-Arab"),
        ("pan_Guru", "pa pan pa-IN Punjabi Panjabi"),
        ("kmr_Latn", "kmr ku-Latn ku-TR Kurmanji"),
        ("ckb_Arab", "ckb ku-Arab ku-IQ Sorani"),
        ("kas_Deva", "ks-Deva kas_deva ks_IN@devanagari"),
        ("sat_Beng", "sat sat_Olck sat-Olck Santali Santhali"),
        ("swh_Latn", "sw swa swh Swahili Kiswahili"),
        ("zsm_Latn", "ms msa may Malay"),
        ("lvs_Latn", "lv lav lvs Latvian"),
        ("est_Latn", "et est ekk"),
        ("khk_Cyrl", "mn mon Mongolian"),
        ("npi_Deva", "ne nep"),
        ("ory_Orya", "or ori Oriya"),
        ("gaz_Latn", "om orm Oromo"),
        ("als_Latn", "sq sqi alb Albanian"),
        ("uzn_Latn", "uz uzb Uzbek o‘zbek o'zbek"),
        ("ydd_Hebr", "yi yid ji Yiddish"),
        ("plt_Latn", "mg mlg Malagasy"),
        ("pbt_Arab", "ps pus Pashto"),
        ("quy_Latn", "qu que Quechua"),
        ("ayr_Latn", "ay aym Aymara"),
        ("dik_Latn", "din Dinka"),
        ("tgl_Latn", "tl tgl fil Filipino"),
        ("fuv_Latn", "ff ful Fulah"),
        ("heb_Hebr", "he iw"),
        ("ind_Latn", "id in"),
        ("ron_Latn", "ro mo Moldovan"),
    ],
)  # fmt: skip
def test_what_people_type(code: str, typed: str):
    assert {one: resolve(one, SONAR_LANGUAGES) for one in typed.split()} == dict.fromkeys(typed.split(), code)


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("Modern Standard Arabic", "arb_Arab"), ("taizzi adeni arabic", "acq_Arab"), ("Kashmiri (Devanagari script)", "kas_Deva"),
        ("Kashmiri Arabic", "kas_Arab"), ("Serbian (Cyrillic)", "srp_Cyrl"), ("Simplified Chinese", "zho_Hans"),
        ("chinese (traditional)", "zho_Hant"), ("French language", "fra_Latn"), ("Crimean  Tatar", "crh_Latn"),
        ("Haitian Creole", "hat_Latn"), (" en ", "eng_Latn"),
    ],
)  # fmt: skip
def test_names_of_several_words(typed: str, code: str):
    assert resolve(typed, SONAR_LANGUAGES) == code


@pytest.mark.parametrize(
    ("typed", "candidates"),
    [
        ("kas", "kas_Arab .* or kas_Deva"), ("ks-IN", "kas_Arab .* or kas_Deva"), ("Kashmiri", "kas_Arab .* or kas_Deva"),
        ("Kurdish", "ckb_Arab .Central Kurdish. or kmr_Latn .Northern Kurdish."), ("kur", "ckb_Arab .* or kmr_Latn"),
        ("sh", "bos_Latn .* or hrv_Latn .* or srp_Cyrl"), ("sh-Latn", "bos_Latn .* or hrv_Latn"),
        ("ace", "ace_Arab .* or ace_Latn"), ("Bahasa", "ind_Latn .* or zsm_Latn"), ("bih", "bho_Deva .* or mag_Deva"),
    ],
)  # fmt: skip
def test_what_two_languages_share_lists_them(typed: str, candidates: str):
    with pytest.raises(UnknownLanguageError, match=f"ambiguous language '{typed}': give {candidates}"):
        resolve(typed, SONAR_LANGUAGES)


def test_it_is_not_ambiguous_where_one_is_known():
    assert resolve("Kurdish", ("eng_Latn", "kmr_Latn")) == "kmr_Latn"
    assert resolve("sh", ("hrv_Latn", "eng_Latn")) == "hrv_Latn"
    assert resolve("zh", ("zho_Hant",)) == "zho_Hant"


def test_a_codec_may_have_languages_of_its_own():
    own = ("nds_Latn", "srp_Latn", "srp_Cyrl", "sat_Olck", "x-elvish", "arb_Latn", "en")
    assert [resolve(code, own) for code in own] == list(own)
    assert resolve("nds", own) == "nds_Latn"
    assert resolve("NDS-latn", own) == "nds_Latn"
    assert resolve("X-Elvish", own) == "x-elvish"
    assert resolve("sr-Latn", own) == "srp_Latn"
    assert resolve("sat", own) == "sat_Olck"
    assert resolve("ar-Latn", own) == "arb_Latn"
    with pytest.raises(UnknownLanguageError, match="ambiguous language 'sr': give srp_Cyrl .Serbian. or srp_Latn"):
        resolve("sr", own)


def test_what_flores_has_and_sonar_lacks_has_its_own_answer():
    with pytest.raises(UnknownLanguageError, match="'arb_Latn': FLORES-200 has romanized Arabic, SONAR does not; .* arb_Arab"):
        resolve("arb_Latn", SONAR_LANGUAGES)
    with pytest.raises(UnknownLanguageError, match="'min-Arab': FLORES-200 has Minangkabau in Arabic script, .* min_Latn"):
        resolve("min-Arab", SONAR_LANGUAGES)


@pytest.mark.parametrize(
    ("typed", "script", "meant"),
    [
        ("sr-Latn", "Latin", "srp_Cyrl"), ("sr_RS@latin", "Latin", "srp_Cyrl"), ("sr-ME", "Latin", "srp_Cyrl"),
        ("eng_Cyrl", "Cyrillic", "eng_Latn"), ("pa-PK", "Arabic", "pan_Guru"), ("mni-Mtei", "Mtei", "mni_Beng"),
    ],
)  # fmt: skip
def test_a_script_is_kept_to(typed: str, script: str, meant: str):
    with pytest.raises(UnknownLanguageError, match=f"'{typed}': it is not known here in {script} script; did you mean {meant}"):
        resolve(typed, SONAR_LANGUAGES)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("zul_Lat", "zul_Latn"), ("deu_Lat", "deu_Latn"), ("srp_Latin", "srp_Cyrl"), ("engLatn", "eng_Latn"),
        ("Englsh", "eng_Latn"), ("Itallian", "ita_Latn"), ("Brazilian Portuguese", "por_Latn"), ("ukranian", "ukr_Cyrl"),
    ],
)  # fmt: skip
def test_the_nearest_is_named(typed: str, meant: str):
    with pytest.raises(UnknownLanguageError, match=f"unknown language '{typed}': did you mean {meant} "):
        resolve(typed, SONAR_LANGUAGES)


@pytest.mark.parametrize("typed", ["", "???", "tlh", "lat", "Klingon", "qqq_Latn", "C.UTF-8", "x" * 1000])
def test_nothing_alike_gets_no_false_friend(typed: str):
    with pytest.raises(UnknownLanguageError, match="known here are 202 languages, from ace_Arab .* such as eng_Latn") as error:
        resolve(typed, SONAR_LANGUAGES)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("typed", ["ita_Latn", "it", "it_IT.UTF-8", "Italian", "Italiano"])
def test_a_language_that_the_codec_lacks_is_named_and_those_it_knows(typed: str):
    listed = r"eng_Latn \(English\), fra_Latn \(French\), deu_Latn \(German\), spa_Latn \(Spanish\)$"
    with pytest.raises(UnknownLanguageError, match=rf"ita_Latn \(Italian\) is not known here; known here are {listed}"):
        resolve(typed, FOUR)


def test_a_misspelt_language_that_the_codec_lacks():
    with pytest.raises(UnknownLanguageError, match=r"did you mean ita_Latn \(Italian\)\? That is not known here; .* eng_Latn"):
        resolve("Itallian", FOUR)


# ---------------------------------------------------------------------- one language for each text


def test_one_language_for_all_or_one_per_text():
    assert per_text("eng_Latn", 3, FOUR) == ["eng_Latn"] * 3
    assert per_text(["eng_Latn", "fra_Latn"], 2, FOUR) == ["eng_Latn", "fra_Latn"]
    assert per_text("en", 2, FOUR) == ["eng_Latn"] * 2
    assert per_text(("fr", "English", "fra"), 3, FOUR) == ["fra_Latn", "eng_Latn", "fra_Latn"]
    assert per_text("eng_Latn", 0, FOUR) == []


def test_wrong_count_names_both():
    with pytest.raises(ValueError, match="2 codes for 3 texts"):
        per_text(["eng_Latn", "fra_Latn"], 3, FOUR)


def test_one_wrong_code_among_many():
    with pytest.raises(UnknownLanguageError, match="unknown language 'xx'"):
        per_text(["eng_Latn", "xx"], 2, FOUR)
    with pytest.raises(UnknownLanguageError):
        per_text("xx", 0, FOUR)


def test_a_codec_takes_what_people_type(sonar: Sonar):
    texts = ["The fox ran home.", "Le petit renard."]
    assert sonar.encode(texts, ["en", "French"]).equal(sonar.encode(texts, ["eng_Latn", "fra_Latn"]))
    assert sonar.target_ids(texts, "de-AT") == sonar.target_ids(texts, "deu_Latn")


def test_files_spell_codes_as_they_are():
    assert check_language("fra_Latn", FOUR) == "fra_Latn"
    with pytest.raises(UnknownLanguageError, match="unknown language 'fr': did you mean fra_Latn"):
        check_language("fr", FOUR)
    with pytest.raises(UnknownLanguageError, match="Italian"):
        check_language("it", FOUR)


# ---------------------------------------------------------------------- what wrong tags cost


@pytest.mark.filterwarnings("ignore::sonarkit.codec.pipeline.TruncationWarning")
def test_the_measurement_of_tags_runs(sonar: Sonar, monkeypatch: pytest.MonkeyPatch):
    """On a codec of random weights its numbers mean nothing, but for those that hold of any codec."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "bench"))
    import language_tags

    monkeypatch.setattr(language_tags, "FOREIGN", language_tags.FOREIGN[14:17])
    two = ("eng_Latn", "fra_Latn")
    rows = [
        {"eng_Latn": "The fox ran home.", "fra_Latn": "Le renard rentra."},
        {"eng_Latn": "Mia found a kite.", "fra_Latn": "Mia trouva un cerf-volant."},
    ]
    wrong = language_tags.wrong_tag(sonar, rows, rows, two)
    assert wrong["cosine, right tag"] == pytest.approx(1)
    assert -1 < wrong["cosine, wrong tag"] < 0.999  # the tag is read
    which = language_tags.which_tag(sonar, rows, two)
    assert 0 < which["nats a token, mean"] <= which["nats a token, highest"]
    ((score, tag),) = language_tags.best_tags(sonar, ["The fox ran home."], two)
    assert score < 0 and tag in two
    halves = language_tags.clauses([{"eng_Latn": "Once, a fox ran.", "fra_Latn": "Un jour, un renard courut."}, *rows])
    assert halves == [
        ({"eng_Latn": "Once,", "fra_Latn": "Un jour,"}, {"eng_Latn": "a fox ran.", "fra_Latn": "un renard courut."})
    ]
    mixed = language_tags.mixed(sonar, [(rows[0], rows[1])], two)
    assert {name.split(",")[0] for name in mixed} == {"BLEU", "cosine"}
    unknown = language_tags.unknown(sonar, rows, two)
    assert unknown["ita_Latn: chooses eng_Latn, %"] + unknown["ita_Latn: chooses fra_Latn, %"] == pytest.approx(100)
