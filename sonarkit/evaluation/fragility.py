"""How much noise a codec's vectors bear: the fragility curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation.translation import corpus_bleu

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Fragility:
    """What comes back at each of L noise levels, for N sentences.

    `bleu_L` and the mean of `chrf_LN` (chrF++ of each sentence) compare the decoded text with the sentence, `cosine_LN`
    its vector, encoded anew, with the clean one: 1 where the meaning is kept.
    """

    noise_L: np.ndarray
    bleu_L: np.ndarray
    chrf_LN: np.ndarray
    cosine_LN: np.ndarray
    texts: list[list[str]]  # L x N, what was decoded

    def table(self) -> list[dict[str, float]]:
        """A row for each level: `noise`, `bleu`, `chrf`, `cosine`, the last two as means."""
        columns = zip(self.noise_L, self.bleu_L, self.chrf_LN.mean(1), self.cosine_LN.mean(1))
        return [dict(zip(("noise", "bleu", "chrf", "cosine"), map(float, row))) for row in columns]

    def half(self) -> float | None:
        """The noise at which BLEU has fallen to half of what it is without, between two levels by a straight line; None
        where it has not."""
        below = np.flatnonzero(self.bleu_L <= self.bleu_L[0] / 2)
        if not len(below) or not below[0]:
            return None
        i = below[0]
        share = (self.bleu_L[i - 1] - self.bleu_L[0] / 2) / (self.bleu_L[i - 1] - self.bleu_L[i])
        return float(self.noise_L[i - 1] + share * (self.noise_L[i] - self.noise_L[i - 1]))


def fragility_curve(
    sonar: Sonar,
    texts: Sequence[str],
    lang: str = "eng_Latn",
    noise: Sequence[float] = LEVELS,
    *,
    beam_size: int = 5,
    seed: int = 0,
    judge: Callable[[list[str]], Tensor] | None = None,
) -> Fragility:
    """Encode, add Gaussian noise, decode, and compare text and vector with the clean ones.

    A level of s adds noise of standard deviation s times the vector's own root mean square, as `sonarkit story --noise`
    does; every level has the same noise directions. The noisy vector then is sqrt(1 + s^2) times as long.

    After the LCM paper (arXiv 2412.08821, on the fragility of SONAR's space), which differs in two things: it mixes
    sqrt(1 - a) of the vector, normalised by centre and inter-quartile range, with sqrt(a) of noise, so that lengths stay
    (s = sqrt(a / (1 - a)) where the space is centred and equally wide in all directions), and it compares vectors in
    another encoder. `judge` is that encoder, texts to vectors (n, E); without it the codec judges itself, which is kinder.

    Raises ValueError for no sentences, one string in place of a list, and levels that do not begin with 0 and rise.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError("expected a list of at least one sentence")
    if not len(noise) or noise[0] != 0 or list(noise) != sorted(noise):
        raise ValueError(f"noise levels must begin with 0 and rise, got {tuple(noise)}")
    judge = judge or (lambda told: sonar.encode(told, lang))
    z_ND, clean = sonar.encode(texts, lang), F.normalize(judge(list(texts)).float(), dim=1)
    directions = torch.randn(z_ND.shape, generator=torch.Generator().manual_seed(seed)).to(z_ND)
    scale_N1 = z_ND.square().mean(1, keepdim=True).sqrt()
    metric = CHRF(word_order=2)
    told = [sonar.decode(z_ND + level * scale_N1 * directions, lang, beam_size=beam_size) for level in noise]
    return Fragility(
        np.array(noise, dtype=float),
        np.array([corpus_bleu(found, texts, lang) for found in told]),
        np.array([[metric.sentence_score(one, [text]).score for one, text in zip(found, texts)] for found in told]),
        torch.stack([(F.normalize(judge(found).float(), dim=1) * clean).sum(1) for found in told]).cpu().numpy(),
        told,
    )
