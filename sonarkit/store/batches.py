"""Which documents a training step sees, and how ranks share them.

1. Step k takes the same `documents_per_step` documents whatever the number of ranks: each store in a new permutation every
   epoch, several stores by weight.
2. They are dealt out to ranks by their number of tokens, largest first to whoever has least, and each rank's share to
   micro-batches in the same way, as many on every rank: sharded models must call each other equally often.
3. The position in each store is all that a resume needs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sonarkit.store.reader import Document


@dataclass(frozen=True)
class Source:
    """A store to draw from: the target tokens of each document, how to load one, and the share of the documents of a step."""

    tokens_N: np.ndarray
    load: Callable[[int], Any]
    weight: float = 1.0
    name: str = "the store"


class DocumentBatches:
    """The micro-batches of one rank, step after step, for ever; at most `micro_tokens` target tokens in each (but see `shares`).

    Raises ValueError when a source is empty, a weight not positive, a document larger than `micro_tokens`, or the ranks
    are more than the documents of a step.
    """

    def __init__(
        self, sources: Sequence[Source], documents_per_step: int, micro_tokens: int, seed: int, rank: int = 0, size: int = 1
    ) -> None:
        if documents_per_step < size:
            raise ValueError(f"{documents_per_step} documents a step cannot be shared by {size} ranks; raise documents_per_step")
        for source in sources:
            if not len(source.tokens_N):
                raise ValueError(f"there is no document to train on in {source.name}")
            if not source.weight > 0:
                raise ValueError(f"the weight of {source.name} must be above 0, got {source.weight}")
            if (largest := int(source.tokens_N.max())) > micro_tokens:
                raise ValueError(
                    f"a document of {source.name} has {largest} target tokens, more than micro_tokens = {micro_tokens}; raise "
                    "micro_tokens, or lower max_sentences or max_tokens"
                )
        self.sources, self.documents_per_step, self.micro_tokens = sources, documents_per_step, micro_tokens
        self.seed, self.rank, self.size = seed, rank, size
        self.step, self.drawn = 0, [0] * len(sources)  # documents drawn so far from each source, by all ranks together
        self._orders: list[tuple[int, np.ndarray]] = [(-1, np.empty(0, np.int64))] * len(sources)

    def _draw(self, which: int) -> int:
        """The next document of a source."""
        count = len(self.sources[which].tokens_N)
        epoch, place = divmod(self.drawn[which], count)
        if epoch != self._orders[which][0]:
            self._orders[which] = epoch, np.random.default_rng([self.seed, which, epoch]).permutation(count)
        self.drawn[which] += 1
        return int(self._orders[which][1][place])

    def __next__(self) -> list[list[Document]]:
        weights = np.array([source.weight for source in self.sources])
        rng = np.random.default_rng([self.seed, len(self.sources), self.step])
        chosen = rng.choice(len(weights), self.documents_per_step, p=weights / weights.sum())
        step = [(int(which), self._draw(which)) for which in chosen]
        self.step += 1
        tokens = [int(self.sources[which].tokens_N[i]) for which, i in step]
        mine = shares(tokens, self.size, self.micro_tokens)[self.rank]
        return [[self.sources[step[i][0]].load(step[i][1]) for i in micro] for micro in mine]

    def state_dict(self) -> dict[str, int]:
        """The position: steps taken, and documents drawn from each source."""
        return {"step": self.step, **{f"drawn{which}": count for which, count in enumerate(self.drawn)}}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position. KeyError where it is one of fewer sources."""
        self.step, self.drawn = state["step"], [state[f"drawn{which}"] for which in range(len(self.sources))]


def shares(tokens: Sequence[int], ranks: int, micro_tokens: int) -> list[list[list[int]]]:
    """For each rank its micro-batches, as indices into `tokens`: balanced, none empty, as many for every rank.

    No micro-batch has more than `micro_tokens`, unless there are too few documents to give each rank another one.
    """
    dealt = deal(tokens, ranks)
    fewest, needed = min(map(len, dealt)), max(sum(tokens[i] for i in mine) for mine in dealt)
    for count in range(-(-needed // micro_tokens), fewest + 1):
        cut = [[[mine[i] for i in micro] for micro in deal([tokens[i] for i in mine], count)] for mine in dealt]
        if all(sum(tokens[i] for i in micro) <= micro_tokens for mine in cut for micro in mine):
            return cut
    return [[[mine[i] for i in micro] for micro in deal([tokens[i] for i in mine], fewest)] for mine in dealt]


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Indices into `sizes` dealt out to `hands`, the largest first, each to the hand that holds least so far."""
    held = [(0, 0, hand) for hand in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        total, count, hand = heapq.heappop(held)
        dealt[hand].append(i)
        heapq.heappush(held, (total + sizes[i], count + 1, hand))
    return dealt
