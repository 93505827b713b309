"""Scripts: every letter as Unicode's own table has it, every language of SONAR, and the two ways to write Chinese."""

from __future__ import annotations

import sys
import unicodedata

import pytest
import regex  # comes with nltk; knows Unicode's script property

from sonarkit.text.languages import LANGUAGES
from sonarkit.text.scripts import _BY_NAME, language_script, letters, script, script_share, width

# The first article of the Universal Declaration of Human Rights or a plain sentence: own names are too few for some scripts.
SENTENCES = {
    "Arab": "يولد جميع الناس أحرارا",
    "Armn": "Բոլոր մարդիկ ծնվում են ազատ",
    "Beng": "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে",
    "Cyrl": "Все люди рождаются свободными",
    "Deva": "सभी मनुष्यों को गौरव प्राप्त है",
    "Ethi": "የሰው ልጅ ሁሉ ሲወለድ ነጻ ነው",
    "Geor": "ყველა ადამიანი იბადება თავისუფალი",
    "Grek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι",
    "Gujr": "દરેક માનવી જન્મથી સ્વતંત્ર છે",
    "Guru": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਜ਼ਾਦ ਹੈ",
    "Hang": "모든 인간은 태어날 때부터 자유롭다",
    "Hans": "人人生而自由，在尊严和权利上一律平等。",
    "Hant": "人人生而自由，在尊嚴和權利上一律平等。",
    "Hebr": "כל בני האדם נולדו בני חורין",
    "Jpan": "すべての人間は、生まれながらにして自由である。",
    "Khmr": "មនុស្សទាំងអស់កើតមកមានសេរីភាព",
    "Knda": "ಎಲ್ಲಾ ಮಾನವರು ಸ್ವತಂತ್ರರಾಗಿ ಹುಟ್ಟಿದ್ದಾರೆ",
    "Laoo": "ມະນຸດທຸກຄົນເກີດມາມີສິດ",
    "Latn": "Ọ̀kan ninu wọn ƙ'ayyade Straße",
    "Mlym": "മനുഷ്യരെല്ലാവരും സ്വതന്ത്രരാണ്",
    "Mymr": "လူတိုင်းသည် လွတ်လပ်သည်",
    "Olck": "ᱡᱚᱛᱚ ᱦᱚᱲ ᱠᱚ ᱯᱷᱩᱨᱜᱟᱹᱞ",
    "Orya": "ସବୁ ମନୁଷ୍ୟ ଜନ୍ମକାଳରୁ ସ୍ୱାଧୀନ",
    "Sinh": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත",
    "Taml": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாக",
    "Telu": "మానవులందరు స్వతంత్రులుగా జన్మించారు",
    "Tfng": "ⴰⵔ ⴷ ⵜⵜⵍⴰⵍⵏ ⵎⵉⴷⴷⵏ",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "Tibt": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ",
}


def share(text: str, lang: str) -> float:
    return script_share(letters(text), lang)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_language_takes_its_script_and_refuses_the_others(lang: str):
    own = language_script(lang)
    assert share(SENTENCES[own], lang) == 1
    if LANGUAGES[lang].own_name:
        assert share(LANGUAGES[lang].own_name, lang) == 1
    for other, sentence in SENTENCES.items():
        related = {own, other} <= {"Hans", "Hant", "Jpan"}
        assert other == own or related or share(sentence, lang) == 0, other


def test_there_is_a_sentence_for_every_script():
    assert {language_script(lang) for lang in LANGUAGES} == set(SENTENCES)
    assert language_script("sat_Beng") == "Olck"  # see text.languages


def test_letters_are_those_of_unicodes_own_table():
    characters = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isalpha() and unicodedata.name(char, ""))
    table = {char: code for code in set(_BY_NAME.values()) for char in regex.findall(rf"\p{{Script={code}}}", characters)}
    han = {"Hans": "Hani", "Hant": "Hani", "Zzzz": ""}
    wrong = [unicodedata.name(c) for c in characters if han.get(script(c), script(c)) != table.get(c, "")]
    modifiers = [name for name in wrong if "MODIFIER" in name]
    assert len(modifiers) < 250 and len(wrong) - len(modifiers) < 20, wrong  # of 130 000: signs such as KELVIN SIGN


def test_chinese_is_written_in_two_ways():
    simplified, traditional = SENTENCES["Hans"], SENTENCES["Hant"]
    assert [share(simplified, lang) for lang in ("zho_Hans", "zho_Hant", "yue_Hant", "jpn_Jpan")] == [1, 0, 0, 1]
    assert [share(traditional, lang) for lang in ("zho_Hans", "zho_Hant", "yue_Hant", "jpn_Jpan")] == [0, 1, 1, 1]
    assert share("人人生而自由", "zho_Hans") == share("人人生而自由", "zho_Hant") == 1  # written alike
    assert share(SENTENCES["Jpan"], "zho_Hans") < share(SENTENCES["Jpan"], "zho_Hant") < 0.5
    assert share(SENTENCES["Hans"], "kor_Hang") == 0


def test_what_says_nothing_is_not_counted():
    assert letters("12:30, «…» 𝐀 ʼ") == {}
    assert share("12:30!", "rus_Cyrl") == 1
    assert share("Привет, Tom", "rus_Cyrl") == pytest.approx(6 / 9)
    assert share("ＡＢｶﾀ", "jpn_Jpan") == 0.5  # wide Latin, narrow kana
    assert share("ᏣᎳᎩ abc", "eng_Latn") == 0.5  # Cherokee is no script of SONAR's, but one
    assert share("whatever", "tlh_Piqd") == share("whatever", "toy") == 1  # a codec's own languages are not judged


def test_width_is_as_printed():
    assert width("abc", letters("abc")) == 3
    assert width("生而自由.", letters("生而自由.")) == 9
    assert width("すべて", letters("すべて")) == width("모든 인", letters("모든 인")) - 1 == 6
