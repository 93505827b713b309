"""The published SONAR-LLM checkpoints, read into ours.

The trainer writes a `.pt` whose `model_state_dict` names a `LlamaForCausalLM` (`llama_model.`), two projections
(`forward_proj.linear.`, `reverse_proj.linear.`) and the frozen decoder, with the Llama's configuration in a JSON beside it.
On Hugging Face (`raxtemur/sonar-llm-100m`, `-900m`, `-1.3b`) the same tensors lie in a folder whose `config.json` has that
configuration, by itself or under `llama_config`. Decoder, token embedding and language-model head are not read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sonarkit.codec import weights
from sonarkit.codec.pipeline import hub_folder
from sonarkit.core import checkpoint as checkpoints
from sonarkit.core import config as configs
from sonarkit.core import memory
from sonarkit.core.foreign import read_json
from sonarkit.models.backbone import BackboneConfig

if TYPE_CHECKING:
    from sonarkit.models.sonar_llm import SonarLLM

# In the file, and of no use here: the codec is Meta's, and a model that reads and writes vectors has no tokens.
_UNUSED = re.compile(r"sonar_decoder\..*|llama_model\.lm_head\.weight|llama_model\.model\.embed_tokens\.weight")


@dataclass(frozen=True)
class Official:
    """A checkpoint that was opened: its tensors, mapped, by their own names; `embedding` is D."""

    path: Path
    backbone: BackboneConfig
    embedding: int
    tensors: dict[str, Tensor]

    def fill(self, model: SonarLLM) -> None:
        """Give `model`, built on the meta device, these weights, in float32.

        ValueError names every tensor that is missing, unexpected or of another shape.
        """
        names = {ours: _official_name(ours) for ours in model.state_dict()}
        missing = sorted(set(names.values()) - set(self.tensors))
        unexpected = sorted(set(self.tensors) - set(names.values()))
        if missing or unexpected:
            told = [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in unexpected]
            raise ValueError(f"{self.path} is no SONAR-LLM of {self.backbone.layers} layers: {'; '.join(told)}")
        memory.check(4 * sum(self.tensors[name].numel() for name in names.values()), f"loading {self.path}")
        found = {ours: self.tensors[name].to(torch.float32, copy=True) for ours, name in names.items()}
        checkpoints.assign(model, found, self.path)


def read(checkpoint: str | Path, config: str | Path | None = None) -> Official:
    """Open a checkpoint: a file with `config`, its JSON; a folder with `config.json`; or the name of a repository.

    Raises FileNotFoundError, and ValueError for a file without its `config`, for what is no SONAR-LLM, and as `read_config`.
    """
    path = Path(checkpoint)
    if isinstance(checkpoint, str) and not path.exists() and path.suffix not in (".pt", ".bin", ".safetensors", ".json"):
        path = hub_folder(checkpoint)
    files = weights.weight_files(path)
    if config is None and not path.is_dir():
        raise ValueError(f"{path} does not tell the shape of its model; pass config=, the JSON of its Llama")
    backbone = read_config(Path(config) if config is not None else path / "config.json")
    tensors = {
        name: tensor for file in files for name, tensor in weights.read_weights(file).items() if not _UNUSED.fullmatch(name)
    }
    projection = tensors.get("forward_proj.linear.weight")
    if projection is None:
        told = ", ".join(sorted(tensors)[:4])
        raise ValueError(
            f"{path} is no SONAR-LLM of the published trainer: it lacks forward_proj.linear.weight and begins {told}"
        )
    return Official(path, backbone, projection.shape[-1], tensors)


def _official_name(ours: str) -> str:
    if ours.startswith("backbone."):
        return f"llama_model.model.{ours.removeprefix('backbone.')}"
    projection, kind = ours.split(".")
    return f"{projection}.linear.{kind}"


# ---------------------------------------------------------------------- the configuration of a Llama


def read_config(file: Path) -> BackboneConfig:
    """The backbone that a Llama's `config.json` describes; what it leaves out is as in transformers' `LlamaConfig`.

    Raises FileNotFoundError, and ValueError naming the fields that are missing or that this backbone is not made for.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: the JSON of a Llama's configuration, which lies beside its weights")
    told = read_json(file, "download the JSON of a Llama's configuration again")
    if told.get("add_begin"):
        warnings.warn(f'{file}: this model was trained on texts that begin with "Begin of text."; begin prompts so', stacklevel=4)
    try:
        return backbone_config(told.get("llama_config", told))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def backbone_config(llama: Mapping[str, Any]) -> BackboneConfig:
    """Fields of a `LlamaConfig`, in the layout of transformers 4 or 5 -> the same shape here, or ValueError."""
    if not isinstance(llama, Mapping):
        raise ValueError(f"expected the fields of a Llama's configuration, got {type(llama).__name__}")
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if lacking := [name for name in needed if not isinstance(llama.get(name), int)]:
        raise ValueError(f"expected a Llama's configuration, which has whole numbers for {', '.join(lacking)}")
    hidden, ffn, layers, heads = (llama[name] for name in needed)
    only = {
        "model_type": ("llama", llama.get("model_type")),
        "num_key_value_heads": (heads, llama.get("num_key_value_heads")),
        "hidden_act": ("silu", llama.get("hidden_act")),
        "attention_bias": (False, llama.get("attention_bias")),
        "mlp_bias": (False, llama.get("mlp_bias")),
    }
    unfit = [f"{name} is {value!r}, expected {wanted!r}" for name, (wanted, value) in only.items() if value not in (None, wanted)]
    if unfit:
        raise ValueError(f"this backbone is a Llama with as many key and value heads as heads, and no biases: {'; '.join(unfit)}")
    shape = {
        "hidden": hidden,
        "ffn": ffn,
        "layers": layers,
        "heads": heads,
        "head_dim": llama.get("head_dim") or hidden // max(heads, 1),
        "norm_eps": llama.get("rms_norm_eps", 1e-6),
        "init_std": llama.get("initializer_range", 0.02),
    }
    return configs.from_dict(BackboneConfig, shape | _rope(llama))


def _rope(llama: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of rotary positions: `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta`."""
    rope = llama.get("rope_parameters") or llama.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"expected the fields of rotary positions, got {type(rope).__name__}")
    theta = rope.get("rope_theta") or llama.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return {"rope_theta": theta, "rope_factor": 1.0}
    if kind != "llama3":
        raise ValueError(f"rotary positions of type {kind!r}, expected 'llama3' or 'default'")
    names = {
        "rope_factor": "factor",
        "rope_low_frequency_factor": "low_freq_factor",
        "rope_high_frequency_factor": "high_freq_factor",
        "rope_original_positions": "original_max_position_embeddings",
    }
    if lacking := [name for name in names.values() if name not in rope]:
        raise ValueError(f"rotary positions of type 'llama3' lack {', '.join(lacking)}")
    return {"rope_theta": theta} | {ours: rope[name] for ours, name in names.items()}
