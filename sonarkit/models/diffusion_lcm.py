"""The two-tower diffusion Large Concept Model: denoise the next sentence's vector (arXiv 2412.08821, section 2.3.4).

1. The contextualizer, a causal transformer, reads the vectors of the sentences so far.
2. A sentence's vector is mixed with noise: `x = sqrt(a) z + sqrt(1 - a) e`, `a` falling from nearly 1 to 0 over the timesteps.
3. The denoiser, told the timestep by adaptive layer norms, looks at the contexts of the sentences before, and says what `z` was.
4. Telling begins with noise and takes the steps of DDIM, each with the denoiser's guess, pushed away from what it would have
   guessed without the context.

All in normalised space. Unlike the MSE LCM it can give one of several sentences that may follow, instead of their mean.

Every sentence is denoised alone: what the paper calls the denoiser's self-attention looks at its own position only. A softmax
over one key is 1, so it is `W_o W_v` here, without the query and key that would change nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonarkit.codec.config import MOST_LAYERS
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.config import check_sizes
from sonarkit.core.distributed import World, shard
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import Packing, packing_of
from sonarkit.models import rollout
from sonarkit.models.backbone import MLP, Backbone, BackboneConfig, Block, Context, recompute
from sonarkit.models.concept_model import ConceptModule
from sonarkit.models.flops import CORE, TRAINED, projection
from sonarkit.models.mse_lcm import LOSS_UNIT, STOPS, compile_blocks, distances, fitting, training_backbone
from sonarkit.store.normalizer import Normalizer
from sonarkit.store.reader import Document

# ---------------------------------------------------------------------- noise


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of a vector is left at each of `timesteps` timesteps (arXiv 2412.08821, section 2.3.2; its defaults).

    "cosine" is Nichol and Dhariwal's with offset `cosine_offset`; "quadratic" has square roots of the noise rates evenly
    spaced between those of `beta_start` and `beta_end`; "sigmoid" is the paper's, with `sigmoid_alpha` and `sigmoid_beta`.
    """

    kind: Literal["cosine", "quadratic", "sigmoid"] = "cosine"
    timesteps: int = 100
    cosine_offset: float = 0.008
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sigmoid_alpha: float = 1.5
    sigmoid_beta: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "quadratic", "sigmoid"):
            raise ValueError(f"kind must be 'cosine', 'quadratic' or 'sigmoid', got {self.kind!r}")
        if self.timesteps < 2 or not 0 < self.beta_start <= self.beta_end < 1 or self.sigmoid_alpha <= 0:
            raise ValueError(f"timesteps must be at least 2, 0 < beta_start <= beta_end < 1 and sigmoid_alpha above 0: {self}")

    def alpha_bars(self) -> Tensor:
        """(T,) float64 the share of the signal's variance that is left at each timestep; exactly 0 at the last one.

        Rates are cut at 0.999, then the square roots are moved and stretched so that the first stays and the last is 0 (zero
        terminal signal-to-noise ratio, arXiv 2305.08891, algorithm 1).
        """
        if self.kind == "quadratic":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps, dtype=torch.float64).square()
        else:
            left = torch.tensor([self._left(i / self.timesteps) for i in range(self.timesteps + 1)], dtype=torch.float64)
            betas = (1 - left[1:] / left[:-1]).clamp(max=0.999)
        roots = (1 - betas).cumprod(0).sqrt()
        return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))).square()

    def _left(self, time: float) -> float:
        """The share at a time between 0 and 1, before it is stretched."""
        if self.kind == "cosine":
            return math.cos((time + self.cosine_offset) / (1 + self.cosine_offset) * math.pi / 2) ** 2
        if time == 1:
            return 0.0
        return 1 / (1 + math.exp(-self.sigmoid_beta) * (time / (1 - time)) ** self.sigmoid_alpha)


@dataclass(frozen=True)
class SamplingConfig:
    """How a vector is made from noise (arXiv 2412.08821, section 2.4.3; its defaults).

    `steps` of the schedule's timesteps, evenly spaced from the last one. `guidance` is the weight of the guess with context
    against that without (1 is the former alone), `rescale` how much of the guided noise's size is brought back to that of the
    unguided. `initial_noise` is the standard deviation of what is begun with, `eta` the share of fresh noise in each step,
    `epsilon_scaling` what the noise found is divided by.
    """

    steps: int = 40
    guidance: float = 3.0
    rescale: float = 0.7
    initial_noise: float = 0.6
    eta: float = 0.0
    epsilon_scaling: float = 1.00045

    def __post_init__(self) -> None:
        if self.steps < 1 or self.epsilon_scaling <= 0 or self.initial_noise < 0:
            raise ValueError(f"steps must be at least 1, epsilon_scaling above 0, initial_noise not negative: {self}")
        if not (0 <= self.rescale <= 1 and 0 <= self.eta <= 1):
            raise ValueError(f"rescale and eta must be in [0, 1]: {self}")


def trailing_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps from the last one, `timesteps` - 1, downwards, evenly spaced (arXiv 2305.08891, table 2).

    The published code cuts the spacing to a whole number: asked for 40 steps of 100, it takes 50, every second timestep.
    Raises ValueError for more steps than timesteps.
    """
    if steps > timesteps:
        raise ValueError(f"{steps} sampling steps, but the model knows {timesteps} timesteps; ask for at most as many")
    return [math.ceil(timesteps - i * timesteps / steps - 0.5) - 1 for i in range(steps)]


def noise_in(x: Tensor, clean: Tensor, alpha_bar: float) -> Tensor:
    """The noise that `x` holds if `clean` is what is beneath it."""
    return (x - math.sqrt(alpha_bar) * clean) / math.sqrt(1 - alpha_bar)


def guided(noise_BD: Tensor, unconditional_BD: Tensor, sampling: SamplingConfig) -> Tensor:
    """Noise found with context, pushed away from that found without, its spread over dimensions brought back in part."""
    pushed_BD = unconditional_BD + sampling.guidance * (noise_BD - unconditional_BD)
    ratio_B1 = noise_BD.std(1, keepdim=True) / pushed_BD.std(1, keepdim=True)
    return pushed_BD * (sampling.rescale * ratio_B1 + 1 - sampling.rescale)


def ddim_step(
    clean: Tensor, noise: Tensor, alpha_bar: float, before: float, sampling: SamplingConfig, fresh: Tensor | None = None
) -> Tensor:
    """From a timestep with `alpha_bar` to one with `before`, nearer to the vector (arXiv 2010.02502, equation 12).

    `clean` is the vector guessed, `noise` what was found around it, `fresh` (needed for an `eta` above 0) standard noise.
    """
    spread = sampling.eta * math.sqrt((1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before))
    left = max(0.0, 1 - before - spread**2)  # 0 for eta 1 from an alpha-bar of 0, where rounding may leave less
    x = math.sqrt(before) * clean + math.sqrt(left) * noise / sampling.epsilon_scaling
    return x if fresh is None else x + spread * fresh


# ---------------------------------------------------------------------- the denoiser


class DenoiserBlock(nn.Module):
    """Own position, contexts, feed-forward network, each as `x + gate f((1 + scale) norm(x) + shift)`.

    The three are regressed from the timestep and 0 at first (AdaLN-zero, arXiv 2212.09748).
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads, hidden, inner = config.heads, config.hidden, config.heads * config.head_dim
        self.own_norm, self.cross_norm, self.mlp_norm = (nn.RMSNorm(hidden, eps=config.norm_eps) for _ in range(3))
        self.own_value, self.own_output = nn.Linear(hidden, inner, bias=False), nn.Linear(inner, hidden, bias=False)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, hidden, bias=False)
        self.mlp = MLP(config)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.init_std)
        self.modulation = nn.Linear(hidden, 9 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x_TH: Tensor, context_TH: Tensor, kept_T1: Tensor, times_MH: Tensor, timestep_T: Tensor, packing: Packing
    ) -> Tensor:
        """Packed sentences, each beside the context of those before it; where `kept_T1` is 0 it does not see that.

        Position 0 of a document has a context of zeros: no biases, so its key and value are 0, and a sentence that sees
        nothing else gets 0. To drop the context is therefore to drop what was attended to.
        """
        # not by `modulate`: under FSDP that gives the layer's weights back when it returns
        modulation = self.modulation(F.silu(times_MH))[timestep_T].to(x_TH.dtype).chunk(9, -1)
        x_TH = self._own(x_TH, *modulation[:3])
        shift, scale, gate = modulation[3:6]
        query_TH = self.q_proj(modulated(self.cross_norm(x_TH), shift, scale))
        qkv_T3H = torch.cat([query_TH, self.k_proj(context_TH), self.v_proj(context_TH)], -1)
        attended_TH = packing.attention(qkv_T3H, self.heads, causal=True) * kept_T1
        x_TH = x_TH + gate * self.o_proj(attended_TH)
        return self._feed(x_TH, *modulation[6:])

    def step(self, x_RH: Tensor, modulation_9H: Tensor, cache: Tensor, seen_BS: Tensor) -> Tensor:
        """One sentence a row. The first B rows see those of their B contexts that `seen_BS` says, further rows none.

        `cache` (2, B, S, heads, d) are the contexts' keys and values.
        """
        modulation = modulation_9H.chunk(9)
        x_RH = self._own(x_RH, *modulation[:3])
        shift, scale, gate = modulation[3:6]
        seeing_BH = x_RH[: len(seen_BS)]
        query = self.q_proj(modulated(self.cross_norm(seeing_BH), shift, scale)).unflatten(-1, (self.heads, 1, -1))
        keys, values = (part.transpose(1, 2) for part in cache)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen_BS[:, None, None])
        seeing_BH = seeing_BH + gate * self.o_proj(attended.flatten(1))
        return self._feed(torch.cat([seeing_BH, x_RH[len(seen_BS) :]]), *modulation[6:])

    def modulate(self, times_MH: Tensor) -> Tensor:
        """(M, 9 H) shift, scale and gate of the three parts at M timesteps."""
        return self.modulation(F.silu(times_MH))

    def keys_values(self, context_BSH: Tensor) -> Tensor:
        """(2, B, S, heads, d) what `step` needs of contexts."""
        return torch.stack([proj(context_BSH).unflatten(-1, (self.heads, -1)) for proj in (self.k_proj, self.v_proj)])

    def _own(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.own_output(self.own_value(modulated(self.own_norm(x), shift, scale)))

    def _feed(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.mlp(modulated(self.mlp_norm(x), shift, scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`(1 + scale) x + shift`."""
    return x * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """Timesteps as sines and cosines of 128 frequencies, then two linear layers."""

    def __init__(self, hidden: int, std: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, hidden), nn.Linear(hidden, hidden)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, timesteps_M: Tensor) -> Tensor:
        """(M,) timesteps -> (M, H)."""
        dtype = self.first.weight.dtype
        places = torch.arange(128, dtype=torch.promote_types(dtype, torch.float32), device=timesteps_M.device)
        angles = timesteps_M[:, None] * 10_000.0 ** (-places / 128)
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(dtype)
        return self.second(F.silu(self.first(waves)))


class Denoiser(nn.Module):
    """Noisy vectors and their contexts -> the vectors beneath, all in normalised space. No positions."""

    def __init__(self, config: BackboneConfig, layers: int, embedding: int, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.time = TimeEmbedding(config.hidden, config.init_std)
        self.initial = nn.Linear(embedding, config.hidden)
        self.layers = nn.ModuleList(DenoiserBlock(config) for _ in range(layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.final = nn.Linear(config.hidden, embedding)

    def forward(self, x_TD: Tensor, context_TH: Tensor, kept_T1: Tensor, timestep_T: Tensor, packing: Packing) -> Tensor:
        """(T, D) packed noisy vectors at timesteps of their own -> (T, D); see `DenoiserBlock.forward`."""
        # What depends on the timestep only is computed for each of the few there are, not for each sentence.
        times_MH = self.time(torch.arange(self.timesteps, device=x_TD.device))
        x_TH = self._enter(x_TD)
        for layer in self.layers:
            x_TH = layer(x_TH, context_TH, kept_T1, times_MH, timestep_T, packing)
        return self.final(self.norm(x_TH))

    def modulations(self, timesteps: list[int]) -> Tensor:
        """(M, layers, 9 H) of what `step` needs at M timesteps."""
        times_MH = self.time(torch.tensor(timesteps, device=self.initial.weight.device))
        return torch.stack([layer.modulate(times_MH) for layer in self._blocks()], 1)

    def remember(self, context_BSH: Tensor, cache: Tensor, places_BS: Tensor) -> None:
        """Write the keys and values of contexts to these places of `cache` (layers, 2, B, places, heads, d)."""
        rows_B1 = torch.arange(len(context_BSH), device=context_BSH.device)[:, None]
        for layer, kept in zip(self._blocks(), cache):
            kept[:, rows_B1, places_BS] = layer.keys_values(context_BSH).to(kept.dtype)

    def step(self, x_RD: Tensor, modulations: Tensor, cache: Tensor, seen_BS: Tensor) -> Tensor:
        """(R, D) noisy vectors, all at the timestep of `modulations` (layers, 9 H) -> (R, D); see `DenoiserBlock.step`."""
        x_RH = self._enter(x_RD)
        for layer, kept, modulation in zip(self._blocks(), cache, modulations):
            x_RH = layer.step(x_RH, modulation, kept, seen_BS)
        return self.final(self.norm(x_RH))

    def _enter(self, x: Tensor) -> Tensor:
        dtype = self.initial.weight.dtype  # autocast must not round the residual stream
        return self.initial(x.to(dtype)).to(dtype)

    def _blocks(self) -> list[DenoiserBlock]:
        return [layer for layer in self.layers if isinstance(layer, DenoiserBlock)]


# ---------------------------------------------------------------------- the model


@dataclass(frozen=True)
class DiffusionLCMConfig:
    """`backbone` is the contextualizer's shape; the denoiser has its widths and `denoiser_layers` layers.

    `embedding` is the codec's D; `codec` is what `Sonar.from_pretrained` was given, `codec_fingerprint` its hash. In training
    a share of `context_dropout` of the sentences does not see its context, so that guidance has a guess without one.
    """

    backbone: BackboneConfig
    denoiser_layers: int
    embedding: int = 1024
    codec: str = "sonar"
    codec_fingerprint: str = ""
    noise: NoiseSchedule = field(default_factory=NoiseSchedule)
    context_dropout: float = 0.15

    def __post_init__(self) -> None:
        check_sizes(self, "denoiser_layers", most=MOST_LAYERS)
        check_sizes(self, "embedding")
        if not 0 <= self.context_dropout < 1:
            raise ValueError(f"context_dropout must be in [0, 1): {self}")


def towers(backbone: BackboneConfig, embedding: int = 1024) -> tuple[BackboneConfig, int]:
    """A contextualizer and a number of denoiser layers that together have as many weights as a SONAR-LLM of this backbone.

    Layers are shared 5 : 13, as in the paper, as nearly as whole layers and the count allow; `ffn`, the same in both, makes
    up for what is left (the count agrees within 1 % from a width of 96 on).
    """
    with torch.device("meta"):
        reading, denoising = (weights_of(block(backbone)) for block in (Block, DenoiserBlock))
        beside = weights_of(TimeEmbedding(backbone.hidden, 0.0)) + embedding * backbone.hidden  # a third projection
    wanted = backbone.layers * reading - beside
    pairs = {(max(1, rounded(5 * d / 13)), d) for d in range(1, 2 * backbone.layers + 1) for rounded in (math.floor, math.ceil)}
    layers, denoiser_layers = min(sorted(pairs), key=lambda pair: abs(pair[0] * reading + pair[1] * denoising - wanted))
    left = wanted - layers * reading - denoiser_layers * denoising
    ffn = backbone.ffn + 8 * round(left / ((layers + denoiser_layers) * 3 * backbone.hidden * 8))
    return replace(backbone, layers=layers, ffn=max(8, ffn)), denoiser_layers


def weights_of(module: nn.Module) -> int:
    """How many weights a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass
class DiffusionContext:
    """What B rows have read so far, for both towers, and how their next vectors are sampled.

    `cache` (layers, 2, B, 1 + S_max, heads, d) has the denoiser's keys and values of the contexts; place 0 is that of zeros.
    A row's noise depends on its seed in `seeds` and on how many sentences it has read, on nothing else.
    """

    read: Context
    cache: Tensor
    seeds: list[int]
    sampling: SamplingConfig

    def select(self, rows: Tensor) -> DiffusionContext:
        """Keep (or repeat, or reorder) rows, as `Context.select`."""
        seeds = [self.seeds[row] for row in rows.tolist()]
        return DiffusionContext(self.read.select(rows), self.cache.index_select(2, rows), seeds, self.sampling)


class DiffusionLCM(ConceptModule):
    """Contextualizer and denoiser; the frozen `normalizer` is among the weights."""

    family = "Diffusion-LCM"
    loss_unit = LOSS_UNIT
    Config = DiffusionLCMConfig
    shipped = {"mini": "mini/diffusion-lcm"}
    config: DiffusionLCMConfig

    def __init__(self, config: DiffusionLCMConfig, sonar: Sonar, normalizer: Normalizer) -> None:
        super().__init__(config, sonar)
        self.normalizer = fitting(normalizer, config.embedding)
        self.pre_net = nn.Linear(config.embedding, config.backbone.hidden)
        self.backbone = Backbone(config.backbone)
        self.denoiser = Denoiser(config.backbone, config.denoiser_layers, config.embedding, config.noise.timesteps)
        with torch.device("cpu"):
            self._alpha_bars = config.noise.alpha_bars().tolist()

    @classmethod
    def blank(cls, config: DiffusionLCMConfig, sonar: Sonar) -> DiffusionLCM:
        return cls(config, sonar, Normalizer(config.embedding))

    def use(self, *, activation_checkpointing: bool = False, compile: bool = False) -> DiffusionLCM:
        """How training computes, as `SonarLLM.use`, for both towers; `compile` is for the contextualizer only."""
        recompute((*self.backbone.layers, *self.denoiser.layers), activation_checkpointing)
        compile_blocks(self.backbone, compile)
        return self

    def shard(self, world: World) -> None:
        """FSDP2 over the layers of both towers, on every rank; see `core.distributed.shard`."""
        steps = ("modulate", "keys_values", "step")
        shard(world, self.denoiser, ("modulations", "remember", "step"), self.denoiser.layers, steps)
        shard(world, self, ("loss", "advance"), self.backbone.layers, ("extend",))

    def flops(self, batch: list[Document]) -> float:
        """Floating-point operations of a forward and a backward pass of `loss`; see `models/flops.py`."""
        shape, lengths = self.config.backbone, [len(document.vectors_SD) for document in batch]
        read, judged = [length - 1 for length in lengths], sum(lengths)
        hidden, inner, times = shape.hidden, shape.heads * shape.head_dim, self.config.noise.timesteps
        # The vectors read are data: no gradient leads back through the first projections.
        entering = (TRAINED - 1) * projection(shape, self.config.embedding) * (sum(read) + judged)
        layer = judged * TRAINED * 2 * (6 * hidden * inner + 3 * hidden * shape.ffn)
        layer += sum(length**2 for length in lengths) * CORE * 4 * inner + times * TRAINED * 2 * 9 * hidden**2
        time = times * 2 * ((TRAINED - 1) * 256 * hidden + TRAINED * hidden**2)
        leaving = TRAINED * projection(shape, self.config.embedding) * judged
        return training_backbone(shape, read) + entering + self.config.denoiser_layers * layer + time + leaving

    # ------------------------------------------------------------------ learning

    def loss(self, batch: list[Document]) -> LossSum:
        """Squared distance of denoised vectors in normalised space, summed over dimensions and over every sentence.

        count = those sentences, a document's first among them: as published, it is denoised without a context. Each has one
        timestep, drawn evenly. `parts` has `l2_per_sentence`, the distance in raw SONAR space.

        In training mode timesteps, noise and dropped contexts come from torch's global generator on the model's device. In
        evaluation mode no context is dropped, and what is drawn depends on the document alone, so that two evaluations
        compare, however they are cut into batches.
        """
        documents = [batch[i] for i in packing_of([len(d.vectors_SD) for d in batch]).order_N.tolist()]
        packing = packing_of([len(d.vectors_SD) for d in documents], self.device)
        target_TD = self.normalizer.normalize(torch.cat([d.vectors_SD for d in documents]).to(self.device))
        timestep_T, noise_TD, kept_T1 = self._drawn(documents, target_TD)
        left_T1 = torch.tensor(self._alpha_bars, dtype=target_TD.dtype, device=self.device)[timestep_T, None]
        noisy_TD = left_T1.sqrt() * target_TD + (1 - left_T1).sqrt() * noise_TD
        context_TH = self._contexts(target_TD, packing)
        return distances(self.denoiser(noisy_TD, context_TH, kept_T1, timestep_T, packing), target_TD, self.normalizer)

    def _drawn(self, documents: list[Document], target_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T,) timesteps, (T, D) noise, and (T, 1) whether the context is seen."""
        timesteps, count = self.config.noise.timesteps, len(target_TD)
        if self.training:
            kept_T1 = torch.rand(count, 1, device=self.device) >= self.config.context_dropout
            drawn_T = torch.randint(timesteps, (count,), device=self.device)
            return drawn_T, torch.randn_like(target_TD), kept_T1.to(target_TD)
        drawn = []
        for document in documents:
            generator = torch.Generator().manual_seed(zlib.crc32(document.vectors_SD.numpy().tobytes()))
            drawn.append(
                (
                    torch.randint(timesteps, (len(document.vectors_SD),), generator=generator),
                    torch.randn(document.vectors_SD.shape, generator=generator),
                )
            )
        drawn_T, noise_TD = (torch.cat(part) for part in zip(*drawn))
        return drawn_T.to(self.device), noise_TD.to(target_TD), target_TD.new_ones(count, 1)

    def _contexts(self, z_TD: Tensor, packing: Packing) -> Tensor:
        """(T, H) beside each sentence what the contextualizer makes of those before it: zeros beside a document's first."""
        read, before = packing.split(z_TD), packing.without_last()
        hidden_TH = self.backbone(self._enter(torch.cat([block[:, :-1].flatten(0, 1) for block in read])), before)
        return torch.cat([F.pad(block, (0, 0, 1, 0)).flatten(0, 1) for block in before.split(hidden_TH)])

    def _enter(self, z: Tensor) -> Tensor:
        dtype = self.pre_net.weight.dtype
        return self.pre_net(z.to(dtype)).to(dtype)

    # ------------------------------------------------------------------ predicting

    def start(
        self, rows: int, positions: int, sampling: SamplingConfig = SamplingConfig(), seeds: int | Sequence[int] = 0
    ) -> DiffusionContext:
        """An empty context for `rows` stories of at most `positions` sentences; `seeds` is one for all rows or one for each.

        Rows of one seed begin with the same noise, so that a story does not depend on what else is in its batch. Raises
        ValueError for a number of seeds that is not that of rows, and for more sampling steps than the model has timesteps.
        """
        seeds = [seeds] * rows if isinstance(seeds, int) else list(seeds)
        if len(seeds) != rows:
            raise ValueError(f"one seed for all stories or one for each: got {len(seeds)} for {rows} stories")
        trailing_timesteps(self.config.noise.timesteps, sampling.steps)
        shape = self.config.backbone
        size = (self.config.denoiser_layers, 2, rows, 1 + positions, shape.heads, shape.head_dim)
        cache = torch.zeros(size, dtype=self.pre_net.weight.dtype, device=self.device)
        return DiffusionContext(self.backbone.empty_context(rows, positions), cache, seeds, sampling)

    @torch.no_grad()
    def advance(self, embeddings_BSD: Tensor, context: DiffusionContext, new_B: Tensor) -> Tensor:
        """Read `new_B[i]` more vectors in row i (the rest is padding) -> (B, D) a vector sampled to follow the last of them."""
        read = self.normalizer.normalize(embeddings_BSD.to(self.device))
        places_BS = 1 + context.read.lengths_B[:, None] + torch.arange(read.shape[1], device=self.device)
        hidden_BSH = self.backbone.extend(self._enter(read), context.read, new_B.to(self.device))
        self.denoiser.remember(hidden_BSH, context.cache, places_BS)
        return self.normalizer.denormalize(self._sampled(context)).float()

    def _sampled(self, context: DiffusionContext) -> Tensor:
        """(B, D) vectors made from noise, in normalised space: DDIM, both branches of the guidance in one batch."""
        sampling, dtype = context.sampling, torch.promote_types(self.pre_net.weight.dtype, torch.float32)
        lengths = context.read.lengths_B.tolist()
        cache = context.cache[:, :, :, : 1 + max(lengths)]
        seen_BS = torch.arange(cache.shape[3], device=self.device) <= context.read.lengths_B[:, None]
        timesteps = trailing_timesteps(self.config.noise.timesteps, sampling.steps)
        modulations = self.denoiser.modulations(timesteps)
        fresh = self._fresh_noise(context.seeds, lengths, sampling).to(self.device, dtype)
        x_BD = clean_BD = sampling.initial_noise * fresh[0]
        for i, timestep in enumerate(timesteps):
            alpha_bar = self._alpha_bars[timestep]
            before = self._alpha_bars[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
            # At the last timestep nothing is left of the vector, and noise tells nothing of it: no guidance, as published.
            both = sampling.guidance != 1 and alpha_bar > 0
            found = self.denoiser.step(torch.cat([x_BD, x_BD]) if both else x_BD, modulations[i], cache, seen_BS)
            clean_BD, *unconditional = found.to(dtype).split(len(x_BD))
            noise_BD = noise_in(x_BD, clean_BD, alpha_bar)
            if unconditional:
                noise_BD = guided(noise_BD, noise_in(x_BD, unconditional[0], alpha_bar), sampling)
                clean_BD = (x_BD - math.sqrt(1 - alpha_bar) * noise_BD) / math.sqrt(alpha_bar)
            x_BD = ddim_step(clean_BD, noise_BD, alpha_bar, before, sampling, fresh[1 + i] if sampling.eta else None)
        return clean_BD

    def _fresh_noise(self, seeds: list[int], lengths: list[int], sampling: SamplingConfig) -> Tensor:
        """(1 or 1 + steps, B, D) standard noise, to begin with and for each step that adds some; drawn on the CPU."""
        count, noise = 1 + (sampling.steps if sampling.eta else 0), []
        for seed, length in zip(seeds, lengths):
            generator = torch.Generator().manual_seed((1_000_003 * seed + length) % 2**32)
            noise.append(torch.randn(count, self.config.embedding, generator=generator))
        return torch.stack(noise, 1)

    @torch.no_grad()
    def predict_next(
        self, embeddings_BSD: Tensor, sampling: SamplingConfig = SamplingConfig(), seeds: int | Sequence[int] = 0
    ) -> Tensor:
        """(B, S, D) vectors of the sentences so far -> (B, D) a next one for each, in raw SONAR space; see `start`."""
        rows, sentences, _ = embeddings_BSD.shape
        lengths = torch.full((rows,), sentences, device=self.device)
        return self.advance(embeddings_BSD, self.start(rows, sentences, sampling, seeds), lengths)

    def generate(
        self,
        prompt: str | list[str],
        lang: str = "eng_Latn",
        *,
        sampling: SamplingConfig = SamplingConfig(),
        seed: int | Sequence[int] = 0,
        **options: Any,
    ) -> Any:
        """Continue one story or many; see `rollout.generate`. `seed` is one for all stories or one for each.

        It stops by `mse_lcm.STOPS` unless told (arXiv 2412.08821).
        """
        first = seed if isinstance(seed, int) else next(iter(seed), 0)
        teller = _Teller(self, sampling, seed)
        return rollout.generate(teller, prompt, lang, seed=first, **{**STOPS, **options})


@dataclass(frozen=True)
class _Teller:
    """A model and how it samples, as `rollout` wants a model."""

    model: DiffusionLCM
    sampling: SamplingConfig
    seeds: int | Sequence[int]

    @property
    def sonar(self) -> Sonar:
        return self.model.sonar

    def start(self, rows: int, positions: int) -> DiffusionContext:
        return self.model.start(rows, positions, self.sampling, self.seeds)

    def advance(self, embeddings_BSD: Tensor, context: DiffusionContext, new_B: Tensor) -> Tensor:
        return self.model.advance(embeddings_BSD, context, new_B)
