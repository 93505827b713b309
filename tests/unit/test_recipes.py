"""The named runs: the published sizes and recipe, mixtures as the command line gives them, epochs as steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from sonarkit import recipes, train
from sonarkit.codec.config import PoolerConfig, codec_config
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation.summarization import SETS
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
    for name, spec in (("xsum", "xsum"), ("cnn-dailymail", "cnn_dailymail")):
        place, columns = recipes.SUMMARIZATION_MIXTURE[name]
        assert (f"{place}@test", *columns.split("+")) == SETS[spec], "read as it is judged, the document first"
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


# ---------------------------------------------------------------------- codecs


@pytest.mark.parametrize("name", recipes.CODEC_RECIPES)
def test_every_codec_recipe_builds(name: str, tokenizer: Tokenizer) -> None:
    run = recipe("codec", name)
    assert isinstance(run, recipes.CodecRun)
    with torch.device("meta"):
        sonar = Sonar(run.codec_config(tokenizer.size), Tokenizer(tokenizer.model, tokenizer.languages))
    assert len(sonar.encoder.layers) == run.encoder_layers and sonar.config.width == run.width
    assert run.train.out.name == f"codec-{name}"


def test_the_published_codec_is_trained_as_nllb_was() -> None:
    run = recipe("codec", "1B")
    assert isinstance(run, recipes.CodecRun) and isinstance(run.objective, ObjectiveConfig)
    optimizer, objective = run.train.optimizer, run.objective
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.clip) == (1e-3, (0.9, 0.98), 1e-6, 0.0)
    assert (optimizer.schedule, optimizer.warmup_steps, run.train.steps) == ("inverse_sqrt", 8000, 100_000)
    assert (objective.mt_weight, objective.mse_weight, objective.dae_weight) == (1.0, 0.1, 0.01)
    assert (objective.label_smoothing, objective.noise_ratio, run.tokens_per_step) == (0.1, 0.5, 1_050_000)


def test_a_decoders_recipe_takes_the_options_of_its_objective() -> None:
    arguments = ["--vector-noise", "0.5", "--no-interpolate", "--bitext", "a.tsv", "b.tsv@mined"]
    run = train.parse(["codec", "--size", "mini-decoder", *arguments])
    assert isinstance(run, recipes.CodecRun)
    assert run.objective == DecoderObjective(interpolate=False, vector_noise=0.5)
    assert run.bitext == ("a.tsv", "b.tsv@mined")


def test_attention_pooling_by_name() -> None:
    run = replace(recipes.codec_mini(), pooling="attention", pooler_layers=2)
    assert run.codec_config(100).encoder.pooler == PoolerConfig(256, 2, 4, 1024, dropout=0.0)


@pytest.mark.parametrize(
    "word,spec,tag,synthetic",
    [
        ("pairs.tsv", "pairs.tsv", "", ()),
        ("hf:Helsinki-NLP/opus-100@mined", "hf:Helsinki-NLP/opus-100", "<MINED_DATA>", ()),
        ("back.tsv@mmt-bt:deu_Latn", "back.tsv", "<MMT_BT_DATA>", ("deu_Latn",)),
        ("back.tsv@smt-bt:fra_Latn", "back.tsv", "<SMT_BT_DATA>", ("fra_Latn",)),
        ("a@b/pairs.tsv", "a@b/pairs.tsv", "", ()),
        ("hf:opus:de-en@validation", "hf:opus:de-en@validation", "", ()),
        ("hf:opus:de-en@train@mined", "hf:opus:de-en@train", "<MINED_DATA>", ()),
    ],
)
def test_bitext_with_a_tag(word: str, spec: str, tag: str, synthetic: tuple[str, ...]) -> None:
    assert recipes.bitext_part(word) == recipes.BitextPart(spec, tag, synthetic)


@pytest.mark.parametrize("word", ["pairs.tsv@mine", "pairs.tsv@mined:deu_Latn", "pairs.tsv@mmt-bt", "pairs.tsv@"])
def test_a_tag_that_there_is_not(word: str) -> None:
    with pytest.raises(ValueError, match=r"expected SPEC, SPEC@mined, SPEC@mmt-bt:LANGUAGE"):
        recipes.bitext_part(word)


def test_what_no_codecs_run_can_have_is_refused() -> None:
    for change, told in (
        ({"bitext_share": 1.5}, "bitext_share must be in"),
        ({"stories": 0}, "nothing to learn from"),
        ({"new_languages": ("ces_Latn",)}, "name it as init"),
    ):
        with pytest.raises(ValueError, match=told):
            replace(recipes.codec_mini(), **change)


def test_an_option_may_be_given_with_an_equals_sign() -> None:
    run = train.parse(["sonar-llm", "--size=900M", "--steps=100", "--out=a=b"])
    assert isinstance(run, recipes.SonarLLMRun)
    assert (run.train.steps, run.epochs, run.train.out.name) == (100, None, "a=b")
    assert run.backbone == recipes.SONAR_LLM_SIZES["900M"]
    with pytest.raises(ValueError, match="--steps and --epochs both"):
        train.parse(["sonar-llm", "--steps=100", "--epochs", "1"])
