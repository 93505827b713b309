"""The speech encoder: its front end and bodies against plain arithmetic, and sound into vectors."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from torch import Tensor

from sonarkit.codec.config import EncoderConfig, PoolerConfig
from sonarkit.codec.encoder import Encoder
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.speech import (
    BodyConfig,
    Hearing,
    PiecesConfig,
    RelativeAttention,
    SilenceWarning,
    SpeechConfig,
    SpeechEncoder,
    encode_recording,
    encode_speech,
    filter_bank,
    pieces_heard,
    relative_positions,
)
from sonarkit.core.packing import pack

BODY = BodyConfig(32, 2, 4, 48, dropout=0.1, kernel=5)
POOLER = PoolerConfig(40, 2, 4, 48)
CONFIGS = {
    "attention": SpeechConfig(40, BODY, "attention", POOLER),
    "mean": SpeechConfig(32, BODY, "mean", None),
    "max": SpeechConfig(32, replace(BODY, convolution_norm="none"), "max", None),
    "convolution": SpeechConfig(40, replace(BODY, subsampling="convolution"), "attention", POOLER),
    "w2v-bert": SpeechConfig(40, BodyConfig(32, 2, 4, 48, kind="w2v-bert"), "attention", POOLER),
    "text": SpeechConfig(24, BODY, "text", None, pieces=PiecesConfig(50, 24)),
}


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and colour change, as those of speech do."""
    rng = np.random.default_rng(seed)
    count = round(seconds * 16_000)
    time = np.arange(count) / 16_000
    tone = np.sin(2 * np.pi * (120 + 40 * rng.random()) * time + 3 * np.sin(2 * np.pi * 3 * time))
    return ((tone + 0.3 * rng.standard_normal(count)) * (0.15 + 0.1 * np.sin(9 * time))).astype(np.float32)


def encoder_of(name: str) -> SpeechEncoder:
    if name == "w2v-bert":
        pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    torch.manual_seed(0)
    encoder = SpeechEncoder(CONFIGS[name])
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and scales, too
            parameter.add_(0.05 * torch.randn_like(parameter))
    return with_reader(encoder).eval()


def with_reader(encoder: SpeechEncoder) -> SpeechEncoder:
    """With a text encoder of random weights, always the same, where it needs one."""
    if encoder.config.pieces:
        torch.manual_seed(1)
        encoder.read_with(Encoder(EncoderConfig(24, 1, 2, 32, dropout=0.0), 50, 9).requires_grad_(False))
    return encoder


# ---------------------------------------------------------------------- front end


def test_the_filter_bank_is_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    extractor = transformers.SeamlessM4TFeatureExtractor()
    for samples in (voice(1.23), 1e-3 * voice(0.3, 1), np.zeros(16_000, np.float32)):
        theirs = torch.as_tensor(extractor(samples, sampling_rate=16_000, return_tensors="np")["input_features"][0])
        ours = filter_bank(torch.from_numpy(samples))
        assert ours.shape == (1 + (len(samples) - 400) // 160, 80)
        theirs = theirs.reshape(-1, 80)[: len(ours)]
        silent = not samples.any()  # Hugging Face's rounding over the root of 1e-7, not a signal
        assert torch.allclose(ours[: len(theirs)], theirs, atol=5e-3 if silent else 1e-4)


def test_silence_is_all_zeros() -> None:
    assert filter_bank(torch.zeros(1600)).abs().max() < 5e-3


# ---------------------------------------------------------------------- bodies


def test_relative_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    attention = RelativeAttention(replace(BODY, dropout=0.0)).eval()
    torch.nn.init.normal_(attention.content_bias)
    torch.nn.init.normal_(attention.distance_bias)
    x, length = torch.randn(1, 7, 32), 7
    table = relative_positions(length, 32, torch.device("cpu"))
    query, key, value = attention.qkv(attention.norm(x))[0].unflatten(-1, (3, 4, 8)).permute(1, 2, 0, 3)  # (heads, L, d)
    scores = torch.empty(4, length, length)
    for i in range(length):
        for j in range(length):
            distance = attention.distance(table[length - 1 - (i - j)]).unflatten(-1, (4, 8))
            content = ((query[:, i] + attention.content_bias[:, 0]) * key[:, j]).sum(-1)
            scores[:, i, j] = content + ((query[:, i] + attention.distance_bias[:, 0]) * distance).sum(-1)
    read = F.softmax(scores * 8**-0.5, -1) @ value
    expected = attention.output(read.transpose(0, 1).flatten(1))
    torch.testing.assert_close(attention(x, torch.ones(1, 7, dtype=torch.bool), table)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_vector_does_not_depend_on_its_neighbours(name: str) -> None:
    encoder = encoder_of(name)
    features = [filter_bank(torch.from_numpy(voice(seconds, i))) for i, seconds in enumerate((0.5, 0.1, 1.3, 0.5, 0.77))]
    with torch.no_grad():
        together, alone = encoder(features), torch.cat([encoder([one]) for one in features])
    assert together.shape == (5, encoder.config.width) and (together[0] - together[3]).abs().max() > 1e-3
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_learns(name: str) -> None:
    encoder = encoder_of(name).train()
    encoder([filter_bank(torch.from_numpy(voice(0.4, i))) for i in range(2)]).square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


def test_pooling_is_the_mean_and_maximum_of_the_frames() -> None:
    frames: dict[str, Tensor] = {}
    features = [filter_bank(torch.from_numpy(voice(0.6)))]
    for name, reduce in (("mean", lambda x: x.mean(0)), ("max", lambda x: x.amax(0))):
        encoder = encoder_of(name)
        with torch.no_grad():
            frames[name] = encoder.body(features[0][None], [len(features[0])])[0][0]
            torch.testing.assert_close(encoder(features)[0], reduce(frames[name]))


def test_what_is_heard_is_the_mean_of_the_frames_of_a_place() -> None:
    """Frames 1 and 2 are one place of piece 3, a blank parts it from frame 4; frame 5 is piece 0. The rest is padding, and the
    second utterance is blank throughout."""
    best = [0, 4, 4, 0, 4, 1, 0, 5]
    scores = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    scores[0, range(8), best] = 9.0
    scores[1, :, 0] = 9.0
    places = [scores[0, 1:3, 1:].mean(0), scores[0, 4, 1:], scores[0, 5, 1:], scores[1, 0, 1:]]
    expected = torch.stack(places).softmax(1)
    found, counts = pieces_heard(scores, [7, 8], 9)
    torch.testing.assert_close(found, expected)
    assert counts == [3, 1] and expected.argmax(1).tolist()[:3] == [3, 3, 0]
    found, counts = pieces_heard(scores, [7, 8], 2)
    torch.testing.assert_close(found, expected[[0, 1, 3]])
    assert counts == [2, 1]


def test_pieces_that_are_heard_clearly_are_read_as_text() -> None:
    encoder = encoder_of("text")
    ids, scores = [7, 3, 3, 49], torch.full((1, 9, 51), -40.0)
    for frame, best in enumerate([8, 8, 0, 4, 0, 4, 50, 50, 0]):  # 1 + the piece, 0 is the blank
        scores[0, frame, best] = 40.0
    torch.testing.assert_close(encoder._read(scores, [9]), encoder.reader(*pack([ids])))


def test_what_is_heard_is_told_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, scores = encoder_of("text"), torch.zeros(1, 8, 51)
    for frame, best in enumerate([8, 8, 0, 8, 3, 0, 0, 50]):
        scores[0, frame, best] = 1.0
    monkeypatch.setattr(Hearing, "forward", lambda *_: scores)
    found = encoder.heard(filter_bank(torch.from_numpy(voice(0.2))))
    assert found == [(0.0, 7), (pytest.approx(0.06), 7), (pytest.approx(0.08), 2), (pytest.approx(0.14), 49)]
    with pytest.raises(ValueError, match="only pooling 'text' hears pieces"):
        encoder_of("mean").heard(torch.zeros(9, 80))


def test_the_text_encoder_is_the_codecs(sonar: Sonar) -> None:
    """It is not among what is saved, and another does not fit."""
    encoder = encoder_of("text")
    assert not any("embedding" in key or "layers.0.attention_norm" in key for key in encoder.state_dict())
    with pytest.raises(ValueError, match="reads with its codec's text encoder: give it to the codec first"):
        encode_speech(SpeechEncoder(CONFIGS["text"]).eval(), [voice(0.5)])
    with pytest.raises(ValueError, match=r"hears PiecesConfig\(vocab_size=50, width=24\), the text encoder reads PiecesConfig"):
        encoder.read_with(sonar.encoder)
    with pytest.raises(ValueError, match="pooling 'text' needs pieces"):
        SpeechConfig(24, BODY, "text", None)
    pieces = PiecesConfig(sonar.config.vocab_size, sonar.config.encoder.width)
    fitting = SpeechEncoder(SpeechConfig(32, BODY, "text", None, pieces=pieces)).eval()
    sonar.add_speech(fitting)
    assert fitting.reader is sonar.encoder and sonar.encode_speech([voice(0.5)]).shape == (1, 32)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name)
    encoder.save_pretrained(tmp_path, torch.float32)
    loaded = with_reader(SpeechEncoder.from_pretrained(tmp_path))
    assert loaded.config == encoder.config and not loaded.training
    sound = [voice(0.5), voice(0.7)]
    torch.testing.assert_close(encode_speech(loaded, sound), encode_speech(encoder, sound), atol=0, rtol=0)


def test_a_pretrained_w2v_bert_becomes_a_student(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    pretrained = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**options)).eval()
    pretrained.save_pretrained(tmp_path)
    encoder = SpeechEncoder.from_w2v_bert(tmp_path, POOLER).eval()
    features = filter_bank(torch.from_numpy(voice(0.5)))
    frames = features[: len(features) // 2 * 2].reshape(1, -1, 160)
    with torch.no_grad():
        theirs = pretrained(frames).last_hidden_state
        torch.testing.assert_close(encoder.body(features[None], [len(features)])[0], theirs, atol=1e-5, rtol=1e-4)


def test_without_transformers_the_line_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[speech\]"'):
        SpeechEncoder(CONFIGS["w2v-bert"])


def test_wrong_configurations_name_the_fields() -> None:
    with pytest.raises(ValueError, match="needs a pooler"):
        SpeechConfig(32, BODY, "attention", None)
    with pytest.raises(ValueError, match="of width 32, but width is 64"):
        SpeechConfig(64, BODY, "mean", None)
    with pytest.raises(ValueError, match="kernel must be odd"):
        replace(BODY, kernel=4)
    with pytest.raises(ValueError, match=r"w2v-BERT 2\.0 has"):
        replace(BODY, kind="w2v-bert")
    with pytest.raises(FileNotFoundError, match="no speech encoder at 'nowhere'"):
        SpeechEncoder.from_pretrained("nowhere")


# ---------------------------------------------------------------------- sound -> vectors


def test_utterances_keep_their_order_in_any_batches(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
    encoder, sounds = encoder_of("convolution"), [voice(s, i) for i, s in enumerate((0.9, 0.3, 1.4, 0.3))]
    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for path, samples in zip(paths, sounds):
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
    expected = torch.cat([encode_speech(encoder, [samples]) for samples in sounds])
    assert not expected.requires_grad
    for batch_seconds in (0.1, 1.0, 60.0):
        torch.testing.assert_close(encode_speech(encoder, paths, batch_seconds=batch_seconds), expected, atol=2e-5, rtol=1e-4)


def test_channels_and_rates_do_not_matter() -> None:
    """48 kHz holds all that 16 kHz does; two like channels hold what one does."""
    encoder, samples = encoder_of("mean"), voice(1.0)
    there = encode_speech(encoder, [samples])
    torch.testing.assert_close(encode_speech(encoder, [np.stack([samples, samples], 1)]), there)
    faster = resample_poly(samples, 3, 1).astype(np.float32)
    assert F.cosine_similarity(encode_speech(encoder, [faster], rate=48_000), there).item() > 0.99
    assert F.cosine_similarity(encode_speech(encoder, [faster]), there).item() < 0.99, "the rate that was told counts"


def test_what_is_no_utterance_is_refused() -> None:
    encoder = encoder_of("mean")
    with pytest.raises(ValueError, match=r"number 1 is 61\.0 s long.*encode_recording"):
        encode_speech(encoder, [voice(0.5), np.zeros(61 * 16_000, np.float32)])
    with pytest.raises(ValueError, match=r"pass \[audio\]"):
        encode_speech(encoder, voice(0.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0.1 s"):
        encode_speech(encoder, [voice(0.05)])
    with pytest.raises(ValueError, match=r"encoder\.eval\(\)"):
        encode_speech(encoder_of("mean").train(), [voice(0.5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode_speech(encoder, [voice(0.1)]).isfinite().all(), "0.1 s are enough"
    with pytest.warns(SilenceWarning, match="1 of 2 utterances are silent"):
        assert encode_speech(encoder, [voice(0.5), np.zeros(8_000, np.float32)]).isfinite().all()


def test_a_recording_is_its_segments() -> None:
    encoder, pause = encoder_of("attention"), np.zeros(9_600, np.float32)
    sentences = [voice(1.0, 1), voice(0.6, 2), voice(1.7, 3)]
    recording = encode_recording(encoder, np.concatenate([pause, *(part for s in sentences for part in (s, pause))]), margin=0.0)
    assert len(recording.spans) == 3
    for (start, end), sentence, before in zip(recording.spans, sentences, (0.6, 2.2, 3.4)):
        assert start == pytest.approx(before, abs=0.02) and end - start == pytest.approx(len(sentence) / 16_000, abs=0.02)
    torch.testing.assert_close(recording.vectors, encode_speech(encoder, sentences), atol=0.1, rtol=0.1)
    with pytest.raises(ValueError, match="no speech in the array"):
        encode_recording(encoder, np.zeros(32_000, np.float32))
