"""Published SONAR-LLM checkpoints: every layout, the same predictions as transformers' Llama, and what does not fit.

`python tests/unit/test_official.py`, with transformers installed, makes `tests/parity/llama.safetensors` anew: the weights of
a small checkpoint, vectors, and what transformers' LlamaModel predicts from them with each of the ROPES.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.packing import packing_of
from sonarkit.models import official
from sonarkit.models.official import backbone_config
from sonarkit.models.sonar_llm import SonarLLM

GOLDEN = Path(__file__).parents[1] / "parity" / "llama.safetensors"
LLAMA: dict[str, Any] = {  # heads x head_dim is not hidden_size
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 6,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000.0,
    "vocab_size": 10,
}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "published": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}},
    # so much scaling that 40 positions show it
    "strong": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}, "rope_theta": 100.0},
    "plain": {"rope_scaling": None, "rope_theta": 100.0},
}
live = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason='transformers is not installed (pip install -e ".[hf]")'
)


def small_checkpoint() -> dict[str, Tensor]:
    """Random weights by the trainer's names, without what we ignore; large enough for attention to be far from even."""
    hidden, inner, ffn = LLAMA["hidden_size"], LLAMA["num_attention_heads"] * LLAMA["head_dim"], LLAMA["intermediate_size"]
    torch.manual_seed(0)
    found = {"llama_model.model.norm.weight": 1 + 0.3 * torch.randn(hidden)}
    for i in range(LLAMA["num_hidden_layers"]):
        layer = f"llama_model.model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{name}.weight"] = 1 + 0.3 * torch.randn(hidden)
        shapes = {"self_attn.o": (hidden, inner), "mlp.gate": (ffn, hidden), "mlp.up": (ffn, hidden), "mlp.down": (hidden, ffn)}
        shapes |= {f"self_attn.{x}": (inner, hidden) for x in "qkv"}
        found |= {f"{layer}.{name}_proj.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    for name, shape in {"forward_proj": (hidden, 32), "reverse_proj": (32, hidden)}.items():
        found |= {f"{name}.linear.weight": 0.3 * torch.randn(shape), f"{name}.linear.bias": torch.randn(shape[0])}
    return found


def predicted_by_transformers(tensors: dict[str, Tensor], config: dict[str, Any], vectors_SD: Tensor) -> Tensor:
    """(S, D) the prediction after each vector, by LlamaModel fed with `inputs_embeds`."""
    from transformers import LlamaConfig, LlamaModel

    llama = LlamaModel(LlamaConfig(**config)).eval()
    prefix = "llama_model.model."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    missing, unexpected = llama.load_state_dict(state, strict=False)
    assert missing == ["embed_tokens.weight"] and not unexpected
    read, write = (
        (tensors[f"{name}.linear.weight"], tensors[f"{name}.linear.bias"]) for name in ("forward_proj", "reverse_proj")
    )
    with torch.no_grad():
        inputs = torch.nn.functional.linear(vectors_SD, *read)
        return torch.nn.functional.linear(llama(inputs_embeds=inputs[None]).last_hidden_state[0], *write)


def make_golden() -> None:
    tensors = small_checkpoint()
    vectors = torch.randn(40, 32)
    told = {f"predicted:{name}": predicted_by_transformers(tensors, {**LLAMA, **rope}, vectors) for name, rope in ROPES.items()}
    save_file({**tensors, "vectors": vectors, **told}, GOLDEN)


@pytest.fixture
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture
def tensors(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's own, with all that is ignored."""
    found = {key: value for key, value in golden.items() if "." in key}
    ignored = ("llama_model.lm_head.weight", "llama_model.model.embed_tokens.weight", "sonar_decoder.decoder.layer_norm.bias")
    return {**found, **{name: torch.zeros(10, 24) for name in ignored}}


def write_config(file: Path, **changes: Any) -> Path:
    file.write_text(json.dumps({**LLAMA, **ROPES["published"], **changes}))
    return file


def predictions(model: SonarLLM, vectors_SD: Tensor) -> Tensor:
    with torch.no_grad():
        return model.reverse_proj(model.backbone(model.forward_proj(vectors_SD), packing_of([len(vectors_SD)])))


@pytest.mark.parametrize("rope", ROPES)
def test_predictions_are_those_of_transformers(
    rope: str, golden: dict[str, Tensor], tensors: dict[str, Tensor], sonar: Sonar, tmp_path: Path
) -> None:
    torch.save({"epoch": 3, "model_state_dict": tensors}, tmp_path / "best.pt")
    model = SonarLLM.from_official(tmp_path / "best.pt", write_config(tmp_path / "llama.json", **ROPES[rope]), sonar=sonar)
    expected = golden[f"predicted:{rope}"]
    torch.testing.assert_close(predictions(model, golden["vectors"]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.predict_next(golden["vectors"][None])[0], expected[-1], rtol=0, atol=1e-5)


@live
@pytest.mark.parametrize("rope", ROPES)
def test_predictions_are_those_of_transformers_live(rope: str, sonar: Sonar, tmp_path: Path) -> None:
    """And what transformers itself writes as the configuration, of whichever version, is understood."""
    from transformers import LlamaConfig

    tensors, config, vectors = small_checkpoint(), {**LLAMA, **ROPES[rope]}, torch.randn(40, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    LlamaConfig(**config).save_pretrained(tmp_path)
    model = SonarLLM.from_official(tmp_path, sonar=sonar)
    expected = predicted_by_transformers(tensors, config, vectors)
    torch.testing.assert_close(predictions(model, vectors), expected, rtol=0, atol=1e-5)


def test_the_golden_predictions_differ_by_rope(golden: dict[str, Tensor]) -> None:
    """Else they would not tell one rotation from another."""
    for one, other in (("published", "strong"), ("strong", "plain")):
        assert (golden[f"predicted:{one}"] - golden[f"predicted:{other}"]).abs().max() > 0.1


def _safetensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def _bin(folder: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def _shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    files = {"pytorch_model-1.bin": names[:7], "pytorch_model-2.bin": names[7:]}
    for file, part in files.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("write", [_safetensors, _bin, _shards])
def test_hugging_face_folders(
    write: Callable[[Path, dict[str, Tensor]], None],
    nested: bool,
    golden: dict[str, Tensor],
    tensors: dict[str, Tensor],
    sonar: Sonar,
    tmp_path: Path,
) -> None:
    write(tmp_path, tensors)
    config = {**LLAMA, **ROPES["published"]}
    (tmp_path / "config.json").write_text(json.dumps({"llama_config": config, "embed_dim": 32} if nested else config))
    model = SonarLLM.from_official(tmp_path, sonar=sonar)
    expected = golden["predicted:published"][-1]
    torch.testing.assert_close(model.predict_next(golden["vectors"][None])[0], expected, rtol=0, atol=1e-5)
    assert not any("embed" in key or "head" in key or "decoder" in key for key in model.state_dict())


def test_the_name_of_a_repository_is_downloaded_and_that_of_a_file_is_not(
    golden: dict[str, Tensor], tensors: dict[str, Tensor], sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _safetensors(tmp_path, tensors)
    write_config(tmp_path / "config.json")
    asked: list[str] = []
    monkeypatch.setattr(official, "hub_folder", lambda name: asked.append(name) or tmp_path)
    model = SonarLLM.from_official("raxtemur/sonar-llm-100m", sonar=sonar)
    expected = golden["predicted:published"][-1]
    torch.testing.assert_close(model.predict_next(golden["vectors"][None])[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no weights at runs/best.pt"):
        SonarLLM.from_official("runs/best.pt", sonar=sonar)
    assert asked == ["raxtemur/sonar-llm-100m"]


def test_half_precision_is_read_as_float32_and_saved_as_ours(tensors: dict[str, Tensor], sonar: Sonar, tmp_path: Path) -> None:
    torch.save({"model_state_dict": {key: value.bfloat16() for key, value in tensors.items()}}, tmp_path / "best.pt")
    model = SonarLLM.from_official(tmp_path / "best.pt", write_config(tmp_path / "llama.json"), sonar=sonar)
    assert all(p.dtype == torch.float32 and not p.is_meta for p in model.parameters())
    model.save_pretrained(tmp_path / "ours", torch.float32)
    again = SonarLLM.from_pretrained(tmp_path / "ours", sonar=sonar)
    assert again.config == model.config and again.config.codec_fingerprint == sonar.fingerprint()
    vectors = torch.randn(1, 3, 32)
    assert torch.equal(again.predict_next(vectors), model.predict_next(vectors))


def test_every_tensor_that_does_not_fit_is_named(tensors: dict[str, Tensor], sonar: Sonar, tmp_path: Path) -> None:
    config = write_config(tmp_path / "llama.json")
    gate = "llama_model.model.layers.1.mlp.gate_proj.weight"

    def load(changed: dict[str, Tensor]) -> None:
        torch.save({"model_state_dict": changed}, tmp_path / "best.pt")
        SonarLLM.from_official(tmp_path / "best.pt", config, sonar=sonar)

    rest = {key: value for key, value in tensors.items() if key != gate}
    with pytest.raises(ValueError, match=rf"best.pt .* missing {gate}; unexpected llama_model.lm_head.bias"):
        load({**rest, "llama_model.lm_head.bias": torch.zeros(10)})
    with pytest.raises(ValueError, match=r"layers.1.mlp.gate_proj.weight is \(40, 23\), expected \(40, 24\)"):
        load({**rest, gate: torch.zeros(40, 23)})
    with pytest.raises(ValueError, match="lacks forward_proj.linear.weight and begins "):
        load({gate: tensors[gate]})
    with pytest.raises(ValueError, match="reads vectors of width 16, the codec makes 32"):
        load({**tensors, "forward_proj.linear.weight": torch.zeros(24, 16)})
    deeper = write_config(config, num_hidden_layers=3)
    assert deeper == config
    with pytest.raises(ValueError, match="missing llama_model.model.layers.2.input_layernorm.weight"):
        load(tensors)


def test_files_that_are_not_there_or_are_something_else(tensors: dict[str, Tensor], sonar: Sonar, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="best.pt"):
        SonarLLM.from_official(str(tmp_path / "best.pt"), sonar=sonar)
    torch.save({"model_state_dict": tensors}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="pass config="):
        SonarLLM.from_official(tmp_path / "best.pt", sonar=sonar)
    with pytest.raises(FileNotFoundError, match="llama.json is missing"):
        SonarLLM.from_official(tmp_path / "best.pt", tmp_path / "llama.json", sonar=sonar)
    (tmp_path / "llama.json").write_text("<html>")
    with pytest.raises(ValueError, match="llama.json is no JSON"):
        SonarLLM.from_official(tmp_path / "best.pt", tmp_path / "llama.json", sonar=sonar)
    torch.save({"model_state_dict": tensors, "args": Path("x")}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="runs no code of a file"):
        SonarLLM.from_official(tmp_path / "best.pt", write_config(tmp_path / "llama.json"), sonar=sonar)


def test_a_model_that_wants_begin_of_text_says_so(tensors: dict[str, Tensor], sonar: Sonar, tmp_path: Path) -> None:
    torch.save({"model_state_dict": tensors}, tmp_path / "best.pt")
    with pytest.warns(UserWarning, match="Begin of text."):
        SonarLLM.from_official(tmp_path / "best.pt", write_config(tmp_path / "llama.json", add_begin=True), sonar=sonar)


def test_both_layouts_of_rotary_positions_and_the_defaults_of_transformers() -> None:
    old = backbone_config({**LLAMA, **ROPES["strong"]})
    scaling = {**ROPES["strong"]["rope_scaling"], "rope_theta": 100.0}
    new = backbone_config({**{k: v for k, v in LLAMA.items() if k != "rope_theta"}, "rope_parameters": scaling})
    assert old == new and (old.rope_theta, old.rope_original_positions, old.rope_factor) == (100.0, 16, 32.0)
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    bare = backbone_config({name: LLAMA[name] for name in needed})
    assert (bare.head_dim, bare.norm_eps, bare.rope_theta, bare.rope_factor) == (8, 1e-6, 10_000.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, expected 3"),
        ({"attention_bias": True}, "attention_bias is True, expected False"),
        ({"mlp_bias": True, "hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'; mlp_bias is True"),
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn', expected 'llama3' or 'default'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lack low_freq_factor, high_freq_factor, original_max"),
        ({"hidden_size": None, "num_hidden_layers": "2"}, "whole numbers for hidden_size, num_hidden_layers"),
        ({"head_dim": 7}, "head_dim even"),
    ],
)
def test_a_llama_that_this_backbone_is_not_made_for(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        backbone_config({**LLAMA, **changes})


if __name__ == "__main__":
    make_golden()
