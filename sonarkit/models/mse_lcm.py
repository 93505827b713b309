"""The MSE Large Concept Model: predict the next sentence's vector, be judged by its distance (arXiv 2412.08821, section 2.3.1).

It is SONAR-LLM without the decoder in its loss: a causal transformer between a linear PreNet and PostNet, all in normalised
space. Where several sentences may follow, the vector nearest to all of them is their mean, which need not say any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World, shard
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import packing_of
from sonarkit.models.backbone import Backbone, BackboneConfig, Block, Context, recompute
from sonarkit.models.concept_model import ConceptModule
from sonarkit.models.flops import CORE, TRAINED, backbone_attention, backbone_position, projection
from sonarkit.store.normalizer import Normalizer
from sonarkit.store.reader import Document

LOSS_UNIT = "squared_distance_per_sentence"
# The cosines to the end sentence's vector, and to the vector before, beyond which a story of an LCM is over.
STOPS = {"end_threshold": 0.9, "loop_threshold": 0.9}


@dataclass(frozen=True)
class MseLCMConfig:
    """`embedding` is the codec's D; `codec` is what `Sonar.from_pretrained` was given, `codec_fingerprint` its hash."""

    backbone: BackboneConfig
    embedding: int = 1024
    codec: str = "sonar"
    codec_fingerprint: str = ""


class MseLCM(ConceptModule):
    """PreNet, backbone and PostNet; the frozen `normalizer` is among the weights."""

    family = "MSE-LCM"
    loss_unit = LOSS_UNIT
    Config = MseLCMConfig
    shipped = {"mini": "mini/mse-lcm"}
    config: MseLCMConfig

    def __init__(self, config: MseLCMConfig, sonar: Sonar, normalizer: Normalizer) -> None:
        super().__init__(config, sonar)
        self.normalizer = fitting(normalizer, config.embedding)
        self.pre_net = nn.Linear(config.embedding, config.backbone.hidden)
        self.backbone = Backbone(config.backbone)
        self.post_net = nn.Linear(config.backbone.hidden, config.embedding)

    @classmethod
    def blank(cls, config: MseLCMConfig, sonar: Sonar) -> MseLCM:
        return cls(config, sonar, Normalizer(config.embedding))

    def use(self, *, activation_checkpointing: bool = False, compile: bool = False) -> MseLCM:
        """How training computes, as `SonarLLM.use`; neither loss nor gradient depends on it."""
        recompute(self.backbone.layers, activation_checkpointing)
        compile_blocks(self.backbone, compile)
        return self

    def shard(self, world: World) -> None:
        """FSDP2 over the backbone's layers, on every rank; see `core.distributed.shard`."""
        shard(world, self, ("loss", "advance"), self.backbone.layers, ("extend",))

    def flops(self, batch: list[Document]) -> float:
        """Floating-point operations of a forward and a backward pass of `loss`; see `models/flops.py`."""
        read = [len(document.vectors_SD) - 1 for document in batch]
        # The vectors read are data: no gradient leads back through the first projection.
        ends = sum(read) * (TRAINED - 1 + TRAINED) * projection(self.config.backbone, self.config.embedding)
        return training_backbone(self.config.backbone, read) + ends

    def loss(self, batch: list[Document]) -> LossSum:
        """Squared distance in normalised space, summed over dimensions and over every sentence but each document's first.

        count = those sentences. `parts` has `l2_per_sentence`, the distance in raw SONAR space.
        """
        documents = [batch[i] for i in packing_of([len(d.vectors_SD) - 1 for d in batch]).order_N.tolist()]
        packing = packing_of([len(d.vectors_SD) - 1 for d in documents], self.device)
        read_TD, target_TD = (torch.cat([d.vectors_SD[part] for d in documents]).to(self.device) for part in (FIRST, REST))
        predicted_TD = self.post_net(self.backbone(self._enter(read_TD), packing))
        return distances(predicted_TD, self.normalizer.normalize(target_TD), self.normalizer)

    def start(self, rows: int, positions: int) -> Context:
        """An empty context for `rows` stories of at most `positions` sentences."""
        return self.backbone.empty_context(rows, positions)

    @torch.no_grad()
    def advance(self, embeddings_BSD: Tensor, context: Context, new_B: Tensor) -> Tensor:
        """Read `new_B[i]` more vectors in row i (the rest is padding) -> (B, D) prediction after the last of them."""
        new_B = new_B.to(self.device)
        hidden_BSH = self.backbone.extend(self._enter(embeddings_BSD.to(self.device)), context, new_B)
        last_BH = hidden_BSH[torch.arange(len(new_B), device=self.device), new_B - 1]
        return self.normalizer.denormalize(self.post_net(last_BH)).float()

    def _enter(self, z: Tensor) -> Tensor:
        dtype = self.pre_net.weight.dtype  # autocast must not round the residual stream
        return self.pre_net(self.normalizer.normalize(z).to(dtype)).to(dtype)

    def generate(self, prompt: str | list[str], lang: str = "eng_Latn", **options: Any) -> Any:
        """Continue one story or many; see `rollout.generate`. It stops by STOPS unless told (arXiv 2412.08821)."""
        return super().generate(prompt, lang, **{**STOPS, **options})


# ---------------------------------------------------------------------- shared with the diffusion LCM

FIRST, REST = slice(None, -1), slice(1, None)  # what a document's predictions read, and what they should be


def fitting(normalizer: Normalizer, width: int) -> Normalizer:
    """The normalizer, if it is one of vectors of this width; else ValueError."""
    if len(normalizer.center_D) != width:
        raise ValueError(f"the normalizer was fitted on vectors of width {len(normalizer.center_D)}, the model reads {width}")
    return normalizer


def training_backbone(config: BackboneConfig, lengths: list[int]) -> float:
    """Floating-point operations of a backbone's forward and backward pass over documents of these lengths."""
    squares = sum(length**2 for length in lengths)
    return sum(lengths) * TRAINED * backbone_position(config) + squares * CORE * backbone_attention(config)


def compile_blocks(backbone: Backbone, on: bool) -> None:
    """Run what is around the attention of each block through torch.compile."""
    for layer in backbone.layers:
        assert isinstance(layer, Block)
        layer.compiled = on


def distances(predicted_TD: Tensor, target_TD: Tensor, normalizer: Normalizer) -> LossSum:
    """Squared distances of T predictions to their targets, both normalised, in float32 at least."""
    error_TD = predicted_TD.to(torch.promote_types(predicted_TD.dtype, torch.float32)) - target_TD
    raw = (error_TD.detach() * normalizer.scale_D).norm(dim=1).sum()
    return LossSum(error_TD.square().sum(), float(len(error_TD)), {"l2_per_sentence": (raw, float(len(error_TD)))})
