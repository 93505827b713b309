"""Speech corpora are read as they are published, and synthetic ones repeat from their seed."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonarkit.text import speech_data
from sonarkit.text.speech_data import VOICES, SyntheticConfig, Utterance, open_speech, orders, speak, synthesize, write_manifest

espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# ---------------------------------------------------------------------- reading


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    files(tmp_path, "a/1.flac", "2.wav")
    utterances = [
        Utterance(tmp_path / "a" / "1.flac", 'She said "yes".', "eng_Latn", "speech.tsv:2"),
        Utterance(tmp_path / "2.wav", "Où est-il ?", "fra_Latn", "speech.tsv:3"),
    ]
    write_manifest(tmp_path / "speech.tsv", utterances)
    assert open_speech(tmp_path / "speech.tsv") == utterances
    assert "\na/1.flac\t" in (tmp_path / "speech.tsv").read_text(), "paths are relative: the folder may move"
    with pytest.raises(ValueError, match="tabs and line ends"):
        write_manifest(tmp_path / "bad.tsv", [Utterance(tmp_path / "2.wav", "a\tb", "eng_Latn", "x")])


def test_jsonl_and_what_people_call_a_language(tmp_path: Path) -> None:
    files(tmp_path, "1.wav")
    (tmp_path / "s.jsonl").write_text('{"path": "1.wav", "text": "Bonjour.", "language": "French", "age": 3}\n')
    assert open_speech(tmp_path / "s.jsonl") == [Utterance(tmp_path / "1.wav", "Bonjour.", "fra_Latn", "s.jsonl:1")]


def test_missing_files_are_named_by_line_and_skipped_only_when_told(tmp_path: Path) -> None:
    files(tmp_path, *(f"{i}.wav" for i in range(10_000) if i not in (17, 4_711)))
    rows = "".join(f"{i}.wav\ttext {i}\teng_Latn\n" for i in range(10_000))
    (tmp_path / "s.tsv").write_text("path\ttext\tlanguage\n" + rows)
    with pytest.raises(
        FileNotFoundError, match=r"s\.tsv:19: no sound file at .*17\.wav; s\.tsv:4713: .*Of 10000 utterances 2 are"
    ):
        open_speech(tmp_path / "s.tsv")
    dropped: Counter[str] = Counter()
    assert len(open_speech(tmp_path / "s.tsv", skip_missing=True, dropped=dropped)) == 9_998
    assert dropped == {"missing": 2}


@pytest.mark.parametrize(
    "text, message",
    [
        ("path\ttext\n1.wav\thello\n", r"s\.tsv:2: no text under language"),
        ("path\ttext\tlanguage\n1.wav\thello\n", r"s\.tsv:2: expected 3 cells .*, got 2"),
        ("path\ttext\tlanguage\n1.wav\thello\tKlingon\n", r"s\.tsv:2: unknown language 'Klingon'"),
        ("path\ttext\tlanguage\n1.wav\t \teng_Latn\n", r"no utterance that can be used .*without text"),
        ("", "no utterance"),
    ],
)
def test_bad_manifests_are_named(text: str, message: str, tmp_path: Path) -> None:
    files(tmp_path, "1.wav")
    (tmp_path / "s.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_speech(tmp_path / "s.tsv")


def test_common_voice_and_fleurs_are_read_as_published(tmp_path: Path) -> None:
    voice, fleurs = tmp_path / "fr", tmp_path / "cmn_hans_cn"
    files(voice, "clips/a.mp3")
    files(fleurs, "audio/test/9.wav")
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\n"
    (voice / "dev.tsv").write_text(header + 'x\ta.mp3\t7\t"Oui", dit-il.\t2\tfr\n', encoding="utf-8")
    (fleurs / "test.tsv").write_text("1\t9.wav\t你好。\t你好\t你 好\t32000\tMALE\n", encoding="utf-8")
    assert open_speech(voice, "dev") == [Utterance(voice / "clips" / "a.mp3", '"Oui", dit-il.', "fra_Latn", "dev.tsv:2")]
    assert open_speech(fleurs, "test") == [Utterance(fleurs / "audio" / "test" / "9.wav", "你好。", "zho_Hans", "test.tsv:1")]
    with pytest.raises(FileNotFoundError, match=r"no train\.tsv; the splits there are dev"):
        open_speech(voice, "train")
    with pytest.raises(FileNotFoundError, match="no speech at"):
        open_speech(tmp_path / "nowhere")


# ---------------------------------------------------------------------- synthetic speech


def test_orders_repeat_and_test_voices_are_unheard() -> None:
    config = SyntheticConfig(60)
    drawn = list(orders(config))
    assert drawn == list(orders(config)) == list(orders(SyntheticConfig(80)))[:60] != list(orders(SyntheticConfig(60, seed=1)))
    assert {order.language for order in drawn} == set(config.languages)
    heard = {order.voice.split("+")[1] for order in drawn}
    unheard = {order.voice.split("+")[1] for order in orders(SyntheticConfig(60, voices="unheard"))}
    assert heard <= set(VOICES["train"]) and unheard == set(VOICES["unheard"]) and not heard & unheard
    for wrong in ({"count": 0}, {"voices": "all"}, {"languages": ("ita_Latn",)}, {"languages": ()}, {"pitch": (50, 120)}):
        with pytest.raises(ValueError, match="count|voices|languages|pitch"):
            SyntheticConfig(**{"count": 1, **wrong})  # type: ignore[arg-type]


@espeak
def test_synthetic_speech_repeats_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
    manifest = synthesize(tmp_path / "a", SyntheticConfig(6), workers=2)
    once = {u.path.name: u.path.read_bytes() for u in open_speech(manifest)}
    info = soundfile.info(str(open_speech(manifest)[0].path))
    assert len(once) == 6 and (info.samplerate, info.subtype, info.format) == (16_000, "PCM_16", "FLAC")
    again = synthesize(tmp_path / "b", SyntheticConfig(6), workers=1)
    assert {u.path.name: u.path.read_bytes() for u in open_speech(again)} == once, "whatever the number of workers"
    said: list[str] = []
    monkeypatch.setattr(speech_data, "speak", lambda order: said.append(order.text) or np.zeros(1600, np.float32))
    (tmp_path / "a" / "0000" / "0000003.flac").unlink()
    assert len(open_speech(synthesize(tmp_path / "a", SyntheticConfig(7), workers=1))) == 7 and len(said) == 2
    with monkeypatch.context() as later:
        later.setitem(speech_data.VOICES, "train", ("m1", "f4"))
        with pytest.raises(ValueError, match=r"another configuration \(variants: \['m1', .* there, \['m1', 'f4'\] now\)"):
            synthesize(tmp_path / "a", SyntheticConfig(6))
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 there, 1 now\)"):
        synthesize(tmp_path / "a", SyntheticConfig(6, seed=1))


@espeak
def test_speech_follows_its_order() -> None:
    order = next(orders(SyntheticConfig(1)))
    fast, slow = (speak(replace(order, speed=speed)) for speed in (200, 100))
    assert np.abs(fast).max() <= 1 and len(slow) > 1.4 * len(fast) > 0.4 * 16_000
    with pytest.raises(ValueError, match="espeak-ng could not say"):
        speak(replace(order, text=""))


@espeak
def test_a_voice_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """espeak-ng itself would speak on with its default voice, in English."""
    monkeypatch.setitem(speech_data.ACCENTS, "deu_Latn", ("de", "de-nowhere"))
    monkeypatch.setitem(VOICES, "train", ("m1", "m99"))
    with pytest.raises(ValueError, match="no voices de-nowhere, m99"):
        synthesize(tmp_path / "a", SyntheticConfig(3))


def test_a_manifest_finds_sounds_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wav").mkdir()
    Path("out").mkdir()
    Path("wav/a.wav").write_bytes(b"a sound")
    write_manifest(Path("out/m.tsv"), [Utterance(Path("wav/a.wav"), "A.", "eng_Latn", "here")])
    (found,) = open_speech(Path("out/m.tsv"))
    assert found.path == tmp_path / "wav" / "a.wav" and found.path.is_file()
