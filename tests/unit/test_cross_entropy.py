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
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 1)
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


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_a_trained_weight_gets_its_gradient_under_autocast(monkeypatch: pytest.MonkeyPatch, held: torch.dtype) -> None:
    """Gradients are added up over several chunks, in the weight's own precision."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 16)
    torch.manual_seed(0)
    hidden, targets = torch.randn(50, 16), torch.randint(40, (50,))
    weight = torch.randn(40, 16).to(held).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy.linear_cross_entropy(hidden, weight, targets)[0].backward()
    exact = weight.detach().float().requires_grad_()
    F.cross_entropy(hidden @ exact.T, targets, reduction="sum").backward()
    assert weight.grad is not None and exact.grad is not None and weight.grad.dtype == held
    assert (weight.grad - exact.grad).norm() < 0.01 * exact.grad.norm()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = torch.tensor([[1e4], [-1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.5]])
    total, losses = cross_entropy.linear_cross_entropy(hidden, weight, torch.tensor([0, 0]))
    assert losses.tolist() == [0.0, 2e4]
    (gradient,) = torch.autograd.grad(total, hidden)
    assert gradient[:, 0].tolist() == [0.0, -2.0]  # certain and right; certain and wrong
