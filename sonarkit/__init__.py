"""sonarkit: a notebook-first research kit for language models that think in sentence embeddings.

A sentence there and back, and a story:

    import sonarkit as sk
    sonar = sk.Sonar.from_pretrained("mini")
    z = sonar.encode(["Zoe came to the lake too and waved at Otto."], lang="eng_Latn")
    sonar.decode(z, lang="fra_Latn")
    sk.SonarLLM.from_pretrained("mini").generate("Once upon a time there was a little fox named Mia.").text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonarkit.codec.pipeline import Sonar as Sonar
    from sonarkit.models.diffusion_lcm import DiffusionLCM as DiffusionLCM
    from sonarkit.models.mse_lcm import MseLCM as MseLCM
    from sonarkit.models.rollout import Story as Story
    from sonarkit.models.sonar_llm import SonarLLM as SonarLLM
    from sonarkit.models.token_llm import TokenLLM as TokenLLM
    from sonarkit.store.reader import Store as Store

__version__ = "0.1.0"

# Public names and the modules they live in; imported when first used, so that `import sonarkit` is instant.
_HOMES = {
    "DiffusionLCM": "sonarkit.models.diffusion_lcm",
    "MseLCM": "sonarkit.models.mse_lcm",
    "Sonar": "sonarkit.codec.pipeline",
    "SonarLLM": "sonarkit.models.sonar_llm",
    "Store": "sonarkit.store.reader",
    "Story": "sonarkit.models.rollout",
    "TokenLLM": "sonarkit.models.token_llm",
}
__all__ = ["DiffusionLCM", "MseLCM", "Sonar", "SonarLLM", "Store", "Story", "TokenLLM"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sonarkit' has no attribute {name!r}; it has {', '.join(__all__)}")
