"""Speech among texts: word errors by hand, sets by their names, and a report held to a codec whose every answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sonarkit.codec.audio import RATE, load
from sonarkit.core.paths import data_folder
from sonarkit.evaluation.speech import (
    edit_distance,
    evaluate_speech,
    speech_set,
    table_of,
    translations_of,
    word_error_rate,
    words_of,
)
from sonarkit.text.languages import UnknownLanguageError
from sonarkit.text.speech_data import SyntheticConfig, Utterance, orders, write_manifest

soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
ROWS = [
    {"eng_Latn": "The little fox ran home.", "deu_Latn": "Der kleine Fuchs lief nach Hause."},
    {"eng_Latn": "Mia found a red kite.", "deu_Latn": "Mia fand einen roten Drachen."},
    {"eng_Latn": "Mia found a red ball today.", "deu_Latn": "Mia fand heute einen roten Ball."},
    {"eng_Latn": "They all laughed and danced.", "deu_Latn": "Sie lachten und tanzten alle."},
]


class KnownCodec:
    """Row i is the i-th unit vector, whatever its language; what is heard in the file i.wav is row `hears[i]`."""

    name, languages, speech = "known", ("deu_Latn", "eng_Latn"), SimpleNamespace(name="ears")

    def __init__(self, hears: Sequence[int]) -> None:
        self.hears = hears

    def fingerprint(self) -> str:
        return "0" * 12

    def encode(self, texts: Sequence[str], lang: str | Sequence[str]) -> Tensor:
        codes = [lang] * len(texts) if isinstance(lang, str) else lang
        return torch.eye(4)[[next(i for i, row in enumerate(ROWS) if row[code] == text) for text, code in zip(texts, codes)]]

    def encode_speech(self, audio: Sequence[Path], **_: Any) -> Tensor:
        return torch.eye(4)[[self.hears[int(path.stem)] for path in audio]]

    def decode(self, z: Tensor, lang: str, **_: Any) -> list[str]:
        return [ROWS[i][lang] for i in z.argmax(1).tolist()]


def recorded(folder: Path, languages: Sequence[str]) -> list[Utterance]:
    """A second of noise for each row."""
    utterances = []
    for i, code in enumerate(languages):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(16_000), 16_000)
        utterances.append(Utterance(folder / f"{i}.wav", ROWS[i][code], code, f"speech.tsv:{i + 2}"))
    return utterances


# ---------------------------------------------------------------------- word errors


@pytest.mark.parametrize(
    "a,b,distance",
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("intention", "execution", 5)],
)
def test_edit_distances_by_hand(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_words_are_without_case_and_punctuation() -> None:
    assert words_of("L'ours dit : « Où est Mia ? »", "fra_Latn") == ["l", "ours", "dit", "où", "est", "mia"]
    assert words_of("नमस्ते, दुनिया!", "hin_Deva") == ["नमस्ते", "दुनिया"]  # vowel signs are no punctuation
    assert words_of("狐狸 回家了。", "zho_Hans") == list("狐狸回家了")


def test_word_error_rates_by_hand() -> None:
    assert word_error_rate(["the cat sat", "a"], ["The cat sat.", "a b"]) == pytest.approx(20)  # 1 of 5
    assert word_error_rate(["one two three"], ["one"]) == pytest.approx(200)
    assert word_error_rate(["the dog ran", ""], ["the cat sat", "home"]) == pytest.approx(75)  # 2 + 1 of 4
    for said, references in ((["a"], ["a", "b"]), ([], []), (["a"], ["?!"])):
        with pytest.raises(ValueError, match="expected a reference with words for each text"):
            word_error_rate(said, references)


# ---------------------------------------------------------------------- sets


def test_synthetic_sets_come_with_their_translations(tmp_path: Path) -> None:
    """What is there is not spoken again, so this needs no espeak-ng."""
    folder = tmp_path / "valid-unheard-3"
    folder.mkdir()
    there = []
    for i, order in enumerate(orders(SyntheticConfig(3, split="valid", voices="unheard"))):
        (folder / f"{i}.flac").touch()
        there.append(Utterance(folder / f"{i}.flac", order.text, order.language, ""))
    write_manifest(folder / "manifest.tsv", there)
    opened = speech_set("synthetic:3@valid-unheard", synthetic=tmp_path)
    assert (opened.name, opened.manifest, len(opened.utterances)) == ("valid_unheard", folder / "manifest.tsv", 3)
    assert [row[u.language] for u, row in zip(opened.utterances, opened.translations)] == [u.text for u in opened.utterances]
    assert all(len(row) == 4 for row in opened.translations)


def test_the_sounds_that_ship_are_what_their_name_says() -> None:
    opened = speech_set("synthetic:24@test-unheard", synthetic=data_folder() / "speech")
    said = [(order.text, order.language) for order in orders(SyntheticConfig(24, split="test", voices="unheard"))]
    assert [(u.text, u.language) for u in opened.utterances] == said and len({code for _, code in said}) == 4
    for utterance, row in zip(opened.utterances, opened.translations):
        assert row[utterance.language] == utterance.text
        letters = sum(map(str.isalpha, utterance.text))
        samples = load(utterance.path)
        assert 8 < letters / (len(samples) / RATE) < 25 and 0.05 < np.abs(samples).max() <= 1, utterance


@pytest.mark.parametrize("spec", ["synthetic:", "synthetic:0", "synthetic:ten", "synthetic:5@dev", "synthetic:5@test-loud"])
def test_a_synthetic_set_that_there_is_not(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected synthetic:COUNT .* one of train, valid, test"):
        speech_set(spec, synthetic=tmp_path)
    assert not list(tmp_path.iterdir())


def test_manifests_and_published_folders(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    utterances = recorded(tmp_path / "mine", ["eng_Latn", "deu_Latn"])
    write_manifest(tmp_path / "mine" / "dev.tsv", utterances)
    opened = speech_set(str(tmp_path / "mine" / "dev.tsv"))
    assert opened.name == "mine_dev" and [u.text for u in opened.utterances] == [u.text for u in utterances]
    with pytest.raises(ValueError, match="a manifest has no splits; leave @test out"):
        speech_set(f"{tmp_path / 'mine' / 'dev.tsv'}@test")
    fleurs = tmp_path / "de_de"
    (fleurs / "dev").mkdir(parents=True)
    (fleurs / "dev" / "7.wav").touch()
    (fleurs / "dev.tsv").write_text(f"1\t7.wav\t{ROWS[1]['deu_Latn']}\tmia fand\tm i a\t16000\tFEMALE\n", encoding="utf-8")
    for spec in (str(fleurs), f"{fleurs}@dev"):  # "valid" is their dev
        opened = speech_set(spec, "valid")
        assert (opened.name, opened.manifest) == ("de_de_dev", fleurs / "dev.tsv")
    assert translations_of(opened.utterances, ROWS) == [ROWS[1]]
    assert translations_of(opened.utterances, ROWS[:1]) == [{}]


# ---------------------------------------------------------------------- the report


def test_a_report_by_hand(tmp_path: Path) -> None:
    """Of three English utterances one is taken for another sentence; the German one is understood."""
    utterances = recorded(tmp_path, ["eng_Latn", "eng_Latn", "eng_Latn", "deu_Latn"])
    report = evaluate_speech(KnownCodec([0, 1, 1, 3]), utterances, ROWS)  # type: ignore[arg-type]
    english, german = report["languages"]["eng_Latn"], report["languages"]["deu_Latn"]
    assert english["utterances"] == 3 and english["seconds"] == pytest.approx(3) and english["cosine"] == pytest.approx(2 / 3)
    assert english["wer"] == pytest.approx(100 * 2 / 16) and english["wer_text"] == 0  # "kite" for "ball", and "today"
    assert english["xsim"] == english["xsim_to_deu_Latn"] == english["xsim_translation"] == pytest.approx(100 / 3)
    assert 0 < english["bleu"] < 100 and 0 < english["bleu_into_deu_Latn"] < 100
    assert english["bleu_text"] == english["bleu_text_into_deu_Latn"] == english["bleu_text_translation"] == pytest.approx(100)
    assert (german["cosine"], german["wer"], german["xsim"], german["xsim_to_eng_Latn"]) == (1, 0, 0, 0)
    assert german["bleu"] == german["bleu_into_eng_Latn"] == german["bleu_translation"] == pytest.approx(100)
    assert report["mean"]["wer"] == pytest.approx(english["wer"] / 2) and (report["utterances"], report["distinct"]) == (4, 4)
    lines = table_of(report).splitlines()
    (row,) = [line for line in lines if line.startswith("eng_Latn") and "0.667" in line]
    assert row.split()[1:4] == ["3", "0.667", "12.5"]
    assert any(line.startswith("deu_Latn") and line.count("100.0 (100.0)") == 2 for line in lines)


def test_without_translations_there_is_transcription_alone(tmp_path: Path) -> None:
    utterances = recorded(tmp_path, ["eng_Latn", "eng_Latn"])
    report = evaluate_speech(KnownCodec([0, 1]), utterances)  # type: ignore[arg-type]
    assert report["targets"] == ["eng_Latn"] and report["languages"]["eng_Latn"].keys() == {
        "utterances", "seconds", "cosine", "bleu", "bleu_text", "wer", "wer_text", "xsim",
    }  # fmt: skip
    assert "BLEU into" not in table_of(report)


def test_a_sentence_said_twice_is_searched_once(tmp_path: Path) -> None:
    first, second = recorded(tmp_path, ["eng_Latn", "eng_Latn"])
    again = Utterance(second.path, first.text, first.language, "speech.tsv:4")
    report = evaluate_speech(KnownCodec([0, 0]), [first, again])  # type: ignore[arg-type]
    assert report["distinct"] == 1 and "xsim" not in report["mean"] and report["mean"]["wer"] == 0


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    utterances, codec = recorded(tmp_path, ["eng_Latn", "deu_Latn"]), KnownCodec([0, 1])
    with pytest.raises(ValueError, match="got 0 utterances and 0 rows"):
        evaluate_speech(codec, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 2 utterances and 4 rows"):
        evaluate_speech(codec, utterances, ROWS)  # type: ignore[arg-type]
    with pytest.raises(UnknownLanguageError, match="deu_Latn"):
        evaluate_speech(codec, utterances, into=["German", "Klingon"])  # type: ignore[arg-type]
    welsh = Utterance(utterances[0].path, "Bore da.", "cym_Latn", "speech.tsv:9")
    with pytest.raises(UnknownLanguageError, match="cym_Latn"):
        evaluate_speech(codec, [welsh])  # type: ignore[arg-type]
