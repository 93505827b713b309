"""Token-level LLM, LCMs and speech encoder on two ranks, whole on each (DDP) and in parts (FSDP2): one process' steps.

As a script under torchrun (`test_task_ranks.py STORE SPEECH CODEC OUT`) this file is one of the ranks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run, torchrun
from torch.nn.utils import parameters_to_vector

from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.speech import BodyConfig, PiecesConfig, SpeechConfig, SpeechEncoder
from sonarkit.core import distributed
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.diffusion_lcm import DiffusionLCM, DiffusionLCMConfig
from sonarkit.models.mse_lcm import MseLCM, MseLCMConfig
from sonarkit.models.token_llm import CodecTokens, TokenLLM
from sonarkit.store.normalizer import Normalizer
from sonarkit.store.reader import Store
from sonarkit.text.speech_data import Utterance, open_speech, write_manifest
from sonarkit.text.tokenizer import Tokenizer
from sonarkit.training.concept_task import ConceptDataConfig, ConceptTask
from sonarkit.training.loop import Task, TrainConfig, train
from sonarkit.training.metrics import loss_key, read_metrics
from sonarkit.training.optimizer import OptimizerConfig
from sonarkit.training.speech_task import NONE, SpeechTask, Targets
from sonarkit.training.token_task import TokenTask

ALONE = World(0, 1, 0, torch.device("cpu"))
SPEECH = SpeechConfig(
    32,
    BodyConfig(16, 1, 2, 24, dropout=0.0, kernel=3, subsampling="convolution"),
    "attention",
    PoolerConfig(32, 1, 2, 32, dropout=0.0),
)


def token_task(store: Path, seed: int = 0) -> TokenTask:
    torch.manual_seed(seed)
    backbone = BackboneConfig(hidden=32, ffn=48, layers=2, heads=2, head_dim=16)
    model, opened = TokenLLM.new(backbone, CodecTokens(Tokenizer.load(store.parent))), Store(store)
    return TokenTask(model, [opened], opened, ConceptDataConfig(documents_per_step=6, micro_tokens=2400), seed=1)


def speech_task(manifest: Path, seed: int = 0) -> SpeechTask:
    """Its body waits for one step of the three."""
    torch.manual_seed(seed)
    utterances = open_speech(manifest)
    rows = torch.randn(len(utterances), 32, generator=torch.Generator().manual_seed(1))
    options = {"seconds_per_step": 2.0, "micro_seconds": 1.2, "augment": NONE, "frozen_steps": 1}
    return SpeechTask(SpeechEncoder(SPEECH), utterances, Targets(rows, "codec"), seed=0, evaluate=lambda _: {}, **options)


def heard_task(manifest: Path, codec: Path, seed: int = 0) -> SpeechTask:
    """Its vectors are read by the codec's text encoder from the pieces that it hears."""
    torch.manual_seed(seed)
    utterances, sonar = open_speech(manifest), Sonar.from_pretrained(codec)
    targets = Targets(sonar.encode([u.text for u in utterances], "eng_Latn"), sonar.fingerprint())
    pieces = PiecesConfig(sonar.config.vocab_size, sonar.config.encoder.width)
    config = SpeechConfig(targets.vectors.shape[1], SPEECH.body, "text", None, pieces=pieces)
    options = {"seconds_per_step": 2.0, "micro_seconds": 1.2, "augment": NONE, "ctc_weight": 0.5, "piece_weight": 0.5}
    return SpeechTask(SpeechEncoder(config), utterances, targets, sonar=sonar, seed=0, evaluate=lambda _: {}, **options)


def lcm_task(family: str, store: Path, codec: Path, seed: int = 0) -> ConceptTask:
    torch.manual_seed(seed)
    backbone, sonar, opened = (
        BackboneConfig(hidden=32, ffn=48, layers=2, heads=2, head_dim=16),
        Sonar.from_pretrained(codec),
        Store(store),
    )
    of_codec, normalizer = (sonar.config.width, "codec", sonar.fingerprint()), Normalizer.fit(opened)
    model = (
        MseLCM(MseLCMConfig(backbone, *of_codec), sonar, normalizer)
        if family == "mse-lcm"
        else DiffusionLCM(DiffusionLCMConfig(backbone, 2, *of_codec), sonar, normalizer)
    )
    return ConceptTask(model, [opened], opened, ConceptDataConfig(documents_per_step=6, micro_tokens=2400), seed=1)


def run_all(store: Path, manifest: Path, codec: Path, out: Path, world: World, way: str) -> None:
    """Ranks begin with unlike weights: they must be brought together."""
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-5, warmup_steps=2, schedule="constant")
    tasks: dict[str, Task] = {
        "token": token_task(store, world.rank),
        "token-muon": token_task(store, world.rank),
        "speech": speech_task(manifest, world.rank),
        "heard": heard_task(manifest, codec, world.rank),
        "mse-lcm": lcm_task("mse-lcm", store, codec, world.rank),
        "diffusion-lcm": lcm_task("diffusion-lcm", store, codec, world.rank),
    }
    for name, task in tasks.items():
        optimizer = replace(optimizer, muon=name == "token-muon")
        settings = TrainConfig(out / name, 3, log_every=1, tensorboard=False, optimizer=optimizer, parallel=way)
        train(task, settings, world)


@pytest.fixture(scope="module")
def runs(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs of one process in one/, those of two ranks in ddp/ and fsdp/."""
    soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
    folder = tmp_path_factory.mktemp("ranks")
    sonar = Sonar.from_pretrained(codec)
    encode_into("storyworld:10", folder / "store", sonar, ALONE)
    sonar.tokenizer.save(folder)
    rng, utterances = np.random.default_rng(0), []
    for i in range(12):
        samples = 0.1 * rng.standard_normal(8_000 + 1_600 * (i % 5))
        soundfile.write(folder / f"{i}.flac", samples, 16_000)
        utterances.append(Utterance(folder / f"{i}.flac", f"Text {i}.", "eng_Latn", f"speech.tsv:{i + 2}"))
    write_manifest(folder / "speech.tsv", utterances)
    run_all(folder / "store", folder / "speech.tsv", codec, folder / "one", ALONE, "ddp")
    found = run(torchrun(2, __file__, folder / "store", folder / "speech.tsv", codec, folder))
    assert found.returncode == 0, found.stderr[-3000:]
    return folder


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("task", ["token", "token-muon"])
def test_a_token_model_takes_the_steps_of_one_process(runs: Path, way: str, task: str) -> None:
    (alone, together) = (read_metrics(runs / name / task / "metrics.jsonl") for name in ("one", way))
    keys = {"train": ("step", "loss_nats_per_token", "grad_norm", "bits_per_byte"), "eval": ("step", "loss_nats_per_token")}
    for one, two in zip(alone, together, strict=True):
        wanted = [one[key] for key in keys[one["kind"]]]
        assert [two[key] for key in keys[one["kind"]]] == pytest.approx(wanted, rel=1e-3)
    assert [one["kind"] for one in alone].count("train") == 3 and alone[-1]["kind"] == "eval"
    models = [TokenLLM.from_pretrained(runs / name / task / "final") for name in ("one", way)]
    ours, theirs = (parameters_to_vector(model.parameters()) for model in models)
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=0)


def steps(folder: Path) -> list[list[float]]:
    """Loss and gradient of each step, and the loss of the evaluation."""
    records = read_metrics(folder / "metrics.jsonl")
    return [[record[loss_key(record)], record.get("grad_norm", 0.0)] for record in records]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_an_mse_lcm_takes_the_steps_of_one_process(runs: Path, way: str) -> None:
    one, two = (steps(runs / name / "mse-lcm") for name in ("one", way))
    assert len(one) == len(two) == 4
    np.testing.assert_allclose(two, one, rtol=1e-3)


def test_a_diffusion_lcm_in_parts_takes_the_steps_of_whole_ones(runs: Path) -> None:
    """Each rank draws its noise, so two ranks are no one process; what they evaluate is drawn by document."""
    one, whole, parts = (steps(runs / name / "diffusion-lcm") for name in ("one", "ddp", "fsdp"))
    np.testing.assert_allclose(parts, whole, rtol=1e-3)
    assert len(whole) == 4 and whole[-1][0] == pytest.approx(one[-1][0], rel=0.05) and whole[0] != one[0]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("task", ["speech", "heard"])
def test_a_speech_encoder_takes_the_steps_of_one_process(runs: Path, way: str, task: str) -> None:
    ours, theirs = (SpeechEncoder.from_pretrained(runs / name / task / "final").state_dict() for name in ("one", way))
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], atol=2e-3, rtol=2e-3)  # saved in float16


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = distributed.start("cpu")
    for parallel in ("ddp", "fsdp"):
        run_all(*map(Path, sys.argv[1:4]), Path(sys.argv[4]) / parallel, place, parallel)
    distributed.stop()
