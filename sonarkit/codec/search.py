"""From sentence vectors to token ids: beam search (greedy is a beam of one) and sampling.

Both run over a batch of vectors at once with a key-value cache; a sentence that has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonarkit.codec.decoder import Decoder, DecodingState


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sentence. `ids` are its pieces, without prefix and `</s>`; `log_probs` has one entry per
    piece and one for `</s>` (missing when the sentence was cut); `score` is their mean, in nats."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    ended: bool


@dataclass(frozen=True)
class SearchConfig:
    """How to decode. `beam_size` 1 is greedy. With `sample`, one sentence per vector is drawn instead:
    `temperature` scales the logits, `top_k` and `top_p` (nucleus) keep the likeliest tokens only."""

    beam_size: int = 5
    max_tokens: int = 256
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_tokens < 1:
            raise ValueError(f"beam_size and max_tokens must be at least 1, got {self.beam_size} and {self.max_tokens}")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "temperature must be above 0, top_p in (0, 1] and top_k at least 0 (0 = all), "
                f"got {self.temperature}, {self.top_p} and {self.top_k}"
            )


def start_with_language(
    decoder: Decoder, z_BD: Tensor, language_ids: Sequence[int], eos_id: int, tokens: int
) -> tuple[DecodingState, Tensor]:
    """Feed `</s> __lang__`; returns the state and the (B, V) log-probabilities of the first piece."""
    state = decoder.start(z_BD, tokens + 2)
    decoder.step(torch.full((len(z_BD),), eos_id, device=z_BD.device), state)
    return state, decoder.step(torch.tensor(list(language_ids), device=z_BD.device), state)


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
    """The best `beam_size` sentences for each vector, best first, by mean log-probability per token.

    z (B, D), one language id per row. A sentence's search ends when `beam_size` hypotheses have ended, as in
    fairseq; the rest is cut at `max_tokens` pieces. `forbidden` ids are never produced.
    """
    beams, device = config.beam_size, z_BD.device
    forbidden_V = torch.tensor(list(forbidden), device=device, dtype=torch.long)
    state, log_probs = start_with_language(decoder, z_BD, language_ids, eos_id, config.max_tokens)
    done: list[list[Hypothesis]] = [[] for _ in range(len(z_BD))]
    rows = list(range(len(z_BD)))  # which sentences are still searched
    width = 1  # hypotheses per searched sentence: one before the first step, then `beams` (fewer in a tiny vocabulary)
    totals = torch.zeros(len(rows), 1, device=device)
    history_ids = torch.empty(len(rows), 0, dtype=torch.long, device=device)  # (rows * width, length)
    history_scores = torch.empty(len(rows), 0, device=device)

    for length in range(config.max_tokens + 1):
        log_probs[:, forbidden_V] = -torch.inf
        if length == config.max_tokens:  # nothing but the end may follow
            log_probs = torch.full_like(log_probs, -torch.inf).index_copy_(
                1, torch.tensor([eos_id], device=device), log_probs[:, [eos_id]]
            )
        candidates = (totals[:, :, None] + log_probs.unflatten(0, (len(rows), width))).flatten(1)
        scores, places = candidates.topk(min(2 * beams, candidates.shape[1]), dim=1)  # (rows, 2 * beams)
        parents = places // log_probs.shape[1] + torch.arange(len(rows), device=device)[:, None] * width
        tokens = places % log_probs.shape[1]
        token_scores = log_probs[parents, tokens]
        ends = (tokens == eos_id) & scores.isfinite()

        # An end counts only among the best `beams` candidates; the best others live on.
        for row, candidate in ends[:, :beams].nonzero().tolist():
            if len(done[rows[row]]) < beams:
                parent = parents[row, candidate]
                steps = (*history_scores[parent].tolist(), token_scores[row, candidate].item())
                ids = tuple(history_ids[parent].tolist())
                done[rows[row]].append(Hypothesis(ids, steps, sum(steps) / len(steps), ended=True))
        if length == config.max_tokens:
            break
        searching = [row for row in range(len(rows)) if len(done[rows[row]]) < beams]
        if not searching:
            break
        keep = torch.tensor(searching, device=device)
        width = min(beams, scores.shape[1])
        totals, best = scores.masked_fill(tokens == eos_id, -torch.inf)[keep].topk(width, dim=1)
        chosen_parents = parents[keep].gather(1, best).flatten()
        chosen_tokens = tokens[keep].gather(1, best).flatten()
        history_ids = torch.cat([history_ids[chosen_parents], chosen_tokens[:, None]], 1)
        history_scores = torch.cat([history_scores[chosen_parents], token_scores[keep].gather(1, best).view(-1, 1)], 1)
        state = state.select(chosen_parents)
        rows = [rows[row] for row in searching]
        log_probs = decoder.step(chosen_tokens, state)

    # Sentences that never ended within max_tokens: their living beams, cut.
    for row, sentence in enumerate(rows):
        if not done[sentence]:
            for beam in range(row * width, (row + 1) * width):
                steps = tuple(history_scores[beam].tolist())
                mean = sum(steps) / max(1, len(steps))
                done[sentence].append(Hypothesis(tuple(history_ids[beam].tolist()), steps, mean, ended=False))
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in done]


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
    """Draw one sentence for each vector; `generator` makes it repeatable. Same shape of result as `beam_search`."""
    device = z_BD.device
    forbidden_V = torch.tensor(list(forbidden), device=device, dtype=torch.long)
    state, log_probs = start_with_language(decoder, z_BD, language_ids, eos_id, config.max_tokens)
    ids: list[list[int]] = [[] for _ in range(len(z_BD))]
    steps: list[list[float]] = [[] for _ in range(len(z_BD))]
    rows = list(range(len(z_BD)))
    for _ in range(config.max_tokens):
        log_probs[:, forbidden_V] = -torch.inf
        probabilities = truncated(log_probs / config.temperature, config.top_k, config.top_p).softmax(-1)
        tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        going = []
        for place, (row, token, log_prob) in enumerate(
            zip(rows, tokens.tolist(), log_probs.gather(1, tokens[:, None])[:, 0].tolist())
        ):
            steps[row].append(log_prob)
            if token != eos_id:
                ids[row].append(token)
                going.append(place)
        if not going:
            break
        keep = torch.tensor(going, device=device)
        if len(going) < len(rows):
            state, rows = state.select(keep), [rows[place] for place in going]
        log_probs = decoder.step(tokens[keep], state)
    return [[Hypothesis(tuple(i), tuple(s), sum(s) / len(s), ended=len(s) > len(i))] for i, s in zip(ids, steps)]


def truncated(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything outside the `top_k` likeliest, or outside the nucleus of mass `top_p`, at -inf."""
    if top_k:
        kth = logits_BV.topk(min(top_k, logits_BV.shape[-1]), -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    if top_p < 1:
        ordered, places = logits_BV.sort(-1, descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        outside = torch.zeros_like(logits_BV, dtype=torch.bool).scatter(1, places, mass_before >= top_p)
        logits_BV = logits_BV.masked_fill(outside, -torch.inf)
    return logits_BV
