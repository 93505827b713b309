"""Meta's speech encoders without fairseq2: held to a golden file of sonar-space 0.5.0, to it where installed, and fetched."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import FileServer, file_server  # type: ignore[import-not-found]
from safetensors.torch import load_file
from torch import Tensor

from sonarkit.codec import published_speech
from sonarkit.codec.pipeline import load_speech
from sonarkit.codec.published import LicenceError
from sonarkit.codec.published_speech import PUBLISHED, from_meta, in_fairseq2_names
from sonarkit.codec.speech import encode_speech, filter_bank
from sonarkit.text.languages import UnknownLanguageError

PARITY = Path(__file__).parents[1] / "parity"
live = pytest.mark.skipif(
    importlib.util.find_spec("sonar") is None, reason='sonar-space is not installed (pip install -e ".[sonar]")'
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(PARITY / "speech.safetensors")


def weights(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("weights:"): v.float() for k, v in golden.items() if k.startswith("weights:")}


def sounds(golden: dict[str, Tensor]) -> list[Tensor]:
    return [golden[f"waveform:{i}"].float() / 2**15 for i in range(2)]


def fairseq_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """fairseq2's names -> those that fairseq gave the published checkpoints, with what else those hold."""
    names = (
        (r"^encoder_frontend\.post_extract_layer_norm", "encoder.w2v_model.layer_norm"),
        (r"^encoder_frontend\.model_dim_proj", "encoder.w2v_model.post_extract_proj"),
        (r"^layer_norm", "encoder.w2v_model.encoder.layer_norm"),
        (r"^encoder\.(layers\.\d+)\.conv_layer_norm", r"encoder.w2v_model.encoder.\1.conv_module.layer_norm"),
        (r"^encoder\.(layers\.\d+)\.conv\.", r"encoder.w2v_model.encoder.\1.conv_module."),
        (r"^encoder\.(layers\.\d+)\.(ffn\d)_layer_norm", r"encoder.w2v_model.encoder.\1.\2.layer_norm"),
        (r"^encoder\.(layers\.\d+)\.(ffn\d)\.inner_proj", r"encoder.w2v_model.encoder.\1.\2.w_1"),
        (r"^encoder\.(layers\.\d+)\.(ffn\d)\.output_proj", r"encoder.w2v_model.encoder.\1.\2.w_2"),
        (r"^encoder\.(layers\.\d+)\.self_attn\.sdpa\.r_proj", r"encoder.w2v_model.encoder.\1.self_attn.linear_pos"),
        (r"^encoder\.(layers\.\d+)\.self_attn\.sdpa\.(\w)_bias", r"encoder.w2v_model.encoder.\1.self_attn.pos_bias_\2"),
        (r"^encoder\.(layers\.\d+)\.self_attn\.output_proj", r"encoder.w2v_model.encoder.\1.self_attn.linear_out"),
        (r"^encoder\.(layers\.\d+)\.self_attn\.(\w)_proj", r"encoder.w2v_model.encoder.\1.self_attn.linear_\2"),
        (r"^encoder\.(layers\.\d+)\.self_attn_layer_norm", r"encoder.w2v_model.encoder.\1.self_attn_layer_norm"),
        (r"^encoder\.(layers\.\d+)\.layer_norm", r"encoder.w2v_model.encoder.\1.final_layer_norm"),
        (r"^encoder_pooler\.decoder_frontend\.embed\.", "decoder.embed_tokens."),
        (r"^encoder_pooler\.projection_out\.weight", "decoder.embed_out"),
        (r"^encoder_pooler\.decoder\.", "decoder."),
        (r"^(decoder\.layers\.\d+)\.encoder_decoder_attn", r"\1.encoder_attn"),
        (r"^(decoder\.layers\.\d+\.\w+_attn)\.output_proj", r"\1.out_proj"),
        (r"^(decoder\.layers\.\d+)\.ffn\.inner_proj", r"\1.fc1"),
        (r"^(decoder\.layers\.\d+)\.ffn\.output_proj", r"\1.fc2"),
        (r"^(decoder\.layers\.\d+)\.ffn_layer_norm", r"\1.final_layer_norm"),
    )
    found = {}
    for name, tensor in tensors.items():
        for pattern, theirs in names:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    width = tensors["layer_norm.weight"].shape[0]
    beside = {"encoder.w2v_model.mask_emb": torch.zeros(width), "decoder.version": torch.tensor([3.0])}
    beside |= {f"encoder.w2v_model.encoder.pos_conv.0.{x}": torch.zeros(2) for x in ("bias", "weight_g", "weight_v")}
    return {**found, **beside, "encoder.w2v_model.encoder.layers.0.conv_module.batch_norm.num_batches_tracked": torch.tensor(7)}


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"model": tensors}, path)
    return path


# ---------------------------------------------------------------------- parity


def test_filter_banks_are_fairseq2s(golden: dict[str, Tensor]) -> None:
    for i, sound in enumerate(sounds(golden)):
        torch.testing.assert_close(filter_bank(sound), golden[f"features:{i}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["fairseq", "fairseq2", "fairseq2, bare"])
def test_vectors_are_metas_in_both_arrangements_of_keys(layout: str, golden: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = weights(golden)
    if layout == "fairseq":
        path = written(fairseq_layout(tensors), tmp_path / "spenc.v3ap.fra.pt")
    elif layout == "fairseq2":
        path = written(tensors, tmp_path / "spenc.pt")
    else:
        path = tmp_path / "spenc.pt"
        torch.save(tensors, path)
    encoder = from_meta(path, pooler_heads=4)
    assert (encoder.config.body.layers, encoder.config.body.heads, encoder.config.body.kernel) == (2, 4, 7)
    ours = encode_speech(encoder, [sound.numpy() for sound in sounds(golden)])
    torch.testing.assert_close(ours, golden["vectors"], atol=1e-4, rtol=0)
    assert (golden["vectors"][0] - golden["vectors"][1]).abs().max() > 0.1, "the two are told apart"


def test_a_file_of_metas_is_loaded_by_its_name(
    golden: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = written(weights(golden), tmp_path / "spenc.eng.pt"), []
    monkeypatch.setattr(published_speech, "from_meta", lambda file, **options: asked.append(file))
    load_speech(str(path), 1024)
    assert asked == [str(path)]


def test_a_language_is_metas_encoder_for_a_codec_as_wide_as_metas(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(published_speech, "load", lambda lang, *_, **__: asked.append(lang))
    load_speech("fr", 1024)  # a converted codec has a folder for its name
    assert asked == ["fr"]
    with pytest.raises(FileNotFoundError, match="no speech encoder at 'fr': expected mini or a folder"):
        load_speech("fr", 256)


def test_a_saved_one_is_the_same_encoder(golden: dict[str, Tensor], tmp_path: Path) -> None:
    encoder = from_meta(written(weights(golden), tmp_path / "spenc.pt"), pooler_heads=4, codec="abc")
    encoder.save_pretrained(tmp_path / "ours", torch.float32)
    again = type(encoder).from_pretrained(tmp_path / "ours")
    assert again.config == encoder.config and again.config.codec == "abc"
    features = [golden["features:0"]]
    with torch.no_grad():
        assert torch.equal(again(features), encoder(features))


@live
@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_metas_function_live(seed: int, tmp_path: Path) -> None:
    sys.path.insert(0, str(PARITY))
    import make_golden_speech as meta  # type: ignore[import-not-found]
    from sonar.models.sonar_speech import SonarSpeechEncoderConfig, _convert_sonar_speech_checkpoint

    model = meta.meta_encoder(seed)
    state: dict[str, Any] = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    old = fairseq_layout(state)
    sound = torch.randn(3, 16_000 * 2, generator=torch.Generator().manual_seed(seed)) * 0.1
    sound = [sound[0, :5000], sound[1], sound[2, :31_321]]
    features = [meta.meta_features(one) for one in sound]
    for one, theirs in zip(sound, features):
        torch.testing.assert_close(filter_bank(one), theirs, atol=1e-4, rtol=0)
    theirs = meta.meta_vectors(model, features)
    for tensors in (state, old):
        encoder = from_meta(written(tensors, tmp_path / "spenc.pt"), pooler_heads=4)
        torch.testing.assert_close(encode_speech(encoder, [one.numpy() for one in sound]), theirs, atol=1e-4, rtol=0)

    class Conformer:
        use_conformer = True

    config = type("Config", (SonarSpeechEncoderConfig,), {"__init__": lambda self: None})()
    config.w2v2_encoder_config = Conformer()
    converted = _convert_sonar_speech_checkpoint({"model": dict(old)}, config)
    assert set(state) <= set(converted), "the older arrangement of the test is the one that Meta's package reads"


def test_what_does_not_fit_is_named(golden: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = weights(golden)
    with pytest.raises(FileNotFoundError, match=r"expected Meta's spenc\.LANG\.pt"):
        from_meta(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="no speech encoder of SONAR: it lacks encoder.layers.0.ffn1"):
        from_meta(written({"encoder_frontend.embed.weight": torch.zeros(2, 2)}, tmp_path / "text.pt"))
    less = {k: v for k, v in tensors.items() if k != "encoder.layers.1.ffn2.inner_proj.bias"}
    with pytest.raises(ValueError, match=r"missing encoder\.layers\.1\.ffn2\.inner_proj\.bias; unexpected surplus"):
        from_meta(written({**less, "surplus": torch.zeros(1)}, tmp_path / "less.pt"), pooler_heads=4)
    wrong = {**tensors, "encoder_frontend.model_dim_proj.weight": torch.zeros(32, 80)}
    with pytest.raises(ValueError, match=r"model_dim_proj\.weight have 2560 numbers, expected \(32, 160\)"):
        from_meta(written(wrong, tmp_path / "wrong.pt"), pooler_heads=4)
    assert in_fairseq2_names(tensors).keys() == tensors.keys()


# ---------------------------------------------------------------------- the table and the way here


def test_the_table_is_that_of_metas_card() -> None:
    assert len(PUBLISHED) == 57 == len(set(PUBLISHED.values()))
    assert PUBLISHED["eng_Latn"] == "spenc.eng.pt" and PUBLISHED["fra_Latn"] == "spenc.v3ap.fra.pt"
    assert PUBLISHED["zho_Hans"] == "spenc.v5ap.cmn.pt" and PUBLISHED["srp_Cyrl"] == "spenc.v5ap.srp.pt"


@live
def test_the_table_is_that_of_metas_card_live() -> None:
    import sonar

    card = (Path(sonar.__file__).parent / "cards" / "sonar_speech_encoder.yaml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"SONAR/(spenc\.\S+\.pt)", card)) == sorted(PUBLISHED.values())


@pytest.fixture
def server(golden: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SONARKIT_CACHE", str(tmp_path / "cache"))
    for variable in ("SONARKIT_ACCEPT_LICENCE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with file_server() as running:
        monkeypatch.setenv("SONARKIT_MIRROR", f"{running.url}/SONAR")
        content = written(fairseq_layout(weights(golden)), tmp_path / "spenc.pt").read_bytes()
        running.files |= {f"/SONAR/spenc.{name}.pt": content for name in ("v3ap.fra", "v5ap.pol")}
        yield running


def test_encoders_are_fetched_once_under_their_licences(server: FileServer, tmp_path: Path) -> None:
    path = published_speech.file("French", progress=False)
    assert path == tmp_path / "cache" / "SONAR" / "spenc.v3ap.fra.pt", "under MIT: nobody is asked"
    asked = len(server.asked())
    assert published_speech.file("fra_Latn", progress=False) == path and len(server.asked()) == asked
    with pytest.raises(LicenceError, match="accept_licence=True"):
        published_speech.file("pl", accept_licence=False)
    assert len(server.asked()) == asked
    assert published_speech.file("pl", accept_licence=True, progress=False).name == "spenc.v5ap.pol.pt"
    with pytest.raises(UnknownLanguageError, match="swe_Latn"):
        published_speech.file("Swedish")
    encoder = published_speech.load("fr", progress=False, dtype=torch.float64)
    assert encoder.name == "sonar-speech-fra_Latn" and encoder.config.width == 32 and encoder.dtype == torch.float64
