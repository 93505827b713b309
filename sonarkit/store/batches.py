"""Which documents a training step sees: every epoch a new permutation, the position is one number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sonarkit.store.reader import Document


class DocumentBatches:
    """The micro-batches of one rank, step after step, for ever.

    Step k takes the same `documents_per_step` documents whatever the number of ranks: rank r gets each
    `size`-th of them. A micro-batch holds at most `micro_tokens` target tokens (one document at least).
    """

    def __init__(
        self,
        count: int,
        load: Callable[[int], Document],
        documents_per_step: int,
        micro_tokens: int,
        seed: int,
        rank: int,
        size: int,
    ) -> None:
        if documents_per_step < size:
            raise ValueError(f"{documents_per_step} documents a step cannot be shared by {size} ranks; raise documents_per_step")
        if count < 1:
            raise ValueError("there is no document to train on")
        self.count, self.load, self.documents_per_step, self.micro_tokens = count, load, documents_per_step, micro_tokens
        self.seed, self.rank, self.size = seed, rank, size
        self.position = 0  # documents handed out so far, by all ranks together
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return int(self._order[place])

    def __next__(self) -> list[list[Document]]:
        step = range(self.position, self.position + self.documents_per_step)
        indices = [self._index(position) for position in step][self.rank :: self.size]
        self.position += self.documents_per_step
        micro: list[list[Document]] = []
        tokens = 0
        for document in map(self.load, indices):
            size = sum(map(len, document.targets))
            if not micro or tokens + size > self.micro_tokens:
                micro.append([])
                tokens = 0
            micro[-1].append(document)
            tokens += size
        return micro

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
