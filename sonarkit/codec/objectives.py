"""How SONAR is trained: L = L_MT + 0.1 L_MSE + 0.01 L_DAE (arXiv 2308.11466, section 3.1), and what may follow.

- MT: the decoder says the translation of a sentence, given its vector; both directions of a pair.
- MSE: the vectors of a sentence and of its translation are pulled together.
- DAE: the decoder says a sentence, given the vector of its damaged copy.
- Distillation: vectors are pulled to those of a frozen teacher, as SONAR's speech encoders are to its text encoder
  (section 3.2). So a codec learns new languages (arXiv 2004.09813) or is made smaller.
- The decoder alone learns from points between two vectors or beside one, the encoder frozen (section 3.1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import pack
from sonarkit.text.tokenizer import DATA_TAGS, Tokenizer

WORD_BEGIN = "\u2581"  # the block with which SentencePiece marks the piece that begins a word


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the four losses, the noise of the denoising one, and where the gradient of the distance goes.

    A loss of weight 0 is not computed; the distance is beside MT or DAE, for the log. `mse_gradient` "first" moves a pair's
    first side only, towards the second, "second" the other way round; the paper does not say which it was, "both" is the plain
    derivative.

    The noise, in this order: `word_drop` is the probability that a word is left out (one stays at least), with
    `word_shuffle` words move by at most that many places (both arXiv 1711.00043, section 2.3, which has 0.1 and 3), and
    `noise_ratio` of the pieces (not of the words) are covered by masked spans (of geometric lengths, `noise_span` in the
    mean), each replaced by one `<unk>`, NLLB's denoising with replace-length 1. Words are as SentencePiece has them: a
    sentence without spaces, such as a Chinese one, is a single word.
    With none of the three it is plain auto-encoding, of the vectors at hand.
    Each sentence is denoised with probability `dae_share`; the loss is weighted up, so its expectation is that of all.
    With probability `dae_splice` (ours) it is a splice that is denoised instead: the first words of the sentence and the last
    ones of another. Such text is longer and less probable than the corpus, so its vector has to keep the words themselves.
    """

    mt_weight: float = 1.0
    mse_weight: float = 0.1
    dae_weight: float = 0.01
    noise_ratio: float = 0.5
    noise_span: float = 3.5
    dae_share: float = 1.0
    dae_splice: float = 0.0
    label_smoothing: float = 0.0
    word_drop: float = 0.0
    word_shuffle: int = 0
    mse_gradient: Literal["both", "first", "second"] = "both"
    distill_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.mt_weight, self.mse_weight, self.dae_weight, self.distill_weight)
        if min(weights) < 0 or not any(weights):
            raise ValueError(
                f"mt_weight, mse_weight, dae_weight and distill_weight must not be negative, and one of them above 0: {self}"
            )
        if not 0 <= self.noise_ratio < 1 or self.noise_span < 1 or not 0 < self.dae_share <= 1:
            raise ValueError(f"noise_ratio must be in [0, 1), noise_span at least 1, dae_share in (0, 1]: {self}")
        if not 0 <= self.dae_splice <= 1:
            raise ValueError(f"dae_splice must be in [0, 1], got {self.dae_splice}")
        if not 0 <= self.word_drop < 1 or self.word_shuffle < 0 or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"word_drop and label_smoothing must be in [0, 1), word_shuffle at least 0: {self}")
        if self.mse_gradient not in ("both", "first", "second"):
            raise ValueError(f'mse_gradient must be "both", "first" or "second", got {self.mse_gradient!r}')

    @property
    def damages(self) -> bool:
        """Whether sentences are damaged before they are denoised."""
        return bool(self.noise_ratio or self.word_drop or self.word_shuffle)

    @property
    def decodes(self) -> bool:
        """Whether the decoder is needed: MT or DAE has a weight."""
        return bool(self.mt_weight or self.dae_weight)


@dataclass(frozen=True)
class DecoderObjective:
    """Fine-tuning of the decoder with the encoder frozen, so that the space stays what it is.

    With `interpolate` a sentence is learnt from a random point between its translation's vector and its own, which gave
    +9.3 BLEU in auto-encoding (arXiv 2308.11466); without it from its own vector.
    `vector_noise` adds Gaussian noise of so many times the spread of each dimension: a decoder that forgives inexact vectors,
    such as predicted ones (arXiv 2412.08821, which found 75.7 -> 87.5 BLEU on C4).
    """

    interpolate: bool = True
    vector_noise: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.vector_noise < 0 or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"vector_noise must not be negative, label_smoothing must be in [0, 1): {self}")


@dataclass(frozen=True)
class PerPair:
    """Means over the pairs of a run: by them losses of unlike counts are added up before any count is known globally."""

    tokens: float  # that are counted
    sentences: float  # that the encoder reads, 1 or 2


@dataclass(frozen=True)
class PairBatch:
    """N sentence pairs: token ids of both sides' sources and targets, 2 N of each, side a first, then side b.

    A target that the decoder is not to learn, such as a machine's translation, is []. So are source and target of a side b
    in a language that only the teacher knows. `teacher_sources` are the N sides b as the teacher's tokenizer has them, []
    where the pair does not follow the teacher. `others` are targets of 2 N sentences of the same languages, which splices end in.

    Damage, points between vectors and noise depend on `noise_seed` and on the pair's place in the step (`places`, by default
    that in the batch): a resumed run repeats them, and neither cutting nor ranks change them. `per_pair` are the run's
    means, by default the batch's own.
    """

    sources: list[list[int]]  # __lang__ [<DATA_TAG>] pieces </s>
    targets: list[list[int]]  # </s> __lang__ pieces </s>
    noise_seed: str
    teacher_sources: list[list[int]] | None = None
    places: list[int] | None = None
    per_pair: PerPair | None = None
    others: list[list[int]] | None = None

    @property
    def pairs(self) -> int:
        """N, how many pairs."""
        return len(self.sources) // 2

    def rng(self, i: int) -> random.Random:
        """The random numbers of sentence i."""
        side, pair = divmod(i, self.pairs)
        return random.Random(f"{self.noise_seed}-{self.places[pair] if self.places else pair}-{side}")

    def tokens(self, decoded: bool) -> int:
        """The pieces and `</s>` of all targets, or where nothing is `decoded` of all sources: what is counted."""
        if decoded:
            return sum(len(ids) - 2 for ids in self.targets if ids)  # without `</s> __lang__`, which are given
        return sum(len(ids) - 1 for ids in self.sources if ids)  # the same number, but of all sentences that are read


# ---------------------------------------------------------------------- noise


def masked_spans(ids: Sequence[int], mask_id: int, config: ObjectiveConfig, rng: random.Random) -> list[int]:
    """Damage `__lang__ pieces </s>`: spans of pieces, `noise_ratio` of them in all, become one `mask_id` each."""
    pieces = list(ids[1:-1])
    left = round(config.noise_ratio * len(pieces))
    while left > 0 and pieces:
        span = min(left, 1 + int(rng.expovariate(-math.log(1 - 1 / config.noise_span))) if config.noise_span > 1 else 1)
        start = rng.randrange(max(1, len(pieces) - span + 1))
        pieces[start : start + span] = [mask_id]
        left -= span
    return [ids[0], *pieces, ids[-1]]


def words(pieces: Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Pieces grouped into words: one begins with each piece that carries SentencePiece's word boundary."""
    found: list[list[int]] = []
    for piece in pieces:
        if not found or tokenizer.piece(piece).startswith(WORD_BEGIN):
            found.append([])
        found[-1].append(piece)
    return found


def damaged(ids: Sequence[int], tokenizer: Tokenizer, config: ObjectiveConfig, rng: random.Random) -> list[int]:
    """`__lang__ [<DATA_TAG>] pieces </s>` with words dropped, words shuffled and spans masked; the frame is kept."""
    head = _head(ids, tokenizer)
    kept = words(ids[head:-1], tokenizer) if config.word_drop or config.word_shuffle else [list(ids[head:-1])]
    if config.word_drop and kept:
        kept = [word for word in kept if rng.random() >= config.word_drop] or [rng.choice(kept)]
    if config.word_shuffle:
        places = [place + rng.random() * (config.word_shuffle + 1) for place in range(len(kept))]
        kept = [kept[i] for i in sorted(range(len(kept)), key=places.__getitem__)]
    framed = [ids[head - 1], *(piece for word in kept for piece in word), ids[-1]]
    return [*ids[: head - 1], *masked_spans(framed, tokenizer.unk_id, config, rng)]


def _head(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many ids `__lang__ [<DATA_TAG>]` are."""
    return 2 if len(ids) > 2 and ids[1] >= tokenizer.size - len(DATA_TAGS) else 1


def spliced(pieces: Sequence[int], other: Sequence[int], tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """The first words of one sentence and the last ones of another, of each at least one if it has any."""
    first, last = words(pieces, tokenizer), words(other, tokenizer)
    kept = first[: rng.randint(1, len(first))] if first else []
    kept += last[rng.randrange(len(last)) :] if last else []
    return [piece for word in kept for piece in word]


# ---------------------------------------------------------------------- losses


def pair_loss(sonar: Sonar, batch: PairBatch, config: ObjectiveConfig, teacher_vectors: Tensor | None = None) -> LossSum:
    """The weighted sum of the losses over a batch, all in sums; parts `mt`, `mse`, `dae` and `distill`, unweighted.

    MT and DAE are in nats per target token, MSE is the squared distance per dimension and pair, distillation the squared
    distance per dimension of each side, a and b, to the teacher's vector of side b, `teacher_vectors` (N, D), of which those
    of pairs that do not follow the teacher are not looked at. They share one
    divisor, the number of target tokens, so a distance is counted once per token that a pair has in the mean
    (`batch.per_pair`): the weights mean what they mean in the paper, where each term is a mean, and sums over any cutting
    into batches are the same.

    Raises ValueError for distillation without vectors of a teacher or with such of another shape, for splices without others,
    and for a side that only the teacher knows beside other losses than distillation.
    """
    device, pairs, mean = sonar.device, batch.pairs, batch.per_pair or per_pair([batch], config.decodes)
    known = [i for i, ids in enumerate(batch.sources) if ids]
    if len(known) < 2 * pairs and (config.decodes or config.mse_weight):
        raise ValueError("a side in a language that the codec does not know can only be distilled; set the other weights to 0")
    taught = [i for i, ids in enumerate(batch.targets) if ids]
    sources = [batch.sources[i] for i in known]
    rows: list[int] = []  # of z, from which the denoised sentences are said
    said: list[list[int]] = []
    for i in taught if config.dae_weight else []:
        rng = batch.rng(i)
        if rng.random() >= config.dae_share:
            continue
        source, target = batch.sources[i], batch.targets[i]
        if config.dae_splice and rng.random() < config.dae_splice:
            source, target = _spliced(sonar, batch, i, rng)
        if config.damages:
            source = damaged(source, sonar.tokenizer, config, rng)
        rows.append(i if source is batch.sources[i] else len(sources))  # a clean sentence is read once
        said.append(target)
        sources += [source] if rows[-1] == len(sources) else []
    z = sonar.encoder(*pack(sources, device))
    clean = z[: len(known)]

    total, parts = clean.new_zeros((), dtype=torch.float32), {}
    if config.mt_weight and taught:
        swapped = clean.roll(pairs, 0)
        targets = pack([batch.targets[i] for i in taught], device)
        nats, losses = sonar.decoder.token_losses(_rows(swapped, taught), *targets, label_smoothing=config.label_smoothing)
        total = total + config.mt_weight * nats
        parts["mt"] = (nats.detach(), float(len(losses)))
    elif config.mt_weight:
        total, parts["mt"] = total + _nothing_said(sonar, clean), (total.detach(), 0.0)
    if config.mse_weight or config.decodes:
        first, second = clean[:pairs], clean[pairs:]
        first = first.detach() if config.mse_gradient == "second" else first
        second = second.detach() if config.mse_gradient == "first" else second
        squared = (first - second).square().mean(1).sum()
        if config.mse_weight:
            total = total + config.mse_weight * mean.tokens * squared
        parts["mse"] = (squared.detach(), float(pairs))
    if said:
        nats, losses = sonar.decoder.token_losses(z[rows], *pack(said, device), label_smoothing=config.label_smoothing)
        total = total + config.dae_weight / config.dae_share * nats
        parts["dae"] = (nats.detach(), float(len(losses)))
    elif config.dae_weight:
        total, parts["dae"] = total + _nothing_said(sonar, clean), (total.detach() * 0, 0.0)
    if config.distill_weight:
        wanted = _of_teacher(teacher_vectors, pairs, clean)
        follow = [row for row, i in enumerate(known) if not batch.teacher_sources or batch.teacher_sources[i % pairs]]
        squared = (_rows(clean, follow) - wanted[[known[row] % pairs for row in follow]]).square().mean(1).sum()
        total = total + config.distill_weight * mean.tokens / mean.sentences * squared
        parts["distill"] = (squared.detach(), float(len(follow)))
    return LossSum(total, float(batch.tokens(config.decodes)), parts)


def _spliced(sonar: Sonar, batch: PairBatch, i: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Source and target of a splice that begins as sentence i."""
    if batch.others is None:
        raise ValueError("dae_splice is above 0, but the batch has no others to splice with; give them, or set it to 0")
    source, target = batch.sources[i], batch.targets[i]
    pieces = spliced(target[2:-1], batch.others[i][2:-1], sonar.tokenizer, rng)[: sonar.config.max_tokens - 3]
    return [*source[: _head(source, sonar.tokenizer)], *pieces, source[-1]], [*target[:2], *pieces, target[-1]]


def per_pair(batches: Iterable[PairBatch], decoded: bool) -> PerPair:
    """What a pair of these batches has in the mean; `decoded` as in `PairBatch.tokens`."""
    counts = [(batch.tokens(decoded), sum(map(bool, batch.sources)), batch.pairs) for batch in batches]
    tokens, sentences, pairs = map(sum, zip(*counts))
    return PerPair(tokens / pairs, sentences / pairs)


def decoder_loss(sonar: Sonar, batch: PairBatch, objective: DecoderObjective, spread_D: Tensor | None = None) -> LossSum:
    """Nats of each target under the decoder, given a point between or beside vectors; part `decoder`.

    The vectors x of the translation and y of the sentence itself come from the encoder in evaluation mode and without a
    gradient. The decoder learns the sentence from x + u (y - x), u uniform in [0, 1) for each pair and direction, plus noise of
    `objective.vector_noise` times `spread_D` (D,), the standard deviation of each dimension: of a store's vectors, or
    without it of the batch's. Raises ValueError for a spread of another shape.
    """
    training = sonar.encoder.training
    sonar.encoder.eval()
    with torch.no_grad():
        own_ND = sonar.encoder(*pack(batch.sources, sonar.device))
    sonar.encoder.train(training)
    generators = [torch.Generator().manual_seed(batch.rng(i).getrandbits(63)) for i in range(len(own_ND))]
    z_ND = own_ND
    if objective.interpolate:
        other_ND = own_ND.roll(batch.pairs, 0)
        point_N = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        z_ND = other_ND + point_N[:, None].to(own_ND) * (own_ND - other_ND)
    if objective.vector_noise:
        if spread_D is not None and spread_D.shape != own_ND.shape[1:]:
            raise ValueError(
                f"spread_D must have one value for each of {own_ND.shape[1]} dimensions, got {tuple(spread_D.shape)}"
            )
        spread_D = own_ND.std(0) if spread_D is None else spread_D.to(own_ND)
        noise_ND = torch.stack([torch.randn(own_ND.shape[1], generator=generator) for generator in generators])
        z_ND = z_ND + objective.vector_noise * spread_D * noise_ND.to(own_ND)
    taught = [i for i, ids in enumerate(batch.targets) if ids]
    if not taught:
        return LossSum(_nothing_said(sonar, z_ND), 0.0, {"decoder": (z_ND.new_zeros(()), 0.0)})
    targets = pack([batch.targets[i] for i in taught], sonar.device)
    nats, losses = sonar.decoder.token_losses(_rows(z_ND, taught), *targets, label_smoothing=objective.label_smoothing)
    return LossSum(nats, float(len(losses)), {"decoder": (nats.detach(), float(len(losses)))})


def _nothing_said(sonar: Sonar, z_ND: Tensor) -> Tensor:
    """0, by way of the decoder: all ranks must call it equally often, and each of its weights needs a gradient."""
    nats, _ = sonar.decoder.token_losses(z_ND[:1], *pack(sonar.target_ids([""], sonar.languages[0]), z_ND.device))
    return 0 * nats


def _rows(z_ND: Tensor, chosen: list[int]) -> Tensor:
    return z_ND if len(chosen) == len(z_ND) else z_ND[chosen]


def _of_teacher(vectors: Tensor | None, pairs: int, clean: Tensor) -> Tensor:
    if vectors is None:
        raise ValueError("distill_weight is above 0, but there are no vectors of a teacher; give a teacher, or set it to 0")
    if vectors.shape != (pairs, clean.shape[1]):
        raise ValueError(
            f"expected teacher's vectors of shape ({pairs}, {clean.shape[1]}), one for each pair and as wide as the codec's, "
            f"got {tuple(vectors.shape)}"
        )
    return vectors.detach().to(clean.device, clean.dtype)
