"""SONAR-LLM: predict the next sentence's vector, be judged by the tokens it decodes to (arXiv 2508.05305).

A causal transformer reads the vectors of the sentences so far and predicts the next one. Its loss is the
token cross-entropy of the true next sentence under the frozen SONAR decoder, so the gradient reaches the
prediction through the decoder and says which errors of a vector matter and which do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sonarkit.codec.pipeline import Sonar
from sonarkit.core import checkpoint
from sonarkit.core import config as configs
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import pack, packing_of
from sonarkit.core.paths import asset
from sonarkit.models import rollout
from sonarkit.models.backbone import Backbone, BackboneConfig, Context
from sonarkit.models.rollout import END_OF_SEQUENCE, Story
from sonarkit.store.reader import Document

SHIPPED = {"mini": "mini/sonar-llm"}
FORMAT = "sonarkit-sonar-llm-1"


@dataclass(frozen=True)
class SonarLLMConfig:
    """`embedding` is the codec's D; `codec` is what `Sonar.from_pretrained` was given, `codec_fingerprint` its hash."""

    backbone: BackboneConfig
    embedding: int = 1024
    codec: str = "sonar"
    codec_fingerprint: str = ""


class SonarLLM(nn.Module):
    """Backbone between two projections. The frozen codec is held beside the weights, never among them."""

    def __init__(self, config: SonarLLMConfig, sonar: Sonar) -> None:
        super().__init__()
        if config.embedding != sonar.config.width:
            raise ValueError(f"the model reads vectors of width {config.embedding}, the codec makes {sonar.config.width}")
        self.config = config
        self.forward_proj = nn.Linear(config.embedding, config.backbone.hidden)
        self.backbone = Backbone(config.backbone)
        self.reverse_proj = nn.Linear(config.backbone.hidden, config.embedding)
        self._codec = (sonar.eval().requires_grad_(False),)  # in a tuple: not a submodule, not in the checkpoint

    @property
    def sonar(self) -> Sonar:
        return self._codec[0]

    @property
    def device(self) -> torch.device:
        return self.reverse_proj.weight.device

    def _apply(self, fn: Any, recurse: bool = True) -> SonarLLM:
        self.sonar._apply(fn)  # .to(), .cuda(), .half() move the codec along
        return super()._apply(fn, recurse)

    # ------------------------------------------------------------------ learning

    def loss(self, batch: list[Document]) -> LossSum:
        """Nats over the tokens of every sentence but the first of each document; count = those tokens.

        The language token is given, not predicted, and not counted. `parts` has `bits_per_byte`.
        """
        documents = [batch[i] for i in packing_of([len(d.targets) - 1 for d in batch]).order_N.tolist()]
        packing = packing_of([len(d.targets) - 1 for d in documents], self.device)
        context_TD = torch.cat([d.vectors_SD[:-1] for d in documents]).to(self.device)
        x_TH = self.forward_proj(context_TD).to(self.forward_proj.weight.dtype)  # autocast must not round the residual stream
        predicted_TD = self.reverse_proj(self.backbone(x_TH, packing))
        targets = [target for d in documents for target in d.targets[1:]]
        total, losses = self.sonar.decoder.token_losses(predicted_TD, *pack(targets, self.device))
        text_bytes = sum(sum(d.bytes[1:]) for d in documents)
        return LossSum(total, float(len(losses)), {"bits_per_byte": (total.detach() / math.log(2), float(text_bytes))})

    # ------------------------------------------------------------------ predicting

    @torch.no_grad()
    def predict_next(self, embeddings_BSD: Tensor) -> Tensor:
        """(B, S, D) vectors of the sentences so far -> (B, D) the next one's, in raw SONAR space."""
        context = self.start(len(embeddings_BSD), embeddings_BSD.shape[1])
        lengths = torch.full((len(embeddings_BSD),), embeddings_BSD.shape[1], device=self.device)
        return self.advance(embeddings_BSD, context, lengths)

    def start(self, rows: int, positions: int) -> Context:
        """An empty context for `rows` stories of at most `positions` sentences."""
        return self.backbone.empty_context(rows, positions)

    @torch.no_grad()
    def advance(self, embeddings_BSD: Tensor, context: Context, new_B: Tensor) -> Tensor:
        """Read `new_B[i]` more vectors in row i (the rest is padding) -> (B, D) prediction after the last of them."""
        x = self.forward_proj(embeddings_BSD.to(self.device, self.forward_proj.weight.dtype))
        hidden_BSH = self.backbone.extend(x, context, new_B.to(self.device))
        last_BH = hidden_BSH[torch.arange(len(hidden_BSH), device=self.device), new_B.to(self.device) - 1]
        return self.reverse_proj(last_BH).float()

    @torch.no_grad()
    def attention(self, embeddings_SD: Tensor) -> Tensor:
        """How a story's S vectors (S, D) look back at each other: (layers, heads, S, S) attention weights in float32.

        Row i is what the prediction after sentence i reads from sentences 0 to i, and sums to 1. Raises ValueError for
        vectors of another width.
        """
        if embeddings_SD.ndim != 2 or not len(embeddings_SD) or embeddings_SD.shape[1] != self.config.embedding:
            raise ValueError(f"expected vectors of shape (S, {self.config.embedding}), got {tuple(embeddings_SD.shape)}")
        x_SH = self.forward_proj(embeddings_SD.to(self.device, self.forward_proj.weight.dtype))
        return self.backbone.attention(x_SH).float()

    def generate(self, prompt: str | list[str], lang: str = "eng_Latn", **options: Any) -> Any:
        """Continue one story or many; see `rollout.generate` for the options and the result."""
        return rollout.generate(self, prompt, lang, **options)

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(cls, name: str | Path, *, sonar: Sonar | None = None, device: str | torch.device = "cpu") -> SonarLLM:
        """The shipped `"mini"`, or a folder written by `save_pretrained`.

        The codec it was trained with is loaded too, unless passed. A codec with another fingerprint is refused.
        """
        folder = asset(SHIPPED[str(name)]) if str(name) in SHIPPED else Path(name)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"no SONAR-LLM at {str(name)!r}: expected one of {', '.join(sorted(SHIPPED))} or a folder with "
                "config.json and model.safetensors"
            )
        config = configs.load(SonarLLMConfig, folder / "config.json")
        sonar = sonar or Sonar.from_pretrained(config.codec)
        if sonar.fingerprint() != config.codec_fingerprint:
            raise ValueError(
                f"this model was trained on codec {config.codec!r} ({config.codec_fingerprint}); the codec at hand is "
                f"{sonar.name!r} ({sonar.fingerprint()}), whose vectors mean something else. Pass the right one as sonar=."
            )
        tensors = checkpoint.read_safetensors(folder / "model.safetensors")
        with torch.device("meta"):
            model = cls(config, sonar)
        checkpoint.assign(model, {key: value.float() for key, value in tensors.items()}, folder / "model.safetensors")
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write `config.json` and `model.safetensors` (in `dtype`); the codec stays where it is."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in self.state_dict().items()}
        checkpoint.write_safetensors(folder / "model.safetensors", tensors, {"format": FORMAT})
        configs.save(self.config, folder / "config.json")


__all__ = ["END_OF_SEQUENCE", "Document", "SonarLLM", "SonarLLMConfig", "Story"]
