"""What it takes to sample next vectors from a diffusion LCM: batched with contexts kept, against the plain way.

    python tests/bench/diffusion.py             # towers of 100M, 64 stories of 16 sentences, 40 guided steps; two minutes
    python tests/bench/diffusion.py --quick     # tiny, seconds

Three ways to the same numbers, which is checked (1e-4 of the largest):

    ours        all stories in one batch with both branches of the guidance; contexts read once, the denoiser's keys and values
                of them made once
    alone       the same, one story after the other: what batching gives is the difference to it
    naive       one story after the other, the two branches one after the other, contexts, keys and values anew in each step

Stories are as long as each other; vectors are noise and weights random, which takes as long as any. `alone` and `naive` are
timed on the first `--few` stories; times are per story.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.packing import packing_of
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.diffusion_lcm import (
    DiffusionLCM,
    DiffusionLCMConfig,
    SamplingConfig,
    ddim_step,
    guided,
    noise_in,
    towers,
    trailing_timesteps,
    weights_of,
)
from sonarkit.recipes import SONAR_LLM_SIZES
from sonarkit.store.normalizer import Normalizer


@dataclass
class DiffusionOptions:
    size: str = "100M"  # whose weights the two towers have together
    stories: int = 64
    sentences: int = 16  # read before
    steps: int = 40
    few: int = 4  # stories that the slow ways are timed on
    threads: int = 1
    rounds: int = 2  # the fastest counts
    quick: bool = False


def build(options: DiffusionOptions) -> DiffusionLCM:
    """Random weights over the mini codec, whose vectors are 256 wide; AdaLN's zeros are filled, too."""
    torch.manual_seed(0)
    sonar = Sonar.from_pretrained("mini")
    width = sonar.config.width
    backbone = BackboneConfig(64, 128, 4, 4, 16) if options.quick else SONAR_LLM_SIZES[options.size]
    shape, layers = towers(backbone, width)
    config = DiffusionLCMConfig(shape, layers, width, "mini", sonar.fingerprint())
    model = DiffusionLCM(config, sonar, Normalizer.of(torch.randn(1000, width)))
    for layer in model.denoiser.layers:
        torch.nn.init.normal_(layer.modulation.weight, std=0.02)
    return model.eval()


@torch.no_grad()
def naive(model: DiffusionLCM, vectors_SD: Tensor, sampling: SamplingConfig) -> Tensor:
    """(D,) one story's next vector."""
    denoiser, left = model.denoiser, model.config.noise.alpha_bars().tolist()
    timesteps = trailing_timesteps(len(left), sampling.steps)
    packing = packing_of([len(vectors_SD)])

    def denoised(x_1D: Tensor, timestep: int, with_context: bool) -> Tensor:
        hidden_SH = model.backbone(model.pre_net(model.normalizer.normalize(vectors_SD)), packing)
        contexts_1SH = torch.cat([torch.zeros_like(hidden_SH[:1]), hidden_SH])[None]
        seen_1S = torch.ones(1, contexts_1SH.shape[1], dtype=torch.bool)
        seen_1S[:, 1:] = with_context
        cache = torch.stack([layer.keys_values(contexts_1SH) for layer in denoiser.layers])
        return denoiser.step(x_1D, denoiser.modulations([timestep])[0], cache, seen_1S)

    x_1D = clean_1D = sampling.initial_noise * model._fresh_noise([0], [len(vectors_SD)], sampling)[0]
    for i, timestep in enumerate(timesteps):
        clean_1D = denoised(x_1D, timestep, True)
        noise_1D = noise_in(x_1D, clean_1D, left[timestep])
        if left[timestep] > 0:
            noise_1D = guided(noise_1D, noise_in(x_1D, denoised(x_1D, timestep, False), left[timestep]), sampling)
            clean_1D = (x_1D - math.sqrt(1 - left[timestep]) * noise_1D) / math.sqrt(left[timestep])
        before = left[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        x_1D = ddim_step(clean_1D, noise_1D, left[timestep], before, sampling)
    return model.normalizer.denormalize(clean_1D)[0]


def timed(run: Callable[[], Tensor], rounds: int) -> tuple[Tensor, float]:
    """What it gives, and the seconds of its fastest round."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return found, min(seconds)


def main(options: DiffusionOptions) -> None:
    torch.set_num_threads(options.threads)
    if options.quick:
        options = replace(options, stories=min(options.stories, 16), steps=min(options.steps, 10))
    model, sampling = build(options), SamplingConfig(steps=options.steps)
    few = min(options.few, options.stories)
    vectors_BSD = torch.randn(options.stories, options.sentences, model.config.embedding)
    model.predict_next(vectors_BSD[:2], sampling)  # once, not timed
    ours_BD, ours = timed(lambda: model.predict_next(vectors_BSD, sampling), options.rounds)
    rows = {
        "alone": lambda: torch.cat([model.predict_next(story[None], sampling) for story in vectors_BSD[:few]]),
        "naive": lambda: torch.stack([naive(model, story, sampling) for story in vectors_BSD[:few]]),
    }
    shape, ours = model.config, ours / options.stories
    print(
        f"{weights_of(model) / 1e6:.1f}M weights in {shape.backbone.layers} + {shape.denoiser_layers} layers of "
        f"{shape.backbone.hidden}, {options.stories} stories of {options.sentences} sentences, {options.steps} steps, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    print(f"ours    {1000 * ours:9.2f} ms a story")
    for name, run in rows.items():
        found_BD, seconds = timed(run, options.rounds)
        torch.testing.assert_close(found_BD, ours_BD[:few], rtol=0, atol=1e-4 * float(ours_BD.abs().max()))
        print(f"{name:7} {1000 * seconds / few:9.2f} ms a story, {seconds / few / ours:6.1f} times as long, the same vectors")


if __name__ == "__main__":
    main(tyro.cli(DiffusionOptions, description=__doc__))
