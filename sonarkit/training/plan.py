"""The dry run: what a SONAR-LLM run would take, before it takes it.

1. Parameters are counted on the meta device, where nothing is allocated.
2. A step's FLOPs follow from the corpus' means (`models.flops`); steps, FLOPs and time of the run from them.
3. The memory of one GPU is added up for each number of GPUs, the model whole on each (DDP) or in parts (FSDP2).
4. Where that is more than there is, what would make it fit is tried out and named.

The activations are what autograd keeps of a micro-batch in `SonarLLM.loss`, tensor by tensor, with fused attention;
tests/unit/test_plan.py holds them against what it does keep, to 5 %. Whole steps of a 34M backbone under a six-layer decoder
took 0.99 to 1.18 times the total planned, in float32 and bfloat16 on a CPU; on a GPU it was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sonarkit.codec.config import CodecConfig, StackConfig
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.encoder import Encoder
from sonarkit.codec.pipeline import SHIPPED
from sonarkit.codec.published import PUBLISHED
from sonarkit.core import config as configs
from sonarkit.core import memory
from sonarkit.core.cross_entropy import rows_at_once
from sonarkit.core.distributed import multiplies_bfloat16
from sonarkit.core.paths import asset
from sonarkit.core.peak import matrix_peak
from sonarkit.models.backbone import Backbone, BackboneConfig
from sonarkit.models.flops import Load, training_parts
from sonarkit.text.languages import SONAR_LANGUAGES
from sonarkit.training.concept_task import ConceptDataConfig
from sonarkit.training.loop import TrainConfig

Parallel = Literal["ddp", "fsdp"]
GB = 1e9


@dataclass(frozen=True)
class Device:
    """A kind of GPU: FLOP/s of dense products, bytes of memory."""

    bfloat16: float
    float32: float
    memory: float


# From NVIDIA's data sheets: dense, float32 without TF32.
GPUS = {
    "A100": Device(312e12, 19.5e12, 80 * GB),
    "H100": Device(989e12, 67e12, 80 * GB),
    "H200": Device(989e12, 67e12, 141 * GB),
    "B200": Device(2250e12, 75e12, 192 * GB),
}
CONTEXT = 1.5 * GB  # what CUDA and NCCL take for themselves
FRAGMENTED = 0.05  # of the memory, lost between tensors


@dataclass(frozen=True)
class CorpusSize:
    """How much text there is: documents, their sentences and the pieces of these, as in a store's manifest.

    `end_pieces` is the length of "End of sequence.", which every document gets in addition.
    """

    documents: int
    sentences: float
    pieces: float
    end_pieces: int = 4
    name: str = "the corpus"

    def __post_init__(self) -> None:
        if not (0 < self.documents <= self.sentences <= self.pieces):
            raise ValueError(f"a corpus has documents, at least as many sentences, and at least as many pieces; got {self}")

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> CorpusSize:
        """The size of a store, from its `manifest`."""
        end = len(manifest["end_of_sequence"]["tokens"])
        return cls(manifest["documents"], manifest["sentences"], manifest["tokens"], end, manifest["corpus"])

    def load(self, max_sentences: int) -> Load:
        """A mean document's, as if all were alike: squares of lengths come out too small, a fifth in TinyStories."""
        sentences, pieces = min(self.sentences / self.documents, max_sentences), self.pieces / self.sentences
        return Load(
            positions=sentences,
            position_squares=sentences**2,
            sentences=sentences,
            tokens=(sentences - 1) * (pieces + 2) + self.end_pieces + 2,
            token_squares=(sentences - 1) * (pieces + 2) ** 2 + (self.end_pieces + 2) ** 2,
            counted=(sentences - 1) * (pieces + 1) + self.end_pieces + 1,
        )


# 2 119 719 stories for training. Sentences and pieces: means of 186 stories of it, cut at 32 sentences as in training, by our
# own splitter and `mini`'s tokenizer of 8008 pieces (standard error 0.6 sentences a story; a larger vocabulary has fewer pieces).
TINY_STORIES = CorpusSize(2_119_719, 2_119_719 * 18.1, 2_119_719 * 18.1 * 16.2, 8, "TinyStories")


def codec_shape(name: str | Path) -> CodecConfig:
    """The shape of the codec that `Sonar.from_pretrained(name)` gives; nothing is downloaded. ValueError when unknown."""
    if str(name) in PUBLISHED:
        return CodecConfig(tuple(SONAR_LANGUAGES))
    path = (asset(SHIPPED[str(name)]) if str(name) in SHIPPED else Path(name)) / "config.json"
    if not path.is_file():
        known = ", ".join(sorted([*SHIPPED, *PUBLISHED]))
        raise ValueError(f"no codec at {str(name)!r}: expected one of {known}, or a folder with config.json")
    return configs.load(CodecConfig, path)


# ---------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class Parameters:
    """Counts. `matrices` are the weights of linear layers among `trained`; `layer` is the largest layer of the backbone."""

    trained: int
    matrices: int
    layer: int
    encoder: int
    decoder: int
    decoder_layer: int

    @property
    def total(self) -> int:
        """With the frozen ones."""
        return self.trained + self.encoder + self.decoder


@lru_cache
def count_parameters(backbone: BackboneConfig, codec: CodecConfig, train_decoder: bool = False) -> Parameters:
    """From the modules themselves, on the meta device. A decoder that is trained counts as trained, not as decoder."""
    with torch.device("meta"):
        core = Backbone(backbone)
        projections = [nn.Linear(codec.width, backbone.hidden), nn.Linear(backbone.hidden, codec.width)]
        decoder = Decoder(codec.decoder, codec.width, codec.vocab_size, codec.max_tokens)
        encoder = Encoder(codec.encoder, codec.vocab_size, codec.max_tokens)
    trained = nn.ModuleList([core, *projections, *([decoder] if train_decoder else [])])
    return Parameters(
        _count(trained),
        sum(m.weight.numel() for m in trained.modules() if isinstance(m, nn.Linear)),
        _count(core.layers[0]),
        _count(encoder),
        0 if train_decoder else _count(decoder),
        _count(decoder.layers[0]),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. `copies` are the weights in bfloat16 that autocast keeps for the backward pass."""

    weights: float
    gradients: float
    optimizer: float
    copies: float
    codec: float
    activations: float
    cross_entropy: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Options:
    """What may be chosen to make a run fit. `checkpointing` keeps a layer's input only and computes the rest again."""

    parallel: Parallel
    micro_tokens: int
    checkpointing: bool = False


def backbone_activations(config: BackboneConfig, positions: float, half: bool) -> tuple[float, float]:
    """Bytes that autograd keeps of one layer of the backbone, and of the residual stream after it."""
    size, inner = (2 if half else 4), config.heads * config.head_dim
    # Both norms keep input and normalised input; what the products read is cast for each of the five anew in bfloat16.
    norms = 4 * 4 * config.hidden + (5 if half else 2) * size * config.hidden
    attention = 5 * inner + 2 * config.head_dim  # queries, keys, values; the result, twice; cosines and sines
    return positions * (norms + size * (attention + 4 * config.ffn)), positions * 4 * config.hidden


def layer_activations(config: StackConfig, tokens: float, half: bool, trained: bool = False) -> tuple[float, float]:
    """The same of a layer of the codec. A frozen product keeps nothing but its weights."""
    size = 2 if half else 4
    kept = 2 * 4 * config.width + size * (4 * config.width + config.ffn)  # norms' inputs; queries, keys, values, result; ReLU
    if trained:
        kept += size * 3 * config.width  # what the products read, but the last, whose input ReLU has kept
    return tokens * kept, tokens * 4 * config.width


def activations(
    backbone: BackboneConfig, codec: CodecConfig, load: Load, half: bool, checkpointing: bool, trained: bool = False
) -> float:
    """Bytes that a micro-batch keeps between its forward and its backward pass."""
    core, core_stream = backbone_activations(backbone, load.positions, half)
    token, token_stream = layer_activations(codec.decoder, load.tokens, half, trained)
    layers, depth = backbone.layers, codec.decoder.layers
    ends = 2 * core_stream + token_stream + load.counted * 4 * codec.decoder.width  # final norms; the loss' own gradient
    if checkpointing:
        return layers * core_stream + depth * token_stream + max(core, token) + ends
    # A frozen decoder's first self-attention depends on nothing that is trained.
    first = 0.0 if trained else load.tokens * (4 + (8 if half else 16)) * codec.decoder.width
    return layers * core + depth * token - first + ends


def memory_of(
    backbone: BackboneConfig,
    codec: CodecConfig,
    count: Parameters,
    load: Load,
    gpus: int,
    options: Options,
    train: TrainConfig,
    half: bool,
    frozen_bytes: int,
    shard_decoder: bool = False,
) -> Memory:
    """What one of `gpus` holds at the peak of a step over a micro-batch of `load`. A number of the frozen codec has
    `frozen_bytes`; `half` is bfloat16 autocast."""
    parts = gpus if options.parallel == "fsdp" else 1
    trained, size, config = not count.decoder, 2 if half else 4, codec.decoder
    moments = 8 * count.trained - (4 * count.matrices if train.optimizer.muon else 0)
    gathered = 2 * 4 * count.layer if parts > 1 else 0  # the layer at work and the next one
    decoder: float = frozen_bytes * count.decoder
    if parts > 1 and shard_decoder:
        # The embedding, which the output projection reads, is gathered for the whole pass.
        decoder = decoder / parts + frozen_bytes * (codec.vocab_size * config.width + 2 * count.decoder_layer)
    cast = half and frozen_bytes > size
    copies = 2 * count.matrices if half else 0
    copies += 2 * (count.decoder - codec.vocab_size * config.width) if cast else 0
    gradients_inside = load.tokens * size * (2 * config.ffn + 3 * config.width)  # of the layer that is differentiated
    slices = rows_at_once(codec.vocab_size, "cuda") * codec.vocab_size * (4 + 2 * size)
    chunk = slices + (size * codec.vocab_size * config.width if cast or (trained and half) else 0)
    chunk += 4 * codec.vocab_size * config.width if trained else 0  # the gradient of the embedding, until the backward pass
    return Memory(
        weights=4 * count.trained / parts + gathered,
        gradients=4 * count.trained / parts + (4 * count.layer if parts > 1 else 0),
        optimizer=moments / parts,
        copies=copies,
        codec=decoder + frozen_bytes * count.encoder,
        activations=activations(backbone, codec, load, half, options.checkpointing, trained) + gradients_inside,
        cross_entropy=chunk,
    )


# ---------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Layout:
    """The run on so many GPUs: memory of one, micro-batches a step on each, time, and what to do where it does not fit."""

    gpus: int
    options: Options
    memory: Memory
    micro_batches: int
    seconds: float
    fits: bool
    advice: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run takes. FLOPs are those of matrix products in forward and backward pass, of all GPUs together."""

    backbone: BackboneConfig
    parameters: Parameters
    corpus: CorpusSize
    documents_per_step: int
    steps: int
    load: Load  # of a step
    flops: dict[str, float]  # of a step, by part
    precision: str
    device: str
    device_memory: float
    device_flops: float
    mfu: float
    layouts: tuple[Layout, ...]

    @property
    def steps_per_epoch(self) -> float:
        return self.corpus.documents / self.documents_per_step

    @property
    def flops_per_step(self) -> float:
        return sum(self.flops.values())

    def table(self) -> str:
        """The plan as text, a line a fact and a row a layout."""
        p, step = self.parameters, self.flops_per_step
        shares = ", ".join(f"{name.replace('_', ' ')} {value / step:.0%}" for name, value in self.flops.items())
        epochs = self.steps / self.steps_per_epoch
        tokens, whole = self.load.counted, self.steps * step
        facts = {
            "model": f"{short(p.trained)} parameters trained, {short(p.total)} with the codec",
            "corpus": f"{self.corpus.name}: {short(self.corpus.documents)} documents, "
            f"{short(self.corpus.sentences)} sentences, {short(self.corpus.pieces)} tokens",
            "a step": f"{self.documents_per_step} documents, {short(self.load.sentences)} sentences, "
            f"{short(tokens)} target tokens, {flops_in_words(step)} ({shares})",
            "the run": f"{self.steps} steps, {self.steps_per_epoch:.0f} an epoch, {epochs:.2f} epochs, {flops_in_words(whole)}",
            "device": f"{self.device}, {self.device_flops / 1e12:.4g} TFLOP/s in {self.precision}, used to {self.mfu:.0%}, "
            f"{self.device_memory / GB:.0f} GB",
        }
        names = {name: name.replace("_", " ") for name in Memory.__dataclass_fields__}
        head = ["GPUs", "model", *names.values(), "total GB", "micro-batches", "time"]
        rows = [
            [
                str(layout.gpus),
                layout.options.parallel if layout.gpus > 1 else "whole",
                *(f"{getattr(layout.memory, name) / GB:.2f}" for name in names),
                f"{layout.memory.total / GB:.1f}{'' if layout.fits else ' !'}",
                f"{layout.micro_batches} x {short(tokens / layout.gpus / layout.micro_batches)}",
                duration(layout.seconds),
            ]
            for layout in self.layouts
        ]
        advice = [
            f"! {layout.gpus} x {self.device}, {row[1]}: {layout.advice}"
            for layout, row in zip(self.layouts, rows)
            if not layout.fits
        ]
        lines = [f"{name:8}{text}" for name, text in facts.items()]
        return "\n".join([*lines, "", *columns([head, *rows]), *([""] if advice else []), *advice])


def plan(
    backbone: BackboneConfig,
    batches: ConceptDataConfig,
    train: TrainConfig,
    codec: CodecConfig,
    corpus: CorpusSize = TINY_STORIES,
    *,
    gpus: Sequence[int] = (1, 8),
    device: str = "H100",
    device_memory: float | None = None,
    mfu: float = 0.4,
    train_decoder: bool = False,
    frozen: torch.dtype | None = None,
    shard_decoder: bool = False,
    checkpointing: bool = False,
) -> Plan:
    """What training takes on each number of GPUs in `gpus`, under DDP and FSDP2; nothing of the model is allocated.

    `device` is one of GPUS, or "cpu" for this machine (measured; several processes share it); `device_memory` (bytes)
    replaces what the kind has. `mfu` is the share of its FLOP/s that training reaches. `frozen` is the codec's type, by
    default that of the products; `shard_decoder` divides it among the GPUs under FSDP2, too.

    Raises ValueError for an unknown device, an `mfu` outside (0, 1], and numbers of GPUs below 1 or above the documents of
    a step.
    """
    if device not in (*GPUS, "cpu"):
        raise ValueError(f"unknown device {device!r}; known are {', '.join(GPUS)} and cpu (this machine)")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is a share of the device's FLOP/s, above 0 and at most 1; got {mfu}")
    if not gpus or min(gpus) < 1:
        raise ValueError(f"the numbers of GPUs must be at least 1, got {list(gpus)}")
    if max(gpus) > batches.documents_per_step:
        raise ValueError(
            f"{batches.documents_per_step} documents a step cannot be shared by {max(gpus)} GPUs; raise documents_per_step"
        )
    cpu = torch.device("cpu")
    half = train.precision == "bfloat16" or (train.precision == "auto" and (device != "cpu" or multiplies_bfloat16(cpu)))
    if device == "cpu":
        kind = Device(0, 0, memory.available() or math.inf)
        speed = matrix_peak(cpu, torch.bfloat16 if half else torch.float32)
    else:
        kind = GPUS[device]
        speed = kind.bfloat16 if half else kind.float32
    room = device_memory or kind.memory
    count = count_parameters(backbone, codec, train_decoder)
    step = _times(corpus.load(batches.max_sentences), batches.documents_per_step)
    frozen_bytes = (frozen or (torch.bfloat16 if half else torch.float32)).itemsize

    def layout(number: int, options: Options) -> Layout:
        micro_batches = max(1, math.ceil(step.counted / number / options.micro_tokens))
        micro = _times(step, 1 / number / micro_batches)
        needed = memory_of(
            backbone, codec, count, micro, number, options, train, half, frozen_bytes, shard_decoder and not train_decoder
        )
        work = training_parts(backbone, codec, step, train_decoder=train_decoder, recomputed=options.checkpointing)
        together = speed * (number if device != "cpu" else 1)
        share = room / number if device == "cpu" else room * (1 - FRAGMENTED) - CONTEXT
        return Layout(
            number,
            options,
            needed,
            micro_batches,
            train.steps * sum(work.values()) / (together * mfu),
            fits=needed.total <= share,
        )

    layouts = []
    for number in gpus:
        for parallel in ("ddp", "fsdp") if number > 1 else ("ddp",):
            one = layout(number, Options(parallel, batches.micro_tokens, checkpointing))
            others = () if one.fits else (layout(number, options) for options in _ways_out(one))
            layouts.append(one if one.fits else replace(one, advice=_advice(one, others)))
    return Plan(
        backbone,
        count,
        corpus,
        batches.documents_per_step,
        train.steps,
        step,
        training_parts(backbone, codec, step, train_decoder=train_decoder),
        "bfloat16" if half else "float32",
        device,
        room,
        speed,
        mfu,
        tuple(layouts),
    )


def _times(load: Load, factor: float) -> Load:
    return Load(**{name: value * factor for name, value in vars(load).items()})


# ---------------------------------------------------------------------- what would fit


def _ways_out(layout: Layout) -> list[Options]:
    """Other choices, those that change least first: one change, then two, then three; micro-batches as large as can be."""
    now = layout.options
    smaller = [now.micro_tokens >> halvings for halvings in range(1, 12) if now.micro_tokens >> halvings >= SMALLEST_MICRO]
    ways = [
        Options(parallel, micro_tokens, checkpointing)
        for parallel in dict.fromkeys([now.parallel, "fsdp" if layout.gpus > 1 else now.parallel])
        for checkpointing in dict.fromkeys([now.checkpointing, True])
        for micro_tokens in [now.micro_tokens, *smaller]
    ]
    return sorted(ways[1:], key=lambda way: len(_changes(now, way)))


SMALLEST_MICRO = 512  # a document of the mean length


def _changes(before: Options, after: Options) -> list[str]:
    changes = {
        "parallel = fsdp": after.parallel != before.parallel,
        f"micro_tokens = {after.micro_tokens}": after.micro_tokens != before.micro_tokens,
        "activation_checkpointing": after.checkpointing != before.checkpointing,
    }
    return [name for name, changed in changes.items() if changed]


def _advice(layout: Layout, others: Iterable[Layout]) -> str:
    """Each smallest set of changes that makes it fit, or that none does."""
    found: dict[frozenset[str], str] = {}
    for other in others:
        changes = _changes(layout.options, other.options)
        kinds = frozenset(change.partition(" ")[0] for change in changes)
        if other.fits and not any(known <= kinds for known in found):
            found[kinds] = " and ".join(changes)
    if not found:
        return "does not fit, whatever is changed; it takes more GPUs or more memory on each"
    return f"does not fit; it would with {', or with '.join(found.values())}"


# ---------------------------------------------------------------------- words


def short(number: float) -> str:
    """1 234 567 -> "1.23M"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def flops_in_words(number: float) -> str:
    """1.23e15 -> "1.23 PFLOP"."""
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:.3g} {letter}FLOP"
    return f"{number:.3g} FLOP"


def duration(seconds: float) -> str:
    """5400 -> "1.5 hours"."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def columns(rows: list[list[str]]) -> list[str]:
    """A line for each row, its cells flush right, as wide as the widest of their column."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
