"""How well a concept model predicts the next sentence's vector (arXiv 2412.08821, section 2.4.1).

1. On vectors: `l2`, `contrastive_accuracy`, `paraphrasing`, `rank_of_truth`.
2. Through the codec: `round_trip`, and `vector_information`, which is ours.
3. Through another language model: `mutual_information`, the paper's, with any model that gives log-probabilities.
4. `concept_report` runs a model over a store's documents and gives all of them, with intervals over documents.

N predictions are compared with a pool of M true vectors, sentence after sentence, document after document; `truth_N` says which
row of the pool is the true next sentence, `document_M` which document a row belongs to. The functions of 1 raise ValueError
for shapes that do not fit, truths that are no rows of the pool, and NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.evaluation.statistics import RESAMPLES, Interval, bootstrap
from sonarkit.models.diffusion_lcm import DiffusionLCM
from sonarkit.models.rollout import ConceptModel
from sonarkit.store.reader import Store

if TYPE_CHECKING:
    from sonarkit.codec.pipeline import Sonar

CHUNK = 512  # predictions compared with the pool at once
CONTEXT = 10  # sentences that mutual information conditions on, the paper's k
LogProb = Callable[[str, str], tuple[float, int]]  # (what stands before, text) -> log-probability of text in nats, its tokens


# ---------------------------------------------------------------------- vectors


def l2(predicted_ND: Tensor, true_ND: Tensor) -> Tensor:
    """(N,) Euclidean distances. ValueError for different shapes and NaN."""
    if predicted_ND.ndim != 2 or predicted_ND.shape != true_ND.shape:
        raise ValueError(f"expected two tensors of one shape (N, D), got {tuple(predicted_ND.shape)} and {tuple(true_ND.shape)}")
    distances_N = (predicted_ND.double() - true_ND.double()).norm(dim=1)
    if not distances_N.isfinite().all():
        raise ValueError("the vectors hold NaN or infinity; check what produced them")
    return distances_N


def contrastive_accuracy(predicted_ND: Tensor, pool_MD: Tensor, truth_N: Tensor, document_M: Tensor) -> Tensor:
    """(N,) share of the pool that is further from the prediction than the truth is, by Euclidean distance: chance is 0.5.

    The truth's two neighbours in its document are not compared, as in the paper, nor are rows equal to the truth (the same
    sentence elsewhere), which is ours. The paper takes the pool from a batch, so that numbers depend on the batch; here it is
    what is given.

    Most of the pool is of other documents, so who knows only which document this is scores high: hold it against that of a copy
    of the last sentence. And distances see lengths: one SONAR-LLM fell from 0.87 to 0.69, below the copy's 0.79, when its
    predictions were brought to the length of sentences, which changes no angle; `rank_of_truth` sees angles alone.

    Raises ValueError where nothing is left to compare with.
    """
    shares = []
    for rows, distances_NM, compared_NM, own_N1 in _compared(predicted_ND, pool_MD, truth_N, document_M, "l2"):
        further_NM = (distances_NM > own_N1) & compared_NM
        count_N = compared_NM.sum(1)
        if not count_N.all():
            raise ValueError(
                f"prediction {rows[int(count_N.argmin())]} has nothing to be compared with but neighbours of the truth; "
                "give more documents"
            )
        shares.append(further_NM.sum(1).double() / count_N)
    return torch.cat(shares)


def rank_of_truth(predicted_ND: Tensor, pool_MD: Tensor, truth_N: Tensor) -> Tensor:
    """(N,) rank, from 1, of the true next sentence among the pool by cosine to the prediction; 1 / rank has the MRR as its mean.

    Rows that are as near as the truth stand before it, so that a model that always says the same gains nothing, but rows
    equal to the truth do not count.
    """
    document_M = torch.arange(len(pool_MD), device=pool_MD.device)  # each alone: no neighbours
    return torch.cat(
        [
            1 + ((cosines_NM >= own_N1) & compared_NM).sum(1)
            for _, cosines_NM, compared_NM, own_N1 in _compared(predicted_ND, pool_MD, truth_N, document_M, "cosine")
        ]
    )


def paraphrasing(predicted_ND: Tensor, pool_MD: Tensor, truth_N: Tensor, document_M: Tensor) -> Tensor:
    """(N,) the largest cosine of the prediction to a sentence before it, over that of the truth.

    Above 1 the model repeats its context more than the true sentence does. NaN where the truth has no positive cosine to its
    context, or none before it.
    """
    _check(predicted_ND, pool_MD, truth_N, document_M)
    unit_MD, unit_ND = F.normalize(pool_MD.double(), dim=1), F.normalize(predicted_ND.double(), dim=1)
    starts: dict[int, int] = {}
    for row, document in enumerate(document_M.tolist()):
        starts.setdefault(document, row)
    found = []
    for i, truth in enumerate(truth_N.tolist()):
        context_SD = unit_MD[starts[int(document_M[truth])] : truth]
        own = float((context_SD @ unit_MD[truth]).max()) if len(context_SD) else 0.0
        found.append(float((context_SD @ unit_ND[i]).max()) / own if own > 0 else float("nan"))
    return torch.tensor(found, dtype=torch.double)


def _compared(
    predicted_ND: Tensor, pool_MD: Tensor, truth_N: Tensor, document_M: Tensor, by: str
) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
    """Blocks of: which predictions, their distances or cosines to the pool (n, M), which of these count, the truth's (n, 1)."""
    _check(predicted_ND, pool_MD, truth_N, document_M)
    _, same_M = pool_MD.unique(dim=0, return_inverse=True)
    pool, place_M = pool_MD.double(), torch.arange(len(pool_MD), device=pool_MD.device)
    unit = F.normalize(pool, dim=1)
    for start in range(0, len(predicted_ND), CHUNK):
        rows = range(start, min(start + CHUNK, len(predicted_ND)))
        x, truth = predicted_ND[rows.start : rows.stop].double(), truth_N[rows.start : rows.stop]
        values = torch.cdist(x, pool) if by == "l2" else F.normalize(x, dim=1) @ unit.T
        beside = ((place_M - truth[:, None]).abs() <= 1) & (document_M == document_M[truth][:, None])
        yield rows, values, ~beside & (same_M != same_M[truth][:, None]), values.gather(1, truth[:, None])


def _check(predicted_ND: Tensor, pool_MD: Tensor, truth_N: Tensor, document_M: Tensor) -> None:
    if predicted_ND.ndim != 2 or pool_MD.ndim != 2 or predicted_ND.shape[1] != pool_MD.shape[1] or not len(predicted_ND):
        raise ValueError(
            "expected predictions (N, D) and a pool (M, D) of one width, "
            f"got {tuple(predicted_ND.shape)} and {tuple(pool_MD.shape)}"
        )
    if truth_N.shape != predicted_ND.shape[:1] or document_M.shape != pool_MD.shape[:1]:
        raise ValueError(
            "expected a truth for each prediction and a document for each row of the pool, "
            f"got {tuple(truth_N.shape)} and {tuple(document_M.shape)}"
        )
    if int(truth_N.min()) < 0 or int(truth_N.max()) >= len(pool_MD):
        raise ValueError(
            f"truths are rows of the pool, 0 to {len(pool_MD) - 1}; got {int(truth_N.min())} to {int(truth_N.max())}"
        )
    if not (predicted_ND.isfinite().all() and pool_MD.isfinite().all()):
        raise ValueError("the vectors hold NaN or infinity; check what produced them")


# ---------------------------------------------------------------------- the codec


def round_trip(sonar: Sonar, predicted_ND: Tensor, true_ND: Tensor, lang: str, **options: Any) -> tuple[Tensor, list[str]]:
    """(N,) distances of the decoded and re-encoded predictions to the true vectors, and what was decoded.

    Much less than `l2`, where a prediction lies off the space's sentences but near the right one. `options` go to `decode`.
    """
    told = sonar.decode(predicted_ND, lang, **options)
    return l2(sonar.encode(told, lang).to(true_ND.device), true_ND), told


def vector_information(sonar: Sonar, z_ND: Tensor, texts: Sequence[str], lang: str, blank_D: Tensor) -> tuple[Tensor, Tensor]:
    """What a vector tells the decoder of a sentence: log p(text | z) - log p(text | blank), (N,) sums in nats, and tokens (N,).

    Ours, not the paper's: `blank_D`, such as the mean of all vectors, stands for knowing nothing of this sentence.
    """
    nats, tokens = [], []
    for start in range(0, len(texts), CHUNK):
        part, z = texts[start : start + CHUNK], z_ND[start : start + CHUNK]
        given = sonar.token_log_probs(z, part, lang)
        blank = sonar.token_log_probs(blank_D.expand(len(part), -1), part, lang)
        nats += [sum(p for _, p in a) - sum(p for _, p in b) for a, b in zip(given, blank)]
        tokens += [len(a) for a in given]
    return torch.tensor(nats, dtype=torch.double), torch.tensor(tokens)


# ---------------------------------------------------------------------- a language model


def mutual_information(
    texts: Sequence[str], contexts: Sequence[Sequence[str]], log_prob: LogProb, k: int = CONTEXT
) -> tuple[Tensor, Tensor]:
    """How much the k sentences before it make a sentence likelier: (N,) sums in nats, and tokens (N,).

    The paper's: `texts` are decoded predictions, `contexts` the true sentences before each, `log_prob` is GPT-2's; the sum of the
    first over that of the second is its MI, tokens being the weights. Written there as log p(s) - log p(s | context) it is
    the difference of log-perplexities: more is more coherent, as here. A newline stands before each sentence, alone or after
    its context. A text that has no token has no part in it.

    Raises ValueError for different numbers of both, k below 1, and where `log_prob` counts a text's tokens in two ways.
    """
    if len(texts) != len(contexts) or k < 1:
        raise ValueError(f"expected a context for each text and k of at least 1, got {len(texts)}, {len(contexts)} and {k}")
    nats, tokens = [], []
    for text, context in zip(texts, contexts):
        alone, count = log_prob("\n", text) if text else (0.0, 0)
        after, again = log_prob(" ".join(context[-k:]) + "\n", text) if text else (0.0, 0)
        if count != again:
            raise ValueError(f"log_prob counts {count} tokens of {text[:40]!r} alone but {again} after its context")
        nats.append(after - alone)
        tokens.append(count)
    return torch.tensor(nats, dtype=torch.double), torch.tensor(tokens)


# ---------------------------------------------------------------------- a model on a store


@dataclass(frozen=True)
class ConceptReport:
    """`scores` by metric (`UNITS`), `counts` of documents and predictions, and what was decoded, prediction by prediction."""

    scores: dict[str, Interval]
    counts: dict[str, int]
    told: list[str]

    def table(self) -> str:
        """A line for each metric, with its interval and unit, and one of counts."""
        lines = [f"{name:<30}{score!s:<30}  {UNITS[name]}" for name, score in self.scores.items()]
        return "\n".join([*lines, ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in self.counts.items())])

    def to_dict(self) -> dict[str, Any]:
        """`scores`, with their units, and `counts`, JSON-able."""
        scores = {name: score.to_dict() | {"unit": UNITS[name]} for name, score in self.scores.items()}
        return {"scores": scores, "counts": self.counts}


UNITS = {
    "l2": "distance to the true vector",
    "l2_of_last": "the same of the sentence before: what copying has",
    "round_trip_l2": "the same of the prediction decoded and re-encoded",
    "contrastive_accuracy": "share of the pool that is further away; chance 0.5",
    "contrastive_accuracy_of_last": "the same of the sentence before: what copying has",
    "paraphrasing": "nearness to the context over that of the truth",
    "mrr": "mean of 1 / rank of the truth by cosine",
    "first": "share of truths that rank first",
    "vector_information": "nats a token over the mean vector, of the true sentence; ours",
    "vector_information_true": "the same of the true vector: the ceiling",
    "mutual_information": "nats a token, with the language model given",
}


@torch.no_grad()
def concept_report(
    model: ConceptModel,
    store: Store,
    *,
    limit: int | None = 100,
    max_sentences: int = 32,
    decode: bool = True,
    beam_size: int = 5,
    log_prob: LogProb | None = None,
    batch: int = 64,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> ConceptReport:
    """Predict each sentence but the first of the store's documents from the true ones before it, and measure how well.

    The first `limit` documents of at least two sentences (None: all) are read, the first `max_sentences` of each; the sentence
    "End of sequence." has no part. The pool of candidates are all their sentences. Rows of the bootstrap are documents, not
    sentences. With `decode` also what needs the decoder; with `log_prob` the paper's mutual information. `seed` is that of the
    bootstrap and of a diffusion LCM's draws, which depend on nothing else; `options` are those of `predictions`.

    Raises ValueError for a store of another codec, with fewer than two usable documents, settings below their least, and
    `log_prob` without `decode`.
    """
    if max_sentences < 2 or batch < 1 or (limit is not None and limit < 2):
        raise ValueError(f"limit and max_sentences are at least 2, batch 1; got {limit}, {max_sentences}, {batch}")
    sonar, lang = model.sonar, store.lang
    if store.manifest["codec_fingerprint"] != sonar.fingerprint():
        raise ValueError(
            f"the store was made by codec {store.manifest['codec']!r} ({store.manifest['codec_fingerprint']}), the model reads "
            f"{sonar.name!r} ({sonar.fingerprint()}): their vectors mean different things. Encode the corpus with the model's"
        )
    if log_prob is not None and not decode:
        raise ValueError("mutual information is that of decoded sentences: log_prob needs decode=True")
    documents, counts = _read(store, limit, max_sentences)
    vectors = [torch.from_numpy(np.array(v, dtype=np.float32)).to(sonar.device) for v, _ in documents]
    starts = range(0, len(vectors), batch)
    told_ND = torch.cat([p for i in starts for p in predictions(model, vectors[i : i + batch], seed + i, **options)])
    predicted_ND, pool_MD = told_ND.cpu(), torch.cat(vectors).cpu()  # float64, which some GPUs do not have
    lengths = [len(v) for v in vectors]
    document_M = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    truth_N = 1 + (document_M[1:] == document_M[:-1]).nonzero()[:, 0]
    true_ND = pool_MD[truth_N]
    owner_N = document_M[truth_N]
    ones_N = torch.ones(len(truth_N), dtype=torch.double)

    rank_N = rank_of_truth(predicted_ND, pool_MD, truth_N).double()
    found: dict[str, tuple[Tensor, Tensor]] = {
        "l2": (l2(predicted_ND, true_ND), ones_N),
        "l2_of_last": (l2(pool_MD[truth_N - 1], true_ND), ones_N),
        "contrastive_accuracy": (contrastive_accuracy(predicted_ND, pool_MD, truth_N, document_M), ones_N),
        "contrastive_accuracy_of_last": (contrastive_accuracy(pool_MD[truth_N - 1], pool_MD, truth_N, document_M), ones_N),
        "mrr": (1 / rank_N, ones_N),
        "first": ((rank_N == 1).double(), ones_N),
    }
    ratio_N = paraphrasing(predicted_ND, pool_MD, truth_N, document_M)
    found["paraphrasing"] = (ratio_N.nan_to_num(0.0), (~ratio_N.isnan()).double())
    told: list[str] = []
    if decode:
        distance_N, told = round_trip(sonar, predicted_ND, true_ND, lang, beam_size=beam_size)
        found["round_trip_l2"] = (distance_N, ones_N)
        texts = [text for _, said in documents for text in said[1:]]
        blank_D = pool_MD.mean(0)
        found["vector_information"] = vector_information(sonar, predicted_ND, texts, lang, blank_D)
        found["vector_information_true"] = vector_information(sonar, true_ND, texts, lang, blank_D)
    if log_prob is not None:
        contexts = [said[:i] for _, said in documents for i in range(1, len(said))]
        found["mutual_information"] = mutual_information(told, contexts, log_prob)
    scores = {
        name: _over_documents(*found[name], owner_N, len(lengths), resamples=resamples, seed=seed)
        for name in UNITS
        if name in found
    }
    return ConceptReport(scores, dict(counts) | {"predictions": len(truth_N), "pool": len(pool_MD)}, told)


def _read(store: Store, limit: int | None, max_sentences: int) -> tuple[list[tuple[np.ndarray, list[str]]], Counter[str]]:
    documents: list[tuple[np.ndarray, list[str]]] = []
    counts: Counter[str] = Counter(documents=0, of_one_sentence=0, cut=0)
    for i in range(len(store)):
        if len(documents) == limit:
            break
        stored = store[i]
        if len(stored.texts) < 2:
            counts["of_one_sentence"] += 1
            continue
        counts["cut"] += len(stored.texts) > max_sentences
        documents.append((stored.vectors_SD[:max_sentences], stored.texts[:max_sentences]))
    counts["documents"] = len(documents)
    if len(documents) < 2:
        raise ValueError(f"expected at least two documents of two sentences or more, the store has {len(documents)}")
    return documents, counts


def predictions(model: ConceptModel, vectors: list[Tensor], seed: int = 0, **options: Any) -> list[Tensor]:
    """For each document of S vectors (S, D) the S - 1 predictions of all but the first, each from the true ones before it.

    A diffusion LCM draws with `seed` for the first document, the next seed for the next one, and so on, whatever else is in the
    batch. `options` go to the model's `start`, such as `sampling`.
    """
    steps = max(map(len, vectors)) - 1
    if isinstance(model, DiffusionLCM):
        options = {"seeds": range(seed, seed + len(vectors)), **options}
    context = model.start(len(vectors), steps, **options)
    padded_BSD = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)  # documents that are over read zeros
    one_B = torch.ones(len(vectors), dtype=torch.long)
    told_BSD = torch.stack([model.advance(padded_BSD[:, s : s + 1], context, one_B) for s in range(steps)], 1)
    return [told_SD[: len(v) - 1] for told_SD, v in zip(told_BSD, vectors)]


def _over_documents(values_N: Tensor, weights_N: Tensor, owner_N: Tensor, documents: int, **options: Any) -> Interval:
    """The sum of values over that of weights, documents being what is drawn. Those without weight are left out."""
    rows_B2 = torch.zeros(documents, 2, dtype=torch.double)
    rows_B2.index_add_(0, owner_N, torch.stack([values_N.cpu().double(), weights_N.cpu().double()], 1))
    rows_B2 = rows_B2[rows_B2[:, 1] > 0]
    if not len(rows_B2):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    return bootstrap(rows_B2.numpy(), lambda sums: float(sums[0] / sums[1]), **options)
