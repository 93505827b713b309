"""Writing weights and training states so that a crash, a full disk or a flipped bit never costs the last good copy.

A training checkpoint is a folder `step-00001000/` with `model.safetensors`, `trainer.pt` (optimizer, sampler's
position, random states of rank 0), `trainer-rank1.pt` and so on (random states of the other ranks), `config.json`
and `checksums.json`. It is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

# ---------------------------------------------------------------------- single files


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    Raises OSError with what was kept and what to do; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        kept = "the old file is kept" if path.exists() else "nothing was written"
        raise OSError(f"could not write {path} ({error}); {kept}. Free space or choose another place, and start again") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, atomically."""
    write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; ValueError when it is truncated or no safetensors file, FileNotFoundError when absent."""
    if not path.is_file():
        raise FileNotFoundError(f"the weights file {path} is missing; copy or save the model again")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"the weights file {path} is damaged or cut short ({error}); copy or download it again") from error


def assign(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Make `tensors` the weights of `module` (built on the meta device, say), without copying.

    Every missing, unexpected or misshapen tensor is named in a ValueError.
    """
    _check_fit(module, tensors, source)
    module.load_state_dict(tensors, assign=True)


def assign_in_place(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the weights of `module`, which an optimizer may already hold. ValueError as in `assign`."""
    _check_fit(module, tensors, source)
    module.load_state_dict(tensors)


def _check_fit(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    wanted = module.state_dict()
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in sorted(set(wanted) & set(tensors))
        if wanted[key].shape != tensors[key].shape
    ]
    if missing or unexpected or shapes:
        told = [f"missing {key}" for key in missing] + [f"unexpected {key}" for key in unexpected] + shapes
        raise ValueError(f"{source} does not fit a {type(module).__name__} of this configuration: {'; '.join(told)}")


# ---------------------------------------------------------------------- training checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found. `trainer_states` has one entry per rank of the run that saved it."""

    model_state: dict[str, Tensor]
    trainer_states: list[dict[str, Any]]
    config: dict[str, Any]


def save(
    folder: Path,
    step: int,
    model_state: dict[str, Tensor],
    trainer_states: list[dict[str, Any]],
    config: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` (one process does it for all) and delete all but the newest `keep`.

    Raises OSError that says what was kept: a checkpoint that could not be written leaves the older ones alone.
    """
    target, temporary = folder / f"step-{step:08d}", folder / f"step-{step:08d}.tmp"
    try:
        for stale in folder.glob("step-*.tmp"):  # a killed run's
            shutil.rmtree(stale)
        temporary.mkdir(parents=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in model_state.items()}
        safetensors.torch.save_file(tensors, temporary / "model.safetensors")
        for rank, state in enumerate(trainer_states):
            _write_trainer(temporary / _trainer_file(rank), state)
        (temporary / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / "checksums.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        if target.exists():  # without checksums, else the run would have gone on from it
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(folder)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = latest(folder)
        kept = f"{last.name} is kept" if last else "there is no older one"
        raise OSError(
            f"could not save the checkpoint of step {step} in {folder} ({error}); {kept}. "
            "Free space and run the same command again"
        ) from error
    for old in _finished(folder)[:-keep]:
        shutil.rmtree(old.rename(old.with_name(f"{old.name}.tmp")))  # never half there under its own name
    return target


def _trainer_file(rank: int) -> str:
    return "trainer.pt" if rank == 0 else f"trainer-rank{rank}.pt"


def _write_trainer(path: Path, state: dict[str, Any]) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"{path.name}: {error}") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / "checksums.json").is_file())


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint in `folder`, if any."""
    finished = _finished(folder)
    return finished[-1] if finished else None


def load(path: Path) -> Checkpoint:
    """Read the checkpoint in folder `path`, onto the CPU.

    Raises FileNotFoundError when there is none, ValueError naming the file that is missing, damaged or foreign.
    """
    if not (path / "checksums.json").is_file():
        raise FileNotFoundError(f"{path} holds no checksums.json, so no finished checkpoint; pass a folder like step-00001000")
    advice = f"delete {path} to resume from the checkpoint before it"
    try:
        sums: dict[str, str] = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
        unsound = [name for name, sha in sums.items() if not (path / name).is_file() or _sha256(path / name) != sha]
    except (ValueError, AttributeError) as error:  # no JSON, or JSON of another shape
        raise ValueError(f"{path / 'checksums.json'} is damaged ({error}); {advice}") from error
    lacking = {"model.safetensors", _trainer_file(0), "config.json"} - set(sums)
    if unsound or lacking:
        raise ValueError(f"{path / sorted([*unsound, *lacking])[0]} is missing or damaged (its checksum is off); {advice}")
    ranks = sum(name.startswith("trainer") for name in sums)
    try:
        # onto the CPU: a tensor saved from rank 0's GPU would otherwise come back there on every rank
        states = [torch.load(path / _trainer_file(r), map_location="cpu", weights_only=True) for r in range(ranks)]
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"a trainer state in {path} was not written by sonarkit ({error}); {advice}") from error
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return Checkpoint(read_safetensors(path / "model.safetensors"), states, config)
