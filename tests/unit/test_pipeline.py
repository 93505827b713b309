"""Sonar: what goes in and out of encode, decode, token_loss, save and load."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.pipeline import Sonar, TruncationWarning, hub_folder
from sonarkit.text.languages import UnknownLanguageError

TEXTS = ["The little fox ran home.", "Mia found a red kite.", "Tom gave his friend an old map in the forest.", "No."]


def test_encoding_keeps_the_order_and_does_not_depend_on_the_batch(sonar: Sonar) -> None:
    together = sonar.encode(TEXTS)
    assert together.shape == (4, 32) and together.dtype == torch.float32
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(together[i : i + 1], sonar.encode([text]), rtol=0, atol=1e-5)
    torch.testing.assert_close(sonar.encode(TEXTS, batch_tokens=5), together, rtol=0, atol=1e-5)


def test_each_text_may_have_its_own_language(sonar: Sonar) -> None:
    mixed = sonar.encode([TEXTS[0]] * 2, ["eng_Latn", "fra_Latn"])
    torch.testing.assert_close(mixed[1:], sonar.encode([TEXTS[0]], "fra_Latn"), rtol=0, atol=1e-5)
    assert (mixed[0] - mixed[1]).abs().max() > 1e-3
    told = sonar.decode(mixed, ["eng_Latn", "deu_Latn"], max_tokens=5)
    assert told[1] == sonar.decode(mixed[1:], "deu_Latn", max_tokens=5)[0]


def test_an_empty_list_gives_an_empty_result_of_the_right_shape(sonar: Sonar) -> None:
    assert sonar.encode([]).shape == (0, 32)
    assert sonar.decode(torch.empty(0, 32)) == []


def test_nothing_has_no_loss(sonar: Sonar) -> None:
    z = torch.empty(0, sonar.config.width, requires_grad=True)
    loss = sonar.token_loss(z, [])
    loss.total.backward()
    assert loss.total.item() == loss.count == 0


def test_dropout_does_not_meet_a_vector(sonar: Sonar) -> None:
    encoder = replace(sonar.config.encoder, dropout=0.1)
    learner = Sonar(replace(sonar.config, encoder=encoder), sonar.tokenizer)
    with pytest.raises(ValueError, match=r"in training mode.*call sonar.eval\(\) first"):
        learner.encode(["A fox."])
    assert torch.equal(learner.eval().encode(["A fox."]), learner.encode(["A fox."]))
    encoder = replace(sonar.config.encoder, pooling="attention", pooler=PoolerConfig(32, 1, 2, 32, dropout=0.5))
    learner = Sonar(replace(sonar.config, encoder=encoder), sonar.tokenizer)
    with pytest.raises(ValueError, match="in training mode"):
        learner.encode(["A fox."])


def test_the_vector_is_the_mean_of_all_encoder_outputs(sonar: Sonar) -> None:
    """Language token and </s> included: the plain way, one sentence, no packing."""
    ids = torch.tensor(sonar.source_ids(TEXTS[:1], "eng_Latn"))[0]
    encoder = sonar.encoder
    with torch.no_grad():
        x = encoder.embedding(ids, torch.arange(len(ids)))
        for layer in encoder.layers:
            query, key, value = layer.attention.qkv(layer.attention_norm(x)).view(len(ids), 3, 4, 8).permute(1, 2, 0, 3)
            weights = (query @ key.mT / 8**0.5).softmax(-1)
            x = x + layer.attention.output((weights @ value).transpose(0, 1).flatten(1))
            x = x + layer.ffn.output(layer.ffn.inner(layer.ffn_norm(x)).relu())
        expected = encoder.norm(x).mean(0)
    torch.testing.assert_close(sonar.encode(TEXTS[:1])[0], expected, rtol=0, atol=1e-5)


def test_token_loss_is_a_sum_that_reaches_the_vector(sonar: Sonar) -> None:
    z = sonar.encode(TEXTS).requires_grad_()
    loss = sonar.token_loss(z, TEXTS)
    assert loss.count == sum(len(sonar.tokenizer.pieces(text)) + 1 for text in TEXTS)
    loss.total.backward()
    assert z.grad is not None and (z.grad.abs().sum(1) > 0).all()
    parts = [sonar.token_loss(z[i : i + 1], [text]) for i, text in enumerate(TEXTS)]
    assert loss.total.item() == pytest.approx(sum(part.total.item() for part in parts), rel=1e-5)
    published = sonar.token_loss(z, TEXTS, as_published=True)
    assert published.count == loss.count + 2 * len(TEXTS)  # the language token and a second </s>


def test_token_log_probs_are_the_loss_taken_apart(sonar: Sonar) -> None:
    """In the caller's order, though packed by length; each piece as the plain decoder sees it, one step at a time."""
    z = sonar.encode(TEXTS)
    found = sonar.token_log_probs(z, TEXTS, ["eng_Latn", "fra_Latn", "eng_Latn", "deu_Latn"])
    for i, (text, code) in enumerate(zip(TEXTS, ["eng_Latn", "fra_Latn", "eng_Latn", "deu_Latn"])):
        ids = sonar.tokenizer.target(text, code)
        assert [piece for piece, _ in found[i]] == [sonar.tokenizer.piece(token) for token in ids[2:]]
        assert found[i][-1][0] == "</s>"
        assert sum(value for _, value in found[i]) == pytest.approx(-sonar.token_loss(z[i : i + 1], [text], code).total.item())
        state = sonar.decoder.start(z[i : i + 1], len(ids))
        steps = [sonar.decoder.step(torch.tensor([token]), state)[0] for token in ids[:-1]]
        plain = [log_probs[token].item() for log_probs, token in zip(steps[1:], ids[2:])]
        assert [value for _, value in found[i]] == pytest.approx(plain, abs=1e-4)
    assert sonar.token_log_probs(z[:0], []) == []


def test_saved_and_loaded_is_the_same_function(sonar: Sonar, tmp_path: Path) -> None:
    sonar.save_pretrained(tmp_path / "codec", dtype=torch.float32)
    loaded = Sonar.from_pretrained(tmp_path / "codec")
    assert torch.equal(loaded.encode(TEXTS), sonar.encode(TEXTS))
    assert loaded.fingerprint() == sonar.fingerprint()
    with torch.no_grad():
        loaded.encoder.norm.bias += 0.1
    assert loaded.fingerprint() != sonar.fingerprint()


def test_a_text_beyond_the_maximum_is_cut_with_a_counted_warning(sonar: Sonar) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 62 tokens"):
        vectors = sonar.encode(["word " * 10_000, "Short."])
    assert vectors.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sonar.encode(["Short."])


@pytest.mark.parametrize("text", ["🦊🌲 emoji", "مرحبا بالعالم", "שלום עולם", "\x00\x07 control", "   ", ""])
def test_any_text_has_a_finite_vector(sonar: Sonar, text: str) -> None:
    assert sonar.encode([text]).isfinite().all()


def test_bad_input_is_named(sonar: Sonar, tmp_path: Path) -> None:
    with pytest.raises(UnknownLanguageError, match="did you mean fra_Latn"):
        sonar.encode(["a"], "fra_Lat")
    with pytest.raises(ValueError, match="2 codes for 3 texts"):
        sonar.encode(["a", "b", "c"], ["eng_Latn", "fra_Latn"])
    with pytest.raises(ValueError, match=r"\(n, 32\).*\(2, 31\)"):
        sonar.decode(torch.zeros(2, 31))
    with pytest.raises(ValueError, match="NaN"):
        sonar.decode(torch.full((1, 32), torch.nan))
    with pytest.raises(ValueError, match=r"pass \[text\]"):
        sonar.encode("a")
    with pytest.raises(ValueError, match="got generator.*encode_stream"):
        sonar.encode(text for text in ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got None \(NoneType\) at place 1"):
        sonar.encode(["a", None])  # type: ignore[list-item]
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1; got {size}"):
            sonar.decode(torch.zeros(1, 32), batch_size=size)
    with pytest.raises(ValueError, match="1 vectors and 2 texts"):
        sonar.token_loss(torch.zeros(1, 32), ["a", "b"])
    with pytest.raises(ValueError, match="1 vectors and 2 texts"):
        sonar.token_log_probs(torch.zeros(1, 32), ["a", "b"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Sonar.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="sonarkit convert"):
        Sonar.from_pretrained("sonar_text_encoder.pt")
    (tmp_path / "config.json").write_text('{"model_type": "m2m_100"}')
    with pytest.raises(ValueError, match="is Hugging Face's M2M100; Sonar.from_huggingface"):
        Sonar.from_pretrained(tmp_path)


def test_a_translation_is_refused_before_anything_is_encoded(sonar: Sonar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sonar, "encode", lambda *arguments, **options: pytest.fail("hours of work"))
    with pytest.raises(UnknownLanguageError, match="did you mean fra_Latn"):
        sonar.translate(TEXTS, "eng_Latn", "fra_Lat")
    with pytest.raises(ValueError, match="3 codes for 4 texts"):
        sonar.translate(TEXTS, "eng_Latn", ["fra_Latn"] * 3)
    with pytest.raises(ValueError, match="beam_size"):
        sonar.translate(TEXTS, "eng_Latn", "fra_Latn", beam_size=0)
    with pytest.raises(TypeError, match="beams"):
        sonar.translate(TEXTS, "eng_Latn", "fra_Latn", beams=5)


def test_the_published_loss_takes_a_text_of_any_length(sonar: Sonar) -> None:
    """The second `</s>` needs a place, too: the codec has one less for pieces."""
    most = sonar.config.max_tokens
    long = ["fox " * 1000]
    with pytest.warns(TruncationWarning):
        loss, own = (sonar.token_loss(torch.ones(1, 32), long, as_published=way) for way in (True, False))
    assert loss.count == most and own.count == most - 1  # what the decoder reads, and that without the language token


def test_the_hub_is_not_asked_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SONARKIT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not get cointegrated/SONAR_200_text_encoder from the Hugging Face hub"):
        hub_folder("cointegrated/SONAR_200_text_encoder")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: options["local_files_only"] and tmp_path)
    assert hub_folder("cointegrated/SONAR_200_text_encoder") == tmp_path


def test_damaged_weights_are_named(sonar: Sonar, tmp_path: Path) -> None:
    sonar.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        Sonar.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        Sonar.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"layers": 2', '"layers": 3'))
    with pytest.raises(ValueError, match="missing encoder.layers.2"):
        Sonar.from_pretrained(tmp_path)


def test_a_stream_is_encoded_a_block_at_a_time(sonar: Sonar, tmp_path: Path) -> None:
    """From an iterator that is read no further than a block ahead, and from a file, line by line."""
    texts = ["Mia found a kite.", "A fox.", "", "They all laughed and danced until night."] * 3
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for text in itertools.cycle(texts):
            read += 1
            yield text

    expected = sonar.encode(texts, "eng_Latn")
    stream = sonar.encode_stream(endless(), buffer=5)
    for block in range(3):
        torch.testing.assert_close(next(stream), expected[[(5 * block + i) % 12 for i in range(5)]], rtol=0, atol=1e-5)
        assert read == 5 * (block + 1)
    (tmp_path / "lines.txt").write_text("\r\n".join(texts), encoding="utf-8")
    blocks = list(sonar.encode_stream(tmp_path / "lines.txt", buffer=5))
    assert [len(block) for block in blocks] == [5, 5, 2]
    torch.testing.assert_close(torch.cat(blocks), expected, rtol=0, atol=1e-5)
    (tmp_path / "latin1.txt").write_bytes(b"fine\nL\xf6we\n")
    with pytest.raises(ValueError, match="latin1.txt:2: not valid UTF-8"):
        list(sonar.encode_stream(tmp_path / "latin1.txt"))
    with pytest.raises(ValueError, match="got one string"):
        next(sonar.encode_stream("lines.txt"))
    with pytest.raises(ValueError, match="buffer"):
        next(sonar.encode_stream(texts, buffer=0))
    with pytest.raises(UnknownLanguageError):
        next(sonar.encode_stream(texts, "xx"))
    assert list(sonar.encode_stream([])) == []


def test_a_stream_may_have_a_language_for_each_text(sonar: Sonar) -> None:
    texts, langs = ["A fox.", "Mia found a kite."] * 3, ["eng_Latn", "fra_Latn", "deu_Latn"] * 2
    blocks = list(sonar.encode_stream(iter(texts), iter(langs), buffer=4))
    torch.testing.assert_close(torch.cat(blocks), sonar.encode(texts, langs), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="1 codes for 2 texts"):
        list(sonar.encode_stream(texts, langs[:5], buffer=4))
    with pytest.raises(ValueError, match="more language codes than texts"):
        list(sonar.encode_stream(texts[:5], langs, buffer=4))


def test_a_codec_in_half_precision_is_the_same_codec(sonar: Sonar, tmp_path: Path) -> None:
    """Its fingerprint is that of the file, until its weights are others; teacher forcing takes float32 vectors."""
    sonar.save_pretrained(tmp_path)
    whole = Sonar.from_pretrained(tmp_path)
    half = Sonar.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.fingerprint() == whole.fingerprint() == sonar.fingerprint()
    assert half.encode(TEXTS).dtype == torch.float32
    loss, exact = (one.token_loss(whole.encode(TEXTS), TEXTS).total.item() for one in (half, whole))
    assert loss == pytest.approx(exact, rel=0.01)
    assert half.float().fingerprint() != whole.fingerprint()  # rounded, they are other vectors
