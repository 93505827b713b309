"""xsim's search against the same by the whole matrix at once, and by faiss where that is installed.

    python tests/bench/xsim.py                                   # 10 000 and 50 000 sentences, D = 256 and 1024
    python tests/bench/xsim.py --counts 10000 --widths 256       # seconds
    python tests/bench/xsim.py --device cuda --counts 200000

`pip install faiss-cpu` for the third column. "faiss" is what LASER's code does: two exact searches for the 4 nearest, one from
each side, and the margin among them. Ours is timed so, too, and as `xsim_error` does it, among all. The numbers are the best
of `--rounds`, in turns; a peer that needs more memory than is free is left out. Sentences are noisy translations of each
other whose xsim is near 5 %.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from sonarkit.core import memory
from sonarkit.evaluation.xsim import CHUNK, best_matches, working_memory

K = 4


@dataclass
class Options:
    counts: tuple[int, ...] = (10_000, 50_000)
    widths: tuple[int, ...] = (256, 1024)
    chunk: int = CHUNK
    threads: int = 2
    rounds: int = 3
    device: str = "cpu"
    out: Path | None = None


def pairs(count: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=draw)
    y = x + (width**0.5 / 5.5) * torch.randn(count, width, generator=draw)
    return x.to(device), y.to(device)


def whole(x: Tensor, y: Tensor) -> Tensor:
    """The definition, on one matrix: three times its size in memory."""
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    mean_x, mean_y = cosines.topk(K, 1).values.mean(1), cosines.topk(K, 0).values.mean(0)
    return (cosines / (mean_x[:, None] + mean_y)).argmax(1)


def with_faiss(x: Tensor, y: Tensor) -> Tensor:
    import faiss

    a, b = F.normalize(x, dim=1).numpy(), F.normalize(y, dim=1).numpy()
    index_a, index_b = faiss.IndexFlatIP(a.shape[1]), faiss.IndexFlatIP(a.shape[1])
    index_a.add(a)
    index_b.add(b)
    near_x, at = index_b.search(a, K)
    near_y, _ = index_a.search(b, K)
    margins = near_x / (near_x.mean(1, keepdims=True) + near_y.mean(1)[at])
    return torch.from_numpy(at[np.arange(len(a)), margins.argmax(1)])


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    try:
        import faiss

        faiss.omp_set_num_threads(options.threads)
    except ImportError:
        faiss = None
    rows = []
    print(
        f"{'sentences':>10}{'D':>6}  " + "".join(f"{name:>16}" for name in ("all", "neighbours", "whole", "faiss")) + "  rows/s"
    )
    for width in options.widths:
        for count in options.counts:
            x, y = pairs(count, width, options.device)
            ways: dict[str, Callable[[], Tensor]] = {
                "all": lambda: best_matches(x, y, chunk=options.chunk),  # noqa: B023
                "neighbours": lambda: best_matches(x, y, among="neighbours", chunk=options.chunk),  # noqa: B023
            }
            if 12 * count**2 < (memory.available(torch.device(options.device)) or 0):
                ways["whole"] = lambda: whole(x, y)  # noqa: B023
            if faiss is not None and options.device == "cpu":
                ways["faiss"] = lambda: with_faiss(x, y)  # noqa: B023
            seconds = dict.fromkeys(ways, float("inf"))
            found = {}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    began = time.perf_counter()
                    found[name] = way().cpu()  # waits for a GPU
                    seconds[name] = min(seconds[name], time.perf_counter() - began)
            differ = {name: float((other != found["all"]).float().mean()) for name, other in found.items()}
            error = float((found["all"] != torch.arange(count)).float().mean())
            speeds = {name: count / value for name, value in seconds.items()}
            told = "".join(
                f"{speeds[name]:16.0f}" if name in speeds else f"{'-':>16}" for name in ("all", "neighbours", "whole", "faiss")
            )
            print(f"{count:>10}{width:>6}  {told}  xsim {100 * error:.2f} %", flush=True)
            block = working_memory(count, count, width, chunk=options.chunk)
            rows.append({"count": count, "width": width, "rows_per_s": speeds, "differ": differ, "xsim": error, "memory": block})
    if options.out:
        options.out.write_text(
            json.dumps({"threads": options.threads, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
