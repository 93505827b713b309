"""The speech teller without a browser: what is heard is what the codec hears, and errors are sentences."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig
from sonarkit.codec.speech import BodyConfig, SpeechConfig, SpeechEncoder, encode_recording
from sonarkit.explore.widgets.speech_teller import SpeechTeller, heard_html, wav
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.rollout import RolloutConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig

soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
CONFIG = RolloutConfig(max_sentences=64, end_threshold=1.0, stop_on_loop=False, search=SearchConfig(1, 4))


def model_of(sonar: Sonar) -> SonarLLM:
    torch.manual_seed(0)
    return SonarLLM(SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint()), sonar).eval()


@pytest.fixture
def teller(sonar: Sonar) -> Iterator[SpeechTeller]:
    torch.manual_seed(1)
    body = BodyConfig(16, 1, 2, 24, kernel=3, subsampling="convolution")
    sonar.add_speech(SpeechEncoder(SpeechConfig(32, body, "attention", PoolerConfig(32, 1, 2, 32))).eval())
    teller = SpeechTeller(model_of(sonar), ["English", "fr"], CONFIG)
    yield teller
    teller.wait()


def two_sounds() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([0.2 * rng.standard_normal(8000), np.zeros(16_000), 0.2 * rng.standard_normal(12_000)]).astype("f4")


def upload(teller: SpeechTeller, name: str, content: bytes) -> None:
    now = datetime.now(UTC)
    teller.upload.value = ({"name": name, "type": "audio/wav", "size": len(content), "content": content, "last_modified": now},)
    teller.wait()


def test_what_is_heard_is_read_in_every_language_and_begins_the_story(teller: SpeechTeller) -> None:
    teller.hear(two_sounds())
    teller.wait()
    assert teller.work.error is None and teller.status.text == "2 sentences heard; Tell goes on from there."
    expected = encode_recording(teller.encoder, two_sounds())
    assert teller.recording is not None and teller.recording.spans == expected.spans and len(expected.spans) == 2
    assert teller.said == {code: teller.sonar.decode(expected.vectors, code) for code in ("eng_Latn", "fra_Latn")}
    assert teller.teller.prompt.value == " ".join(teller.said["eng_Latn"]) and teller.teller.lang.value == "eng_Latn"
    assert teller.heard.value == heard_html(expected.spans, teller.said) and teller.player.layout.display is None


def test_an_uploaded_file_is_heard(teller: SpeechTeller) -> None:
    upload(teller, "me.wav", wav(two_sounds()))
    assert teller.work.error is None and len(teller.said["fra_Latn"]) == 2
    samples, rate = soundfile.read(io.BytesIO(bytes(teller.player.value)))
    assert rate == 16_000 and len(samples) == len(two_sounds())
    assert teller.upload.value == () and not teller.upload.disabled


def test_what_cannot_be_heard_is_a_sentence_and_changes_nothing(teller: SpeechTeller, tmp_path: Path) -> None:
    upload(teller, "me.wav", wav(two_sounds()))
    before = (teller.said, teller.heard.value)
    upload(teller, "text.wav", b"Once upon a time")
    assert "text.wav is no sound file that libsndfile reads" in teller.status.text
    upload(teller, "silence.wav", wav(np.zeros(16_000, np.float32)))
    assert "there is no speech in" in teller.status.text.lower()
    teller.hear(tmp_path / "none.wav")
    teller.wait()
    assert "No sound file at" in teller.status.text
    assert (teller.said, teller.heard.value) == before


def test_a_table_shows_text_as_it_stands() -> None:
    table = heard_html([(0.0, 1.24)], {"eng_Latn": ["<b>Fox</b> & Mia"]})
    assert "0.0 to 1.2" in table and "&lt;b&gt;Fox&lt;/b&gt; &amp; Mia" in table and "<b>Fox" not in table


def test_a_codec_that_cannot_hear_is_refused(sonar: Sonar) -> None:
    with pytest.raises(ValueError, match="no speech encoder"):
        SpeechTeller(model_of(sonar))
