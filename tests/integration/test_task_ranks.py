"""The token-level LLM and the speech encoder on two ranks, whole on each (DDP) and in parts (FSDP2): the steps of one process.

As a script under torchrun (`test_task_ranks.py STORE SPEECH OUT`) this file is one of the ranks.
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
from sonarkit.codec.speech import BodyConfig, SpeechConfig, SpeechEncoder
from sonarkit.core import distributed
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.token_llm import CodecTokens, TokenLLM
from sonarkit.store.reader import Store
from sonarkit.text.speech_data import Utterance, open_speech, write_manifest
from sonarkit.text.tokenizer import Tokenizer
from sonarkit.training.concept_task import ConceptDataConfig
from sonarkit.training.loop import Task, TrainConfig, train
from sonarkit.training.metrics import read_metrics
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


def run_all(store: Path, manifest: Path, out: Path, world: World, way: str) -> None:
    """Ranks begin with unlike weights: they must be brought together."""
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-5, warmup_steps=2, schedule="constant")
    tasks: dict[str, Task] = {"token": token_task(store, world.rank), "speech": speech_task(manifest, world.rank)}
    for name, task in {**tasks, "token-muon": token_task(store, world.rank)}.items():
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
    run_all(folder / "store", folder / "speech.tsv", folder / "one", ALONE, "ddp")
    found = run(torchrun(2, __file__, folder / "store", folder / "speech.tsv", folder))
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


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_speech_encoder_takes_the_steps_of_one_process(runs: Path, way: str) -> None:
    ours, theirs = (SpeechEncoder.from_pretrained(runs / name / "speech" / "final").state_dict() for name in ("one", way))
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], atol=2e-3, rtol=2e-3)  # saved in float16


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = distributed.start("cpu")
    for parallel in ("ddp", "fsdp"):
        run_all(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) / parallel, place, parallel)
    distributed.stop()
