"""Packed sequences against the padded way of doing the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sonarkit.core.packing import chunks_by_tokens, pack, packing_of

SEQUENCES = [[5, 6, 7], [1], [2, 3, 4], [8, 9]]


def test_sequences_lie_sorted_by_length_and_the_order_is_known() -> None:
    ids, packing = pack(SEQUENCES)
    assert ids.tolist() == [1, 8, 9, 5, 6, 7, 2, 3, 4]
    assert packing.blocks == ((1, 1), (1, 2), (2, 3))
    assert packing.positions().tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2]
    firsts = torch.cat([block[:, 0] for block in packing.split(ids)])
    assert packing.in_callers_order(firsts[:, None])[:, 0].tolist() == [s[0] for s in SEQUENCES]


def test_spread_gives_each_token_its_sequence_row() -> None:
    _, packing = pack(SEQUENCES)
    rows = torch.arange(4.0)[:, None]
    assert packing.spread(rows)[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("longest_plain", [0, 3, 128])  # all by the fused kernel, the longest block only, none
def test_attention_and_its_gradient_equal_padded_attention_with_a_mask(
    monkeypatch: pytest.MonkeyPatch, causal: bool, longest_plain: int
) -> None:
    monkeypatch.setattr("sonarkit.core.packing.PLAIN_LENGTHS", (longest_plain, longest_plain))
    torch.manual_seed(0)
    heads, width, lengths = 2, 8, [3, 1, 4, 3]
    packing = packing_of(lengths)
    padded = torch.randn(4, 4, 3 * width, dtype=torch.float64, requires_grad=True)
    flat = torch.cat([padded[i, : lengths[i]] for i in packing.order_N.tolist()])
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    allowed = mask[:, None, None, :].expand(-1, -1, 4, -1)
    if causal:
        allowed = allowed & torch.ones(4, 4, dtype=torch.bool).tril()
    query, key, value = padded.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2).flatten(2)
    expected = torch.cat([expected[i, : lengths[i]] for i in packing.order_N.tolist()])
    attended = packing.attention(flat, heads, causal)
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(packing.attention(flat.detach(), heads, causal), expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    ours, plain = (torch.autograd.grad((x * weights).sum(), padded, retain_graph=True)[0] for x in (attended, expected))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_attention_in_bfloat16_stays_near_that_in_float32() -> None:
    torch.manual_seed(0)
    packing = packing_of([5, 9, 9])
    qkv = torch.randn(23, 3 * 32)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        x = qkv.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            attended = packing.attention(x, 4, causal=True)
        (gradient,) = torch.autograd.grad(attended.square().sum(), x)
        assert attended.dtype == gradient.dtype == dtype
        results.append((attended.float(), gradient.float()))
    for exact, rounded in zip(*results):
        assert 0 < (exact - rounded).norm() < 0.02 * exact.norm()


def test_chunks_hold_everything_once_within_the_budget() -> None:
    lengths = [5, 3, 9, 1, 1, 7, 20]
    chunks = chunks_by_tokens(lengths, 10)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(7))
    assert all(sum(lengths[i] for i in chunk) <= 10 or len(chunk) == 1 for chunk in chunks)
    assert [6] in chunks  # longer than the budget: alone, not lost


def test_dropout_of_attention_weights_keeps_their_mean() -> None:
    torch.manual_seed(0)
    packing = packing_of([3, 5, 5])
    qkv = torch.randn(13, 24, dtype=torch.float64, requires_grad=True)
    plain = packing.attention(qkv, 2, causal=True)
    drawn = torch.stack([packing.attention(qkv, 2, True, dropout=0.25) for _ in range(4000)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), plain, atol=0.1, rtol=0)
    assert torch.equal(packing.attention(qkv, 2, True, dropout=0.0), plain)
