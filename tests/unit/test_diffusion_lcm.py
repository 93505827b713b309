"""The diffusion LCM: schedules and DDIM by hand, loss and sampling against the plain path, what it learns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_backbone import plain_forward  # type: ignore[import-not-found]
from test_mse_lcm import LENGTHS, SHAPE, documents, learn, normalizer_of  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.packing import packing_of
from sonarkit.models.backbone import Backbone
from sonarkit.models.diffusion_lcm import (
    Denoiser,
    DiffusionLCM,
    DiffusionLCMConfig,
    NoiseSchedule,
    SamplingConfig,
    ddim_step,
    guided,
    noise_in,
    towers,
    trailing_timesteps,
    weights_of,
)
from sonarkit.models.mse_lcm import MseLCM, MseLCMConfig
from sonarkit.recipes import SONAR_LLM_SIZES
from sonarkit.store.normalizer import Normalizer
from sonarkit.store.reader import Document
from sonarkit.study import SIZES

FEW = SamplingConfig(steps=5)
PACKED = packing_of([3, 4])


@pytest.fixture
def model(sonar: Sonar) -> DiffusionLCM:
    """Random weights everywhere, the zeros of AdaLN-zero included: else most of it would do nothing."""
    torch.manual_seed(0)
    config = DiffusionLCMConfig(SHAPE, 3, 32, "tiny", sonar.fingerprint(), NoiseSchedule(timesteps=10))
    return shaken(DiffusionLCM(config, sonar, normalizer_of(documents()))).eval()


@torch.no_grad()
def shaken(model: DiffusionLCM) -> DiffusionLCM:
    for layer in model.denoiser.layers:
        for parameter in layer.modulation.parameters():
            parameter.normal_(std=0.3)
    for name, parameter in model.denoiser.named_parameters():
        if name.endswith("proj.weight"):
            parameter.mul_(10)
    return model


# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize("kind", ["cosine", "quadratic", "sigmoid"])
@pytest.mark.parametrize("timesteps", [4, 100])
def test_schedules_are_their_formulas_and_end_in_pure_noise(kind: str, timesteps: int) -> None:
    def betas(i: int) -> float:
        t, t_after = i / timesteps, (i + 1) / timesteps
        if kind == "quadratic":
            return (math.sqrt(1e-4) + (math.sqrt(0.02) - math.sqrt(1e-4)) * i / (timesteps - 1)) ** 2
        if kind == "cosine":
            left, left_after = (math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2 for time in (t, t_after))
        else:  # the logistic function of -1.5 logit(t), written with odds
            left, left_after = (1 / (1 + (time / (1 - time)) ** 1.5) if time < 1 else 0.0 for time in (t, t_after))
        return min(1 - left_after / left, 0.999)

    roots = [math.sqrt(math.prod(1 - betas(i) for i in range(t + 1))) for t in range(timesteps)]
    expected = [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]
    found = NoiseSchedule(kind, timesteps).alpha_bars()  # type: ignore[arg-type]
    assert found[-1] == 0 and found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-15)
    assert found[0].item() == pytest.approx(1 - betas(0), rel=1e-12)
    assert (found.diff() < 0).all()


# Of the published `DDIMScheduler` (facebookresearch/large_concept_model), in float32, at timesteps 0, 25, 50, 98 of 100.
PUBLISHED = {
    "cosine": [0.999369, 0.835543, 0.478054, 0.000227965],
    "quadratic": [0.9999, 0.932721, 0.666705, 0.000541036],
    "sigmoid": [0.998986, 0.82747, 0.484577, 0.000952952],
}


@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_schedules_are_those_of_the_published_code(kind: str) -> None:
    found = NoiseSchedule(kind).alpha_bars()[[0, 25, 50, 98]]  # type: ignore[arg-type]
    torch.testing.assert_close(found.float(), torch.tensor(PUBLISHED[kind]), rtol=1e-5, atol=1e-6)


def test_trailing_timesteps_begin_with_the_last_and_are_evenly_spaced() -> None:
    assert trailing_timesteps(1000, 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert trailing_timesteps(5, 5) == [4, 3, 2, 1, 0]
    forty = trailing_timesteps(100, 40)
    assert len(forty) == 40 and forty[0] == 99 and {a - b for a, b in zip(forty, forty[1:])} == {2, 3}
    with pytest.raises(ValueError, match="11 sampling steps.*10 timesteps"):
        trailing_timesteps(10, 11)


def test_what_no_schedule_or_sampling_can_be_is_refused() -> None:
    for wrong in ({"kind": "linear"}, {"timesteps": 1}, {"beta_start": 0.1}, {"sigmoid_alpha": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            NoiseSchedule(**wrong)
    for wrong in ({"steps": 0}, {"rescale": 1.5}, {"eta": -0.1}, {"epsilon_scaling": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            SamplingConfig(**wrong)
    for wrong in ({"denoiser_layers": 0}, {"denoiser_layers": 1, "context_dropout": 1.0}):
        with pytest.raises(ValueError, match="must be"):
            DiffusionLCMConfig(SHAPE, **wrong)


# ---------------------------------------------------------------------- DDIM


def test_a_ddim_step_by_hand() -> None:
    """alpha-bar 0.25 to 0.64; x = 0.5 z + sqrt(0.75) e with z = 3 and e = -1."""
    x, clean = torch.tensor([0.5 * 3 - math.sqrt(0.75)], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    noise = noise_in(x, clean, 0.25)
    assert noise.item() == pytest.approx(-1, rel=1e-14)
    plain = SamplingConfig(epsilon_scaling=1.0)
    assert ddim_step(clean, noise, 0.25, 0.64, plain).item() == pytest.approx(0.8 * 3 - 0.6, rel=1e-14)
    scaled = replace(plain, epsilon_scaling=1.25)
    assert ddim_step(clean, noise, 0.25, 0.64, scaled).item() == pytest.approx(0.8 * 3 - 0.6 / 1.25, rel=1e-14)
    noisy = replace(plain, eta=0.5)  # spread 0.5 sqrt(0.36 / 0.75 (1 - 0.25 / 0.64))
    spread = 0.5 * math.sqrt(0.48 * 0.609375)
    expected = 0.8 * 3 - math.sqrt(0.36 - spread**2) + spread * 2
    assert ddim_step(clean, noise, 0.25, 0.64, noisy, torch.full_like(x, 2.0)).item() == pytest.approx(expected, rel=1e-14)


def test_guidance_by_hand() -> None:
    conditional, unconditional = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    # pushed to [1, 7]: a spread of 6 where it was 2, of which 0.7 is undone: 0.7 / 3 + 0.3
    found = guided(conditional, unconditional, SamplingConfig(guidance=3, rescale=0.7))
    torch.testing.assert_close(found, torch.tensor([[1.0, 7.0]]).double() * (0.7 / 3 + 0.3))
    for rescale in (0.0, 0.7):  # a weight of 1 is no guidance
        found = guided(conditional, unconditional, SamplingConfig(guidance=1, rescale=rescale))
        torch.testing.assert_close(found, conditional)


class Knows(torch.nn.Module):
    """Stands in for the last layer of a denoiser that knows the vector beneath the noise."""

    def __init__(self, clean_BD: Tensor) -> None:
        super().__init__()
        self.clean_BD = clean_BD

    def forward(self, hidden_RH: Tensor) -> Tensor:
        return self.clean_BD.repeat(len(hidden_RH) // len(self.clean_BD), 1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_model_that_knows_the_vector_samples_it(model: DiffusionLCM, eta: float) -> None:
    clean_BD = torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    model.denoiser.final = Knows(clean_BD)  # type: ignore[assignment]
    sampled_BD = model.predict_next(torch.randn(3, 4, 32), SamplingConfig(steps=7, eta=eta))
    torch.testing.assert_close(sampled_BD, model.normalizer.denormalize(clean_BD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "quadratic", "sigmoid"])
@pytest.mark.parametrize("steps", [1, 40, 50, 100])
def test_fresh_noise_in_every_step_is_drawn_from_any_schedule(kind: Any, steps: int) -> None:
    schedule, sampling, x = NoiseSchedule(kind), SamplingConfig(steps=steps, eta=1.0), torch.ones(4)
    alphas = [*(float(schedule.alpha_bars()[t]) for t in trailing_timesteps(schedule.timesteps, steps)), 1.0]
    for alpha_bar, before in itertools.pairwise(alphas):
        x = ddim_step(torch.zeros(4), x, alpha_bar, before, sampling, torch.ones(4))
        assert x.isfinite().all()


# ---------------------------------------------------------------------- the loss


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(L, H), (S, H), (S, H) -> (L, H), three heads of 8."""
    q, k, v = (x.unflatten(-1, (3, 8)).transpose(0, 1) for x in (q, k, v))
    return ((q @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(0, 1).flatten(1)


def plain_denoised(model: DiffusionLCM, noisy_D: Tensor, timestep: int, contexts_SH: Tensor) -> Tensor:
    """(D,) one vector denoised, written out: its self-attention has a query, a key and a softmax; zeros are a context, too."""
    denoiser, hidden = model.denoiser, SHAPE.hidden
    places = torch.arange(128, dtype=torch.float64)
    angles = timestep * torch.exp(-math.log(10_000) * places / 128)
    waves = torch.cat([angles.cos(), angles.sin()]).to(noisy_D.dtype)
    time_H = denoiser.time.second(F.silu(denoiser.time.first(waves)))
    x_1H = denoiser.initial(noisy_D[None])
    contexts_SH = torch.cat([torch.zeros(1, hidden, dtype=noisy_D.dtype), contexts_SH])
    for layer in denoiser.layers:
        parts = F.linear(F.silu(time_H), layer.modulation.weight, layer.modulation.bias).view(3, 3, hidden)
        (shift, scale, gate), cross, feed = parts
        y = layer.own_norm(x_1H) * (1 + scale) + shift
        to_query, to_key = torch.randn(2, hidden, 24, dtype=y.dtype)
        x_1H = x_1H + gate * layer.own_output(attend(y @ to_query, y @ to_key, layer.own_value(y)))
        y = layer.cross_norm(x_1H) * (1 + cross[1]) + cross[0]
        attended = attend(layer.q_proj(y), layer.k_proj(contexts_SH), layer.v_proj(contexts_SH))
        x_1H = x_1H + cross[2] * layer.o_proj(attended)
        y = layer.mlp_norm(x_1H) * (1 + feed[1]) + feed[0]
        x_1H = x_1H + feed[2] * layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
    return denoiser.final(denoiser.norm(x_1H))[0]


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_equals_the_plain_path_in_value_and_gradient(model: DiffusionLCM, training: bool) -> None:
    """In float64, to 1e-10: one sentence at a time, each with its contexts computed anew, some of them dropped in training."""
    model.config = replace(model.config, context_dropout=0.4)  # type: ignore[assignment]
    model.double().train(training)
    batch = sorted(documents(dtype=torch.float64), key=lambda d: len(d.vectors_SD))
    target_TD = model.normalizer.normalize(torch.cat([d.vectors_SD for d in batch]))
    torch.manual_seed(3)
    timestep_T, noise_TD, kept_T1 = model._drawn(batch, target_TD)
    assert kept_T1.all() != training
    errors = []
    place = 0
    for document in batch:
        z_SD = (document.vectors_SD - model.normalizer.center_D) / model.normalizer.scale_D
        for i, z_D in enumerate(z_SD):
            contexts_SH = plain_forward(model.backbone, model.pre_net(z_SD[:i])) if i else z_SD.new_zeros(0, SHAPE.hidden)
            left = model.config.noise.alpha_bars()[timestep_T[place]]
            noisy_D = left.sqrt() * z_D + (1 - left).sqrt() * noise_TD[place]
            seen_SH = contexts_SH if kept_T1[place] else contexts_SH[:0]
            errors.append(plain_denoised(model, noisy_D, int(timestep_T[place]), seen_SH) - z_D)
            place += 1
    error_TD = torch.stack(errors)
    torch.manual_seed(3)
    loss = model.loss(batch)
    assert loss.count == sum(LENGTHS) == len(error_TD)
    torch.testing.assert_close(loss.total, error_TD.square().sum(), rtol=1e-10, atol=0)
    raw, count = loss.parts["l2_per_sentence"]
    assert count == loss.count
    torch.testing.assert_close(raw, (error_TD.detach() * model.normalizer.scale_D).norm(dim=1).sum(), rtol=1e-10, atol=0)
    ours, plain = (torch.autograd.grad(total, list(model.parameters())) for total in (loss.total, error_TD.square().sum()))
    for (name, _), one, other in zip(model.named_parameters(), ours, plain):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(other.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


def test_an_evaluation_repeats_itself_and_does_not_depend_on_batches(model: DiffusionLCM) -> None:
    model.double()
    batch = documents(dtype=torch.float64)
    whole, parts = model.loss(batch), [model.loss([document]) for document in reversed(batch)]
    torch.testing.assert_close(whole.total, sum(part.total for part in parts), rtol=1e-12, atol=0)
    assert whole.count == sum(part.count for part in parts)
    model.train()
    assert model.loss(batch).total != model.loss(batch).total


def test_neither_other_documents_nor_what_comes_later_reach_a_denoised_vector(model: DiffusionLCM) -> None:
    """By gradient: a vector, denoised, depends on itself and on those before it in its document alone."""
    packed_TD = torch.cat([d.vectors_SD for d in documents((3, 4))]).requires_grad_()
    contexts_TH = model._contexts(packed_TD, PACKED)
    found_TD = model.denoiser(packed_TD, contexts_TH, torch.ones(7, 1), torch.full((7,), 6), PACKED)
    reached = torch.stack([torch.autograd.grad(row.sum(), packed_TD, retain_graph=True)[0].abs().sum(1) > 0 for row in found_TD])
    expected = torch.block_diag(torch.ones(3, 3).tril(), torch.ones(4, 4).tril()).bool()
    assert torch.equal(reached, expected)


def test_an_untrained_denoiser_passes_its_input_through_every_layer(sonar: Sonar) -> None:
    """AdaLN-zero: all gates begin at 0."""
    with torch.random.fork_rng():
        denoiser = Denoiser(SHAPE, 3, 32, 10)
    x_TH = torch.randn(7, 24)
    for layer in denoiser.layers:
        found = layer(x_TH, torch.randn(7, 24), torch.ones(7, 1), torch.randn(10, 24), torch.arange(7), PACKED)
        assert torch.equal(found, x_TH)


# ---------------------------------------------------------------------- sampling


def plain_sample(model: DiffusionLCM, vectors_SD: Tensor, sampling: SamplingConfig, seed: int) -> Tensor:
    """(D,) as `predict_next`, with nothing cached and the two branches one after the other; contexts by training's path."""
    z_SD = model.normalizer.normalize(vectors_SD)
    left = model.config.noise.alpha_bars().tolist()
    timesteps = trailing_timesteps(len(left), sampling.steps)
    fresh = model._fresh_noise([seed], [len(vectors_SD)], sampling).to(z_SD)[:, 0]
    x_D = clean_D = sampling.initial_noise * fresh[0]
    for i, t in enumerate(timesteps):
        contexts_SH = plain_forward(model.backbone, model.pre_net(z_SD))
        clean_D = plain_denoised(model, x_D, t, contexts_SH)
        noise_D = noise_in(x_D, clean_D, left[t])
        if sampling.guidance != 1 and left[t] > 0:
            without_D = noise_in(x_D, plain_denoised(model, x_D, t, contexts_SH[:0]), left[t])
            noise_D = guided(noise_D[None], without_D[None], sampling)[0]
            clean_D = (x_D - math.sqrt(1 - left[t]) * noise_D) / math.sqrt(left[t])
        before = left[timesteps[i + 1]] if t != timesteps[-1] else 1.0
        x_D = ddim_step(clean_D, noise_D, left[t], before, sampling, fresh[1 + i] if sampling.eta else None)
    return model.normalizer.denormalize(clean_D)


@pytest.mark.parametrize("sampling", [FEW, replace(FEW, guidance=1.0), replace(FEW, eta=0.7)], ids=["guided", "plain", "fresh"])
@torch.no_grad()
def test_batched_and_cached_it_samples_what_it_samples_alone_with_all_computed_anew(
    model: DiffusionLCM, sampling: SamplingConfig
) -> None:
    model.double()
    batch, seeds = documents(dtype=torch.float64), [5, 6, 7, 5]
    expected = [
        [plain_sample(model, d.vectors_SD[:n], sampling, seed) for n in (len(d.vectors_SD) - 1, len(d.vectors_SD))]
        for d, seed in zip(batch, seeds)
    ]
    context = model.start(4, 6, sampling, seeds)
    padded_BSD = torch.nn.utils.rnn.pad_sequence([d.vectors_SD[:-1] for d in batch], batch_first=True, padding_value=1e3)
    before_BD = model.advance(padded_BSD, context, torch.tensor(LENGTHS) - 1)
    torch.testing.assert_close(before_BD, torch.stack([e[0] for e in expected]).float())
    rows = torch.tensor([3, 1])
    last_BD = torch.stack([batch[row].vectors_SD[-1] for row in rows.tolist()])
    after_BD = model.advance(last_BD[:, None], context.select(rows), torch.ones(2, dtype=torch.long))
    torch.testing.assert_close(after_BD, torch.stack([expected[row][1] for row in rows.tolist()]).float())


def test_sampling_is_decided_by_the_seed_and_no_guidance_is_a_weight_of_one(model: DiffusionLCM) -> None:
    vectors = documents()[1].vectors_SD.expand(3, -1, -1)
    found = model.predict_next(vectors, FEW, [1, 2, 1])
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    torch.testing.assert_close(found[1:2], model.predict_next(vectors[:1], FEW, 2))
    assert not torch.allclose(found, model.predict_next(vectors, replace(FEW, guidance=1.0), [1, 2, 1]))
    without = replace(FEW, guidance=1.0)
    torch.testing.assert_close(
        model.predict_next(vectors, without, 1), model.predict_next(vectors, replace(FEW, guidance=1 + 1e-7), 1)
    )
    with pytest.raises(ValueError, match="got 2 for 3 stories"):
        model.start(3, 4, FEW, [1, 2])
    with pytest.raises(ValueError, match="40 sampling steps, but the model knows 10"):
        model.start(3, 4)


def test_a_story_is_told_in_a_batch_as_alone(model: DiffusionLCM) -> None:
    prompts, seeds = ["The fox ran home. Mia slept.", "Tom found a map."], [3, 4]
    options = {"max_sentences": 5, "beam_size": 2, "max_tokens": 8, "sampling": FEW}
    for prompt, seed, story in zip(prompts, seeds, model.generate(prompts, seed=seeds, **options)):
        alone = model.generate(prompt, seed=seed, **options)
        assert (alone.sentences, alone.stopped_by) == (story.sentences, story.stopped_by)
        assert len(story.sentences) == len(story.embeddings) <= 5
    steps = model.generate("Tom found a map.", end_threshold=-1.0, **options).steps
    assert len(steps) == 1 and steps[0].stopped_by == "end"


def test_saved_and_loaded_it_is_the_same_and_another_codec_is_refused(model: DiffusionLCM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, torch.float32)
    loaded = DiffusionLCM.from_pretrained(tmp_path, sonar=model.sonar)
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    vectors = documents()[1].vectors_SD[None]
    torch.testing.assert_close(loaded.predict_next(vectors, FEW), model.predict_next(vectors, FEW))
    with torch.no_grad():
        model.sonar.encoder.norm.bias += 1
    with pytest.raises(ValueError, match="trained on codec 'tiny'"):
        DiffusionLCM.from_pretrained(tmp_path, sonar=model.sonar)


# ---------------------------------------------------------------------- learning


def test_flops_are_those_that_torch_counts(model: DiffusionLCM) -> None:
    batch = documents()
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).total.backward()
    assert model.flops(batch) == counter.get_total_flops()


def test_recomputing_changes_neither_loss_nor_gradient(model: DiffusionLCM) -> None:
    batch, found = documents(), []
    for on in (False, True, False):
        loss = model.use(activation_checkpointing=on).loss(batch).total
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_it_learns_a_sequence_by_heart(sonar: Sonar) -> None:
    torch.manual_seed(0)
    config = DiffusionLCMConfig(SHAPE, 1, 32, "tiny", sonar.fingerprint(), NoiseSchedule(timesteps=10))
    batch = documents((6,)) * 8
    model = DiffusionLCM(config, sonar, normalizer_of(batch))
    learn(model, batch, 100, 1e-2)
    vectors_SD = batch[0].vectors_SD
    for n in range(1, 6):
        found = model.predict_next(vectors_SD[None, :n], SamplingConfig(steps=10))[0]
        assert F.cosine_similarity(found, vectors_SD[n], dim=0) > 0.95, n


def test_it_gives_one_of_two_sentences_that_may_follow_where_the_mse_model_gives_their_mean(sonar: Sonar) -> None:
    torch.manual_seed(0)
    first, one, two = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    pairs = [Document(torch.stack([first, after]), [[3, 3]] * 2, [1] * 2) for after in (one, two)]
    normalizer = Normalizer.of(torch.randn(1000, 32, generator=torch.Generator().manual_seed(2)))
    mse = MseLCM(MseLCMConfig(SHAPE, 32, "tiny", sonar.fingerprint()), sonar, normalizer)
    learn(mse, pairs, 150, 1e-2)
    averaged = mse.predict_next(first[None, None])[0]
    torch.testing.assert_close(averaged, (one + two) / 2, rtol=0, atol=0.1)
    noise = NoiseSchedule(timesteps=20)
    model = DiffusionLCM(DiffusionLCMConfig(SHAPE, 2, 32, "tiny", sonar.fingerprint(), noise), sonar, normalizer)
    learn(model, pairs * 16, 200, 1e-2)
    sampling = SamplingConfig(steps=20, guidance=1.0, initial_noise=1.0)
    sampled_BD = model.predict_next(first.expand(40, 1, -1), sampling, range(40))
    apart = (one - two).norm()
    near_one, near_two = ((sampled_BD - after).norm(dim=1) < 0.15 * apart for after in (one, two))
    assert (near_one | near_two).float().mean() >= 0.9
    assert 5 <= near_one.sum() <= 35


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("embedding", [256, 1024])
@pytest.mark.parametrize("size", [*SONAR_LLM_SIZES, *SIZES])
def test_two_towers_have_as_many_weights_as_sonar_llm(size: str, embedding: int) -> None:
    backbone = {**SONAR_LLM_SIZES, **SIZES}[size]
    shape, layers = towers(backbone, embedding)
    with torch.device("meta"):
        contexts = weights_of(nn.Linear(embedding, shape.hidden)) + weights_of(Backbone(shape))
        both = contexts + weights_of(Denoiser(shape, layers, embedding, 100))
        projections = weights_of(nn.Linear(embedding, backbone.hidden)) + weights_of(nn.Linear(backbone.hidden, embedding))
        one = projections + weights_of(Backbone(backbone))
    assert both == pytest.approx(one, rel=0.01)
    assert abs(shape.layers - 5 * layers / 13) < 1
    assert replace(shape, layers=backbone.layers, ffn=backbone.ffn) == backbone
