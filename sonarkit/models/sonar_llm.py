"""SONAR-LLM: predict the next sentence's vector, be judged by the tokens it decodes to (arXiv 2508.05305).

A causal transformer reads the vectors of the sentences so far and predicts the next one. Its loss is the
token cross-entropy of the true next sentence under the frozen SONAR decoder, so the gradient reaches the
prediction through the decoder and says which errors of a vector matter and which do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World, shard
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import Packing, pack, packing_of
from sonarkit.models import official, rollout
from sonarkit.models.backbone import Backbone, BackboneConfig, Block, Context, recompute
from sonarkit.models.concept_model import ConceptModule
from sonarkit.models.flops import training_flops
from sonarkit.models.rollout import END_OF_SEQUENCE, Story
from sonarkit.store.reader import Document


@dataclass(frozen=True)
class SonarLLMConfig:
    """`embedding` is the codec's D; `codec` is what `Sonar.from_pretrained` was given, `codec_fingerprint` its hash.

    With `train_decoder` the model has a decoder of its own, which begins as the codec's and learns (version 2 of the paper).
    """

    backbone: BackboneConfig
    embedding: int = 1024
    codec: str = "sonar"
    codec_fingerprint: str = ""
    train_decoder: bool = False


class SonarLLM(ConceptModule):
    """Backbone between two projections. The frozen codec is held beside the weights, never among them.

    A decoder that is trained is among them, as `decoder`; `sonar` is then a codec of the encoder given and that decoder, and
    the codec given stays as it is.
    """

    family = "SONAR-LLM"
    loss_unit = "nats_per_token"
    Config = SonarLLMConfig
    shipped = {"mini": "mini/sonar-llm"}
    config: SonarLLMConfig

    def __init__(self, config: SonarLLMConfig, sonar: Sonar) -> None:
        super().__init__(config, with_own_decoder(sonar) if config.train_decoder else sonar)
        self.forward_proj = nn.Linear(config.embedding, config.backbone.hidden)
        self.backbone = Backbone(config.backbone)
        self.reverse_proj = nn.Linear(config.backbone.hidden, config.embedding)
        if config.train_decoder:
            self.decoder = self.sonar.decoder.train().requires_grad_(True)

    def _held(self) -> nn.Module:
        return self.sonar.encoder if self.config.train_decoder else self.sonar

    # ------------------------------------------------------------------ learning

    def use(self, *, activation_checkpointing: bool = False, compile: bool = False) -> SonarLLM:
        """How training computes; neither loss nor gradient depends on it, and it is saved nowhere.

        `activation_checkpointing` keeps for the backward pass only what each layer of backbone and decoder reads, and
        computes the rest again; a codec's decoder that others use does so for them, too. `compile` runs the backbone's
        blocks, but for their attention, through torch.compile.
        """
        recompute((*self.backbone.layers, *self.sonar.decoder.layers), activation_checkpointing)
        for layer in self.backbone.layers:
            assert isinstance(layer, Block)
            layer.compiled = compile
        return self

    def shard(self, world: World, decoder: bool = False) -> None:
        """FSDP2 over the backbone's layers; the frozen decoder lies whole on each rank, or in parts (`decoder`), too."""
        if decoder or self.config.train_decoder:
            shard(world, self.sonar.decoder, ("token_losses", "start", "step"), self.sonar.decoder.layers, ("step",))
        shard(world, self, ("loss", "advance"), self.backbone.layers, ("extend",))

    def flops(self, batch: list[Document]) -> float:
        """Floating-point operations of a forward and a backward pass of `loss`; see `models/flops.py`."""
        return training_flops(self, batch)

    def loss(self, batch: list[Document], as_published: bool = False, context_noise: float = 0.0) -> LossSum:
        """Nats over the tokens of every sentence but the first of each document; count = those tokens.

        The language token is given, not predicted, and not counted. `parts` has `bits_per_byte`.

        `as_published` counts the language token and a second `</s>`, as the published trainer does. A model that is sure of
        both (0 nats) shows (n + 1) / (n + 3) of the loss per token for sentences of n pieces: 10 % less at TinyStories' 16.
        A codec that never learned to predict its language token pays for it instead: 0.67 becomes 2.53 with `mini`.
        `bits_per_byte` is the same either way.

        `context_noise` adds to each vector that is read, in training mode only, Gaussian noise of that many times the
        vector's root mean square, from torch's global generator.

        Raises ValueError for a negative noise, and for a sentence longer than the codec takes.
        """
        if context_noise < 0:
            raise ValueError(f"context_noise is a multiple of a vector's root mean square, at least 0; got {context_noise}")
        documents = [batch[i] for i in packing_of([len(d.targets) - 1 for d in batch]).order_N.tolist()]
        targets = [target for d in documents for target in d.targets[1:]]
        if as_published:
            targets = [[*target, target[-1]] for target in targets]
        self._check_length(max(map(len, targets)) - 1, as_published)
        packing = packing_of([len(d.targets) - 1 for d in documents], self.device)
        context_TD = torch.cat([d.vectors_SD[:-1] for d in documents]).to(self.device)
        if context_noise and self.training:
            context_TD = rollout.noisy(context_TD, context_noise)
        ids_T, sentences = pack(targets, self.device)  # before anything is queued: a GPU ends its queue before it takes a copy
        x_TH = self.forward_proj(context_TD).to(self.forward_proj.weight.dtype)  # autocast must not round the residual stream
        predicted_TD = self.reverse_proj(self.backbone(x_TH, packing))
        total, losses_T = self.sonar.decoder.token_losses(predicted_TD, ids_T, sentences, skip=0 if as_published else 1)
        nats, text_bytes = total.detach(), sum(sum(d.bytes[1:]) for d in documents)
        if as_published:
            nats = sum_of_own_tokens(losses_T, sentences.without_last())
        return LossSum(total, float(len(losses_T)), {"bits_per_byte": (nats / math.log(2), float(text_bytes))})

    def _check_length(self, tokens: int, as_published: bool) -> None:
        most, specials = self.sonar.config.max_tokens, 3 if as_published else 2
        if tokens > most:
            one_more = " in the loss as published" if as_published else ""
            raise ValueError(
                f"a sentence of {tokens - specials} pieces is {tokens} tokens to the decoder{one_more}, but it takes {most}; "
                f"cut sentences at {most - specials} pieces (max_tokens of the batches)"
            )

    # ------------------------------------------------------------------ predicting

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

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_official(
        cls,
        checkpoint: str | Path,
        config: str | Path | None = None,
        *,
        sonar: Sonar | None = None,
        device: str | torch.device | None = None,
    ) -> SonarLLM:
        """A checkpoint of the published trainer: its `.pt` with the JSON of its Llama, or a Hugging Face folder.

        `checkpoint` may be the name of a repository to download, such as `raxtemur/sonar-llm-100m`; `config` is by default
        the folder's `config.json`. `sonar` is Meta's `"sonar"` unless passed; the decoder in the file is not read. Both
        lie on `device`, by default where the codec that is passed lies, else the CPU. Weights are float32. Raises
        FileNotFoundError, and ValueError that names what is missing, unexpected or of another shape, or what in the
        configuration this backbone is not made for.
        """
        found = official.read(checkpoint, config)
        sonar = sonar or Sonar.from_pretrained("sonar")
        ours = SonarLLMConfig(found.backbone, found.embedding, sonar.name or "sonar", sonar.fingerprint())
        with torch.device("meta"):
            model = cls(ours, sonar)
        found.fill(model)
        return model.to(device or sonar.device).eval()


def with_own_decoder(sonar: Sonar) -> Sonar:
    """A codec with a copy of the decoder of `sonar`, in float32 at least, and with its encoder, of which the memory is shared.

    Within `torch.device("meta")` the decoder is made there, to be filled.
    """
    with torch.device("meta"):
        own = Sonar(sonar.config, sonar.tokenizer)
    own.encoder.load_state_dict(sonar.encoder.state_dict(), assign=True)
    own.loaded_as = sonar.loaded_as
    meta = torch.get_default_device().type == "meta"
    own.decoder.load_state_dict(
        {
            key: value.to("meta" if meta else value.device, torch.promote_types(value.dtype, torch.float32), copy=True)
            for key, value in sonar.decoder.state_dict().items()
        },
        assign=True,
    )
    own.name = sonar.name
    return own


def sum_of_own_tokens(losses_T: Tensor, packing: Packing) -> Tensor:
    """() the losses as published without those of the language token and of the second `</s>`."""
    return torch.stack([block[:, 1:-1].sum() for block in packing.split(losses_T)]).sum()


__all__ = ["END_OF_SEQUENCE", "Document", "SonarLLM", "SonarLLMConfig", "Story"]
