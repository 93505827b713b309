"""Speech on the command line: vectors of sound files, a story that a recording begins, and a speech encoder measured."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Finished, assert_refused

from sonarkit import cli
from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.speech import BodyConfig, SpeechConfig, SpeechEncoder, encode_recording
from sonarkit.text.speech_data import Utterance, write_manifest

soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
Command = Callable[..., Finished]


@pytest.fixture(scope="session")
def speech(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny speech encoder of random weights for the tiny codec."""
    torch.manual_seed(0)
    body = BodyConfig(16, 1, 2, 24, kernel=3, subsampling="convolution")
    fingerprint = Sonar.from_pretrained(codec).fingerprint()
    config = SpeechConfig(32, body, "attention", PoolerConfig(32, 1, 2, 32), codec=fingerprint)
    folder = tmp_path_factory.mktemp("speech-encoder")
    SpeechEncoder(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.wav and b.flac hold a sound each, both.wav one after the other with a second of silence between, silent.wav none."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    a, b = (0.2 * rng.standard_normal(n) * np.sin(np.arange(n) / 900) for n in (16_000, 24_000))
    soundfile.write(folder / "a.wav", a, 16_000)
    soundfile.write(folder / "b.flac", b, 16_000)
    soundfile.write(folder / "both.wav", np.concatenate([a, np.zeros(16_000), b]), 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    (folder / "text.wav").write_text("Once upon a time there was a little fox.")
    write_manifest(
        folder / "speech.tsv",
        [
            Utterance(folder / "a.wav", "The little fox ran home.", "eng_Latn", ""),
            Utterance(folder / "b.flac", "Mia fand einen roten Drachen.", "deu_Latn", ""),
        ],
    )
    return folder


# ---------------------------------------------------------------------- encode


def test_sound_files_become_vectors(sonarkit: Command, codec: Path, speech: Path, sounds: Path, tmp_path: Path) -> None:
    files, options = [sounds / "a.wav", sounds / "b.flac"], ["--audio", "--model", codec, "--speech", speech]
    filed = sonarkit("encode", *files, *options, "--out", tmp_path / "v.npy")
    assert filed.stderr == f"{tmp_path / 'v.npy'}: 2 vectors of width 32\n" and filed.returncode == 0
    expected = Sonar.from_pretrained(codec, speech=speech).encode_speech(files)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    printed = [json.loads(line) for line in sonarkit("encode", *files, *options, "--json").stdout.splitlines()]
    assert [row["text"] for row in printed] == [str(file) for file in files]
    np.testing.assert_allclose([row["embedding"] for row in printed], expected, atol=1e-6)


def test_what_is_no_sound_leaves_no_file(
    sonarkit: Command, codec: Path, speech: Path, sounds: Path, tmp_path: Path, make_codec: Callable[[int], Path]
) -> None:
    def no(*words: str, files: tuple[Path, ...] = (sounds / "a.wav",), model: Path = codec, encoder: object = speech) -> None:
        options = ("--audio", "--model", model, "--speech", encoder, "--out", tmp_path / "v.npy")
        assert_refused(sonarkit("encode", *files, *options), *words)
        assert not list(tmp_path.glob("v.npy*"))

    no("--audio needs the names of sound files", files=())
    no("no sound file at", "none.wav", files=(sounds / "a.wav", sounds / "none.wav"))
    found = sonarkit("encode", "--audio", sounds / "none.wav", "--model", codec, "--speech", speech, "--out", tmp_path / "v.npy")
    assert "could not write" not in found.stderr  # the sound is at fault, not the disk
    no("text.wav is no sound file", files=(sounds / "text.wav",))
    no("no speech encoder at", "config.json", encoder=tmp_path / "none")
    no("gives vectors of the codec", "use the codec that taught it", model=make_codec(1))
    assert_refused(sonarkit("encode", "--audio", sounds / "a.wav", "--model", codec), "--out vectors.npy", "--json")


def test_silence_has_a_vector_and_a_note(sonarkit: Command, codec: Path, speech: Path, sounds: Path) -> None:
    options = ("--audio", "--json", "--model", codec, "--speech", speech)
    found = sonarkit("encode", sounds / "silent.wav", *options)
    assert found.returncode == 0 and found.stderr == "sonarkit: note: 1 of 1 utterances are silent (below -60 dB)\n"


# ---------------------------------------------------------------------- story


def test_a_recording_begins_a_story(sonarkit: Command, llm: Path, codec: Path, speech: Path, sounds: Path) -> None:
    options = ("--model", llm, "--speech", speech, "--beam-size", 1, "--max-sentences", 4, "--lang", "fra_Latn")
    told = json.loads(sonarkit("story", "--audio", sounds / "both.wav", *options, "--json").stdout)
    assert told["prompt_sentences"] == 2 and told["lang"] == told["output_lang"] == "fra_Latn"
    sonar = Sonar.from_pretrained(codec, speech=speech)
    heard = encode_recording(sonar.speech, sounds / "both.wav")
    assert heard.spans[0][1] <= 1.2 and heard.spans[1][0] >= 1.8, "cut in the silence"
    assert told["sentences"][:2] == sonar.decode(heard.vectors, "fra_Latn", beam_size=1)
    assert len(told["sentences"]) <= 4 and told["prompt"] == " ".join(told["sentences"][:2])
    plain = sonarkit("story", "--audio", sounds / "both.wav", *options, "--output-lang", "eng_Latn").stdout
    assert plain.splitlines()[1:] and told["prompt"] not in plain, "the beginning, too, is told in the other language"


def test_a_beginning_that_cannot_be_heard(sonarkit: Command, llm: Path, speech: Path, sounds: Path, tmp_path: Path) -> None:
    def no(audio: Path, *words: str, encoder: object = speech, prompt: tuple[str, ...] = ()) -> None:
        found = sonarkit("story", *prompt, "--audio", audio, "--model", llm, "--speech", encoder)
        assert_refused(found, *words)
        assert not found.stdout

    no(sounds / "both.wav", "either a text or --audio, not both", prompt=("A fox ran home.",))
    no(sounds / "none.wav", "no sound file at", "none.wav")
    no(sounds / "text.wav", "text.wav is no sound file that libsndfile reads")
    no(sounds / "silent.wav", "there is no speech in", "silent throughout")
    no(sounds / "both.wav", "no speech encoder at", encoder=tmp_path / "none")


# ---------------------------------------------------------------------- evaluate


def test_a_speech_encoder_is_measured(sonarkit: Command, codec: Path, speech: Path, sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(
        "eng_Latn\tdeu_Latn\nThe little fox ran home.\tDer kleine Fuchs lief nach Hause.\n", encoding="utf-8"
    )
    options = ("--on", sounds / "speech.tsv", "--speech", speech, "--beam-size", 1, "--out", tmp_path / "report.json")
    found = sonarkit("evaluate", "speech", codec, *options, "--translations", tmp_path / "rows.tsv")
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["languages"].keys() == {"eng_Latn", "deu_Latn"} and report["utterances"] == 2
    assert "bleu_into_deu_Latn" in report["languages"]["eng_Latn"] and report["languages"]["eng_Latn"]["wer"] > 0
    assert "bleu_into_eng_Latn" not in report["languages"]["deu_Latn"], "no translation of it is known"
    assert "2 utterances of" in found.stdout and "transcription" in found.stdout


def test_missing_sounds_are_left_out_only_when_told(
    sonarkit: Command, codec: Path, speech: Path, sounds: Path, tmp_path: Path
) -> None:
    listed = (sounds / "speech.tsv").read_text().replace("b.flac", "gone.flac")
    (sounds / "holes.tsv").write_text(listed)
    options = ("--on", sounds / "holes.tsv", "--speech", speech, "--beam-size", 1, "--out", tmp_path / "report.json")
    assert_refused(sonarkit("evaluate", "speech", codec, *options), "no sound file at", "gone.flac", "--skip-missing")
    found = sonarkit("evaluate", "speech", codec, *options, "--skip-missing")
    assert found.returncode == 0 and "utterances left out: 1 missing" in found.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["utterances"] == 1 and report["dropped"] == {"missing": 1}


def test_what_cannot_be_measured_is_refused(sonarkit: Command, codec: Path, speech: Path, sounds: Path, tmp_path: Path) -> None:
    for on, told in ((tmp_path / "none.tsv", "no speech at"), ("synthetic:0", "expected synthetic:COUNT")):
        assert_refused(sonarkit("evaluate", "speech", codec, "--on", on, "--speech", speech), told)
    options = ("--on", sounds / "speech.tsv", "--speech")
    assert_refused(sonarkit("evaluate", "speech", codec, *options, tmp_path), "no speech encoder at")
    klingon = sonarkit("evaluate", "speech", codec, *options, speech, "--into", "Klingon")
    assert_refused(klingon, "unknown language 'Klingon'")
    assert_refused(sonarkit("evaluate", "spech"), "evaluate what?", "codec, speech")


def test_the_examples_are_understood() -> None:
    lines = [
        line.strip() for line in (inspect.getdoc(cli.evaluate_speech) or "").splitlines() if line.strip().startswith("sonarkit ")
    ]
    assert len(lines) >= 2
    for line in lines:
        with pytest.raises(SystemExit) as ending:  # --help last: everything before it was parsed
            cli._run(cli.evaluate_speech, "evaluate speech", [*shlex.split(line)[3:], "--help"])
        assert ending.value.code == 0, line


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_synthetic_speech_is_measured_with_its_own_translations(
    sonarkit: Command, codec: Path, speech: Path, tmp_path: Path
) -> None:
    options = ("--on", "synthetic:3@test-unheard", "--synthetic", tmp_path, "--speech", speech, "--beam-size", 1)
    found = sonarkit("evaluate", "speech", codec, *options, "--into", "fr", "--out", tmp_path / "report.json")
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "fra_Latn" in report["targets"] and set(report["targets"]) == {"fra_Latn", *report["languages"]}
