"""One process, DDP and FSDP2 take the same steps: loss, gradients, weights, and checkpoints that change hands.

As a script under torchrun (`test_parallel.py CODEC STORE OUT WHAT ...`) this file is one of the ranks.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.core import checkpoint, distributed
from sonarkit.core.distributed import World, replicate
from sonarkit.core.loss import LossSum
from sonarkit.encode import encode_into
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.store.reader import Store
from sonarkit.text import storyworld
from sonarkit.training.codec_task import CodecTask, Source
from sonarkit.training.concept_task import ConceptDataConfig, ConceptTask
from sonarkit.training.loop import Learner, Task, TrainConfig, _gradient, _summed_later, train
from sonarkit.training.metrics import read_metrics
from sonarkit.training.optimizer import OptimizerConfig

ALONE = World(0, 1, 0, torch.device("cpu"))
WAYS = [(4, "ddp"), (2, "fsdp"), (4, "fsdp")]


def make_task(codec: str, store: str, seed: int = 0, shard_decoder: bool = False, own_decoder: bool = False) -> ConceptTask:
    sonar = Sonar.from_pretrained(codec)
    torch.manual_seed(seed)
    backbone = BackboneConfig(hidden=32, ffn=48, layers=2, heads=2, head_dim=16)
    model = SonarLLM(SonarLLMConfig(backbone, sonar.config.width, codec, sonar.fingerprint(), own_decoder), sonar)
    opened, data = Store(store), ConceptDataConfig(documents_per_step=8, micro_tokens=1400)
    return ConceptTask(model, [opened], opened, data, seed=1, sharding={"decoder": shard_decoder})


def make_codec_task(codec: str, objective: ObjectiveConfig | DecoderObjective) -> CodecTask:
    rows = [row for story in storyworld.stories(3, split="valid") for row in storyworld.aligned(story.sentences)]
    sonar = Sonar.from_pretrained(codec).double()
    spread_D = torch.linspace(0.5, 1.5, sonar.config.width)
    options: dict[str, Any] = {"pairs_per_step": 18, "micro_pairs": 4, "seed": 3, "evaluate": lambda _: {"none": 0.0}}
    return CodecTask(sonar, [Source("storyworld", rows, 1.0)], objective, spread_D=spread_D, **options)


CODEC_OBJECTIVES = {
    "codec": ObjectiveConfig(1.0, 0.3, 0.2, dae_share=0.5, word_drop=0.1, label_smoothing=0.1),
    "codec-decoder": DecoderObjective(vector_noise=0.5),
}


def training(out: Path, **options: Any) -> TrainConfig:
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-5, warmup_steps=2)
    return TrainConfig(out, steps=6, log_every=1, save_every=3, keep=9, tensorboard=False, optimizer=optimizer, **options)


def gradients(task: Task, world: World, way: str) -> dict[str, Any]:
    """Loss, count and every gradient of the first step, in float64, and how many micro-batches this rank had."""
    task.model.double()
    task.model.train()
    if way == "fsdp":
        task.shard(world)
    learner = Learner(task) if way == "fsdp" else replicate(world, Learner(task))
    step = next(task.batches(world.rank, world.size))
    totals = torch.zeros(2, dtype=torch.float64)
    for i, batch in enumerate(step):
        with _summed_later(learner, i + 1 < len(step)):
            if isinstance(batch, list):
                batch = [replace(document, vectors_SD=document.vectors_SD.double()) for document in batch]
            loss: LossSum = learner(batch)
            loss.total.backward()
        totals += torch.tensor([float(loss.total), loss.count], dtype=torch.float64)
    total, count = distributed.sum_over_ranks(world, totals).tolist()
    norm = _gradient(task.model, count, 0.0, world.size if way == "fsdp" else 1)
    grads = {name: p.grad for name, p in task.model.named_parameters()}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    return {"loss": total / count, "norm": norm, "micro_batches": len(step), "gradients": whole}


def losses(out: Path) -> list[list[float]]:
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [[record["step"], record["loss_nats_per_token"], record["grad_norm"]] for record in records]


def as_script(codec: str, store: str, out: Path, what: str, way: str) -> None:
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    # ranks begin with unlike weights: they must be brought together
    if what in CODEC_OBJECTIVES:
        task: Task = make_codec_task(codec, CODEC_OBJECTIVES[what])
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter += 0.01 * world.rank
    else:
        task = make_task(codec, store, world.rank, what == "sharded-decoder", what == "own-decoder")
    if what in ("gradients", "own-decoder", *CODEC_OBJECTIVES):
        found = gradients(task, world, way)
        if world.rank == 0:
            torch.save(found, out)
    else:
        train(task, training(out, parallel=way), world)
    distributed.stop()


def ranks(count: int, *arguments: Any) -> None:
    """This file as `count` ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    found = run([*launcher, __file__, *arguments])
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.fixture(scope="module")
def store(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    encode_into("storyworld:22", folder, Sonar.from_pretrained(codec), ALONE)
    return folder


@pytest.fixture(scope="module")
def alone(codec: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run by one process."""
    out = tmp_path_factory.mktemp("alone")
    train(make_task(str(codec), str(store)), training(out), ALONE)
    return out


@pytest.mark.parametrize("count,way,what", [*((*way, "gradients") for way in WAYS), (2, "fsdp", "own-decoder")])
def test_loss_and_gradients_equal_those_of_one_process(
    count: int, way: str, what: str, codec: Path, store: Path, tmp_path: Path
) -> None:
    wanted = gradients(make_task(str(codec), str(store), own_decoder=what == "own-decoder"), ALONE, "ddp")
    ranks(count, codec, store, tmp_path / "found.pt", what, way)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12)
    assert found["norm"] == pytest.approx(wanted["norm"], rel=1e-12)
    assert found["gradients"].keys() == wanted["gradients"].keys()
    for name, gradient in wanted["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-10, atol=1e-14, msg=name)
    assert wanted["micro_batches"] > found["micro_batches"] >= 1


@pytest.mark.parametrize("count,way,what", [(2, "ddp", "codec"), (4, "fsdp", "codec"), (2, "fsdp", "codec-decoder")])
def test_a_codecs_loss_and_gradients_equal_those_of_one_process(
    count: int, way: str, what: str, codec: Path, store: Path, tmp_path: Path
) -> None:
    """Noise, damage and points between vectors are a pair's own, whoever has it; 18 pairs on four ranks are not shared evenly."""
    wanted = gradients(make_codec_task(str(codec), CODEC_OBJECTIVES[what]), ALONE, "ddp")
    ranks(count, codec, store, tmp_path / "found.pt", what, way)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-12)
    for name, gradient in wanted["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-10, atol=1e-14, msg=name)
    assert wanted["micro_batches"] > found["micro_batches"] >= 1


def test_several_micro_batches_are_summed_once(codec: Path, store: Path, tmp_path: Path) -> None:
    """On two ranks there are two each: gradients accumulate before they are summed."""
    ranks(2, codec, store, tmp_path / "found.pt", "gradients", "ddp")
    assert torch.load(tmp_path / "found.pt", weights_only=True)["micro_batches"] >= 2


@pytest.mark.parametrize(
    "count,way,what,then", [(4, "ddp", "train", "fsdp"), (4, "fsdp", "train", "ddp"), (2, "fsdp", "sharded-decoder", "fsdp")]
)
def test_a_run_equals_that_of_one_process_and_its_checkpoint_goes_on_anywhere(
    count: int, way: str, what: str, then: str, alone: Path, codec: Path, store: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    ranks(count, codec, store, whole, what, way)
    weights = checkpoint.read_safetensors(whole / "final" / "model.safetensors")
    assert same_run(whole, alone)
    for name, value in checkpoint.read_safetensors(alone / "final" / "model.safetensors").items():
        torch.testing.assert_close(weights[name].float(), value.float(), rtol=0, atol=2e-3)
    assert read_metrics(whole / "metrics.jsonl")[-1]["loss_nats_per_token"] == pytest.approx(
        read_metrics(alone / "metrics.jsonl")[-1]["loss_nats_per_token"], rel=1e-5
    )
    for others, other_way in ((1, "ddp"), (2, then)):
        out = tmp_path / f"{others}-{other_way}"
        shutil.copytree(whole / "step-00000003", out / "step-00000003")
        if others == 1:
            train(make_task(str(codec), str(store), seed=9), training(out), ALONE)
        else:
            ranks(others, codec, store, out, "train", other_way)
        assert [step for step, *_ in losses(out)] == [4, 5, 6]
        assert same_run(out, alone)


def same_run(one: Path, other: Path) -> bool:
    """Losses and gradient norms agree, step by step, where both have them."""
    theirs = {int(step): rest for step, *rest in losses(other)}
    pairs = [(rest, theirs[int(step)]) for step, *rest in losses(one)]
    return bool(pairs) and all(a == pytest.approx(b, rel=2e-5) for a, b in pairs)


def test_the_busiest_rank_is_told(alone: Path, codec: Path, store: Path, tmp_path: Path) -> None:
    ranks(2, codec, store, tmp_path / "run", "train", "ddp")
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
    assert all(1 <= record["imbalance"] < 1.2 for record in records)
    assert all("imbalance" not in record for record in read_metrics(alone / "metrics.jsonl"))


def test_weights_gathered_from_one_process_are_the_models(codec: Path, store: Path) -> None:
    model = make_task(str(codec), str(store)).model
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())
    assert not any("decoder" in name for name in whole)


if __name__ == "__main__":
    as_script(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5])
