"""How SONAR is trained: L = L_MT + 0.1 L_MSE + 0.01 L_DAE (arXiv 2308.11466, section 3.1).

- MT: the decoder says the translation of a sentence, given its vector; both directions of a pair.
- MSE: the vectors of a sentence and of its translation are pulled together.
- DAE: the decoder says a sentence, given the vector of its damaged copy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import pack


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the three losses and the noise of the denoising one.

    `noise_ratio` of the pieces are covered by masked spans (mean length `noise_span`), each replaced by one
    `<unk>`, NLLB's denoising with replace-length 1; 0 is plain auto-encoding, of the vectors at hand.
    `dae_share` of the sentences of a batch are denoised; the loss is weighted up so that the expectation is that of
    all of them.
    """

    mt_weight: float = 1.0
    mse_weight: float = 0.1
    dae_weight: float = 0.01
    noise_ratio: float = 0.5
    noise_span: float = 3.5
    dae_share: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if min(self.mt_weight, self.mse_weight, self.dae_weight) < 0:
            raise ValueError(f"mt_weight, mse_weight and dae_weight must not be negative: {self}")
        if not 0 <= self.noise_ratio < 1 or self.noise_span < 1 or not 0 < self.dae_share <= 1:
            raise ValueError(f"noise_ratio must be in [0, 1), noise_span at least 1, dae_share in (0, 1]: {self}")


@dataclass(frozen=True)
class PairBatch:
    """N sentence pairs: token ids of both sides' sources and targets, 2 N of each, side a first, then side b."""

    sources: list[list[int]]  # __lang__ pieces </s>
    targets: list[list[int]]  # </s> __lang__ pieces </s>
    noise_seed: str  # the damage of the denoising loss depends on nothing else, so a resumed run repeats it


def masked_spans(ids: Sequence[int], mask_id: int, config: ObjectiveConfig, rng: random.Random) -> list[int]:
    """Damage `__lang__ pieces </s>`: spans of pieces, `noise_ratio` of them in all, become one `mask_id` each."""
    pieces = list(ids[1:-1])
    left = round(config.noise_ratio * len(pieces))
    while left > 0 and pieces:
        span = min(left, 1 + int(rng.expovariate(1 / (config.noise_span - 1))) if config.noise_span > 1 else 1)
        start = rng.randrange(max(1, len(pieces) - span + 1))
        pieces[start : start + span] = [mask_id]
        left -= span
    return [ids[0], *pieces, ids[-1]]


def pair_loss(sonar: Sonar, batch: PairBatch, config: ObjectiveConfig) -> LossSum:
    """The weighted sum of the three losses over a batch, all in sums.

    MT and DAE are in nats per target token, MSE is the squared distance per dimension and pair. They share one
    divisor, the number of target tokens, so MSE is counted once per token of its pair: the weights mean what
    they mean in the paper, where each term is a mean.
    """
    device, pairs, rng = sonar.device, len(batch.sources) // 2, random.Random(batch.noise_seed)
    sources = list(batch.sources)
    denoised: list[int] = []
    if config.dae_weight:
        denoised = rng.sample(range(2 * pairs), max(1, round(config.dae_share * 2 * pairs)))
        if config.noise_ratio:
            sources += [masked_spans(batch.sources[i], sonar.tokenizer.unk_id, config, rng) for i in denoised]
    z = sonar.encoder(*pack(sources, device))
    clean, noisy = z[: 2 * pairs], z[2 * pairs :] if config.noise_ratio else z[denoised]
    swapped = torch.cat([clean[pairs:], clean[:pairs]])

    translation, losses = sonar.decoder.token_losses(
        swapped, *pack(batch.targets, device), label_smoothing=config.label_smoothing
    )
    tokens = len(losses)
    total = config.mt_weight * translation
    parts = {"mt": (translation.detach(), float(tokens))}
    squared = (clean[:pairs] - clean[pairs:]).square().mean(1).sum()
    total = total + config.mse_weight * squared * (tokens / pairs)
    parts["mse"] = (squared.detach(), float(pairs))
    if denoised:
        targets = [batch.targets[i] for i in denoised]
        denoising, losses = sonar.decoder.token_losses(noisy, *pack(targets, device), label_smoothing=config.label_smoothing)
        total = total + config.dae_weight * denoising * (tokens / len(losses))
        parts["dae"] = (denoising.detach(), float(len(losses)))
    return LossSum(total, float(tokens), parts)
