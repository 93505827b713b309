"""Training SONAR: pairs of sentences drawn from aligned corpora, and the loss over them."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, permutations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonarkit.codec.objectives import (
    DecoderObjective,
    ObjectiveConfig,
    PairBatch,
    PerPair,
    decoder_loss,
    pair_loss,
    per_pair,
)
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.config import to_dict
from sonarkit.core.distributed import World, shard
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import pack
from sonarkit.text.bitext import Bitext, Row
from sonarkit.text.tokenizer import DATA_TAGS

Balance = Literal["rows", "languages"]
SAMPLE = 1024  # pairs from which the means of a run are taken


@dataclass(frozen=True)
class Source:
    """An aligned corpus and the share of the pairs drawn from it; `tag` and `synthetic` are those of `Bitext`.

    Its pairs follow the task's teacher, if there is one, unless `taught` is False. ValueError for a weight that is negative or
    not finite, and as of `Bitext`.
    """

    name: str
    rows: Sequence[Row]
    weight: float
    tag: str = ""
    synthetic: tuple[str, ...] = ()
    taught: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"{self.name}: the weight of a source must not be negative, got {self.weight}")
        _ = self.bitext  # whose checks are ours

    @classmethod
    def of(cls, bitext: Bitext, weight: float) -> Source:
        """A corpus of bitext with this weight."""
        return cls(bitext.name, bitext.rows, weight, bitext.tag, bitext.synthetic)

    @property
    def bitext(self) -> Bitext:
        """The corpus without its weight."""
        return Bitext(self.name, self.rows, self.tag, self.synthetic)


@dataclass(frozen=True)
class Pair:
    """Two sentences of a row: side a, then side b."""

    source: Source
    row: Row
    codes: tuple[str, str]


class SourcePairs:
    """Draws pairs from one source: `codes` may be side a, `anchors` side b.

    Balanced by "rows", it is a row at random, then two of its languages at random. Balanced by "languages", it is two languages
    at random, then one of the rows that have both: any two come equally often, however few rows they have.
    Raises ValueError when no row has such a pair.
    """

    def __init__(self, source: Source, codes: Container[str], anchors: Container[str], balance: Balance) -> None:
        bitext = source.bitext
        self.source, self.balance = source, balance
        self._codes, self._anchors, self._may_translate = codes, anchors, bitext.may_translate
        kinds: dict[tuple[str, ...], bool] = {}  # whether rows of these languages have a pair
        self.rows = array("q")  # those that have one
        self.rows_of: dict[str, array[int]] = {}
        for i, row in enumerate(source.rows):
            kind = tuple(sorted(row))
            if kind not in kinds:
                kinds[kind] = any(self.allowed(a, b) for a, b in permutations(kind, 2))
            if kinds[kind]:
                self.rows.append(i)
                for code in kind if balance == "languages" else ():
                    self.rows_of.setdefault(code, array("q")).append(i)
        if not self.rows:
            raise ValueError(f"{source.name}: none of its {len(source.rows)} rows has two languages to learn from")
        pairs = {pair for kind, fit in kinds.items() if fit for pair in combinations(kind, 2)} if self.rows_of else set()
        self.pairs = sorted(pair for pair in pairs if self.allowed(*pair) or self.allowed(*pair[::-1]))

    def allowed(self, a: str, b: str) -> bool:
        """Whether a pair may have these languages on its sides a and b."""
        return a in self._codes and b in self._anchors and (self._may_translate(a, b) or self._may_translate(b, a))

    def draw(self, rng: random.Random) -> Pair:
        """The next pair, by the random numbers of `rng`."""
        if self.balance == "rows":
            row = self.source.rows[rng.choice(self.rows)]
            codes = sorted(row)
        else:
            codes = list(rng.choice(self.pairs))
            rarer, other = sorted(codes, key=lambda code: len(self.rows_of[code]))
            row = self.source.rows[rng.choice(self.rows_of[rarer])]
            while other not in row:
                row = self.source.rows[rng.choice(self.rows_of[rarer])]
        a, b = rng.sample(codes, 2)
        while not self.allowed(a, b):
            a, b = rng.sample(codes, 2)
        return Pair(self.source, row, (a, b))


class PairBatches:
    """The micro-batches of one rank, step after step, for ever.

    A pair is a source by weight and what it draws. Step k draws the same pairs whatever the number of ranks; rank r gets each
    `size`-th of them, in as many micro-batches as the others, of at most `micro_pairs` or one more. With a teacher,
    its ids of the sides b are there, too, and where splices are made (`splices`), another sentence of the step for each.
    Raises ValueError when the ranks are more than the pairs of a step.
    """

    def __init__(
        self,
        sonar: Sonar,
        sources: Sequence[SourcePairs],
        pairs_per_step: int,
        micro_pairs: int,
        seed: int,
        rank: int,
        size: int,
        teacher: Sonar | None = None,
        per_pair: PerPair | None = None,
        splices: bool = False,
    ) -> None:
        if pairs_per_step < size:
            raise ValueError(f"{pairs_per_step} pairs a step cannot be shared by {size} ranks; raise pairs_per_step")
        self.sonar, self.sources, self.pairs_per_step, self.micro_pairs = sonar, sources, pairs_per_step, micro_pairs
        self.seed, self.rank, self.size, self.step, self.teacher, self.per_pair = seed, rank, size, 0, teacher, per_pair
        self.splices = splices
        self._weights = list(accumulate(pairs.source.weight for pairs in sources))

    def __next__(self) -> list[PairBatch]:
        rng = random.Random(f"{self.seed}-{self.step}")
        chosen = rng.choices(self.sources, cum_weights=self._weights, k=self.pairs_per_step)
        pairs = [source.draw(rng) for source in chosen]
        mine, most = range(self.rank, len(pairs), self.size), -(-len(pairs) // self.size)
        parts = min(-(-most // self.micro_pairs), len(pairs) // self.size)  # on every rank alike
        batches = [self._batch(pairs, mine[i::parts], f"{self.seed}-{self.step}") for i in range(parts)]
        self.step += 1
        return batches

    def _batch(self, of_step: list[Pair], places: Sequence[int], noise_seed: str) -> PairBatch:
        pairs = [of_step[place] for place in places]
        sides = [(pair.source, pair.codes[side], pair.row[pair.codes[side]]) for side in (0, 1) for pair in pairs]
        known = [i for i, (_, code, _) in enumerate(sides) if code in self.sonar.languages]
        texts, codes = [sides[i][2] for i in known], [sides[i][1] for i in known]
        sources: list[list[int]] = [[] for _ in sides]
        targets: list[list[int]] = [[] for _ in sides]
        for i, source_ids, target_ids in zip(known, self.sonar.source_ids(texts, codes), self.sonar.target_ids(texts, codes)):
            source, code, _ = sides[i]
            written = code in source.synthetic
            sources[i] = self._tagged(source_ids, source.tag) if written or not source.synthetic else source_ids
            targets[i] = [] if written else target_ids
        of_teacher = None
        if self.teacher is not None:
            texts, codes = [text for *_, text in sides[len(pairs) :]], [code for _, code, _ in sides[len(pairs) :]]
            read = self.teacher.source_ids(texts, codes)
            of_teacher = [ids if pair.source.taught else [] for pair, ids in zip(pairs, read)]
        others = self._others(of_step, places, noise_seed) if self.splices else None
        return PairBatch(sources, targets, noise_seed, of_teacher, list(places), self.per_pair, others)

    def _others(self, of_step: list[Pair], places: Sequence[int], noise_seed: str) -> list[list[int]]:
        """Targets of sentences of the step: for each side one in its language, [] where the codec does not know that."""
        texts: dict[str, list[str]] = {}
        for pair in of_step:
            for code in pair.codes:
                texts.setdefault(code, []).append(pair.row[code])
        others: list[list[int]] = []
        for side in (0, 1):
            for place in places:
                code = of_step[place].codes[side]
                text = random.Random(f"{noise_seed}-{place}-{side}-other").choice(texts[code])
                others += self.sonar.target_ids([text], code) if code in self.sonar.languages else [[]]
        return others

    def _tagged(self, ids: list[int], tag: str) -> list[int]:
        """`__lang__ pieces </s>` -> `__lang__ <DATA_TAG> pieces </s>`, less a piece where that is too long (see `Bitext`)."""
        if not tag:
            return ids
        tag_id = self.sonar.tokenizer.size - len(DATA_TAGS) + DATA_TAGS.index(tag)
        return [ids[0], tag_id, *ids[1:-1][: self.sonar.config.max_tokens - 3], ids[-1]]

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class CodecTask:
    """What the training loop needs to train a `Sonar`; `evaluate` comes from the caller.

    What the objective does not need is left as it is, and out of checkpoints: the encoder with a `DecoderObjective` (with
    `spread_D` for `decoder_loss`), the decoder where neither MT nor DAE has a weight. `balance` is that of `SourcePairs`.
    `tokens_per_step` and `micro_tokens`, target tokens in the mean, take the place of the numbers of pairs. `anchors` are the
    languages of the sides b, by default all. With a `teacher`, which is frozen, they are the teacher's, whose
    vectors of the sides b both sides are pulled to with `objective.distill_weight`.

    Raises ValueError for a language of the sources that the codec lacks (only with a teacher, and nothing but distillation, may
    an anchor be in one) and `anchors` that codec or teacher lack, for sources without a pair to draw or all of weight 0, for a
    teacher of another width or that is the codec itself, one without a weight or a weight without one.
    """

    def __init__(
        self,
        sonar: Sonar,
        sources: Sequence[Source],
        objective: ObjectiveConfig | DecoderObjective,
        *,
        pairs_per_step: int,
        micro_pairs: int,
        seed: int,
        evaluate: Callable[[Sonar], Mapping[str, float | str]],
        teacher: Sonar | None = None,
        balance: Balance = "rows",
        anchors: Sequence[str] | None = None,
        spread_D: Tensor | None = None,
        tokens_per_step: int | None = None,
        micro_tokens: int | None = None,
    ) -> None:
        self.sonar, self.sources, self.objective, self.teacher = sonar, list(sources), objective, teacher
        self.pairs_per_step, self.micro_pairs, self.seed, self._evaluate = pairs_per_step, micro_pairs, seed, evaluate
        self.balance, self.spread_D = balance, spread_D
        if balance not in ("rows", "languages"):
            raise ValueError(f'balance must be "rows" or "languages", got {balance!r}')
        _check_teacher(sonar, teacher, objective)
        pure = isinstance(objective, ObjectiveConfig) and not (objective.decodes or objective.mse_weight)
        readable = set(sonar.languages) | set(teacher.languages if teacher and pure else ())
        if unknown := set(anchors or ()) - (set(teacher.languages) if teacher else set(sonar.languages)):
            raise ValueError(
                f"anchors {', '.join(sorted(unknown))}: not among the languages of the {'teacher' if teacher else 'codec'}"
            )
        self.anchors = sorted(anchors or (readable & set(teacher.languages) if teacher else readable))
        for source in self.sources:
            _check_languages(source, readable, sonar)
        if not any(source.weight for source in self.sources):
            raise ValueError("there must be a source with a weight above 0")
        self._pairs = [SourcePairs(source, set(sonar.languages), set(self.anchors), balance) for source in self.sources]
        sample = PairBatches(sonar, self._pairs, SAMPLE, SAMPLE, seed, 0, 1)
        sample.step = -1  # which no run draws
        self.per_pair = per_pair(next(sample), isinstance(objective, DecoderObjective) or objective.decodes)
        if tokens_per_step:
            self.pairs_per_step = max(1, round(tokens_per_step / self.per_pair.tokens))
        if micro_tokens:
            self.micro_pairs = max(1, round(micro_tokens / self.per_pair.tokens))
        self._sharded = False
        self._encoder = sonar.fingerprint() if isinstance(objective, DecoderObjective) else None
        self._teacher = teacher.eval().fingerprint() if teacher else None

    loss_unit = "nats_per_token"

    @property
    def model(self) -> nn.Module:
        """The sides that learn: the codec, its encoder or its decoder."""
        if isinstance(self.objective, DecoderObjective):
            return self.sonar.decoder
        return self.sonar if self.objective.decodes else self.sonar.encoder

    def batches(self, rank: int, size: int) -> PairBatches:
        return PairBatches(
            self.sonar,
            self._pairs,
            self.pairs_per_step,
            self.micro_pairs,
            self.seed,
            rank,
            size,
            teacher=self.teacher,
            per_pair=self.per_pair,
            splices=isinstance(self.objective, ObjectiveConfig) and self.objective.dae_splice > 0,
        )

    def loss(self, batch: PairBatch) -> LossSum:
        """`pair_loss` or `decoder_loss`, by the objective."""
        device = next(self.model.parameters()).device  # the loop moves what learns; the rest follows
        for part in (self.sonar, self.teacher and self.teacher.encoder):
            if part is not None and any(p.device != device for p in part.parameters()):
                part.to(device)
        if isinstance(self.objective, DecoderObjective):
            return decoder_loss(self.sonar, batch, self.objective, self.spread_D)
        if self.teacher is None:
            return pair_loss(self.sonar, batch, self.objective)
        assert batch.teacher_sources is not None
        followed = [i for i, ids in enumerate(batch.teacher_sources) if ids]
        vectors_ND = torch.zeros(batch.pairs, self.sonar.config.width, device=device)
        with torch.no_grad():
            if followed:
                sources = [batch.teacher_sources[i] for i in followed]
                vectors_ND[followed] = self.teacher.encoder(*pack(sources, device)).to(vectors_ND)
        return pair_loss(self.sonar, batch, self.objective, vectors_ND)

    def evaluate(self, world: World) -> Mapping[str, float | str]:
        """What the caller measures, on rank 0, or on all ranks where the codec lies in parts."""
        self.sonar.eval()
        results = self._evaluate(self.sonar) if world.rank == 0 or self._sharded else {}  # in parts it takes all ranks
        self.sonar.train()
        return results

    def cost(self, batch: PairBatch) -> dict[str, float]:
        """The sentences of both sides that the codec knows."""
        return {"sentences": float(sum(map(bool, batch.sources)))}

    def describe(self, batch: PairBatch) -> list[str]:
        """The sentences on the sides a."""
        texts = [self.sonar.tokenizer.decode(ids) for ids in batch.sources]
        return texts[: len(texts) // 2]

    def shard(self, world: World) -> None:
        """FSDP2 over the layers of the sides that learn; a frozen side and a teacher lie whole on each rank."""
        if isinstance(self.objective, ObjectiveConfig):
            shard(world, self.sonar.encoder, (), self.sonar.encoder.layers, ())
        if isinstance(self.objective, DecoderObjective) or self.objective.decodes:
            shard(world, self.sonar.decoder, ("token_losses", "start", "step"), self.sonar.decoder.layers, ("step",))
        self._sharded = True

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        side = "" if self.model is self.sonar else "encoder." if self.model is self.sonar.encoder else "decoder."
        state = self.sonar.state_dict() | {side + name: weight for name, weight in weights.items()}
        self.sonar.save_pretrained(folder, weights=state)

    def config(self) -> dict[str, Any]:
        return {
            "task": "codec",
            "codec": to_dict(self.sonar.config),
            "tokenizer": self.sonar.tokenizer.fingerprint,
            "frozen_encoder": self._encoder,
            "teacher": self._teacher,
            "objective": to_dict(self.objective),
            "spread": None
            if self.spread_D is None
            else hashlib.sha256(self.spread_D.float().cpu().numpy().tobytes()).hexdigest()[:12],
            "pairs_per_step": self.pairs_per_step,
            "balance": self.balance,
            "anchors": self.anchors,
            "seed": self.seed,
            "sources": [[s.name, len(s.rows), s.weight, s.tag, list(s.synthetic), s.taught] for s in self.sources],
        }


def _check_teacher(sonar: Sonar, teacher: Sonar | None, objective: ObjectiveConfig | DecoderObjective) -> None:
    wanted = isinstance(objective, ObjectiveConfig) and objective.distill_weight > 0
    if wanted and teacher is None:
        raise ValueError("distill_weight is above 0, but there is no teacher; give one, or set it to 0")
    if teacher is None:
        return
    if not wanted:
        raise ValueError(
            "a teacher teaches by distill_weight alone; set it above 0 in an ObjectiveConfig, or leave the teacher out"
        )
    if teacher is sonar:
        raise ValueError("the teacher would learn, too; give another copy, such as codec.extend.extended makes")
    if teacher.config.width != sonar.config.width:
        raise ValueError(
            f"the teacher {teacher.name or 'given'} has vectors of width {teacher.config.width}, the codec of width "
            f"{sonar.config.width}, and they must agree; attention pooling lets a narrower encoder reach it"
        )


def _check_languages(source: Source, readable: set[str], sonar: Sonar) -> None:
    unknown = sorted(set().union(*set(map(frozenset, source.rows))) - readable)
    if unknown:
        raise ValueError(
            f"{source.name}: {', '.join(unknown)} is not known to the codec, whose languages are "
            f"{', '.join(sonar.languages[:12])}{', ...' if len(sonar.languages) > 12 else ''}; leave it out of the rows, "
            "or add it to the codec with codec.extend.extended"
        )
