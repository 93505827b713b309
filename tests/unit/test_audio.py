"""Sound comes in at any rate, whole or streamed, and is cut at silences."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sonarkit.codec import audio

soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0, loudness: float = 0.3) -> np.ndarray:
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 16_000), np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_becomes_the_same_tone(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.flac", tone(1.0, rate), rate)
    loaded = audio.load(tmp_path / "tone.flac")
    assert loaded.dtype == np.float32 and len(loaded) == 16_000
    np.testing.assert_allclose(loaded[800:-800], tone(1.0)[800:-800], atol=2e-3)


@pytest.mark.parametrize("rate", [8_000, 44_100])
@pytest.mark.parametrize("block_seconds", [0.013, 0.25, 10.0])
def test_a_stream_is_the_file_resampled_at_once(rate: int, block_seconds: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(1.37 * rate)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", noise, rate, subtype="FLOAT")
    streamed = np.concatenate(list(audio.stream(tmp_path / "noise.wav", block_seconds)))
    np.testing.assert_allclose(streamed, audio.resample(noise, rate), atol=1e-6)


def test_channels_are_averaged_and_integers_scaled(tmp_path: Path) -> None:
    left, right = tone(0.5), tone(0.5, hertz=300)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(audio.load(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-6)
    np.testing.assert_allclose(audio.load((left * 2**15).astype(np.int16)), left, atol=1e-4)
    np.testing.assert_array_equal(audio.load(torch.from_numpy(left)), left)


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no sound file at .*absent\.wav"):
        audio.load(tmp_path / "absent.wav")
    (tmp_path / "text.wav").write_text("Once upon a time there was a fox.\n" * 9)
    with pytest.raises(ValueError, match=r"text\.wav is no sound file that libsndfile reads"):
        audio.load(tmp_path / "text.wav")
    with pytest.raises(ValueError, match=r"0\.050 s long; speech needs at least 0\.1 s"):
        audio.load(tone(0.05))
    with pytest.raises(ValueError, match=r"shape \(2, 16000\)"):
        audio.load(np.zeros((2, 16_000), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        audio.load(np.full(16_000, np.nan, np.float32))
    with pytest.raises(ValueError, match="uint8"):
        audio.load(np.zeros(16_000, np.uint8))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[speech\]"'):
        audio.load(tmp_path / "text.wav")


def test_a_recording_is_cut_at_its_silences_with_times_kept() -> None:
    recording = np.concatenate([silence(1.0), tone(1.5), silence(0.7), tone(0.8), silence(0.2), tone(0.5), silence(3.0)])
    cut = list(audio.segments(recording))
    assert [(s.start, s.end) for s in cut] == [(0.9, 2.6), (3.1, 4.8)], "0.2 s do not end a segment, 0.1 s of silence are kept"
    for segment in cut:
        np.testing.assert_array_equal(segment.samples, recording[round(segment.start * 16_000) : round(segment.end * 16_000)])


def test_silence_and_faint_noise_hold_no_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 2e-4, 16_000 * 50).astype(np.float32)
    assert list(audio.segments(noise)) == [] and list(audio.segments(silence(5.0))) == []


def test_the_noise_after_the_last_word_is_no_word() -> None:
    recording = np.concatenate([silence(0.5), tone(1.5), silence(1.0), tone(0.8), silence(2.0)])
    recording += np.random.default_rng(0).normal(0, 2e-3, len(recording)).astype(np.float32)  # -54 dB, as of a quiet room
    assert [(s.start, s.end) for s in audio.segments(recording)] == [(0.4, 2.1), (2.9, 3.9)]


def test_speech_without_a_pause_is_cut_at_its_quietest_place() -> None:
    recording = tone(7.0)
    recording[round(2.6 * 16_000) : round(2.8 * 16_000)] *= 0.3
    cut = list(audio.segments(recording, max_seconds=3))
    assert all(s.end - s.start <= 3 for s in cut) and cut[0].end == pytest.approx(2.7, abs=0.06)
    np.testing.assert_array_equal(np.concatenate([s.samples for s in cut]), recording)


def test_an_hour_is_streamed(tmp_path: Path) -> None:
    """An hour of telephone audio: no more than some seconds of it are held, and no speech is lost."""
    sentence = np.concatenate([tone(2.0, 8_000), np.zeros(8_000, np.float32)])
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", 8_000, 1) as file:
        for _ in range(20):
            file.write(np.tile(sentence, 60))
    assert audio.seconds_of(tmp_path / "hour.flac") == 3600
    lengths: list[int] = []
    spoken = 0.0
    tracemalloc.start()
    for segment in audio.segments(tmp_path / "hour.flac"):
        lengths.append(len(segment.samples))
        spoken += segment.end - segment.start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lengths) == 1200 and spoken == pytest.approx(1200 * 2.2, rel=0.02) and max(lengths) < 40_000
    assert peak < 40e6, "the hour at 16 kHz would be 230 MB"
