"""From sentence vectors to token ids: beam search (greedy is a beam of one) and sampling.

Both run over a batch of vectors at once with a key-value cache; a sentence that has ended leaves the batch. With the
default options beam search finds what Meta's does (fairseq2 0.8.1, `BeamSearchSeq2SeqGenerator`), token for token.

Letters: B vectors of a batch; R sentences still searched, W hypotheses of each, N = R * W; K candidates; V, T as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonarkit.codec.decoder import Decoder, DecodingState

PREFIX = 2  # `</s> __lang__`
NUCLEUS = 1024  # tokens among which a nucleus is sought first: 18 ms for 32 rows, where sorting all 256 206 took 660 ms


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sentence.

    `ids` are its pieces, without prefix and `</s>`. `log_probs` are those of teacher forcing in nats, one for each piece
    and one for `</s>`. `score` orders the hypotheses of a vector (see `SearchConfig`). `ended` is False for a sentence
    that was cut: `</s>` stands at its end because `max_tokens` left no other choice.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    ended: bool

    @property
    def mean_log_prob(self) -> float:
        """Per token, pieces and `</s>`, in nats."""
        return sum(self.log_probs) / len(self.log_probs)


@dataclass(frozen=True)
class SearchConfig:
    """How to decode. The defaults are SONAR's.

    A beam of `beam_size` hypotheses per vector (1 is greedy) or, with `sample`, one sentence drawn: `temperature` divides
    the logits, then `top_k` (0 = all) and `top_p` (nucleus) keep the likeliest tokens. A sentence has `min_tokens` to
    `max_tokens` pieces. With `no_repeat_ngram` n > 0 no n tokens in a row come twice.

    A hypothesis' score is the sum of its log-probabilities over `(number of tokens) ** length_penalty`: 1 is the mean,
    0 the sum; more favours long sentences. `score_language` counts the language token as one of them, though it is given:
    fairseq2 does, which tells in the order of sentences of unequal length. None leaves that to the codec: yes for one that
    learned to predict this token, as Meta's did.
    """

    beam_size: int = 5
    max_tokens: int = 512
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_tokens: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    score_language: bool | None = None

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_tokens < 1:
            raise ValueError(f"beam_size and max_tokens must be at least 1, got {self.beam_size} and {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens must be between 0 and max_tokens ({self.max_tokens}), got {self.min_tokens}")
        if self.no_repeat_ngram < 0:
            raise ValueError(f"no_repeat_ngram must be at least 0 (0 = repeat freely), got {self.no_repeat_ngram}")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "temperature must be above 0, top_p in (0, 1] and top_k at least 0 (0 = all), "
                f"got {self.temperature}, {self.top_p} and {self.top_k}"
            )


@torch.no_grad()
def beam_search(
    decoder: Decoder,
    z_BD: Tensor,
    language_ids: Sequence[int],
    config: SearchConfig,
    *,
    eos_id: int,
    forbidden: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """The best sentences for each vector, `beam_size` of them, best first.

    z (B, D), one language id per row. `forbidden` ids are never produced.

    As in fairseq2: of the 2 * `beam_size` best candidates of a sentence those that end it count if they are among the
    first `beam_size`, the first `beam_size` of the others live on; when `beam_size` hypotheses have ended the sentence
    leaves the batch; what lives at `max_tokens` is ended there. Raises ValueError when the decoder gives NaN.
    """
    beams, device = config.beam_size, z_BD.device
    rules = _Rules(config, eos_id, torch.tensor(list(forbidden), dtype=torch.long, device=device))
    state, ids_NT, given_B, log_probs_NV = _start(decoder, z_BD, language_ids, eos_id, config.max_tokens)
    steps_NT = given_B.new_empty(len(z_BD), 0)  # log-probability of each piece in ids_NT
    totals_RW = (given_B if config.score_language else torch.zeros_like(given_B))[:, None]
    rows = list(range(len(z_BD)))  # the sentences still searched
    found: list[list[Hypothesis]] = [[] for _ in rows]

    def finish(row_F: Tensor, place_F: Tensor, end_F: Tensor, total_F: Tensor, ended_F: Tensor) -> None:
        """End the hypotheses at these places in N, the best of a sentence first, until it has enough."""
        columns = (row_F, ids_NT[place_F, PREFIX:], torch.cat([steps_NT[place_F], end_F[:, None]], 1), total_F, ended_F)
        for row, *parts in zip(*(column.tolist() for column in columns)):
            if len(found[rows[row]]) < beams:
                found[rows[row]].append(_hypothesis(config, *parts))

    for _ in range(config.max_tokens):
        width = totals_RW.shape[1]  # 1 before the first piece, then `beams` (fewer in a tiny vocabulary)
        rules.apply(log_probs_NV, ids_NT)
        # The best candidates of a sentence are among the best of each of its hypotheses.
        steps_NK, tokens_NK = log_probs_NV.topk(min(2 * beams, log_probs_NV.shape[1]), 1)
        totals_RK = (totals_RW[:, :, None] + steps_NK.unflatten(0, (-1, width))).flatten(1)
        totals_RK, places_RK = totals_RK.topk(min(2 * beams, totals_RK.shape[1]), 1)
        steps_RK, tokens_RK = (x.view(len(rows), -1).gather(1, places_RK) for x in (steps_NK, tokens_NK))
        parents_RK = places_RK // steps_NK.shape[1]  # which of the sentence's hypotheses a candidate extends
        ends_RK = tokens_RK == eos_id

        at = (ends_RK & totals_RK.isfinite())[:, :beams].nonzero(as_tuple=True)
        finish(at[0], at[0] * width + parents_RK[at], steps_RK[at], totals_RK[at], ends_RK[at])
        going = [row for row, sentence in enumerate(rows) if len(found[sentence]) < beams]
        if not going:
            break

        # Who lives on, each where it was in the cache if that can be.
        going = [going[i] for i in settle(going)]
        lives_RW = ends_RK.int().argsort(dim=1, stable=True)[going, :beams]
        order = [settle(parents) for parents in parents_RK[going].gather(1, lives_RW).tolist()]
        at = (torch.tensor(going, device=device)[:, None], lives_RW.gather(1, torch.tensor(order, device=device)))
        sources_N = (at[0] * width + parents_RK[at]).flatten()
        totals_RW = totals_RK[at].masked_fill(ends_RK[at], -torch.inf)  # -inf: fewer live on than there is room for
        ids_NT = torch.cat([ids_NT[sources_N], tokens_RK[at].view(-1, 1)], 1)
        steps_NT = torch.cat([steps_NT[sources_N], steps_RK[at].view(-1, 1)], 1)
        rows = [rows[row] for row in going]
        state = state.select(sources_N)
        log_probs_NV = decoder.step(ids_NT[:, -1], state)
    else:  # at the limit, what lives ends
        rules.apply(log_probs_NV, ids_NT)
        end_N = log_probs_NV[:, eos_id]
        own_N = log_probs_NV.argmax(1) == eos_id
        totals_RW = totals_RW + end_N.view_as(totals_RW)
        totals_RW, order_RW = totals_RW.sort(dim=1, descending=True, stable=True)
        alive = totals_RW.isfinite().nonzero(as_tuple=True)
        places = alive[0] * totals_RW.shape[1] + order_RW[alive]
        finish(alive[0], places, end_N[places], totals_RW[alive], own_N[places])
    return [sorted(hypotheses, key=lambda h: h.score, reverse=True) for hypotheses in found]


@torch.no_grad()
def sample(
    decoder: Decoder,
    z_BD: Tensor,
    language_ids: Sequence[int],
    config: SearchConfig,
    *,
    eos_id: int,
    forbidden: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Draw one sentence for each vector. Arguments and result as in `beam_search`; a `generator` (CPU) makes it repeatable.

    Each vector has random numbers of its own, so what it says does not depend on the others in its batch.
    """
    rules = _Rules(config, eos_id, torch.tensor(list(forbidden), dtype=torch.long, device=z_BD.device))
    state, ids_BT, given_B, log_probs_BV = _start(decoder, z_BD, language_ids, eos_id, config.max_tokens)
    noise_BT = torch.rand(len(z_BD), config.max_tokens, generator=generator).to(z_BD.device)
    steps_BT = given_B.new_empty(len(z_BD), 0)
    rows = torch.arange(len(z_BD), device=z_BD.device)  # the sentences still told
    found: list[list[Hypothesis]] = [[] for _ in rows]
    for length in range(config.max_tokens + 1):
        rules.apply(log_probs_BV, ids_BT)
        if length < config.max_tokens:
            tokens_B = draw(log_probs_BV / config.temperature, noise_BT[rows, length], config.top_k, config.top_p)
            own_B = torch.ones_like(tokens_B)
        else:  # at the limit, what lives ends
            tokens_B = torch.full_like(rows, eos_id)
            own_B = log_probs_BV.argmax(1) == eos_id
        steps_BT = torch.cat([steps_BT, log_probs_BV.gather(1, tokens_B[:, None])], 1)

        done = (tokens_B == eos_id).nonzero()[:, 0]
        totals_F = steps_BT[done].sum(1) + (given_B[rows[done]] if config.score_language else 0)
        columns = (rows[done], ids_BT[done, PREFIX:], steps_BT[done], totals_F, own_B[done].bool())
        for row, *parts in zip(*(column.tolist() for column in columns)):
            found[row] = [_hypothesis(config, *parts)]
        if len(done) == len(rows):
            break
        going = (tokens_B != eos_id).nonzero()[:, 0]
        ids_BT = torch.cat([ids_BT, tokens_B[:, None]], 1)[going]
        steps_BT, rows, state = steps_BT[going], rows[going], state.select(going)
        log_probs_BV = decoder.step(ids_BT[:, -1], state)
    return found


def draw(logits_BV: Tensor, noise_B: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """One token a row, by the place of its random number in [0, 1) among the cumulated probabilities. -> (B,)"""
    ids_BK, logits_BK = likeliest(logits_BV, top_k, top_p)
    # Over 256 206 tokens, sums in float32 would be off by as much as a rare token's probability.
    exact = torch.float32 if logits_BV.device.type == "mps" else torch.float64  # Apple's GPUs have no other
    reached_BK = logits_BK.softmax(-1).cumsum(-1, dtype=exact)
    places_B1 = torch.searchsorted(reached_BK, (noise_B.to(exact) * reached_BK[:, -1])[:, None], right=True)
    return ids_BK.gather(1, places_B1)[:, 0]


def likeliest(logits_BV: Tensor, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """The `top_k` likeliest tokens of a row (0 = all), of these the fewest that reach the share `top_p` of the probability.

    Ids and logits (B, K); what is outside the share has -inf.
    """
    if not top_k and top_p == 1:
        return torch.arange(logits_BV.shape[1], device=logits_BV.device).expand_as(logits_BV), logits_BV
    logits_BK, ids_BK = logits_BV.topk(min(top_k or NUCLEUS, logits_BV.shape[1]), -1)
    if top_p < 1:
        whole_B1 = (logits_BK if top_k else logits_BV).logsumexp(-1, keepdim=True)
        if not top_k and ((logits_BK.logsumexp(-1, keepdim=True) - whole_B1).exp() < top_p).any():
            logits_BK, ids_BK = logits_BV.sort(-1, descending=True)
        probabilities_BK = (logits_BK - whole_B1).exp()
        before_BK = probabilities_BK.cumsum(-1) - probabilities_BK
        logits_BK = logits_BK.masked_fill(before_BK >= top_p, -torch.inf)
    return ids_BK, logits_BK


def settle(sources: Sequence[int]) -> list[int]:
    """The indices of `sources`, so ordered that as many as can be stand at the place they name.

    >>> settle([2, 0, 2, 5])  # 0 stands first, 2 third; the others fill the gaps
    [1, 3, 0, 2]
    """
    places: list[int | None] = [None] * len(sources)
    others = []
    for i, source in enumerate(sources):
        if source < len(places) and places[source] is None:
            places[source] = i
        else:
            others.append(i)
    return [others.pop() if i is None else i for i in places]


@dataclass(frozen=True)
class _Rules:
    """What may follow."""

    config: SearchConfig
    eos_id: int
    forbidden: Tensor

    def apply(self, log_probs_NV: Tensor, ids_NT: Tensor) -> None:
        """Set to -inf, in place, what may not follow `ids_NT`, prefix included."""
        n, end_N = self.config.no_repeat_ngram, log_probs_NV[:, self.eos_id].clone()
        if end_N.isnan().any():
            raise ValueError(
                "the decoder gives NaN: its weights hold it, or overflow in a narrow dtype (float16 does where bfloat16 does not)"
            )
        log_probs_NV[:, self.forbidden] = -torch.inf
        if 0 < n <= ids_NT.shape[1]:
            ngrams_NXn, last_N1n = ids_NT.unfold(1, n, 1), ids_NT[:, None, ids_NT.shape[1] - n + 1 :]
            row, place = (ngrams_NXn[:, :, :-1] == last_N1n).all(-1).nonzero(as_tuple=True)
            log_probs_NV[row, ngrams_NXn[row, place, -1]] = -torch.inf
            log_probs_NV[:, self.eos_id] = end_N  # the prefix has one, but a sentence may end
        if ids_NT.shape[1] - PREFIX < self.config.min_tokens:
            log_probs_NV[:, self.eos_id] = -torch.inf
            if n:  # and must, when every piece would repeat something
                stuck_N = log_probs_NV.amax(1).isneginf()
                log_probs_NV[stuck_N, self.eos_id] = end_N[stuck_N]


def _start(
    decoder: Decoder, z_BD: Tensor, language_ids: Sequence[int], eos_id: int, max_tokens: int
) -> tuple[DecodingState, Tensor, Tensor, Tensor]:
    """Feed `</s> __lang__`: the state, the prefix (B, 2), the language token's log-probability (B,) and the next's (B, V)."""
    language_B = torch.tensor(list(language_ids), dtype=torch.long, device=z_BD.device)
    prefix_BT = torch.stack([torch.full_like(language_B, eos_id), language_B], 1)
    state = decoder.start(z_BD, max_tokens + PREFIX)
    given_B = decoder.step(prefix_BT[:, 0], state).gather(1, language_B[:, None])[:, 0]
    return state, prefix_BT, given_B, decoder.step(prefix_BT[:, 1], state)


def _hypothesis(config: SearchConfig, ids: list[int], log_probs: list[float], total: float, ended: bool) -> Hypothesis:
    score = total / (len(log_probs) + bool(config.score_language)) ** config.length_penalty
    return Hypothesis(tuple(ids), tuple(log_probs), score, ended)
