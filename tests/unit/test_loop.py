"""The training loop on a toy: the numbers do not depend on interruptions, ranks or micro-batches.

As a script (`test_loop.py OUT`, also under torchrun) this file trains the toy.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sonarkit.core import checkpoint, distributed
from sonarkit.core.config import fingerprint
from sonarkit.core.distributed import World
from sonarkit.core.loss import LossSum
from sonarkit.training.loop import MOST_SKIPPED, TrainConfig, train
from sonarkit.training.metrics import read_metrics
from sonarkit.training.optimizer import Muon, OptimizerConfig, learning_rate, make_optimizer, orthogonalised

ALONE = World(0, 1, 0, torch.device("cpu"))
OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_steps=3, weight_decay=0.1, clip=0.5)
ROWS = 12  # a step, shared by the ranks; row i weighs 1 + i % 3 tokens, so that shares are uneven
WIDTH = 5


class ToyBatches:
    """Step k has the same rows whatever the number of ranks."""

    def __init__(self, micro_rows: int, rank: int, size: int) -> None:
        self.micro_rows, self.rank, self.size, self.step = micro_rows, rank, size, 0

    def at(self, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        self.step = step
        return next(self)

    def __next__(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.step)
        x = torch.randn(ROWS, WIDTH, generator=generator)
        rows = x, x.sum(1) + torch.randn(ROWS, generator=generator), 1.0 + torch.arange(ROWS) % 3
        self.step += 1
        return list(zip(*(part[self.rank :: self.size].split(self.micro_rows) for part in rows)))

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class ToyTask:
    """Linear regression behind dropout, with noise from all three generators, so that every random state matters."""

    loss_unit = "nats_per_token"

    def __init__(
        self, *, noise: float = 0.3, micro_rows: int = 4, seed: int = 5, pause: float = 0.0, unused: bool = True
    ) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Dropout(noise), nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 1))
        if unused:  # DDP does not take it
            self.model.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))  # it never gets a gradient
        self.noise, self.micro_rows, self.pause = noise, micro_rows, pause
        self.bad_steps: set[int] = set()
        self.calls = 0

    def batches(self, rank: int, size: int) -> ToyBatches:
        return ToyBatches(self.micro_rows, rank, size)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> LossSum:
        time.sleep(self.pause)
        x, y, tokens = batch
        jitter = 1 + self.noise * (np.random.rand() - random.random())  # noqa: NPY002  (the global generator, on purpose)
        squared = ((self.model(x).squeeze(1) - y).square() * tokens).sum() * jitter
        total = squared * (math.nan if self.calls in self.bad_steps else 1.0)
        self.calls += 1
        parts = {"mse": (squared.detach(), float(len(x))), "bits_per_byte": (squared.detach(), 10.0)}
        return LossSum(total, float(tokens.sum()), parts)

    def evaluate(self, world: World) -> dict[str, float | str]:
        assert not self.model.training
        assert not torch.is_grad_enabled()
        drawn = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002  (must not disturb training)
        norm = float(sum(p.norm() for p in self.model.parameters()))
        return {"norm": norm, "below_one": float(max(drawn) < 1), "sample": f"The norm is {norm:.9f}."}

    def cost(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
        return {"sentences": float(len(batch[0])), "flops": 1e6}

    def describe(self, batch: tuple[Tensor, Tensor, Tensor]) -> list[str]:
        return [f"row {float(x):.3f}" for x in batch[1]]

    def shard(self, world: World) -> None:
        distributed.shard(world, self.model, ("forward",), [self.model[1], self.model[3]], ("forward",))

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_safetensors(folder / "model.safetensors", weights, {})

    def config(self) -> dict[str, Any]:
        return {"task": "toy", "noise": self.noise, "shape": (WIDTH, 4)}


def config(out: Path, **changes: Any) -> TrainConfig:
    return replace(TrainConfig(out, steps=20, log_every=1, save_every=4, tensorboard=False, optimizer=OPTIMIZER), **changes)


def losses(out: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every step, as the metrics file has them, to the last bit."""
    records = [r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "train"]
    return [(r["step"], r["loss_nats_per_token"], r["grad_norm"]) for r in records]


def final(out: Path) -> dict[str, Tensor]:
    return checkpoint.read_safetensors(out / "final" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert all(torch.equal(value, final(other)[name]) for name, value in final(one).items())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    train(ToyTask(), config(out), ALONE)
    return out


# ---------------------------------------------------------------------- going on after an interruption


def stop_at(step: int, how: Any, unused: bool = True) -> ToyTask:
    """A task that calls `how` in its `step`-th micro-batch, as if from outside."""
    task, loss = ToyTask(unused=unused), ToyTask.loss

    def interrupted(batch: Any) -> LossSum:
        if task.calls == step:
            how()
        return loss(task, batch)

    task.loss = interrupted  # type: ignore[method-assign]
    return task


def crash() -> None:
    raise RuntimeError("power cut")


def test_a_run_that_crashed_goes_on_bit_for_bit(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        train(stop_at(3 * 10, crash), config(tmp_path), ALONE)  # three micro-batches a step: in step 11, saved at 8
    assert len(losses(tmp_path)) == 10
    evaluation = train(ToyTask(seed=99), config(tmp_path), ALONE)  # other initial weights: the checkpoint's count
    assert_same_run(whole_run, tmp_path)
    assert evaluation.keys() == {"norm", "below_one", "sample"}
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000016", "step-00000020"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(
    whole_run: Path, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    train(stop_at(3 * 10, lambda: os.kill(os.getpid(), number)), config(tmp_path), ALONE)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000011"
    assert "stopped after step 11 of 20; the same command goes on from there" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    assert not (tmp_path / "final").exists()
    train(ToyTask(), config(tmp_path), ALONE)
    assert_same_run(whole_run, tmp_path)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(stop_at(3 * 5, twice), config(tmp_path), ALONE)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000004"


def test_what_a_killed_run_left_half_written_is_swept_away_and_a_damaged_note_is_named(whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    for name in ("run.json.17.tmp", "final/model.safetensors.17.tmp"):
        (tmp_path / name).write_bytes(b"half")
    train(ToyTask(), config(tmp_path), ALONE)
    assert not list(tmp_path.rglob("*.tmp"))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged .*; move it away and run the same command again"):
        train(ToyTask(), config(tmp_path), ALONE)
    (tmp_path / "run.json").unlink()
    train(ToyTask(), config(tmp_path), ALONE)
    assert_same_run(whole_run, tmp_path)


def test_max_minutes_pauses_without_changing_the_schedule(whole_run: Path, tmp_path: Path) -> None:
    sittings = 0
    while not (tmp_path / "final").exists():
        train(ToyTask(pause=0.002), config(tmp_path, max_minutes=0.02 / 60), ALONE)
        sittings += 1
    assert sittings > 1
    assert_same_run(whole_run, tmp_path)


def test_evaluating_and_logging_more_often_changes_nothing(whole_run: Path, tmp_path: Path) -> None:
    train(ToyTask(), config(tmp_path, eval_every=3, save_every=0, log_every=1), ALONE)
    assert_same_run(whole_run, tmp_path)
    evaluations = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "eval"]
    assert [r["step"] for r in evaluations] == [3, 6, 9, 12, 15, 18, 20]
    assert all(r["sample"] == f"The norm is {r['norm']:.9f}." for r in evaluations)


def test_a_finished_run_is_left_as_it_is_and_exported_again(whole_run: Path, tmp_path: Path) -> None:
    first = train(ToyTask(), config(tmp_path), ALONE)
    (tmp_path / "final" / "model.safetensors").unlink()
    assert train(ToyTask(seed=99), config(tmp_path), ALONE) == first
    assert_same_run(whole_run, tmp_path)


def test_another_configuration_is_refused_by_name(whole_run: Path) -> None:
    changed = config(whole_run, optimizer=replace(OPTIMIZER, lr=0.5), log_every=7, max_minutes=3.0, threads=1)
    with pytest.raises(ValueError, match="another configuration") as error:
        train(ToyTask(noise=0.2), changed, ALONE)
    assert "noise: 0.3 -> 0.2; training.optimizer.lr: 0.01 -> 0.5. Use the same" in str(error.value)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, state: Any) -> None:
        if state["state"]["step"] > 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        torch.save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_trainer", full)
        with pytest.raises(OSError, match="No space left on device.*step-00000004 is kept"):
            train(ToyTask(), config(tmp_path), ALONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "run.json", "step-00000004"]
    train(ToyTask(), config(tmp_path), ALONE)
    assert_same_run(whole_run, tmp_path)


# ---------------------------------------------------------------------- the same numbers however it is cut


def close(one: Path, other: Path) -> bool:
    return np.allclose(losses(one), losses(other), rtol=1e-6, atol=0) and all(
        torch.allclose(value, final(other)[name], rtol=1e-5, atol=1e-7) for name, value in final(one).items()
    )


def test_micro_batches_do_not_change_the_numbers(tmp_path: Path) -> None:
    for micro_rows in (1, 5, 12):
        train(ToyTask(noise=0.0, micro_rows=micro_rows), config(tmp_path / str(micro_rows)), ALONE)
    assert close(tmp_path / "1", tmp_path / "12")
    assert close(tmp_path / "5", tmp_path / "12")


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    task = ToyTask(noise=0.0)
    train(task, config(tmp_path, precision="bfloat16", save_every=0), ALONE)
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert losses(tmp_path)[-1][1] < losses(tmp_path)[0][1]


def test_auto_is_bfloat16_only_where_the_hardware_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda place=place: place)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        for precision in ("auto", name):
            train(ToyTask(), config(tmp_path / f"{name}-{precision}", precision=precision, save_every=0), ALONE)
        assert losses(tmp_path / f"{name}-auto") == losses(tmp_path / f"{name}-{name}")
        assert f"{name}" in capsys.readouterr().out.splitlines()[0]
    assert losses(tmp_path / "bfloat16-auto") != losses(tmp_path / "float32-auto")


# ---------------------------------------------------------------------- what is logged, and losses that are not finite


def test_metrics_and_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(ToyTask(), config(tmp_path, log_every=8, eval_every=10), ALONE)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [("train", 8), ("eval", 10), ("train", 16), ("train", 20), ("eval", 20)]
    assert records[0].keys() == {
        "kind",
        "step",
        "seconds",
        "loss_nats_per_token",
        "loss_mse",
        "bits_per_byte",
        "lr",
        "grad_norm",
        "skipped_updates",
        "tokens_per_s",
        "seconds_left",
        "peak_memory_gb",
        "sentences_per_s",
        "data_share",
        "mfu",
    }
    assert records[0]["lr"] == learning_rate(7, 20, OPTIMIZER)
    assert records[0]["loss_mse"] == pytest.approx(2 * records[0]["loss_nats_per_token"])  # 24 tokens for 12 rows
    assert records[3]["seconds_left"] == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "float32 throughout"
    steps = [line for line in lines if line.startswith("step")]
    assert [line.split("  ")[0] for line in steps] == ["step 8/20", "step 10/20", "step 16/20", "step 20/20", "step 20/20"]
    assert all(len(line) < 100 for line in steps)
    assert [line[:22] for line in lines if "sample" in line] == ["  sample: The norm is "] * 2


def test_an_update_that_is_not_finite_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ToyTask(micro_rows=12)
    task.bad_steps = {4, 5, 9}
    train(task, config(tmp_path, log_every=2), ALONE)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["skipped_updates"] for r in records[:5]] == [0, 0, 2, 0, 1]
    assert records[2]["loss_nats_per_token"] is None
    assert all(math.isfinite(r["loss_nats_per_token"]) for r in records if r is not records[2])
    assert all(torch.isfinite(value).all() for value in final(tmp_path).values())
    printed = capsys.readouterr().out
    assert re.search(r"step 6: loss or gradient is not finite \(documents: row .*\), update skipped \(2 in a row\)", printed)
    told = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [bad["step"] for bad in told] == [5, 6, 10]
    rows = [row for batch in ToyBatches(12, 0, 1).at(5) for row in task.describe(batch)]
    assert told[1]["documents"] == rows and len(rows) == ROWS


def test_a_run_that_stays_not_finite_gives_up(tmp_path: Path) -> None:
    task = ToyTask(micro_rows=12)
    task.bad_steps = set(range(6, 100))
    with pytest.raises(FloatingPointError, match=f"step 16: .*{MOST_SKIPPED} updates in a row.*learning rate"):
        train(task, config(tmp_path), ALONE)


def test_a_bad_step_may_end_the_run_which_goes_on_before_it(whole_run: Path, tmp_path: Path) -> None:
    task = ToyTask()
    task.bad_steps = {3 * 10}
    with pytest.raises(FloatingPointError, match="step 11: loss or gradient is not finite .*the run stops.*are kept"):
        train(task, config(tmp_path, bad_step="stop"), ALONE)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000008"
    train(ToyTask(), config(tmp_path), ALONE)  # bad data mended
    assert_same_run(whole_run, tmp_path)


def test_a_loss_that_jumps_is_not_followed(tmp_path: Path) -> None:
    task, loss = ToyTask(micro_rows=12, noise=0.0), ToyTask.loss

    def jumping(batch: Any) -> LossSum:
        found = loss(task, batch)
        return replace(found, total=found.total * (40 if task.calls in (31, 71) else 1))

    task.loss = jumping  # type: ignore[method-assign]
    train(task, config(tmp_path, steps=80, spike=8.0), ALONE)
    told = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [bad["step"] for bad in told] == [71], "the usual loss is known after 50 steps"
    assert "the loss jumped to" in told[0]["what"]
    with pytest.raises(ValueError, match="spike is how many times"):
        config(tmp_path, spike=0.5)


def test_a_run_says_what_it_was_and_where_it_sat(tmp_path: Path) -> None:
    train(ToyTask(pause=0.002), config(tmp_path, max_minutes=0.02 / 60), ALONE)
    train(ToyTask(), config(tmp_path), ALONE)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["config"]["task"] == "toy" and run["config"]["training"]["optimizer"]["lr"] == OPTIMIZER.lr
    assert run["fingerprint"] == fingerprint(run["config"])
    first, second = run["sittings"]
    assert first["from_step"] == 0 < second["from_step"] < 20
    assert {"git_commit", "torch", "command"} <= second.keys()


# ---------------------------------------------------------------------- optimizer and schedule


def test_schedules() -> None:
    cosine = OptimizerConfig(lr=1.0, warmup_steps=4, min_lr_ratio=0.1)
    rates = [learning_rate(step, 104, cosine) for step in range(104)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:]))
    root = replace(cosine, schedule="inverse_sqrt")
    assert [learning_rate(step, 104, root) for step in (3, 15, 63)] == [1.0, 0.5, 0.25]
    assert {learning_rate(step, 9, replace(cosine, schedule="constant")) for step in range(3, 9)} == {1.0}


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    model[1].bias.requires_grad_(False)
    matrices, vectors = make_optimizer(model, OPTIMIZER).param_groups
    assert [p.shape for p in matrices["params"]] == [(3, 2)]
    assert (matrices["weight_decay"], vectors["weight_decay"], len(vectors["params"])) == (0.1, 0.0, 2)
    with pytest.raises(ValueError, match="Linear has no parameter to train"):
        make_optimizer(nn.Linear(1, 1).requires_grad_(False), OPTIMIZER)
    of_layers = nn.Module()
    of_layers.value_weight, of_layers.value_bias = nn.Parameter(torch.ones(2, 3, 4)), nn.Parameter(torch.ones(2, 3))
    matrices, biases = make_optimizer(of_layers, OPTIMIZER).param_groups
    assert matrices["params"] == [of_layers.value_weight] and biases["params"] == [of_layers.value_bias]


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_muon_pushes_every_singular_value_to_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert values.min() > 0.6 and values.max() < 1.25
    torch.testing.assert_close(orthogonalised(matrix), left * values @ right)
    assert not orthogonalised(torch.zeros(shape)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_muon_is_torchs_but_for_the_precision(dtype: torch.dtype | None) -> None:
    """torch's orthogonalises in bfloat16, which is good for two digits."""
    ours, theirs = (nn.Linear(6, 4, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    peer = torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    optimizers = {ours: Muon([ours.weight], lr=0.01, weight_decay=0.1, dtype=dtype), theirs: peer}
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for model, optimizer in optimizers.items():
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight - start, theirs.weight - start, rtol=0.05, atol=3e-4)
    assert ours.weight.dtype == optimizers[ours].state[ours.weight]["momentum"].dtype == torch.float32


def test_muon_takes_the_linear_layers_matrices_and_adam_the_rest() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    muon, adam = make_optimizer(model, replace(OPTIMIZER, muon=True)).parts
    assert isinstance(muon, Muon) and [p.shape for group in muon.param_groups for p in group["params"]] == [(3, 4)]
    assert [p.shape for group in adam.param_groups for p in group["params"]] == [(5, 4), (3,)]


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    for field, value in {"lr": 0.0, "clip": -1.0, "betas": (0.9, 1.0), "min_lr_ratio": 2.0}.items():
        with pytest.raises(ValueError, match=field):
            replace(OPTIMIZER, **{field: value})
    for field in ("steps", "log_every", "keep", "hang_minutes"):
        with pytest.raises(ValueError, match=field):
            config(tmp_path, **{field: 0})
    assert TrainConfig("runs/a", 1).out == Path("runs/a")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- other processes


def launch(out: Path, ranks: int = 1) -> subprocess.Popen[str]:
    """This file as a script, under torchrun when there are several ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, __file__, str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_kill_9_in_mid_run_and_the_same_command_again(whole_run: Path, tmp_path: Path) -> None:
    process = launch(tmp_path)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    while process.poll() is None and not (tmp_path / "step-00000008").exists():
        time.sleep(0.005)
    time.sleep(0.15)  # into a later step
    process.kill()
    process.communicate()
    watchdog.cancel()
    assert process.returncode == -signal.SIGKILL
    assert 8 <= len(losses(tmp_path)) < 20
    train(ToyTask(), config(tmp_path), ALONE)
    assert_same_run(whole_run, tmp_path)


def test_two_ranks_train_as_one_and_go_on_as_two(tmp_path: Path) -> None:
    """Without dropout two ranks give one rank's numbers; with it, a paused run goes on as the unpaused one."""
    process = launch(tmp_path, ranks=2)
    train(ToyTask(noise=0.0, unused=False), config(tmp_path / "one"), ALONE)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert printed.count("finished after") == 4  # one line a run: only rank 0 speaks
    assert close(tmp_path / "one", tmp_path / "two")
    assert close(tmp_path / "one", tmp_path / "sharded")
    assert_same_run(tmp_path / "noisy", tmp_path / "paused")
    assert (tmp_path / "paused" / "step-00000010").is_dir()
    assert (tmp_path / "paused" / "step-00000020" / "trainer-rank1.pt").is_file()


def main(out: Path) -> None:
    """One process: a slow run to be killed. Several: runs without noise, whole and sharded, one with, one paused by a signal."""
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    if world.size == 1:
        train(ToyTask(pause=0.03), config(out), world)
        return
    seed = 5 + world.rank  # ranks that begin apart are brought together
    train(ToyTask(noise=0.0, seed=seed, unused=False), config(out / "two"), world)
    train(ToyTask(noise=0.0, seed=seed, unused=False), config(out / "sharded", parallel="fsdp"), world)
    train(ToyTask(seed=seed, unused=False), config(out / "noisy"), world)

    def signal_to_rank_1() -> None:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    micro_batches = len(next(ToyTask().batches(world.rank, world.size)))
    for task in (stop_at(9 * micro_batches, signal_to_rank_1, unused=False), ToyTask(seed=seed, unused=False)):
        train(task, config(out / "paused", keep=9), world)
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
