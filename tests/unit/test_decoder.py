"""The decoder: the cross-attention identity, incremental decoding, and what a prefix may see."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.config import codec_config
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.layers import sinusoidal_positions
from sonarkit.core.packing import pack

CONFIG = codec_config(
    ("eng_Latn",), vocab_size=23, width=16, encoder_layers=2, decoder_layers=2, heads=4, ffn=32, dropout=0.0, max_tokens=20
)


def test_the_sentence_term_is_cross_attention_to_one_vector_in_value_and_gradient() -> None:
    """Plain attention with queries, keys and a softmax over the single key, against W_o(W_v z + b_v) + b_o."""
    torch.manual_seed(0)
    decoder = Decoder(CONFIG.decoder, 16, 23, 20).double()
    terms = decoder.sentence_terms
    for bias in (terms.value_bias, terms.output_bias):
        torch.nn.init.normal_(bias)
    z = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    ours = terms(z)
    for layer in range(2):
        query = torch.randn(3, 5, 16, dtype=torch.float64)  # whatever the tokens ask
        key = z @ torch.randn(16, 16, dtype=torch.float64)
        value = z @ terms.value_weight[layer].T + terms.value_bias[layer]
        q, k, v = (x.view(3, -1, 4, 4).transpose(1, 2) for x in (query, key[:, None], value[:, None]))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        plain = attended @ terms.output_weight[layer].T + terms.output_bias[layer]
        torch.testing.assert_close(ours[layer, :, None].expand(-1, 5, -1), plain, rtol=0, atol=1e-12)
        weights = torch.randn_like(plain)
        (from_plain,) = torch.autograd.grad((plain * weights).sum(), z, retain_graph=True)
        (from_ours,) = torch.autograd.grad((ours[layer][:, None] * weights).sum(), z, retain_graph=True)
        torch.testing.assert_close(from_ours, from_plain, rtol=0, atol=1e-10)


def test_token_by_token_decoding_gives_the_probabilities_of_teacher_forcing() -> None:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG.decoder, 16, 23, 20).eval()
    z, target = torch.randn(2, 16), [3, 20, 7, 8, 9, 3]
    _, losses = decoder.token_losses(z[:1], *pack([target]))
    state = decoder.start(z, 10)
    log_probs = [decoder.step(torch.tensor([token, token]), state) for token in target[:-1]]
    stepped = [-log_probs[i][0, target[i + 1]].item() for i in range(1, len(target) - 1)]
    torch.testing.assert_close(losses, torch.tensor(stepped), rtol=0, atol=1e-5)


def test_losses_are_gathered_for_the_right_sentence_whatever_the_order() -> None:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG.decoder, 16, 23, 20).eval()
    z, targets = torch.randn(3, 16), [[3, 20, 7, 8, 3], [3, 20, 3], [3, 20, 5, 3]]
    together, losses = decoder.token_losses(z, *pack(targets))
    alone = [decoder.token_losses(z[i : i + 1], *pack([targets[i]]))[0] for i in range(3)]
    assert len(losses) == 3 + 1 + 2  # pieces and </s>, not the language token
    torch.testing.assert_close(together, sum(alone), rtol=1e-6, atol=1e-5)


def test_a_decoder_held_in_bfloat16_keeps_its_residual_stream_in_float32() -> None:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG.decoder, 16, 23, 20).eval().requires_grad_(False)
    held = copy.deepcopy(decoder).to(torch.bfloat16)
    stream: list[torch.dtype] = []
    for module in (held.layers[0].attention_norm, held.layers[1].ffn_norm, held.norm):
        module.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0].dtype))
    z, targets = torch.randn(3, 16, requires_grad=True), pack([[3, 20, 7, 8, 3], [3, 20, 3], [3, 20, 5, 3]])
    found = []
    for each in (decoder, held):
        with torch.autocast("cpu", torch.bfloat16):
            total, losses = each.token_losses(z, *targets)
        assert losses.dtype == torch.float32
        found.append((losses, *torch.autograd.grad(total, z)))
    assert stream == [torch.float32] * 3
    for one, other in zip(*found):
        assert 0 < (one - other).norm() < 0.02 * one.norm()


def test_a_frozen_decoder_computes_no_gradient_of_its_weights_and_keeps_nothing_for_it() -> None:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG.decoder, 16, 23, 20).eval()
    z, (targets, packing) = torch.randn(3, 16, requires_grad=True), pack([[3, 20, 7, 8, 3], [3, 20, 3], [3, 20, 5, 3]])
    sizes, gradients = [], []
    for trained in (True, False):
        decoder.requires_grad_(trained)
        kept: dict[int, int] = {}

        def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            total, _ = decoder.token_losses(z, targets, packing)
        for parameter in decoder.parameters():
            kept.pop(parameter.untyped_storage().data_ptr(), None)
        total.backward()
        sizes.append(sum(kept.values()))
        gradients.append(z.grad)
        assert all((p.grad is not None) == trained for p in decoder.parameters())
        z.grad = None
        decoder.zero_grad(set_to_none=True)
    torch.testing.assert_close(*gradients)
    assert sizes[1] < 0.6 * sizes[0]


def test_positions_are_those_of_fairseq() -> None:
    table = sinusoidal_positions(2, 4, 8, torch.device("cpu"))
    assert torch.allclose(table[0, 0], torch.tensor(2.0).sin())  # the first token stands at position 2
    assert torch.allclose(table[3, 4], torch.tensor(5.0).cos())
    assert torch.allclose(table[1, 3], (3 * torch.tensor(10_000.0) ** -1).sin())
