"""Rules of the house: the import ladder, recipes that build, optional imports that name their install line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sonarkit
from sonarkit import recipes
from sonarkit.codec.pipeline import Sonar
from sonarkit.models.backbone import Backbone

PACKAGE = Path(sonarkit.__file__).parent
LADDER = ["core", "text", "codec", "store", "models", "training", "evaluation", "explore"]  # each may import those before it


def imports(path: Path) -> set[str]:
    """Top rooms of sonarkit that a file imports, wherever in it (type-checking blocks included)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("sonarkit.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_rooms_above_them(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    if room not in LADDER:
        return  # the top of the package may import every room
    allowed = set(LADDER[: LADDER.index(room) + 1])
    assert imports(path) <= allowed, (
        f"{room} may import {sorted(allowed)}, but {path.name} imports {sorted(imports(path) - allowed)}"
    )


def test_every_room_is_on_the_ladder() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms == set(LADDER)


def test_no_name_at_the_top_shadows_a_library() -> None:
    """torchrun puts the package folder itself on sys.path."""
    libraries = {
        "torch",
        "numpy",
        "datasets",
        "transformers",
        "tokenizers",
        "sonar",
        "evaluate",
        "types",
        "nltk",
        "plotly",
        "tyro",
    }
    assert not {path.stem for path in PACKAGE.iterdir()} & (libraries | set(sys.stdlib_module_names))


@pytest.mark.parametrize("size", [*recipes.SONAR_LLM_SIZES, "1.3B-summarization"])
def test_every_sonar_llm_recipe_builds(size: str) -> None:
    run = recipes.recipe("sonar-llm", size)
    assert isinstance(run, recipes.SonarLLMRun)
    with torch.device("meta"):
        backbone = Backbone(run.backbone)
    assert sum(p.numel() for p in backbone.parameters()) > 1e6 and all(p.is_meta for p in backbone.parameters())
    assert run.train.optimizer.warmup_steps < run.train.steps


def test_the_codec_recipe_builds(sonar: Sonar) -> None:
    run = recipes.codec_mini()
    config = run.codec_config(sonar.tokenizer.size)
    with torch.device("meta"):
        codec = Sonar(config, sonar.tokenizer)
    assert sum(p.numel() for p in codec.encoder.layers.parameters()) > 2e6


def test_unknown_names_are_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="families are codec, sonar-llm"):
        recipes.recipe("gpt", "mini")
    with pytest.raises(ValueError, match="sizes are mini, 39M, .*, 1.3B, 1.3B-summarization"):
        recipes.recipe("sonar-llm", "7B")
    with pytest.raises(AttributeError, match="it has .*Sonar"):
        _ = sonarkit.Sonnar


def test_importing_the_kit_loads_nothing_heavy() -> None:
    """Neither torch for `import sonarkit`, nor transformers, datasets, plotly or jupyter for a model."""
    code = "import sys, sonarkit; assert 'torch' not in sys.modules; sonarkit.SonarLLM; print(sorted(set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("transformers", "datasets", "plotly", "umap", "jupyterlab", "ipywidgets"):
        assert f"'{heavy}'" not in loaded
