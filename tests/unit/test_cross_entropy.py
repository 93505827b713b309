"""The chunked cross-entropy against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sonarkit.core import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("frozen", [True, False])
def test_value_and_gradients_equal_the_plain_path(monkeypatch: pytest.MonkeyPatch, smoothing: float, frozen: bool) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 11 * 3)  # three rows a chunk
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=not frozen)
    targets = torch.randint(11, (10,))
    total, losses = cross_entropy.linear_cross_entropy(hidden, weight, targets, smoothing)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-12)
    inputs = [hidden] if frozen else [hidden, weight]
    for ours, plain in zip(torch.autograd.grad(3 * total, inputs), torch.autograd.grad(3 * expected.sum(), inputs)):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_autocast_computes_the_products_in_bfloat16_and_the_sums_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 16, requires_grad=True), torch.randn(40, 16), torch.randint(40, (50,))
    exact, _ = cross_entropy.linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, losses = cross_entropy.linear_cross_entropy(hidden, weight, targets)
    assert losses.dtype == torch.float32
    assert rounded.item() != exact.item()
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
