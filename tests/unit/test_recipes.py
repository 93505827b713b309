"""The named runs: the published sizes and recipe, mixtures as the command line gives them, epochs as steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from sonarkit import recipes
from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.models.flops import LLAMA_VOCABULARY
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.recipes import MixturePart, SonarLLMRun, mixture_of, recipe, sonar_llm, steps_of
from sonarkit.text.tokenizer import Tokenizer

# As the paper rounds them: trainable, and with a token embedding of 128 256 rows (arXiv 2508.05305); then the exact counts.
PUBLISHED = {
    "39M": (11e6, 39e6, 10_902_656, 39_632_000),
    "100M": (34e6, 100e6, 34_613_248, 100_280_320),
    "300M": (170e6, 300e6, 169_892_864, 301_227_008),
    "600M": (450e6, 600e6, 453_553_664, 617_721_344),
    "900M": (700e6, 900e6, 698_407_936, 895_409_152),
    "1.3B": (1.1e9, 1.3e9, 1_068_050_944, 1_297_885_696),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_have_the_published_numbers_of_parameters(size: str, tokenizer: Tokenizer) -> None:
    """Within 3 %: the paper gives two or three digits, and rounds 617.7M to 600M."""
    shape = codec_config(tokenizer.languages, tokenizer.size, 1024, 1, 1, 16, 1024)
    with torch.device("meta"):
        model = SonarLLM(SonarLLMConfig(sonar_llm(size).backbone, shape.width), Sonar(shape, tokenizer))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = trainable + LLAMA_VOCABULARY * model.config.backbone.hidden
    told_trainable, told_total, *exact = PUBLISHED[size]
    assert [trainable, total] == exact
    assert trainable == pytest.approx(told_trainable, rel=0.03) and total == pytest.approx(told_total, rel=0.03)


def test_every_size_but_mini_is_published() -> None:
    assert list(recipes.SONAR_LLM_SIZES) == ["mini", *PUBLISHED]


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_recipe(size: str) -> None:
    run = sonar_llm(size)
    optimizer, batches = run.train.optimizer, run.batches
    assert (optimizer.lr, optimizer.eps, optimizer.betas, optimizer.clip) == (1e-3, 1e-5, (0.9, 0.999), 1.0)
    assert (optimizer.warmup_steps, optimizer.schedule, optimizer.min_lr_ratio, optimizer.muon) == (820, "cosine", 0.0, False)
    assert (batches.documents_per_step, batches.max_sentences, batches.max_tokens) == (512, 32, 256)
    assert (run.epochs, run.train.steps, run.codec, run.mixture) == (4.0, 16_480, "sonar", ())
    assert not (run.as_published or run.context_noise or run.train_decoder)
    # Within 1 % of the published steps for all of TinyStories; the rest may be stories that were left out.
    assert steps_of(4, 2_119_719, 512) == pytest.approx(16_480, rel=0.01)


def test_the_recipe_of_mini_is_as_it_was() -> None:
    run = sonar_llm("mini")
    assert (run.train.steps, run.epochs, run.codec, run.batches.documents_per_step) == (3000, None, "mini", 32)
    assert (run.train.optimizer.muon, run.train.optimizer.betas, run.train.optimizer.warmup_steps) == (True, (0.9, 0.99), 50)
    assert run.train.out == Path("runs/sonar-llm-mini") and run.data == Path("stores/storyworld-train")


def test_the_summarization_mixture_is_seven_stores_in_their_natural_proportions() -> None:
    run = recipe("sonar-llm", "1.3B-summarization")
    assert isinstance(run, SonarLLMRun) and run.backbone == sonar_llm("1.3B").backbone
    assert [part.store.name for part in run.mixture] == list(recipes.SUMMARIZATION_MIXTURE) and len(run.mixture) == 7
    assert {part.weight for part in run.mixture} == {1.0}
    assert run.train == replace(sonar_llm("1.3B").train, out=run.train.out)


def parsed(*arguments: str) -> SonarLLMRun:
    """As train.py parses."""
    return tyro.cli(SonarLLMRun, args=arguments, default=sonar_llm("100M"), config=(tyro.conf.OmitArgPrefixes,))


def test_mixtures_on_the_command_line() -> None:
    assert parsed() == sonar_llm("100M")
    run = parsed("--mixture", "stores/xsum=2.5", "stores/wikitext", "--epochs", "None", "--train-decoder", "--steps", "7")
    assert run.mixture == (MixturePart(Path("stores/xsum"), 2.5), MixturePart(Path("stores/wikitext"), 1.0))
    assert (run.epochs, run.train_decoder, run.train.steps) == (None, True, 7)


@pytest.mark.parametrize("word", ["stores/xsum=much", "stores/xsum=0", "stores/xsum=-1", "stores/xsum=nan", "stores/xsum="])
def test_a_weight_that_is_none_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=f"expected STORE or STORE=WEIGHT, such as stores/xsum=2, got '{word}'"):
        mixture_of([word])
    with pytest.raises(SystemExit):
        parsed("--mixture", word)
    assert "STORE=WEIGHT" in capsys.readouterr().err


def test_epochs_become_steps() -> None:
    assert steps_of(4, 5120, 512) == 40
    assert steps_of(0.5, 1000, 512) == 1 and steps_of(1, 1300, 512) == 3  # the nearest number
    assert steps_of(1, 3, 512) == 1  # never none
    assert steps_of(0.55, 100, 1) == 55  # although 0.55 x 100 is above 55 in floating point


def test_what_no_run_can_have_is_refused() -> None:
    for epochs in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="epochs must be above 0"):
            replace(sonar_llm("39M"), epochs=epochs)
    with pytest.raises(ValueError, match="context_noise must be at least 0"):
        replace(sonar_llm("39M"), context_noise=-0.1)
