"""Cross-lingual similarity search: does a sentence find its translation among all the others?

1. `best_matches` finds, for each of N vectors, the best of M candidates, exactly and by brute force, in blocks of the
   similarity matrix: N = M = 1 000 000 takes no more memory than `working_memory` says.
2. `xsim_error` is the share that finds something else than its translation, `xsim_plus_plus` the same among hard negatives
   with what they were confused with, `search_accuracy` the share of right answers by cosine, as Tatoeba is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

CHUNK = 2048  # rows and columns of a block
GROUP = 24  # entries whose maximum stands for them; about sqrt(CHUNK / 4), so that groups and their entries are as many


def best_matches(
    x_ND: Tensor,
    y_MD: Tensor,
    neighbours: int = 4,
    *,
    score: Literal["margin", "cosine"] = "margin",
    among: Literal["all", "neighbours"] = "all",
    chunk: int = CHUNK,
    progress: bool = False,
) -> Tensor:
    """For each x the index (N,) of the best y: by margin, or the nearest by cosine.

    The margin is the ratio of cos(x, y) to the mean of the cosines of x and of y to their `neighbours` nearest on the
    other side (Artetxe and Schwenk, arXiv 1811.01136); it means little where these means are not positive. "all" is the
    definition. LASER's code looks for the best margin only `among` the neighbours of x: on `mini` that changed up to 2 answers
    of 49 on handwritten sentences and 3 of 742 on Tatoeba's.

    One pass over the blocks of the similarity matrix gives both sides' neighbours. A second looks for what may still beat the
    best neighbour of an x: beyond its neighbours no cosine is above the last one's, so only y with a small mean can.
    Products are float32 whatever the vectors are. Memory: `working_memory`. `progress`
    shows a bar on a terminal, after two seconds.

    Raises ValueError for vectors of different width, and where there are fewer than two y, and for NaN.
    """
    if x_ND.ndim != 2 or y_MD.ndim != 2 or x_ND.shape[1] != y_MD.shape[1] or not len(x_ND) or len(y_MD) < 2 or neighbours < 1:
        raise ValueError(
            "expected vectors of shape (N, D) and candidates of shape (M, D) with M at least 2, and at least one neighbour; "
            f"got {tuple(x_ND.shape)}, {tuple(y_MD.shape)} and {neighbours}"
        )
    device, k = x_ND.device, 1 if score == "cosine" else neighbours
    k_x, k_y = min(k, len(y_MD)), min(k, len(x_ND))
    near_x = torch.full((len(x_ND), k_x), -torch.inf, device=device)
    index_x = torch.zeros(len(x_ND), k_x, dtype=torch.long, device=device)
    near_y = torch.full((len(y_MD), k_y), -torch.inf, device=device)
    bar = tqdm(total=len(x_ND), desc="xsim", unit=" sentences", disable=None if progress else True, leave=False, delay=2)
    for lines in _slices(len(x_ND), chunk):
        x = _unit(x_ND[lines])
        for columns in _slices(len(y_MD), chunk):
            cosines = x @ _unit(y_MD[columns]).T
            values, found = _largest(cosines, k_x, 1)
            values, found = torch.cat([near_x[lines], values], 1), torch.cat([index_x[lines], found + columns.start], 1)
            near_x[lines], best = values.topk(k_x, 1)
            index_x[lines] = found.gather(1, best)
            if score == "margin":
                values, _ = _largest(cosines, k_y, 0)
                near_y[columns] = torch.cat([near_y[columns], values], 1).topk(k_y, 1).values
        bar.update(len(x))
    bar.close()
    if near_x.isnan().any() or near_y.isnan().any():
        raise ValueError("the vectors hold NaN or infinity; check what produced them")
    if score == "cosine":
        return index_x[:, 0]
    mean_x, mean_y = near_x.mean(1), near_y.mean(1)
    margins, best = (2 * near_x / (mean_x[:, None] + mean_y[index_x])).max(1)
    winner = index_x.gather(1, best[:, None])[:, 0]
    if among == "neighbours" or k_x == len(y_MD):
        return winner
    by_mean = mean_y.argsort()
    highest = torch.where(margins > 0, 2 * near_x[:, -1].clamp(min=0) / margins, torch.inf) - mean_x  # mean of a y that may win
    open_N = torch.searchsorted(mean_y[by_mean], highest + 1e-6, right=True)  # that many of by_mean
    rows = open_N.argsort()[int((open_N == 0).sum()) :]
    for part in rows.split(chunk) if len(rows) else ():
        x, margins_x = _unit(x_ND[part]), margins[part]
        for columns in _slices(int(open_N[part[-1]]), chunk):
            candidates = by_mean[columns]
            cosines = x @ _unit(y_MD[candidates]).T
            best_x, at = cosines.mul_(2).div_(mean_x[part, None] + mean_y[candidates]).max(1)
            better = best_x > margins_x
            winner[part[better]] = candidates[at[better]]
            margins_x = torch.maximum(margins_x, best_x)
    return winner


def working_memory(count: int, candidates: int, width: int, neighbours: int = 4, chunk: int = CHUNK) -> int:
    """Bytes that `best_matches` takes at most beside its two inputs.

    Three blocks of float32 cosines, two of unit vectors (and what makes them), and the neighbours of both sides.
    """
    chunk = min(chunk, max(count, candidates))
    return 4 * (3 * chunk * chunk + 4 * chunk * width) + (12 + 4) * (neighbours + 3) * (count + candidates)


def xsim_error(x_ND: Tensor, y_ND: Tensor, neighbours: int = 4, chunk: int = CHUNK, *, progress: bool = False) -> float:
    """Share of the x_i whose best match by margin is not y_i: xsim, between 0 and 1 (arXiv 2308.11466, section 4).

    Rows of x and y are translations of each other, all y distinct. See `best_matches`.
    """
    if x_ND.shape != y_ND.shape or x_ND.ndim != 2 or len(x_ND) < 2:
        raise ValueError(
            f"expected two tensors of one shape (N, D) with N at least 2, got {tuple(x_ND.shape)} and {tuple(y_ND.shape)}"
        )
    found = best_matches(x_ND, y_ND, neighbours, chunk=chunk, progress=progress)
    return float((found != torch.arange(len(found), device=found.device)).sum()) / len(found)


@dataclass(frozen=True)
class XsimPlusPlus:
    """Errors among hard negatives, as shares of the sentences between 0 and 1.

    `by_kind` tells what was taken for the translation: a negative of that kind, or under "other sentence" another
    translation. Its values add up to `error`.
    """

    error: float
    by_kind: dict[str, float]


def xsim_plus_plus(
    x_ND: Tensor, y_ND: Tensor, negatives_MD: Tensor, kinds: Sequence[str], *, chunk: int = CHUNK, progress: bool = False
) -> XsimPlusPlus:
    """xsim where the candidates are all translations y and the hard negatives of all of them (arXiv 2306.12907).

    `kinds` tells what was altered in each negative, and in which order the result lists them. Neighbours of x are then
    negatives, too, so that its margins are smaller, as in the paper's own evaluation.
    """
    if x_ND.shape != y_ND.shape or len(negatives_MD) != len(kinds):
        raise ValueError(
            "expected vectors and translations of one shape and a kind for each negative, got "
            f"{tuple(x_ND.shape)}, {tuple(y_ND.shape)}, {len(negatives_MD)} negatives and {len(kinds)} kinds"
        )
    candidates = torch.cat([y_ND, negatives_MD]) if len(kinds) else y_ND
    found = best_matches(x_ND, candidates, chunk=chunk, progress=progress).tolist()
    wrong = Counter(kinds[j - len(found)] if j >= len(found) else "other sentence" for i, j in enumerate(found) if i != j)
    names = [*dict.fromkeys(kinds), "other sentence"]
    return XsimPlusPlus(wrong.total() / len(found), {name: wrong[name] / len(found) for name in names})


def search_accuracy(x_ND: Tensor, y_ND: Tensor, *, chunk: int = CHUNK, progress: bool = False) -> tuple[float, float]:
    """Shares of the x whose nearest y by cosine is their translation, and of the y, as the Tatoeba test set is scored
    (Artetxe and Schwenk, arXiv 1812.10464)."""
    here = torch.arange(len(x_ND), device=x_ND.device)
    there = best_matches(x_ND, y_ND, score="cosine", chunk=chunk, progress=progress) == here
    back = best_matches(y_ND, x_ND, score="cosine", chunk=chunk, progress=progress) == here
    return float(there.double().mean()), float(back.double().mean())


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=1)


def _largest(block: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (dim 1) or column (dim 0) and where in it they stand, (n, k) in any order.

    The k largest lie in the k groups of the largest maxima. So `topk`, which is slow on a CPU, sees a tenth of the block
    only. Groups are strided, and maxima taken along the block as it lies in memory, else they take as long as the products.
    """
    lines = block if dim == 1 else block.T
    count = lines.shape[1]
    groups = count // GROUP
    if groups <= 4 * k:
        return lines.topk(min(k, count), 1)
    maxima = block.narrow(dim, 0, groups * GROUP).unflatten(dim, (GROUP, groups)).amax(dim)
    nearest = (maxima if dim == 1 else maxima.T).topk(k, 1).indices  # (n, k)
    inside = torch.arange(GROUP, device=block.device)[:, None] * groups + nearest[:, None]  # (n, GROUP, k)
    rest = torch.arange(groups * GROUP, count, device=block.device).expand(len(lines), -1)
    looked_at = torch.cat([inside.flatten(1), rest], 1)
    values, best = lines.gather(1, looked_at).topk(k, 1)
    return values, looked_at.gather(1, best)
