"""The four families of models under one name each, and a model of any of them from its folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import torch

from sonarkit.models.diffusion_lcm import DiffusionLCM, SamplingConfig
from sonarkit.models.mse_lcm import MseLCM
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.models.token_llm import TokenLLM

Model = SonarLLM | MseLCM | DiffusionLCM | TokenLLM
MODELS: dict[str, type[Model]] = {
    "sonar-llm": SonarLLM,
    "mse-lcm": MseLCM,
    "diffusion-lcm": DiffusionLCM,
    "token-llm": TokenLLM,
}


def load_model(name: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """ "mini", the shipped SONAR-LLM; "mini-mse-lcm" and so on, what is shipped of another family; or a trained model's folder.

    A folder's weights say which family they are of. Raises FileNotFoundError for what is not there, ValueError for weights
    that are damaged or of something else, and what the family's `from_pretrained` raises.
    """
    shipped, _, family = str(name).partition("-")
    if shipped in SonarLLM.shipped and family in ("", *MODELS):
        return MODELS[family or "sonar-llm"].from_pretrained(shipped, device=device)
    return MODELS[family_of(Path(name))].from_pretrained(name, device=device)


def family_of(folder: Path) -> str:
    """The key of `MODELS` that the weights in a folder are of. Errors as in `load_model`."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"no model at {str(folder)!r}: expected mini, mini-FAMILY, or a folder with config.json and model.safetensors"
        )
    try:
        with safetensors.safe_open(weights, "pt") as file:
            told = (file.metadata() or {}).get("format", "")
    except safetensors.SafetensorError as error:
        raise ValueError(f"the weights file {weights} is damaged or cut short ({error}); copy or download it again") from error
    family = told.removeprefix("sonarkit-").removesuffix("-1")
    if family not in MODELS:
        what = f"of {told}" if told else "without a format that sonarkit wrote"
        raise ValueError(f"{weights} has weights {what}; expected those of {', '.join(MODELS)}")
    return family


def family_name(model: Model) -> str:
    """The key of `MODELS` that a model is of."""
    return next(name for name, kind in MODELS.items() if isinstance(model, kind))


def seeds_for(model: object, seed: int, which: Iterable[int]) -> Any:
    """What `generate` takes as `seed` for these texts of a set: a diffusion LCM draws for each from a seed of its own, so that
    none depends on its batch."""
    return [seed + i for i in which] if isinstance(model, DiffusionLCM) else seed


def guided_by(model: Model, guidance: float | None) -> dict[str, Any]:
    """Options with which a diffusion LCM draws with that guidance, None its default; nothing for the other families."""
    if guidance is None or not isinstance(model, DiffusionLCM):
        return {}
    return {"sampling": SamplingConfig(guidance=guidance)}


def trained_parameters(model: Model) -> tuple[int, int]:
    """How many parameters are trained, those of a token embedding (and an output projection of its own) aside, and these."""
    apart = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if isinstance(model, TokenLLM) and name.startswith(("embed.", "head."))
    )
    return sum(parameter.numel() for parameter in model.parameters()) - apart, apart
