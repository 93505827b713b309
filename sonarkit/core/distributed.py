"""One process or many: what torchrun says, and sums over all ranks."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # rank 0 may evaluate alone for long; torchrun itself ends the others when a rank dies
BEAT = 10.0  # seconds at most between two signs of life of a rank


@dataclass(frozen=True)
class World:
    """This process among its peers. `size` 1 means alone: no process group is needed."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: dist.Store | None = field(default=None, compare=False, repr=False)  # what all ranks can read and write


def start(device: str = "auto") -> World:
    """Join the group that torchrun's environment describes, over NCCL on GPUs and gloo on CPUs; else be alone.

    `device` is "auto" (this rank's GPU, or the CPU without one), "cpu", "cuda" or "cuda:1". Raises ValueError as
    `checked_device` does.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = checked_device(f"cuda:{local_rank}" if device == "cuda" else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store = None
    if size > 1 and not dist.is_initialized():
        # gloo beside NCCL, for what lies on the CPU: checkpoints are written from there
        backend, device_id = ("cpu:gloo,cuda:nccl", chosen) if chosen.type == "cuda" else ("gloo", None)
        store = _store(rank, size)
        # the last resort: `Watch` says more, and sooner
        dist.init_process_group(backend, timeout=1.5 * PATIENCE, store=store, rank=rank, world_size=size, device_id=device_id)
    return World(rank, size, local_rank, chosen, store)


def checked_device(name: str) -> torch.device:
    """The device of this name. ValueError for a name that torch does not know, and for a GPU that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; expected cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= (here := torch.cuda.device_count()):
        raise ValueError(f"device {device} is not there (this machine has {here} GPUs); use fewer ranks or --device cpu")
    return device


def _store(rank: int, size: int) -> dist.Store:
    """torchrun's store, under this attempt's name: the ranks that `--max-restarts` starts again would find the addresses of
    the dead in it (torch 2.9 to 2.13)."""
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=PATIENCE))
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 products (on a CPU: AVX-512 BF16 or AMX). Elsewhere they are emulated, slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        dist.barrier()


def agreed(world: World, value: T) -> T:
    """Rank 0's value, on every rank. It must be picklable."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def print0(world: World, *words: object) -> None:
    """Print on rank 0 only, at once."""
    if world.rank == 0:
        print(*words, flush=True)


def sum_over_ranks(world: World, values: Tensor) -> Tensor:
    """Elementwise sum of `values` over all ranks, on every rank, where `values` lies. Shapes must agree."""
    if world.size == 1:
        return values
    summed = values.to(world.device, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


# ---------------------------------------------------------------------- a rank that hangs

_watches = itertools.count()


class Watch:
    """`with Watch(world, seconds) as watch:` ends this process, with a line that says which rank hangs and where, when one does.

    torchrun then ends the others and, with `--max-restarts`, begins again. Every rank tells how far it is: how many
    collectives it has entered, and what it calls `at` with (all ranks in the same order). A thread puts that into the ranks'
    common store, where ranks 0 and 1 read it. The rank that is least far hangs when it has not moved for `seconds`; one that
    gives no sign of life is told from one that does. Beats are counted, not clocks compared: neither a clock that jumps nor a
    machine that sleeps makes a rank hang. A process that is alone is not watched.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self._world, self._seconds, self._beat = world, seconds, min(BEAT, seconds / 5)
        self._here: tuple[int, float, str] = 0, PATIENCE.total_seconds(), "the beginning"
        self._name, self._over = f"watch-{next(_watches)}", threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def at(self, where: str, seconds: float | None = None) -> None:
        """This rank is at `where` now, which may take `seconds` instead of the usual."""
        self._here = self._here[0] + 1, seconds or self._seconds, where

    def __enter__(self) -> Watch:
        if self._world.store is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._world.store is not None:
            self._thread.join()

    def _look(self) -> None:
        assert self._world.store is not None
        # a connection of its own: the main thread may wait on the other for long
        store = self._world.store.clone()  # type: ignore[attr-defined]
        keys = [f"{self._name}/{rank}" for rank in range(self._world.size)]
        seen = [_Seen() for _ in keys]
        for beat in itertools.count():
            count, seconds, where = self._here
            told = [beat, [_collectives(), count], seconds, where, f"process {os.getpid()} on {platform.node()}"]
            try:
                store.set(keys[self._world.rank], json.dumps(told))
                if self._world.rank < 2:
                    for key, one in zip(keys, seen):
                        one.hear(json.loads(store.get(key)) if store.check([key]) else _UNHEARD)
            except RuntimeError:  # torchrun is gone, and takes the ranks with it
                return
            self._judge(seen)
            if self._over.wait(self._beat):
                return

    def _judge(self, seen: list[_Seen]) -> None:
        if self._world.rank > 1:
            return
        least = min(seen, key=lambda one: one.far)
        missing = [rank for rank, one in enumerate(seen) if one.beat >= 0 and one.mute * self._beat >= self._seconds]
        mute = bool(missing)
        if not mute and least.still * self._beat >= least.seconds:
            missing = [rank for rank, one in enumerate(seen) if one.far == least.far]
        speaker = 1 if 0 in missing else 0
        if not missing or self._world.rank != speaker:
            return
        names = ", ".join(f"rank {rank} ({seen[rank].who})" for rank in missing[:4])
        if mute:
            told = f"{names} has given no sign of life for {self._seconds:g} s, since {seen[missing[0]].where} or soon after"
        elif len(missing) < len(seen):
            told = f"{names} has been at {least.where} for {least.seconds:g} s, and the others wait"
        else:
            told = f"all ranks have been at {least.where} for {least.seconds:g} s: they wait for one another, or need more time"
        print(f"sonarkit (rank {speaker}): {told}; it ends here; what was finished is kept", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits for the others, deep in a library


_UNHEARD = [-1, [-1, -1], PATIENCE.total_seconds(), "the beginning", "never heard of"]


@dataclass
class _Seen:
    """What is known of a rank, and for how many looks it has been so."""

    beat: int = -2
    far: list[int] = field(default_factory=lambda: [-2, -2])
    seconds: float = 0.0
    where: str = ""
    who: str = ""
    mute: int = 0  # looks without another beat
    still: int = 0  # looks without getting further

    def hear(self, told: list) -> None:
        beat, far, self.seconds, self.where, self.who = told
        self.mute = 0 if beat != self.beat else self.mute + 1
        self.still = 0 if far != self.far else self.still + 1
        self.beat, self.far = beat, far


def _collectives() -> int:
    """How many collectives this rank has entered, on its GPU and its CPU."""
    group = dist.distributed_c10d._get_default_group()
    backends = {group._get_backend(device) for device in group._device_types}
    return sum(backend._get_sequence_number_for_group() for backend in backends)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- one model on many ranks


def replicate(world: World, learner: nn.Module) -> nn.Module:
    """`learner` under DDP: every rank begins with rank 0's weights, and a backward pass sums the gradients over ranks,
    in buckets while it runs. (A sum, not DDP's mean: the loop divides once, by what all ranks counted.)"""
    if world.size == 1:
        return learner
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(learner, device_ids, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, _sum_bucket)
    return wrapped


def _sum_bucket(_, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def shard(
    world: World, model: nn.Module, methods: Iterable[str], layers: Iterable[nn.Module], layer_methods: Iterable[str]
) -> None:
    """`model` under FSDP2: each rank holds its part of every weight, gradient and optimizer state.

    A layer's weights are gathered while it runs, and those outside `layers` while the model does. `methods` and
    `layer_methods` are what else than `forward` needs the weights; all ranks must call them equally often. A backward pass
    leaves the mean over ranks of the gradients, not their sum. Weights begin as rank 0's.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second that no story should wait for
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    broadcast_weights(world, model)
    for layer in layers:
        _summed(fully_shard(layer, mesh=mesh), world)
        for name in layer_methods:
            register_fsdp_forward_method(layer, name)
    # kept until the backward pass: a method may call `forward` and need the weights after it (a tied projection)
    _summed(fully_shard(model, mesh=mesh, reshard_after_forward=False), world)
    for name in methods:
        register_fsdp_forward_method(model, name)


def _summed(module: FSDPModule, world: World) -> None:
    """Let a mean over ranks be a sum, divided: asked for a mean, gloo gives the sum in torch 2.8, without a word."""
    if world.device.type == "cpu":
        module.set_force_sum_reduction_for_comms(True)


def broadcast_weights(world: World, module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers, so that unlike seeds cannot make ranks train apart.

    What is sharded already is left as it is.
    """
    from torch.distributed.tensor import DTensor

    if world.size > 1:
        for tensor in module.state_dict().values():
            if not isinstance(tensor, DTensor):
                dist.broadcast(tensor, src=0)
