"""One loop trains every family: batch, loss, backward, sum over ranks, clip, step, log, evaluate, save.

Losses are sums; they and their counts are added over micro-batches and ranks and divided once, so one rank
and many, and any cutting into micro-batches, take the same step (dropout aside, which draws per rank). A run
resumes from its newest checkpoint by itself, to the last bit on the same machine and thread count.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sonarkit.core import checkpoint
from sonarkit.core.config import difference, fingerprint, to_dict
from sonarkit.core.distributed import (
    World,
    barrier,
    broadcast_parameters,
    multiplies_bfloat16,
    print0,
    sum_gradients,
    sum_over_ranks,
)
from sonarkit.core.loss import LossSum
from sonarkit.training.metrics import RunLog, peak_memory_gb
from sonarkit.training.optimizer import OptimizerConfig, Optimizers, learning_rate, make_optimizer

Evaluation = dict[str, float | str]  # results by name; a text, such as a sample story, is kept as it is

MOST_SKIPPED = 10  # updates in a row with a loss or gradient that is not finite, before the run gives up


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. `out` receives checkpoints, `metrics.jsonl` and, at the end, `final/`.

    `max_minutes` ends this sitting with a checkpoint; the same command goes on from there, on the same schedule.
    `eval_every` and `save_every` count steps, 0 is only at the end. `threads` is torch's number of CPU threads
    per process, None leaves it as it is. `precision` "auto" is bfloat16 autocast where the hardware multiplies
    bfloat16, else float32: a CPU that has to emulate it is 200 times slower.
    """

    out: Path
    steps: int
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 200
    keep: int = 2
    threads: int | None = None
    max_minutes: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))  # a plain string will do
        if min(self.steps, self.log_every, self.keep) < 1 or min(self.eval_every, self.save_every) < 0:
            raise ValueError(f"steps, log_every and keep must be at least 1, eval_every and save_every at least 0: {self}")


class Batches(Protocol):
    """A rank's micro-batches, step after step; its state is the position a resume restores, alike on all ranks."""

    def __next__(self) -> list[Any]: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Task(Protocol):
    """What is trained, on what, and how it is judged.

    Frozen parts live outside `model`. `batches` gives each rank at least one micro-batch a step, and every loss
    has the same parts. `evaluate` runs on all ranks, in evaluation mode, and gives numbers and texts by name; rank 0's
    are written. `config` is what a resume must agree on.
    """

    @property
    def model(self) -> nn.Module: ...
    def batches(self, rank: int, size: int) -> Batches: ...
    def loss(self, batch: Any) -> LossSum: ...
    def evaluate(self, world: World) -> Mapping[str, float | str]: ...
    def save_pretrained(self, folder: Path) -> None: ...
    def config(self) -> dict[str, Any]: ...


@dataclass
class TrainState:
    """Where a run is; a checkpoint holds it beside weights, optimizer, sampler and random states."""

    step: int = 0  # updates taken or skipped
    seconds: float = 0.0  # of all sittings together, evaluation and saving included
    skipped: int = 0  # updates in a row that were not finite
    evaluation: Evaluation = field(default_factory=dict)  # the last one


def train(task: Task, config: TrainConfig, world: World) -> Evaluation:
    """Train `task` up to `config.steps`, from its newest checkpoint if there is one. Returns the last evaluation.

    SIGTERM and Ctrl-C finish the step, save and return. Raises ValueError when the run in `config.out` was begun
    with another configuration (the differences are named), FloatingPointError when the loss stays not finite,
    OSError when a checkpoint cannot be written; the checkpoints before it are kept.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    _seed(config.seed + world.rank)
    model, batches = task.model.to(world.device).train(), task.batches(world.rank, world.size)
    broadcast_parameters(world, model)
    optimizer = make_optimizer(model, config.optimizer)
    state = _resume(task, config, world, optimizer, batches)
    sitting, before, logged = time.monotonic(), state.seconds, _Sums()
    half = config.precision == "bfloat16" or (config.precision == "auto" and multiplies_bfloat16(world.device))
    print0(world, "bfloat16 autocast; weights, sums and optimizer in float32" if half else "float32 throughout")

    with _stop_on_signal() as stop, RunLog(config.out / "metrics.jsonl", state.step, config.steps, world.rank == 0) as log:
        stopping = False
        while state.step < config.steps and not stopping:
            began = time.monotonic()
            rate = learning_rate(state.step, config.steps, config.optimizer)
            sums = _Sums()
            for batch in next(batches):
                with torch.autocast(world.device.type, torch.bfloat16, enabled=half):
                    loss = task.loss(batch)
                loss.total.backward()
                sums.add(loss)
            sums.over_ranks(world)
            norm = _gradient(model, sums.count, config.optimizer.clip, world)
            if math.isfinite(norm) and math.isfinite(sums.total):
                _update(optimizer, rate)
                logged.merge(sums)
                state.skipped = 0
            else:
                state.skipped += 1
                logged.skipped += 1
                log.say(f"step {state.step + 1}: loss or gradient is not finite, update skipped ({state.skipped} in a row)")
            optimizer.zero_grad()
            if state.skipped >= MOST_SKIPPED:
                raise FloatingPointError(
                    f"{state.skipped} updates in a row were not finite, up to step {state.step + 1}; "
                    f"lower the learning rate ({rate:g}) or check the data. The checkpoints in {config.out} are kept"
                )

            state.step += 1
            now = time.monotonic()
            logged.seconds += now - began
            state.seconds = before + now - sitting
            late = bool(config.max_minutes) and now - sitting > 60 * (config.max_minutes or 0)
            stopping, last = _any_rank(world, stop.asked or late), state.step == config.steps
            log.advance()
            if state.step % config.log_every == 0 or last or stopping:
                log.train(_train_record(state, config, logged, rate, norm, world))
                logged = _Sums()
            if last or _due(state.step, config.eval_every):
                state.evaluation = _evaluate(task, world)
                state.seconds = before + time.monotonic() - sitting
                log.evaluation({"step": state.step, "seconds": round(state.seconds, 3), **state.evaluation})
            if last or stopping or _due(state.step, config.save_every):
                _save(task, config, world, optimizer, batches, state)

    if state.step < config.steps:
        print0(world, f"stopped after step {state.step} of {config.steps}; the same command goes on from there")
    elif world.rank == 0:
        task.save_pretrained(config.out / "final")
        print0(world, f"finished after {state.seconds / 60:.1f} minutes; the model is in {config.out / 'final'}")
    barrier(world)
    return state.evaluation


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _gradient(model: nn.Module, count: float, clip: float, world: World) -> float:
    """Sum the gradients over ranks, divide by the global count, clip. Returns the norm before clipping."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sum_gradients(world, parameters)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= count
    return float(nn.utils.clip_grad_norm_(parameters, clip or math.inf, foreach=True))


def _update(optimizer: Optimizers, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _evaluate(task: Task, world: World) -> Evaluation:
    """The task's evaluation. It leaves no trace in training: how often a run is judged does not change its numbers."""
    states = _random_states()
    task.model.eval()
    with torch.no_grad():
        results = task.evaluate(world).items()
        evaluation = {name: value if isinstance(value, str) else float(value) for name, value in results}
    task.model.train()
    _restore_random_states(states)
    return evaluation


def _train_record(
    state: TrainState, config: TrainConfig, logged: _Sums, rate: float, norm: float, world: World
) -> dict[str, Any]:
    """A line of the metrics file: means since the line before it, and the last step's rate and gradient norm."""
    return {
        "step": state.step,
        "seconds": round(state.seconds, 3),
        **logged.means(),
        "lr": rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        "skipped_updates": logged.skipped,
        "tokens_per_s": round(logged.count / max(logged.seconds, 1e-9), 1),
        "seconds_left": round(state.seconds / state.step * (config.steps - state.step), 1),
        "peak_memory_gb": round(peak_memory_gb(world.device), 3),
    }


class _Sums:
    """Sums and counts of a loss and its parts, over micro-batches, ranks and steps.

    Micro-batches add up on the device; `over_ranks` brings the numbers here, the only wait of a step for them.
    """

    def __init__(self) -> None:
        self._on_device: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self.seconds = 0.0
        self.skipped = 0

    def add(self, loss: LossSum) -> None:
        for name, (total, count) in {"": (loss.total, loss.count), **loss.parts}.items():
            total = total.detach().double()
            self._on_device[name] = self._on_device[name] + total if name in self._on_device else total
            self._counts[name] = self._counts.get(name, 0.0) + count

    def over_ranks(self, world: World) -> None:
        names = sorted(self._counts)
        totals = torch.stack([self._on_device[name] for name in names])
        counts = torch.tensor([self._counts[name] for name in names], dtype=torch.float64, device=totals.device)
        numbers = sum_over_ranks(world, torch.cat([totals, counts])).tolist()
        self._totals, self._counts = dict(zip(names, numbers)), dict(zip(names, numbers[len(names) :]))

    def merge(self, other: _Sums) -> None:
        """Add a step's sums, which `over_ranks` has completed."""
        for name, total in other._totals.items():
            self._totals[name] = self._totals.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0.0) + other._counts[name]

    @property
    def total(self) -> float:
        return self._totals.get("", 0.0)

    @property
    def count(self) -> float:
        return self._counts.get("", 0.0)

    def means(self) -> dict[str, float | None]:
        """`loss_nats_per_token` (None without an update), and each part under its name (see `LossSum`)."""
        parts = {
            name if "_" in name else f"loss_{name}": total / self._counts[name]
            for name, total in self._totals.items()
            if name and self._counts[name]
        }
        return {"loss_nats_per_token": self.total / self.count if self.count else None, **parts}


# ---------------------------------------------------------------------- saving and going on


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the global generator: what a task's libraries may use must repeat, too)
    random.seed(seed)


def _random_states() -> dict[str, Any]:
    """The states of all random generators, in types that torch.load reads with weights_only=True."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    keys = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": keys}},
        "python": list(random.getstate()),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    numpy = states["numpy"]
    keys = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": keys}})  # noqa: NPY002
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _run_config(task: Task, config: TrainConfig) -> dict[str, Any]:
    """What a resume must agree on: not where the run lies, how often it reports, or when it pauses."""
    training = to_dict(config)
    for name in ("out", "log_every", "eval_every", "save_every", "keep", "threads", "max_minutes"):
        del training[name]
    return json.loads(json.dumps({**task.config(), "training": training}))  # as it will come back from the file


def _save(task: Task, config: TrainConfig, world: World, optimizer: Optimizers, batches: Batches, state: TrainState) -> None:
    mine = {"random": _random_states()}
    trainer_states: list[Any] = [mine]
    if world.size > 1:
        trainer_states = [None] * world.size
        dist.all_gather_object(trainer_states, mine)
    if world.rank == 0:
        trainer_states[0] |= {"state": to_dict(state), "optimizer": optimizer.state_dict(), "batches": batches.state_dict()}
        weights = task.model.state_dict()
        checkpoint.save(config.out, state.step, weights, trainer_states, _run_config(task, config), config.keep)
    barrier(world)


def _resume(task: Task, config: TrainConfig, world: World, optimizer: Optimizers, batches: Batches) -> TrainState:
    """Put everything back as the newest checkpoint has it; a new state when there is none."""
    found, wanted = checkpoint.latest(config.out), _run_config(task, config)
    if found is None:
        return TrainState()
    saved = checkpoint.load(found)
    changes = difference(saved.config, wanted)
    if changes:
        raise ValueError(
            f"{config.out} holds a run with another configuration ({fingerprint(saved.config)}, now "
            f"{fingerprint(wanted)}): {'; '.join(changes)}. Use the same settings to go on with it, or another "
            "folder to begin anew"
        )
    trainer = saved.trainer_states[0]
    checkpoint.assign_in_place(task.model, saved.model_state, found)
    optimizer.load_state_dict(trainer["optimizer"])
    batches.load_state_dict(trainer["batches"])
    if world.rank < len(saved.trainer_states):  # else the run had fewer ranks: this one keeps its fresh seed
        _restore_random_states(saved.trainer_states[world.rank]["random"])
    state = TrainState(**trainer["state"])
    print0(world, f"resumed {config.out} from step {state.step} of {config.steps}")
    return state


# ---------------------------------------------------------------------- stopping


def _any_rank(world: World, asked: bool) -> bool:
    """Whether any rank asked to stop: all must stop at the same step."""
    return bool(sum_over_ranks(world, torch.tensor([float(asked)])))


class _Stop:
    asked = False


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """SIGTERM and Ctrl-C finish the step and save; a second Ctrl-C interrupts at once."""
    stop, before = _Stop(), {}

    def ask(number: int, frame: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread (a notebook widget): no handlers
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
