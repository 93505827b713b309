"""What every model over sentence vectors shares: the frozen codec beside its weights, loading, saving, telling stories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sonarkit.codec.pipeline import Sonar
from sonarkit.core import checkpoint
from sonarkit.core import config as configs
from sonarkit.core.loss import LossSum
from sonarkit.core.paths import asset
from sonarkit.models import rollout
from sonarkit.store.reader import Document


def weights_folder(name: str | Path, shipped: Mapping[str, str], family: str) -> Path:
    """Where the weights of this name lie: in `assets/`, or in the folder that it is.

    FileNotFoundError where there are none; for what `shipped` names but a copy of sonarkit lacks, with the command that makes it.
    """
    named = str(name)
    folder = asset(shipped[named]) if named in shipped else Path(name)
    if (folder / "config.json").is_file():
        return folder
    if named in shipped:
        key = family.lower()
        raise FileNotFoundError(
            f"no {family} ships with this copy of sonarkit; train one (python sonarkit/train.py {key} --size {named} "
            f"--data STORE --valid STORE --out runs/{key}) and name its folder, runs/{key}/final"
        )
    known = f"one of {', '.join(sorted(shipped))} or " if shipped else ""
    raise FileNotFoundError(f"no {family} at {named!r}: expected {known}a folder with config.json and model.safetensors")


class ConceptModule(nn.Module):
    """A model that reads sentence vectors and predicts the next one's. The codec is held beside the weights, never among them.

    A family names itself (`family`), the unit of its loss, its configuration, whose fields `embedding`, `codec` and
    `codec_fingerprint` say which codec it was trained on, and the weights that are shipped; it gives `start` and `advance` (see
    `rollout.ConceptModel`). Raises ValueError for a codec whose vectors are of another width.
    """

    family: ClassVar[str]
    loss_unit: ClassVar[str]  # of `loss`, total over count
    Config: ClassVar[type]
    # of a list of documents, and options of the family: its loss, and the floating-point operations of both passes
    loss: Callable[..., LossSum]
    flops: Callable[[list[Document]], float]
    shard: Callable[..., None]  # FSDP2, on every rank
    shipped: ClassVar[Mapping[str, str]] = {}  # name -> folder in `assets/`

    def __init__(self, config: Any, sonar: Sonar) -> None:
        super().__init__()
        if config.embedding != sonar.config.width:
            raise ValueError(f"the model reads vectors of width {config.embedding}, the codec makes {sonar.config.width}")
        self.config = config
        self._codec = (sonar.eval().requires_grad_(False),)  # in a tuple: not a submodule, not in the checkpoint

    @classmethod
    def blank(cls, config: Any, sonar: Sonar) -> Self:
        """A model of this shape, for weights to be loaded into."""
        return cls(config, sonar)

    @property
    def sonar(self) -> Sonar:
        """The codec whose vectors it reads and predicts."""
        return self._codec[0]

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.parameters()).device

    def _held(self) -> nn.Module:
        """What `.to()`, `.cuda()` and `.half()` move along, though it is no submodule."""
        return self.sonar

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._held()._apply(fn)
        return super()._apply(fn, recurse)

    # ------------------------------------------------------------------ predicting

    def start(self, rows: int, positions: int) -> Any:
        """An empty context for `rows` stories of at most `positions` sentences."""
        raise NotImplementedError

    def advance(self, embeddings_BSD: Tensor, context: Any, new_B: Tensor) -> Tensor:
        """Read `new_B[i]` more vectors in row i (the rest is padding) -> (B, D) prediction after the last of them."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_next(self, embeddings_BSD: Tensor) -> Tensor:
        """(B, S, D) vectors of the sentences so far -> (B, D) the next one's, in raw SONAR space."""
        rows, sentences, _ = embeddings_BSD.shape
        lengths = torch.full((rows,), sentences, device=self.device)
        return self.advance(embeddings_BSD, self.start(rows, sentences), lengths)

    def generate(self, prompt: str | list[str], lang: str = "eng_Latn", **options: Any) -> Any:
        """Continue one story or many; see `rollout.generate` for the options and the result."""
        return rollout.generate(self, prompt, lang, **options)

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, sonar: Sonar | None = None, device: str | torch.device | None = None, same_codec: bool = True
    ) -> Self:
        """What is shipped under this name, or a folder written by `save_pretrained`.

        The codec it was trained with is loaded too, unless passed, and lies on the same device: `device`, by default where the
        codec that is passed lies, else the CPU. A codec with another fingerprint is refused
        (ValueError), or with `same_codec` False becomes the model's own from now on, for one that learns on in another space.
        Raises FileNotFoundError for what is not there, ValueError for what is damaged.
        """
        folder = weights_folder(name, cls.shipped, cls.family)
        config: Any = configs.load(cls.Config, folder / "config.json")
        sonar = sonar or Sonar.from_pretrained(config.codec)
        if sonar.fingerprint() != config.codec_fingerprint and not same_codec:
            config = replace(config, codec=sonar.name, codec_fingerprint=sonar.fingerprint())
        if sonar.fingerprint() != config.codec_fingerprint:
            raise ValueError(
                f"this model was trained on codec {config.codec!r} ({config.codec_fingerprint}); the codec at hand is "
                f"{sonar.name!r} ({sonar.fingerprint()}), whose vectors mean something else. Pass the right one as sonar=."
            )
        tensors = checkpoint.read_safetensors(folder / "model.safetensors")
        with torch.device("meta"):
            model = cls.blank(config, sonar)
        checkpoint.assign(model, {key: value.float() for key, value in tensors.items()}, folder / "model.safetensors")
        return model.to(device or sonar.device).eval()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float16, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors`: parameters in `dtype`, buffers as they are; the codec stays where it is.

        `weights` are written instead of the model's own, where those lie in parts on several ranks.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict() if weights is None else weights
        measured = {name for name, _ in self.named_buffers()}
        tensors = {
            key: value.detach().to("cpu", value.dtype if key in measured else dtype).contiguous() for key, value in state.items()
        }
        checkpoint.write_safetensors(folder / "model.safetensors", tensors, {"format": f"sonarkit-{self.family.lower()}-1"})
        configs.save(self.config, folder / "config.json")
