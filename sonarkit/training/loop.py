"""One loop trains every family: batch, loss, backward, sum over ranks, clip, step, log, evaluate, save.

Losses are sums; they and their counts are added over micro-batches and ranks and divided once, so one rank
and many, and any cutting into micro-batches, take the same step (dropout and a diffusion's noise aside, which each
rank draws). Several ranks hold the model whole (DDP) or in parts (FSDP2), with the same numbers. A run resumes from its newest
checkpoint by itself, on any number of ranks; on the same machine, ranks and threads to the last bit on a CPU (on a GPU not
every kernel is repeatable).
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sonarkit.core import checkpoint
from sonarkit.core.config import difference, fingerprint, to_dict
from sonarkit.core.distributed import PATIENCE, Watch, World, barrier, multiplies_bfloat16, print0, replicate, sum_over_ranks
from sonarkit.core.environment import environment
from sonarkit.core.lock import sole_writer
from sonarkit.core.loss import LossSum
from sonarkit.core.peak import matrix_peak
from sonarkit.training.metrics import RunLog, peak_memory_gb
from sonarkit.training.optimizer import OptimizerConfig, Optimizers, learning_rate, make_optimizer

Evaluation = dict[str, float | str]  # results by name; a text, such as a sample story, is kept as it is

USUAL_STEPS = 50  # over how many losses the usual one is a mean
MOST_SKIPPED = 10  # updates in a row that are not taken, before the run gives up


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. `out` receives the newest `keep` checkpoints, `metrics.jsonl` and, at the end, `final/`.

    `max_minutes` ends this sitting with a checkpoint; the same command goes on from there, on the same schedule.
    `log_every`, `eval_every` and `save_every` count steps, 0 in the last two is only at the end. `threads` is torch's number
    of CPU threads per process, None leaves it as it is. `precision` "auto" is bfloat16 autocast where the hardware multiplies
    bfloat16, else float32: a CPU that has to emulate it is 200 times slower.

    `parallel` is how several ranks hold the model: whole on each ("ddp"), or in parts ("fsdp": for what does not fit).
    A step whose loss or gradient is not finite, or whose loss is above `spike` times the usual (the mean of the last
    50 or so, once there are 50; 0 is off), is skipped or ends the run, as `bad_step` says, and the tenth skipped in a row ends
    it, too; `bad_steps.jsonl` keeps which documents it had.
    A step that some rank has not come through after `hang_minutes` ends the run with a line that names the rank; evaluating
    and saving may take two hours.
    `tensorboard` writes event files to `out`/tensorboard; `wandb` names the Weights & Biases project to report to.
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
    parallel: Literal["ddp", "fsdp"] = "ddp"
    bad_step: Literal["skip", "stop"] = "skip"
    spike: float = 0.0
    hang_minutes: float = 30.0
    tensorboard: bool = True
    wandb: str | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))  # a plain string will do
        if min(self.steps, self.log_every, self.keep) < 1 or min(self.eval_every, self.save_every) < 0:
            raise ValueError(f"steps, log_every and keep must be at least 1, eval_every and save_every at least 0: {self}")
        if self.hang_minutes <= 0:
            raise ValueError(f"hang_minutes is how long a step may take, above 0; got {self.hang_minutes}")
        if self.spike and self.spike <= 1:
            raise ValueError(f"spike is how many times the usual loss is too much, above 1, or 0 for off; got {self.spike}")

    def in_bfloat16(self, device: torch.device) -> bool:
        """Whether products are in bfloat16 there."""
        return self.precision == "bfloat16" or (self.precision == "auto" and multiplies_bfloat16(device))


class Batches(Protocol):
    """A rank's micro-batches, step after step; its state is the position a resume restores, alike on all ranks."""

    def __next__(self) -> list[Any]: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Task(Protocol):
    """What is trained, on what, and how it is judged."""

    @property
    def model(self) -> nn.Module:
        """What learns; frozen parts live outside."""

    @property
    def loss_unit(self) -> str:
        """That of the loss over its count, such as nats_per_token."""

    def batches(self, rank: int, size: int) -> Batches:
        """Those of one rank, at least one micro-batch a step."""

    def loss(self, batch: Any) -> LossSum:
        """Of a micro-batch, in sums; every loss has the same parts."""

    def evaluate(self, world: World) -> Mapping[str, float | str]:
        """Numbers and texts by name, in evaluation mode. It runs on all ranks; rank 0's are written."""

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the trained model; `weights` are the whole ones of `model`."""

    def config(self) -> dict[str, Any]:
        """What a resume must agree on, JSON-able."""

    def cost(self, batch: Any) -> dict[str, float]:
        """What a micro-batch holds and takes beside tokens: `sentences`, and `flops` where they are counted."""

    def describe(self, batch: Any) -> list[str]:
        """The names of the micro-batch's documents."""

    def shard(self, world: World) -> None:
        """Prepare `model` for FSDP2."""


class Learner(nn.Module):
    """The task's loss as a module's forward, for DDP to wrap."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self._task = task.model, (task,)  # in a tuple: a task may be a module, too

    def forward(self, batch: Any) -> LossSum:
        return self._task[0].loss(batch)


@dataclass
class TrainState:
    """Where a run is; a checkpoint holds it beside weights, optimizer, sampler and random states."""

    step: int = 0  # updates taken or skipped
    usual_loss: float = 0.0  # running mean of the loss over its count, for `spike`
    usual_steps: int = 0  # how many losses are in it
    seconds: float = 0.0  # of all sittings together, evaluation and saving included
    skipped: int = 0  # updates in a row that were not taken
    evaluation: Evaluation = field(default_factory=dict)  # the last one


def train(task: Task, config: TrainConfig, world: World) -> Evaluation:
    """Train `task` up to `config.steps`, from its newest checkpoint if there is one. Returns the last evaluation.

    SIGTERM and Ctrl-C finish the step, save and return. Raises ValueError when the run in `config.out` is being trained by
    another process, or was begun with another configuration (the differences are named), FloatingPointError when the loss
    stays not finite or a bad step is to stop the run, OSError when a checkpoint cannot be written; those before it are kept.
    """
    with sole_writer(config.out) if world.rank == 0 else nullcontext(), Watch(world, 60 * config.hang_minutes) as watch:
        return _train(task, config, world, watch)


def _train(task: Task, config: TrainConfig, world: World, watch: Watch) -> Evaluation:
    if world.rank == 0:
        for left in [*config.out.glob("*.tmp"), *config.out.glob("final/*.tmp")]:  # files of a killed run
            if left.is_file():
                left.unlink()
    if config.threads:
        torch.set_num_threads(config.threads)
    _seed(config.seed + world.rank)
    model = task.model.to(world.device).train()
    batches = _Ahead(task.batches(world.rank, world.size))
    sharded = world.size > 1 and config.parallel == "fsdp"
    if sharded:
        task.shard(world)
    learner = Learner(task) if sharded else replicate(world, Learner(task))
    half = config.in_bfloat16(world.device)
    optimizer = make_optimizer(model, config.optimizer, torch.bfloat16 if half else None)
    checkpoints = checkpoint.Checkpoints(config.out, world, config.keep)
    state = _resume(task, config, world, optimizer, batches)
    sitting, before, logged = time.monotonic(), state.seconds, _Sums(world)
    print0(world, "bfloat16 autocast; weights, sums and moments in float32" if half else "float32 throughout")
    _note_sitting(task, config, world, state)
    log = RunLog(
        config.out / "metrics.jsonl",
        state.step,
        config.steps,
        world.rank == 0,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=_run_config(task, config),
    )

    with _stop_on_signal() as stop, log, checkpoints, batches:
        stopping = False
        while state.step < config.steps and not stopping:
            watch.at(f"step {state.step + 1}")
            began = time.monotonic()
            rate = learning_rate(state.step, config.steps, config.optimizer)
            sums, step = _Sums(world), next(batches)
            sums.waited = time.monotonic() - began
            for i, batch in enumerate(step):
                with _summed_later(learner, i + 1 < len(step)):
                    with torch.autocast(world.device.type, torch.bfloat16, enabled=half):
                        loss = learner(batch)
                    loss.total.backward()
                sums.add(loss, task.cost(batch))
            sums.over_ranks()
            norm = _gradient(model, sums.count, config.optimizer.clip, world.size if sharded else 1)
            bad = _what_is_wrong(sums, norm, state, config)
            if not bad:
                _update(optimizer, rate)
                logged.merge(sums)
                state.skipped = 0
                state.usual_steps = min(state.usual_steps + 1, USUAL_STEPS)
                state.usual_loss += (sums.total / sums.count - state.usual_loss) / state.usual_steps
            else:
                state.skipped += 1
                logged.skipped += 1
                told = _tell_bad_step(task, config, world, state, step, bad)
                log.say(f"{told}, update skipped ({state.skipped} in a row)")
                if config.bad_step == "stop" or state.skipped >= MOST_SKIPPED:
                    checkpoints.wait()
                    many = f"{state.skipped} updates in a row were skipped" if config.bad_step == "skip" else "the run stops"
                    raise FloatingPointError(
                        f"{told}; {many}. Lower the learning rate ({rate:g}) or check the data. "
                        f"The checkpoints in {config.out} are kept"
                    )
            optimizer.zero_grad()

            state.step += 1
            now = time.monotonic()
            logged.seconds += now - began
            logged.waited += sums.waited
            state.seconds = before + now - sitting
            late = bool(config.max_minutes) and now - sitting > 60 * (config.max_minutes or 0)
            stopping, last = _any_rank(world, stop.asked or late), state.step == config.steps
            log.advance()
            if state.step % config.log_every == 0 or last or stopping:
                log.train(_train_record(state, config, logged, task.loss_unit, rate, norm, half))
                logged = _Sums(world)
            watch.at(f"evaluating or saving after step {state.step}", PATIENCE.total_seconds())
            if last or _due(state.step, config.eval_every):
                state.evaluation = _evaluate(task, world)
                state.seconds = before + time.monotonic() - sitting
                log.evaluation({"step": state.step, "seconds": round(state.seconds, 3), **state.evaluation})
            checkpoints.check()
            if last or stopping or _due(state.step, config.save_every):
                _save(task, config, world, optimizer, batches, state, checkpoints)
    barrier(world)

    if state.step < config.steps:
        print0(world, f"stopped after step {state.step} of {config.steps}; the same command goes on from there")
    else:
        weights = _whole_weights(model)
        if world.rank == 0:
            task.save_pretrained(config.out / "final", weights)
            print0(world, f"finished after {state.seconds / 60:.1f} minutes; the model is in {config.out / 'final'}")
    barrier(world)
    return state.evaluation


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _summed_later(learner: nn.Module, later: bool) -> Any:
    """DDP sums gradients over ranks in the backward pass of the step's last micro-batch only."""
    return learner.no_sync() if later and isinstance(learner, DistributedDataParallel) else nullcontext()


def _gradient(model: nn.Module, count: float, clip: float, shared: int) -> float:
    """Divide the gradients, summed over ranks or their mean over `shared` of them, by the global count; clip.

    A parameter without a gradient gets zeros, on one rank as on many. Returns the norm before clipping.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad *= shared / count
    norm = nn.utils.clip_grad_norm_(parameters, clip or math.inf, foreach=True)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _what_is_wrong(sums: _Sums, norm: float, state: TrainState, config: TrainConfig) -> str:
    """Why the step must not be taken; "" when it may. All ranks find the same."""
    if not (math.isfinite(norm) and math.isfinite(sums.total)):
        return "loss or gradient is not finite"
    loss = sums.total / sums.count
    if config.spike and state.usual_steps == USUAL_STEPS and loss > config.spike * state.usual_loss:
        return f"the loss jumped to {loss:.3g} from about {state.usual_loss:.3g}"
    return ""


def _tell_bad_step(task: Task, config: TrainConfig, world: World, state: TrainState, step: list[Any], what: str) -> str:
    """Keep in `bad_steps.jsonl` which documents the ranks had. -> one line about it."""
    documents: list[Any] = [[name for batch in step for name in task.describe(batch)]]
    if world.size > 1:
        mine, documents = documents[0], [None] * world.size
        dist.all_gather_object(documents, mine)
    names = [name for rank in documents for name in rank]
    if world.rank == 0:
        with open(config.out / "bad_steps.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.step + 1, "what": what, "documents": names}) + "\n")
    told = f" (documents: {', '.join(names[:3])}{' and others, in bad_steps.jsonl' if len(names) > 3 else ''})" if names else ""
    return f"step {state.step + 1}: {what}{told}"


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
    state: TrainState, config: TrainConfig, logged: _Sums, unit: str, rate: float, norm: float, half: bool
) -> dict[str, Any]:
    """A line of the metrics file: means since the line before it, and the last step's rate and gradient norm."""
    world, seconds = logged.world, max(logged.seconds, 1e-9)
    memory = "gpu_memory_gb" if world.device.type == "cuda" else "peak_memory_gb"
    record = {
        "step": state.step,
        "seconds": round(state.seconds, 3),
        **logged.means(f"loss_{unit}"),
        "lr": rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        "skipped_updates": logged.skipped,
        "tokens_per_s": round(logged.count / seconds, 1),
        "data_share": round(logged.waited / seconds, 4),
        "seconds_left": round(state.seconds / state.step * (config.steps - state.step), 1),
        memory: round(peak_memory_gb(world.device), 3),
    }
    if "sentences" in logged.costs:
        record["sentences_per_s"] = round(logged.costs["sentences"] / seconds, 1)
    if "flops" in logged.costs:
        peak = matrix_peak(world.device, torch.bfloat16 if half else torch.float32) * world.size
        record["mfu"] = round(logged.costs["flops"] / seconds / peak, 4)
    if world.size > 1:
        record["imbalance"] = round(logged.imbalance, 4)
    return record


class _Sums:
    """Sums and counts of a loss and its parts, over micro-batches, ranks and steps.

    Micro-batches add up on the device; `over_ranks` brings the numbers here, the only wait of a step for them.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._on_device: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self.costs: Counter[str] = Counter()
        self.seconds = 0.0
        self.waited = 0.0  # of them for data
        self.skipped = 0
        self._most = 0.0  # tokens of the busiest rank, step by step

    def add(self, loss: LossSum, cost: Mapping[str, float]) -> None:
        for name, (total, count) in {"": (loss.total, loss.count), **loss.parts}.items():
            total = total.detach().double()
            self._on_device[name] = self._on_device[name] + total if name in self._on_device else total
            self._counts[name] = self._counts.get(name, 0.0) + count
        self.costs.update(cost)

    def over_ranks(self) -> None:
        names, costs = sorted(self._counts), sorted(self.costs)
        totals = torch.stack([self._on_device[name] for name in names])
        mine = [0.0] * self.world.size
        mine[self.world.rank] = self._counts[""]
        numbers = [*(self._counts[name] for name in names), *(self.costs[name] for name in costs), *mine]
        counts = torch.tensor(numbers, dtype=torch.float64, device=totals.device)
        numbers = sum_over_ranks(self.world, torch.cat([totals, counts])).tolist()
        size = len(names)
        self._totals, self._counts = dict(zip(names, numbers)), dict(zip(names, numbers[size:]))
        self.costs = Counter(dict(zip(costs, numbers[2 * size :])))
        self._most = max(numbers[-self.world.size :])

    def merge(self, other: _Sums) -> None:
        """Add a step's sums, which `over_ranks` has completed."""
        for name, total in other._totals.items():
            self._totals[name] = self._totals.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0.0) + other._counts[name]
        self.costs.update(other.costs)
        self._most += other._most

    @property
    def imbalance(self) -> float:
        """Tokens of the busiest rank over the mean of all: 1 is even, 1.05 leaves the others idle for 5 % of its time."""
        return self._most * self.world.size / self.count if self.count else 1.0

    @property
    def total(self) -> float:
        return self._totals.get("", 0.0)

    @property
    def count(self) -> float:
        return self._counts.get("", 0.0)

    def means(self, loss: str) -> dict[str, float | None]:
        """The loss under that name (None without an update), and each part under its own (see `LossSum`)."""
        parts = {
            name if "_" in name else f"loss_{name}": total / self._counts[name]
            for name, total in self._totals.items()
            if name and self._counts[name]
        }
        return {loss: self.total / self.count if self.count else None, **parts}


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
    reporting = (
        "out",
        "log_every",
        "eval_every",
        "save_every",
        "keep",
        "threads",
        "max_minutes",
        "hang_minutes",
        "tensorboard",
        "wandb",
    )
    for name in (*reporting, "parallel", "bad_step"):
        del training[name]
    return json.loads(json.dumps({**task.config(), "training": training}))  # as it will come back from the file


def _note_sitting(task: Task, config: TrainConfig, world: World, state: TrainState) -> None:
    """`run.json`: the configuration, its fingerprint, and for each sitting where it ran and from which step."""
    if world.rank != 0:
        return
    path = config.out / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    run = _run_config(task, config)
    try:
        sittings = json.loads(path.read_text(encoding="utf-8"))["sittings"] if path.is_file() else []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); move it away and run the same command again") from error
    sittings.append({"from_step": state.step, **environment()})
    text = json.dumps({"fingerprint": fingerprint(run), "config": run, "sittings": sittings}, indent=1) + "\n"
    checkpoint.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _training_state(model: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
    """Weights and optimizer by parameter name, sharded where the model is."""
    weights, moments = get_state_dict(model, optimizer.parts)
    return {"model": weights, "optimizer": moments}


def _whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights on rank 0's CPU, gathered where they are sharded; {} on other ranks of a sharded model."""
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], whole)


def _save(
    task: Task,
    config: TrainConfig,
    world: World,
    optimizer: Optimizers,
    batches: _Ahead,
    state: TrainState,
    checkpoints: checkpoint.Checkpoints,
) -> None:
    trainer: dict[str, Any] = {"random": _random_states()}
    if world.rank == 0:
        trainer |= {"state": to_dict(state), "batches": batches.position}
    checkpoints.save(state.step, _training_state(task.model, optimizer), trainer, _run_config(task, config))


def _resume(task: Task, config: TrainConfig, world: World, optimizer: Optimizers, batches: _Ahead) -> TrainState:
    """Put everything back as the newest checkpoint has it; a new state when there is none."""
    found, wanted = checkpoint.latest(config.out), _run_config(task, config)
    if found is None:
        return TrainState()
    saved = checkpoint.read(found, verify=world.rank == 0)
    changes = difference(saved.config, wanted)
    if changes:
        raise ValueError(
            f"{config.out} holds a run with another configuration ({fingerprint(saved.config)}, now "
            f"{fingerprint(wanted)}): {'; '.join(changes)}. Use the same settings to go on with it, or another "
            "folder to begin anew"
        )
    random_states = _random_states()  # loading draws from the generators
    training = _training_state(task.model, optimizer)
    saved.load_into(training, world)
    set_state_dict(task.model, optimizer.parts, model_state_dict=training["model"], optim_state_dict=training["optimizer"])
    ranks, trainer = saved.trainer_states, saved.trainer_states[0]
    batches.go_to(trainer["batches"])
    # more ranks than the run had: they keep their fresh seeds
    _restore_random_states(ranks[world.rank]["random"] if world.rank < len(ranks) else random_states)
    state = TrainState(**trainer["state"])
    print0(world, f"resumed {config.out} from step {state.step} of {config.steps}")
    return state


class _Ahead:
    """A rank's batches, the next step's always loaded while this one is computed.

    `position` is that of the steps handed out: what a resume goes on from.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches, self.position = batches, batches.state_dict()
        self._worker = ThreadPoolExecutor(1, "batches")
        self._next: Future[tuple[list[Any], dict[str, int]]] | None = None

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(cancel_futures=True)

    def _load(self) -> tuple[list[Any], dict[str, int]]:
        return next(self._batches), self._batches.state_dict()

    def __next__(self) -> list[Any]:
        step, self.position = (self._next or self._worker.submit(self._load)).result()
        self._next = self._worker.submit(self._load)
        return step

    def go_to(self, position: dict[str, int]) -> None:
        assert self._next is None, "a run that has begun does not jump"
        self._batches.load_state_dict(position)
        self.position = position


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
