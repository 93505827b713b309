"""Cross-lingual similarity search: does a sentence find its translation among all the others?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def xsim_error(x_ND: Tensor, y_ND: Tensor, neighbours: int = 4, chunk: int = 1024) -> float:
    """Share of the x_i whose best match by margin is not y_i: xsim, between 0 and 1 (arXiv 2308.11466, section 4).

    The margin is the ratio of cos(x, y) to the mean cosine of both to their `neighbours` nearest on the other
    side (Artetxe and Schwenk, arXiv 1811.01136). Rows of x and y are translations of each other, all y distinct.
    Memory is chunk x N.
    """
    if x_ND.shape != y_ND.shape or x_ND.ndim != 2 or len(x_ND) < 2:
        raise ValueError(
            f"expected two tensors of one shape (N, D) with N at least 2, got {tuple(x_ND.shape)} and {tuple(y_ND.shape)}"
        )
    x, y = F.normalize(x_ND.float(), dim=1), F.normalize(y_ND.float(), dim=1)
    k = min(neighbours, len(x))
    near_x = torch.cat([(part @ y.T).topk(k, 1).values.mean(1) for part in x.split(chunk)])
    near_y = torch.cat([(part @ x.T).topk(k, 1).values.mean(1) for part in y.split(chunk)])
    wrong = 0
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        margin = (x[part] @ y.T) / ((near_x[part, None] + near_y) / 2)
        wrong += int((margin.argmax(1) != torch.arange(start, start + len(margin), device=x.device)).sum())
    return wrong / len(x)
