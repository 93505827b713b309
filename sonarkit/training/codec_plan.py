"""The dry run of a codec: what training SONAR would take, before it takes it.

Counts as in `training.plan`: parameters on the meta device, matrix products only, activations tensor by tensor. All sentences
are taken for equally long. Both sides learn, so a product costs three (forward, gradient of the input, of the weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sonarkit.codec.config import CodecConfig, StackConfig
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.encoder import Encoder
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig
from sonarkit.core.cross_entropy import rows_at_once
from sonarkit.core.distributed import multiplies_bfloat16
from sonarkit.core.peak import matrix_peak
from sonarkit.models.flops import (
    CORE,
    TRAINED,
    attention_pair,
    attention_token,
    encoding,
    ffn_token,
    sentence_terms,
    vocabulary_token,
)
from sonarkit.training.loop import TrainConfig
from sonarkit.training.plan import CONTEXT, FRAGMENTED, GB, GPUS, columns, duration, flops_in_words, layer_activations, short


@dataclass(frozen=True)
class CodecLoad:
    """What so many pairs make the codec do: sentences read and said, tokens of each, tokens counted in the loss."""

    read: float
    read_length: float  # `__lang__ pieces </s>`, mean
    said: float
    said_length: float  # `</s> __lang__ pieces`
    counted: float  # said, less the language token

    @classmethod
    def of(cls, pairs: float, pieces: float, objective: ObjectiveConfig | DecoderObjective) -> CodecLoad:
        """`pairs` pairs of sentences of `pieces` pieces each. A damaged sentence has fewer; here it counts as whole, as a
        splice does, which on average has as many."""
        clean, said = 2 * pairs, 2 * pairs
        if isinstance(objective, ObjectiveConfig):
            denoised = 2 * pairs * objective.dae_share * bool(objective.dae_weight)
            clean += denoised * (1 if objective.damages else objective.dae_splice)
            said = 2 * pairs * bool(objective.mt_weight) + denoised
        return cls(clean, pieces + 2, said, pieces + 2, said * (pieces + 1))


def codec_training_parts(config: CodecConfig, load: CodecLoad, objective: ObjectiveConfig | DecoderObjective) -> dict[str, float]:
    """FLOPs of a forward and a backward pass, by part; a frozen encoder reads only."""
    frozen = isinstance(objective, DecoderObjective)
    decoder = config.decoder
    tokens = load.said * load.said_length
    token = TRAINED * (attention_token(decoder) + ffn_token(decoder)) + CORE * load.said_length * attention_pair(decoder)
    parts = {"encoder": (1 if frozen else TRAINED) * load.read * _encoding(config, load.read_length)}
    to_vectors = 2 * decoder.layers * decoder.width * config.width if frozen else 0  # no gradient leads there
    parts["sentence_terms"] = load.said * (TRAINED * sentence_terms(config) - to_vectors)
    parts["decoder"] = tokens * decoder.layers * token
    parts["vocabulary"] = load.counted * TRAINED * vocabulary_token(config)
    return parts


def _encoding(config: CodecConfig, length: float) -> float:
    """Reading one sentence of a mean length, which is no whole number: between those of its neighbours."""
    low = math.floor(length)
    part = length - low
    return (1 - part) * encoding(config, [low]) + part * encoding(config, [low + 1])


def codec_memory(
    config: CodecConfig,
    load: CodecLoad,
    objective: ObjectiveConfig | DecoderObjective,
    train: TrainConfig,
    gpus: int,
    half: bool,
) -> dict[str, float]:
    """Bytes that one of `gpus` holds at the peak of a step over a micro-batch of `load`, by what they are for."""
    encoder, decoder = _sides(config)
    learns: list[Encoder | Decoder] = [encoder, decoder]
    if isinstance(objective, DecoderObjective):
        learns = [decoder]
    elif not objective.decodes:
        learns = [encoder]
    trained, every = sum(map(_count, learns)), _count(encoder) + _count(decoder)
    matrices = sum(m.weight.numel() for side in learns for m in side.modules() if isinstance(m, nn.Linear))
    parts = gpus if train.parallel == "fsdp" else 1
    layer = max(_count(side.layers[0]) for side in learns)
    embedding = config.vocab_size * config.decoder.width
    gathered = 4 * (2 * layer + embedding * len(learns)) if parts > 1 else 0
    losses = 2 if isinstance(objective, ObjectiveConfig) and objective.mt_weight and objective.dae_weight else 1
    size = 2 if half else 4
    chunk = rows_at_once(config.vocab_size, "cuda") * config.vocab_size * (4 + 2 * size)
    activations = 0.0
    if encoder in learns:
        activations += _activations(config.encoder, load.read * load.read_length, half)
    if decoder in learns:
        activations += _activations(config.decoder, load.said * load.said_length, half)
        activations += load.counted * 4 * config.decoder.width  # the hidden states that are judged
    return {
        "weights": 4 * (trained / parts + every - trained) + gathered,
        "gradients": 4 * trained / parts + (4 * layer if parts > 1 else 0),
        "optimizer": (8 * trained - (4 * matrices if train.optimizer.muon else 0)) / parts,
        "copies": 2 * matrices if half else 0,
        "activations": activations,
        # each loss keeps the gradient of the output projection's weights until the backward pass
        "cross entropy": (losses * 4 * embedding + chunk + (size * embedding if half else 0)) if decoder in learns else 0,
    }


def _sides(config: CodecConfig) -> tuple[Encoder, Decoder]:
    with torch.device("meta"):
        encoder = Encoder(config.encoder, config.vocab_size, config.max_tokens)
        return encoder, Decoder(config.decoder, config.width, config.vocab_size, config.max_tokens)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _activations(stack: StackConfig, tokens: float, half: bool) -> float:
    """Bytes that autograd keeps of a stack of layers; both sides' are alike but for the decoder's one term a sentence."""
    layer, stream = layer_activations(stack, tokens, half, trained=True)
    masks = tokens * (2 * stack.width + stack.ffn) if stack.dropout else 0.0  # a byte for each number that dropout saw
    return stack.layers * (layer + masks) + 2 * stream


def codec_plan(
    config: CodecConfig,
    objective: ObjectiveConfig | DecoderObjective,
    train: TrainConfig,
    *,
    pairs_per_step: float,
    micro_pairs: float,
    pieces: float,
    gpus: Sequence[int] = (1, 8),
    device: str = "H100",
    device_memory: float | None = None,
    mfu: float = 0.4,
) -> str:
    """What training takes on each number of GPUs, as a table; nothing of the model is allocated.

    `pieces` is the mean number of pieces of a sentence. `device`, `device_memory` and `mfu` are those of `training.plan.plan`,
    as are the errors, with pairs for documents.
    """
    if device not in (*GPUS, "cpu"):
        raise ValueError(f"unknown device {device!r}; known are {', '.join(GPUS)} and cpu (this machine)")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is a share of the device's FLOP/s, above 0 and at most 1; got {mfu}")
    if not gpus or min(gpus) < 1 or max(gpus) > pairs_per_step:
        raise ValueError(f"{pairs_per_step:.0f} pairs a step cannot be shared by {list(gpus)} GPUs")
    cpu = torch.device("cpu")
    half = train.precision == "bfloat16" or (train.precision == "auto" and (device != "cpu" or multiplies_bfloat16(cpu)))
    step = CodecLoad.of(pairs_per_step, pieces, objective)
    flops = codec_training_parts(config, step, objective)
    work = sum(flops.values())
    if device == "cpu":
        speed, room = matrix_peak(cpu, torch.bfloat16 if half else torch.float32), math.inf
    else:
        speed, room = GPUS[device].bfloat16 if half else GPUS[device].float32, GPUS[device].memory
    room = device_memory or room
    encoder, decoder = _sides(config)
    shares = ", ".join(f"{name.replace('_', ' ')} {value / work:.0%}" for name, value in flops.items())
    facts = {
        "model": f"{short(_count(encoder))} parameters of the encoder, {short(_count(decoder))} of the decoder",
        "a step": f"{short(pairs_per_step)} pairs, {short(step.read)} sentences of {pieces:g} pieces read, "
        f"{short(step.counted)} tokens said, {flops_in_words(work)} ({shares})",
        "the run": f"{train.steps} steps, {flops_in_words(train.steps * work)}",
        "device": f"{device}, {speed / 1e12:.4g} TFLOP/s in {'bfloat16' if half else 'float32'}, used to {mfu:.0%}, "
        f"{room / GB:.0f} GB",
    }
    rows, names = [], [*codec_memory(config, step, objective, train, 1, half)]
    for number in gpus:
        batches = math.ceil(pairs_per_step / number / micro_pairs)
        micro = CodecLoad.of(pairs_per_step / number / batches, pieces, objective)
        needed = codec_memory(config, micro, objective, train, number, half)
        total = sum(needed.values())
        fits = total <= (room if device == "cpu" else room * (1 - FRAGMENTED) - CONTEXT)
        seconds = train.steps * work / (speed * (number if device != "cpu" else 1) * mfu)
        rows.append(
            [
                str(number),
                train.parallel if number > 1 else "whole",
                *(f"{needed[name] / GB:.2f}" for name in names),
                f"{total / GB:.1f}{'' if fits else ' !'}",
                f"{batches} x {short(micro.counted)}",
                duration(seconds),
            ]
        )
    advice = ["! does not fit: lower micro_tokens, or train with --parallel fsdp on more GPUs"] if "!" in str(rows) else []
    lines = [f"{name:8}{text}" for name, text in facts.items()]
    head = ["GPUs", "model", *names, "total GB", "micro-batches", "time"]
    return "\n".join([*lines, "", *columns([head, *rows]), *advice])
