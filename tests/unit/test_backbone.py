"""The Llama-style backbone against a plain rewriting of its blocks, and its incremental path."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from sonarkit.core.packing import packing_of
from sonarkit.models import backbone as backbones
from sonarkit.models.backbone import Backbone, BackboneConfig, Block, recompute, rope_frequencies

CONFIG = BackboneConfig(hidden=12, ffn=20, layers=2, heads=3, head_dim=8)  # heads x head_dim is not hidden


def plain_forward(backbone: Backbone, x_SH: torch.Tensor) -> torch.Tensor:
    """One document, written out: rotate_half as in Hugging Face's Llama, softmax with a causal mask."""
    length, config = len(x_SH), backbone.config
    angles = torch.outer(torch.arange(length), rope_frequencies(config, x_SH.device))  # float32, as everywhere
    cos, sin = (turn(torch.cat([angles, angles], -1)).to(x_SH.dtype) for turn in (torch.cos, torch.sin))

    def turned(x: torch.Tensor) -> torch.Tensor:  # (heads, S, d)
        half = torch.cat([-x[..., config.head_dim // 2 :], x[..., : config.head_dim // 2]], -1)
        return x * cos + half * sin

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * weight

    x = x_SH
    for layer in backbone.layers:
        a = layer.self_attn
        normed = rms(x, layer.input_layernorm.weight)
        q, k, v = (p(normed).view(length, config.heads, -1).transpose(0, 1) for p in (a.q_proj, a.k_proj, a.v_proj))
        weights = turned(q) @ turned(k).mT / math.sqrt(config.head_dim)
        weights = weights.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        x = x + a.o_proj((weights @ v).transpose(0, 1).flatten(1))
        normed = rms(x, layer.post_attention_layernorm.weight)
        x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))
    return rms(x, backbone.norm.weight)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(CONFIG).double()


def test_packed_documents_equal_the_plain_forward(backbone: Backbone) -> None:
    lengths = [4, 2, 7, 4]
    packing = packing_of(lengths)
    documents = [torch.randn(n, 12, dtype=torch.float64) * 3 for n in lengths]
    order = packing.order_N.tolist()
    packed = backbone(torch.cat([documents[i] for i in order]), packing)
    expected = torch.cat([plain_forward(backbone, documents[i]) for i in order])
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-10)


def test_reading_bit_by_bit_with_rows_of_unequal_length_equals_reading_at_once(backbone: Backbone) -> None:
    first, second = torch.randn(6, 12, dtype=torch.float64), torch.randn(4, 12, dtype=torch.float64)
    context = backbone.empty_context(2, 6)
    start = torch.nn.utils.rnn.pad_sequence([first[:4], second[:2]], batch_first=True, padding_value=9.0)
    with torch.no_grad():
        at_start = backbone.extend(start, context, torch.tensor([4, 2]))
        torch.testing.assert_close(at_start[0, 3], backbone(first[:4], packing_of([4]))[-1])
        torch.testing.assert_close(at_start[1, 1], backbone(second[:2], packing_of([2]))[-1])
        for step in range(2):
            last = backbone.extend(torch.stack([first[4 + step], second[2 + step]])[:, None], context, torch.tensor([1, 1]))
        torch.testing.assert_close(last[0, 0], backbone(first, packing_of([6]))[-1])
        torch.testing.assert_close(last[1, 0], backbone(second, packing_of([4]))[-1])
        kept = context.select(torch.tensor([1]))
    assert kept.lengths_B.tolist() == [4]


def value_and_gradients(backbone: Backbone, x_TH: torch.Tensor) -> tuple[torch.Tensor, ...]:
    packed = backbone(x_TH, packing_of([4, 2, 7, 4]))
    return packed, *torch.autograd.grad(packed.square().sum(), [x_TH, *backbone.parameters()])


def test_recomputing_changes_no_value_and_no_gradient_and_keeps_less(backbone: Backbone) -> None:
    x, kept = torch.randn(17, 12, dtype=torch.float64, requires_grad=True), []
    plain = value_and_gradients(backbone, x)

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    amounts = []
    for on in (False, True, False):
        recompute(backbone.layers, on)
        for ours, theirs in zip(value_and_gradients(copy.deepcopy(backbone), x), plain):  # a copy recomputes with its own weights
            assert torch.equal(ours, theirs)
        with torch.no_grad():  # by another attention kernel
            torch.testing.assert_close(backbone(x, packing_of([4, 2, 7, 4])), plain[0], rtol=0, atol=1e-12)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backbone(x, packing_of([4, 2, 7, 4]))
        amounts.append(sum(kept))
    assert amounts[0] == amounts[2] > 4 * amounts[1]
    assert list(backbone.state_dict()) == list(Backbone(CONFIG).state_dict())


def test_a_copy_of_a_model_that_recomputes_uses_its_own_weights(backbone: Backbone) -> None:
    recompute(backbone.layers)
    other, x = copy.deepcopy(backbone), torch.randn(17, 12, dtype=torch.float64)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    assert not torch.equal(other(x, packing_of([17])), backbone(x, packing_of([17])))


def test_compiled_blocks_change_no_value_and_are_compiled_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layers and any lengths share one graph for each half, forward and backward; with recomputing, too."""
    graphs: list[object] = []

    def backend(graph: object, inputs: object) -> object:
        graphs.append(graph)
        return graph

    backbones.compiled_parts.cache_clear()
    monkeypatch.setattr(backbones.torch, "compile", partial(torch.compile, backend=backend))
    lengths: list[list[int]] = [[4, 2, 7, 4], [3, 3], [9, 1, 5]]
    inputs = [torch.randn(sum(each), 12, dtype=torch.float64, requires_grad=True) for each in lengths]
    packings = [packing_of(each) for each in lengths]

    def gradients(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output.square().sum(), list(backbone.parameters()), retain_graph=True)

    try:
        plain = [backbone(x, packing) for x, packing in zip(inputs, packings)]
        for layer in backbone.layers:
            assert isinstance(layer, Block)
            layer.compiled = True
        for checkpointing in (False, True):
            recompute(backbone.layers, checkpointing)
            for x, packing, expected in zip(inputs, packings, plain):
                compiled = backbone(x, packing)
                torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-12)
                for ours, theirs in zip(gradients(compiled), gradients(expected)):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
        assert len(graphs) == 2
    finally:
        backbones.compiled_parts.cache_clear()


def test_attention_weights_are_those_of_the_forward_pass(backbone: Backbone) -> None:
    """Rows sum to 1, nothing lies ahead, and weights @ values is what each layer's attention gives out."""
    x, packing = torch.randn(5, 12, dtype=torch.float64), packing_of([5])
    weights = backbone.attention(x)
    assert weights.shape == (2, 3, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert not weights.triu(1).any() and (weights[..., 0] > 0).all()
    angles = torch.outer(torch.arange(5), rope_frequencies(CONFIG, x.device))
    for layer, weights_NSS in zip(backbone.layers, weights):
        normed, attention = layer.input_layernorm(x), layer.self_attn
        values = attention.v_proj(normed).unflatten(-1, (3, 8)).transpose(0, 1)  # (heads, S, d)
        rebuilt = attention.o_proj((weights_NSS @ values).transpose(0, 1).flatten(1))
        torch.testing.assert_close(rebuilt, attention(normed, angles, packing))
        x = layer(x, angles, packing)


def test_rope_scaling_is_llama_3s() -> None:
    """High frequencies kept, low ones divided by the factor, smooth between (formula of Llama 3.1's release)."""
    config = BackboneConfig(64, 64, 1, 1, 64)
    scaled = rope_frequencies(config, torch.device("cpu"))
    for i, frequency in enumerate(500_000.0 ** -(torch.arange(0, 64, 2) / 64)):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected = frequency
        elif wavelength > 8192 / 1:
            expected = frequency / 32
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 32 + smooth * frequency
        assert scaled[i].item() == pytest.approx(float(expected), rel=1e-5)


def test_a_factor_of_1_leaves_the_frequencies_as_they_are() -> None:
    plain = rope_frequencies(BackboneConfig(64, 64, 1, 1, 64, rope_factor=1.0), torch.device("cpu"))
    torch.testing.assert_close(plain, 500_000.0 ** -(torch.arange(0, 64, 2) / 64))


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim even"):
        BackboneConfig(12, 20, 2, 3, 7)
