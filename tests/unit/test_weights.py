"""Foreign weights that are not as they should be: named, never half loaded, never run. (What they hold: tests/parity.)"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sonarkit import cli
from sonarkit.codec.config import CodecConfig, DecoderConfig, EncoderConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.weights import ShapeHints
from sonarkit.core import memory
from sonarkit.text.tokenizer import Tokenizer

LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")


@pytest.fixture
def meta(sonar: Sonar, tmp_path: Path) -> Path:
    """A folder with a codec in Meta's layout."""
    sonar.save_meta(tmp_path)
    return tmp_path


def load(folder: Path, encoder: str = "encoder", decoder: str = "decoder", **options: object) -> Sonar:
    files = (folder / f"sonar_text_{encoder}.pt", folder / f"sonar_text_{decoder}.pt")
    given = {"languages": LANGUAGES, "hints": ShapeHints(heads=4, max_tokens=64), **options}
    return Sonar.from_meta(*files, folder / "sentencepiece.source.model", **given)  # type: ignore[arg-type]


def change(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = torch.load(file, weights_only=True)["model"]
    edit(state)
    torch.save({"model": state}, file)


def test_loading_is_exact_and_other_dtypes_are_converted(sonar: Sonar, meta: Path) -> None:
    assert load(meta).state_dict().keys() == sonar.state_dict().keys()
    for key, value in load(meta, dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(value, sonar.state_dict()[key].bfloat16()), key
    prints = {load(meta, dtype=dtype).fingerprint() for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert prints == {sonar.fingerprint()}


def test_every_missing_and_unexpected_tensor_is_named(meta: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        del state["encoder.layers.1.ffn.inner_proj.bias"], state["layer_norm.weight"]
        state["encoder.layers.0.self_attn.extra"] = torch.zeros(1)

    change(meta / "sonar_text_encoder.pt", edit)
    with pytest.raises(ValueError) as error:
        load(meta)
    for told in (
        "missing encoder.layers.1.ffn.inner_proj.bias",
        "missing layer_norm.weight",
        "unexpected encoder.layers.0.self_attn.extra",
        "sonar_text_encoder.pt",
    ):
        assert told in str(error.value)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(meta: Path) -> None:
    change(meta / "sonar_text_encoder.pt", lambda s: s.update({"encoder.layers.1.ffn.inner_proj.weight": torch.zeros(9, 32)}))
    with pytest.raises(ValueError, match=r"layers.1.ffn.inner_proj.weight is \(9, 32\), expected \(64, 32\)"):
        load(meta)


def test_the_other_half_is_recognised(meta: Path) -> None:
    with pytest.raises(ValueError, match="sonar_text_decoder.pt is a SONAR decoder, not an encoder; pass it as decoder="):
        load(meta, encoder="decoder")
    with pytest.raises(ValueError, match="is a SONAR encoder, not a decoder"):
        load(meta, decoder="encoder")


def test_halves_that_do_not_belong_together(meta: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    wide = CodecConfig(LANGUAGES, tokenizer.size, 48, EncoderConfig(48, 1, 4, 64), DecoderConfig(48, 1, 4, 64), max_tokens=64)
    Sonar(wide, tokenizer).save_meta(tmp_path / "wide")
    (tmp_path / "wide" / "sonar_text_decoder.pt").rename(meta / "sonar_text_decoder.pt")
    with pytest.raises(ValueError, match="gives vectors of width 32, but .* reads vectors of width 48"):
        load(meta)


def test_a_tokenizer_that_does_not_fit(meta: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has .* tokens but the embedding table"):
        load(meta, languages=LANGUAGES[:3])


def test_an_untied_decoder_is_refused(meta: Path) -> None:
    change(meta / "sonar_text_decoder.pt", lambda s: s.update({"final_proj.weight": s["final_proj.weight"] + 1}))
    with pytest.raises(ValueError, match="final_proj.weight differs from the token embedding"):
        load(meta)


def test_a_half_downloaded_file_and_one_of_another_kind(meta: Path) -> None:
    file = meta / "sonar_text_encoder.pt"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"<html>404</html>", pickle.dumps([1, 2])):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="sonar_text_encoder.pt"):
            load(meta)
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match="holds no dictionary of tensors"):
        load(meta)
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match="in a known layout .* begins conv.weight"):
        load(meta)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load(meta, encoder="nobody")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of the file was run')",)


def test_code_in_a_file_is_not_run(meta: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Malicious()}, meta / "sonar_text_encoder.pt")
    with pytest.raises(ValueError, match="holds more than tensors, and sonarkit runs no code of a file"):
        load(meta)


def test_too_little_memory_is_said_before_anything_is_read(meta: Path, sonar: Sonar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(ValueError, match=r"needs .* MiB of memory on cpu, but 0 MiB are free; load it with dtype=torch.bfloat16"):
        load(meta)
    sonar.save_pretrained(meta / "ours")
    with pytest.raises(ValueError, match="memory"):
        Sonar.from_pretrained(meta / "ours")


PEAK = """
import sys, threading, time, torch
from pathlib import Path
from sonarkit.codec import weights
from sonarkit.codec.pipeline import Sonar
weights.GROUP_BYTES = 8 << 20
folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
languages = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")
def load(folder):
    files = [folder / f"sonar_text_{side}.pt" for side in ("encoder", "decoder")]
    hints = weights.ShapeHints(heads=4)
    return Sonar.from_meta(*files, folder / "sentencepiece.source.model", languages=languages, hints=hints, dtype=dtype)
load(folder / "tiny")  # what loading itself imports
before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
sonar = load(folder)
done = True
thread.join()
held = sum(p.numel() * p.element_size() for p in sonar.parameters())
print((peak - before) / held, held)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_little_more_than_the_weights(dtype: str, sonar: Sonar, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """At its peak at most 1.15 times their bytes in the dtype asked for, the mapped pages of the file included."""
    config = CodecConfig(
        LANGUAGES, tokenizer.size, 512, EncoderConfig(512, 12, 4, 2048), DecoderConfig(512, 12, 4, 2048), max_tokens=64
    )
    Sonar(config, tokenizer).save_meta(tmp_path)
    sonar.save_meta(tmp_path / "tiny")
    result = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path), dtype], capture_output=True, text=True, check=True)
    ratio, held = map(float, result.stdout.split())
    assert held > 100e6
    assert 0.9 < ratio < 1.15, ratio


def test_convert_goes_both_ways_and_explains_itself(
    meta: Path, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["sonarkit", "convert", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    sonar.save_pretrained(tmp_path / "ours", torch.float32)
    assert run(str(tmp_path / "meta2"), "--codec", str(tmp_path / "ours"), "--to", "meta") == 0
    for side in ("encoder", "decoder"):
        first, second = (torch.load(f / f"sonar_text_{side}.pt", weights_only=True)["model"] for f in (meta, tmp_path / "meta2"))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    capsys.readouterr()
    assert run(str(tmp_path / "x"), "--codec", "mini", "--nllb", "y") == 2
    assert "name one source" in capsys.readouterr().err
    assert run(str(tmp_path / "x"), "--encoder", str(meta / "sonar_text_encoder.pt"), "--decoder", "d") == 2
    assert "add --tokenizer" in capsys.readouterr().err
    assert run(str(tmp_path / "x"), "--encoder", str(tmp_path / "nothing"), "--decoder", "d") == 2
    assert "no folder" in capsys.readouterr().err
    assert run(str(tmp_path / "x"), "--codec", str(tmp_path / "ours"), "--heads", "8") == 2
    assert "tells its own" in capsys.readouterr().err


def test_hugging_face_folders_that_are_not_whole(meta: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        Sonar.from_nllb(folder, meta / "sentencepiece.source.model", languages=LANGUAGES)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="expected an M2M100 .* got 'bert'"):
        Sonar.from_nllb(folder, meta / "sentencepiece.source.model", languages=LANGUAGES)
    (folder / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        Sonar.from_nllb(folder, meta / "sentencepiece.source.model", languages=LANGUAGES)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="not there: model-1.safetensors"):
        Sonar.from_nllb(folder, meta / "sentencepiece.source.model", languages=LANGUAGES)
    with pytest.raises(FileNotFoundError, match="has no sentencepiece.bpe.model; pass the SentencePiece model as tokenizer="):
        Sonar.from_nllb(folder, languages=LANGUAGES)
