"""xsim in blocks against the whole matrix at once, its memory, xsim++ and Tatoeba's accuracy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.evaluation import xsim
from sonarkit.evaluation.xsim import best_matches, search_accuracy, working_memory, xsim_error, xsim_plus_plus


def plain(x: Tensor, y: Tensor, k: int = 4) -> Tensor:
    """The margins of all pairs, from the whole matrix."""
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    mean_x = cosines.sort(1, descending=True).values[:, :k].mean(1)
    mean_y = cosines.sort(0, descending=True).values[:k].mean(0)
    return cosines / ((mean_x[:, None] + mean_y) / 2)


def pairs(n: int, m: int, width: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n vectors around a common direction and m candidates, the first of which are noisy copies."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, width, generator=draw) + 0.5, torch.randn(m, width, generator=draw) + 0.5
    both = min(n, m)
    y[:both] = x[:both] + noise * y[:both]
    return x, y


@pytest.mark.parametrize(
    "n, m, width, chunk", [(300, 500, 8, 64), (900, 700, 16, 333), (700, 900, 12, 2048), (5, 3, 4, 2), (1, 2, 3, 1)]
)
def test_blocks_find_what_the_whole_matrix_says(n: int, m: int, width: int, chunk: int) -> None:
    x, y = pairs(n, m, width, 0.8)
    margins = plain(x, y)
    found = best_matches(x, y, chunk=chunk)
    torch.testing.assert_close(margins.gather(1, found[:, None])[:, 0], margins.max(1).values)
    assert 0 < (found[: min(n, m)] != torch.arange(min(n, m))).float().mean() < 0.9 or n <= 5


def test_the_second_pass_finds_what_is_beyond_the_neighbours() -> None:
    """A y with lonely surroundings wins by margin though four others have higher cosines."""
    x, y = pairs(700, 900, 8, 1.5)
    near, far = best_matches(x, y, among="neighbours"), best_matches(x, y)
    margins = plain(x, y)
    assert (near != far).any() and torch.equal(far, margins.argmax(1))
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    inside = torch.zeros_like(margins, dtype=torch.bool).scatter_(1, cosines.topk(4, 1).indices, True)
    assert torch.equal(near, margins.masked_fill(~inside, -1).argmax(1))  # as LASER's code has it


@pytest.mark.parametrize("seed", range(40))
def test_any_sizes_and_any_crowding(seed: int) -> None:
    """Few or many on either side, on one side of the origin or around it, where means may be negative: always the best margin."""
    draw = torch.Generator().manual_seed(seed)
    n, m, width, chunk = (
        int(torch.randint(low, high, (1,), generator=draw)) for low, high in ((1, 200), (2, 200), (2, 12), (5, 250))
    )
    shift, lengths = float(torch.rand(1, generator=draw)), 1 + torch.rand(m, 1, generator=draw)
    x, y = torch.randn(n, width, generator=draw) + shift, torch.randn(m, width, generator=draw) * lengths + shift
    margins, found = plain(x, y), best_matches(x, y, chunk=chunk)
    torch.testing.assert_close(margins.gather(1, found[:, None])[:, 0], margins.max(1).values, rtol=1e-4, atol=1e-4)


def test_cosine_alone_and_half_precision() -> None:
    x, y = pairs(300, 400, 16, 0.7)
    nearest = (F.normalize(x, dim=1) @ F.normalize(y, dim=1).T).argmax(1)
    assert torch.equal(best_matches(x, y, score="cosine", chunk=77), nearest)
    half = best_matches(x.half(), y.half())  # as a store keeps them
    assert torch.equal(half, plain(x.half().float(), y.half().float()).argmax(1))


@pytest.mark.parametrize("columns", [3, 128, 129, 700, 2048])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_the_largest_by_groups_are_the_largest(columns: int, k: int) -> None:
    block = torch.randn(50, columns, generator=torch.Generator().manual_seed(columns)).round(decimals=1)  # with ties
    for given, dim in ((block, 1), (block.T.contiguous(), 0)):
        values, at = xsim._largest(given, k, dim)
        torch.testing.assert_close(values.sort(1).values, block.topk(min(k, columns), 1).values.sort(1).values)
        assert torch.equal(block.gather(1, at), values)
        assert all(len(set(row)) == len(row) for row in at.tolist())


MEASURE = """
import sys, torch
from pathlib import Path
from sonarkit.evaluation.xsim import best_matches
def resident(name):
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))
torch.set_num_threads(1)
count, width, chunk = map(int, sys.argv[1:])
x = torch.randn(count, width)
best_matches(x[:64], x[:64])  # what the libraries take for themselves
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
best_matches(x, x, chunk=chunk, among="neighbours")
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and resets the peak")
def test_memory_is_bounded_by_the_block_not_by_the_matrix() -> None:
    def peak(count: int, chunk: int) -> int:
        command = [sys.executable, "-c", MEASURE, str(count), "16", str(chunk)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    slack = 12 << 20  # the allocator's, and the matrix product's own
    small, large = peak(12_000, 512), peak(12_000, 4096)
    assert small < working_memory(12_000, 12_000, 16, chunk=512) + slack < (12_000**2 * 4) / 10  # a tenth of the matrix
    assert 4096**2 * 4 < large < working_memory(12_000, 12_000, 16, chunk=4096) + slack
    assert working_memory(10**6, 10**6, 1024) < 400 << 20  # a million by a million


def test_bad_input_is_named() -> None:
    x = torch.randn(3, 4)
    for args in ((x, torch.randn(3, 5)), (x, x[:1]), (x[:0], x), (x[0], x)):
        with pytest.raises(ValueError, match=r"shape \(N, D\).*at least 2"):
            best_matches(*args)
    with pytest.raises(ValueError, match="at least 2"):
        xsim_error(x[:1], x[:1])
    for one in (float("nan"), float("inf")):
        broken = x.clone()
        broken[1, 2] = one
        for pair in ((x, broken), (broken, x)):
            with pytest.raises(ValueError, match="NaN or infinity"):
                best_matches(*pair)
    with pytest.raises(ValueError, match="1 negatives and 2 kinds"):
        xsim_plus_plus(x, x, x[:1], ["number", "entity"])


def test_hard_negatives_are_counted_by_kind() -> None:
    """Four orthogonal sentences; x_1 is nearer to a negative of its own, x_2 to one of another's, x_3 to another translation."""
    y = torch.eye(8)[:4]
    negatives = torch.eye(8)[4:7] + 0.8 * torch.eye(8)[[0, 1, 2]]
    x = y.clone()
    x[1], x[2], x[3] = negatives[1], negatives[0], y[0] + 0.1 * y[3]
    found = xsim_plus_plus(x, y, negatives, ["causality", "entity", "number"])
    assert found.error == 3 / 4
    assert found.by_kind == {"causality": 1 / 4, "entity": 1 / 4, "number": 0, "other sentence": 1 / 4}
    without = xsim_plus_plus(x, y, y[:0], [])
    assert without.error == xsim_error(x, y) and list(without.by_kind) == ["other sentence"]


def test_accuracy_differs_by_direction() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    x = torch.tensor([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.1]])  # the second is nearest to the first y
    assert search_accuracy(x, y) == (2 / 3, 1.0)
