"""Continuing texts token by token: beam search (greedy is a beam of one) and sampling, for a batch of prompts at once.

`codec/search.py` begins at a vector and ends at `</s>`; here a text begins with its prompt, and may also be halted by what its
sentences say. Options and drawing are the same.

Letters: B prompts; N hypotheses of those still told; V vocabulary; T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sonarkit.codec.search import SearchConfig, draw
from sonarkit.models.rollout import StoppedBy

if TYPE_CHECKING:
    from sonarkit.models.backbone import Context
    from sonarkit.models.token_llm import TokenLLM

Halt = Callable[[int, Sequence[int]], StoppedBy | None]  # (prompt, tokens told so far) -> why to stop here, or None


@dataclass(frozen=True)
class Told:
    """A continuation: its tokens without the end token, their log-probabilities in nats (the end token's too, if it came), the
    score that orders it, and why it stopped: "end", "max_tokens", or what `halt` said.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    stopped_by: StoppedBy


@dataclass(frozen=True)
class _Live:
    """A hypothesis still told."""

    row: int
    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float = 0.0

    def then(self, token: int, log_prob: float) -> _Live:
        return _Live(self.row, (*self.ids, token), (*self.log_probs, log_prob), self.total + log_prob)


@torch.no_grad()
def search(
    model: TokenLLM, prompts: Sequence[Sequence[int]], config: SearchConfig, halt: Halt, generator: torch.Generator | None = None
) -> list[list[Told]]:
    """The best continuations of each prompt (token ids, the first end token included), best first; one when sampling.

    As in `codec.search`: of the 2 * `beam_size` best candidates of a prompt those that stop it, by the end token or by `halt`,
    count if they are among the first `beam_size`, the first `beam_size` of the others live on, and what lives at `max_tokens`
    stops there. Otherwise than there a prompt with `beam_size` continuations is not done while one still told has a
    better score than all of them: where the first choice is nearly certain, the others of a beam stop anywhere long before a
    text is over. The score is the sum of log-probabilities over `(number of tokens) ** length_penalty`.

    In sampling each prompt has random numbers of its own, so what is told does not depend on the other prompts of a
    batch, but on the place in it. Raises ValueError for `no_repeat_ngram`.
    """
    if config.no_repeat_ngram:
        raise ValueError(
            f"no_repeat_ngram is the codec's; a whole story repeats n-grams. Got {config.no_repeat_ngram}, expected 0"
        )
    beams, device = 1 if config.sample else config.beam_size, model.device
    draws_BT = torch.rand(len(prompts), config.max_tokens if config.sample else 0, generator=generator).to(device)
    found: list[list[Told]] = [[] for _ in prompts]
    live = [_Live(row) for row in range(len(prompts))]
    context, log_probs_NV = _read(model, prompts, config.max_tokens)
    for length in range(config.max_tokens):
        log_probs_NV[:, list(model.tokens.forbidden)] = -torch.inf
        log_probs_NV[:, model.tokens.size :] = -torch.inf
        if length < config.min_tokens:
            log_probs_NV[:, model.tokens.end_id] = -torch.inf
        if config.sample:
            rows = [each.row for each in live]
            tokens_NK = draw(log_probs_NV / config.temperature, draws_BT[rows, length], config.top_k, config.top_p)[:, None]
            steps_NK = log_probs_NV.gather(1, tokens_NK)
        else:  # the best candidates of a prompt are among the best of each of its hypotheses
            steps_NK, tokens_NK = log_probs_NV.topk(min(2 * beams, log_probs_NV.shape[1]), 1)
        sources: list[int] = []
        going: list[_Live] = []
        for row, candidates in _by_prompt(live, steps_NK.tolist(), tokens_NK.tolist(), 2 * beams):
            lives = []
            for rank, (source, new) in enumerate(candidates):
                stopped = "end" if new.ids[-1] == model.tokens.end_id else halt(row, new.ids)
                if stopped and rank < beams:
                    found[row].append(_told(new, config, stopped))
                elif not stopped:
                    lives.append((source, new))
            best = max((told.score for told in found[row]), default=-math.inf)
            if len(found[row]) < beams or (lives and _score(lives[0][1], config) > best):
                sources += [source for source, _ in lives[:beams]]
                going += [new for _, new in lives[:beams]]
        live = going
        if not live or length + 1 == config.max_tokens:
            break
        if sources != list(range(len(log_probs_NV))):  # else the cache need not be copied
            context = context.select(torch.tensor(sources, device=device))
        fed_N1 = torch.tensor([each.ids[-1:] for each in live], device=device)
        log_probs_NV = model.advance(fed_N1, context, torch.ones(len(live), dtype=torch.long))
    for each in live:
        found[each.row].append(_told(each, config, "max_tokens"))
    return [sorted(each, key=lambda told: -told.score)[:beams] for each in found]


def _read(model: TokenLLM, prompts: Sequence[Sequence[int]], max_tokens: int) -> tuple[Context, Tensor]:
    """Feed the prompts: their context, with room for `max_tokens` more, and the next token's log-probabilities (B, V)."""
    lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    padded_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    context = model.start(len(prompts), int(lengths_B.max()) + max_tokens)
    return context, model.advance(padded_BT, context, lengths_B)


def _by_prompt(
    live: Sequence[_Live], steps: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]], most: int
) -> list[tuple[int, list[tuple[int, _Live]]]]:
    """For each prompt its `most` best candidates, best first: which hypothesis each extends, and what it makes of it."""
    pools: dict[int, list[tuple[float, int, int, float]]] = {}
    for source, (each, own_steps, own_tokens) in enumerate(zip(live, steps, tokens)):
        pool = pools.setdefault(each.row, [])
        pool += [(each.total + s, source, t, s) for s, t in zip(own_steps, own_tokens) if s > -torch.inf]
    best = {row: sorted(pool, key=lambda candidate: -candidate[0])[:most] for row, pool in pools.items()}
    return [(row, [(i, live[i].then(token, step)) for _, i, token, step in pool]) for row, pool in best.items()]


def _told(each: _Live, config: SearchConfig, stopped_by: StoppedBy) -> Told:
    ids = each.ids[:-1] if stopped_by == "end" else each.ids
    return Told(ids, each.log_probs, _score(each, config), stopped_by)


def _score(each: _Live, config: SearchConfig) -> float:
    return each.total / len(each.log_probs) ** config.length_penalty
