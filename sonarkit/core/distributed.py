"""One process or many: what torchrun says, and sums over all ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

BUCKET_BYTES = 32 << 20
PATIENCE = timedelta(hours=2)  # rank 0 may evaluate alone for long; torchrun itself ends the others when a rank dies


@dataclass(frozen=True)
class World:
    """This process among its peers. `size` 1 means alone: no process group is needed."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


def start(device: str = "auto") -> World:
    """Join the group that torchrun's environment describes, over NCCL on GPUs and gloo on CPUs; else be alone.

    `device` is "auto" (this rank's GPU, or the CPU without one), "cpu", "cuda" or "cuda:1". Raises ValueError when a
    GPU is asked for that is not there.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device("cuda", local_rank) if device == "cuda" else torch.device(device)
    if chosen.type == "cuda":
        here = torch.cuda.device_count()
        if (chosen.index or 0) >= here:
            raise ValueError(f"device {chosen} is not there (this machine has {here} GPUs); use fewer ranks or --device cpu")
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        if chosen.type == "cuda":
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=chosen)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    return World(rank, size, local_rank, chosen)


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


def broadcast_parameters(world: World, module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers, so that unlike seeds cannot make ranks train apart."""
    if world.size > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def sum_gradients(world: World, parameters: Iterable[Parameter]) -> None:
    """Replace every gradient by its sum over all ranks, in place, in flat buckets.

    A parameter without a gradient gets zeros, on one rank as on many: the optimizer then treats it alike.
    """
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(grad.nbytes for grad in bucket) >= BUCKET_BYTES:
            _sum_bucket(world, bucket)
            bucket = []
    _sum_bucket(world, bucket)


def _sum_bucket(world: World, grads: list[Tensor]) -> None:
    if world.size == 1 or not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
        grad.copy_(part.view_as(grad))
