"""Writing weights and training states so that a crash, a full disk or a flipped bit never costs the last good copy.

A training checkpoint is a folder `step-00001000/`: `state/` holds weights and optimizer in shards
(`torch.distributed.checkpoint`: any number of ranks can read what any number wrote), `trainer.pt` what rank 0 knows beside
them (step, sampler's position, random states), `trainer-rank1.pt` and so on the random states of the others, `config.json`
the run's configuration, `checksums.json` a SHA-256 of each file. It is written in the background under a temporary name and
renamed when it is whole. Ranks on several machines need one file system.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sonarkit.core.distributed import World, barrier
from sonarkit.core.foreign import read_json

# ---------------------------------------------------------------------- single files


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step.

    A link stays one, to the new file; a device or a pipe is written to as it is. Raises OSError with what was kept and what to
    do; the old file stays.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    if path.is_symlink():
        path = path.resolve()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        kept = "the old file is kept" if path.exists() else "nothing was written"
        raise OSError(f"could not write {path} ({error}); {kept}. Free space or choose another place, and start again") from error
    except BaseException:  # Ctrl-C, or an error of what was to be written
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)  # Windows syncs what may be written only
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # some systems cannot open or sync a folder
            raise


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, atomically, with a CRC-32 of the whole file in its metadata.

    The same tensors give the same bytes. OSError as in `write_atomically`.
    """

    def write(temporary: Path) -> None:
        safetensors.torch.save_file(tensors, temporary, {**metadata, "crc32": _BLANK.decode()})
        with open(temporary, "r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # safetensors gives them in any order
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
            assert len(text) == size, "the header has other spellings than ours"
            crc = _crc32(file, zlib.crc32(text, zlib.crc32(size.to_bytes(8, "little"))))
            file.seek(8)
            file.write(text.replace(b'"crc32":"%s"' % _BLANK, b'"crc32":"%08x"' % crc, 1))

    write_atomically(path, write)


_BLANK = b"0" * 8  # a file's CRC-32 is that of the file with this in its place


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file.

    Raises FileNotFoundError when it is absent, ValueError when it is cut short or no safetensors file, or its CRC-32 is off:
    those that sonarkit wrote have one. (It is read once for that, at 2 GB/s or more; a SHA-256 takes a core 13 times as long.)
    """
    if not path.is_file():
        raise FileNotFoundError(f"the weights file {path} is missing; copy or save the model again")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"the weights file {path} is damaged or cut short ({error}); copy or download it again") from error
    with open(path, "rb") as file:
        begin = file.read(8)
        header = file.read(int.from_bytes(begin, "little"))
        if told := re.search(rb'"crc32":"([^"]*)"', header):
            blank = header.replace(told[0], b'"crc32":"%s"' % _BLANK, 1)
            if told[1] != b"%08x" % _crc32(file, zlib.crc32(blank, zlib.crc32(begin))):
                raise ValueError(f"the weights file {path} is damaged (its checksum is off); copy or download it again")
    return tensors


def _crc32(file: BinaryIO, crc: int) -> int:
    """The CRC-32 of what came before and the rest of the file."""
    while data := file.read(1 << 20):
        crc = zlib.crc32(data, crc)
    return crc


def assign(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Make `tensors` the weights of `module` (built on the meta device, say), without copying.

    Every missing, unexpected or misshapen tensor is named in a ValueError.
    """
    _check_fit(module, tensors, source)
    module.load_state_dict(tensors, assign=True)


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


class Checkpoints:
    """Writes the checkpoints of a run in the background, all ranks together; keeps the newest `keep`."""

    def __init__(self, folder: Path, world: World, keep: int = 2) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        # a group of its own: it talks while training does
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], trainer: dict[str, Any], config: dict[str, Any]) -> None:
        """Copy `state` (tensors, DTensors, numbers) aside and begin to write it; training may go on at once.

        `trainer` is this rank's own. Waits for the save before it. Raises OSError as `wait` does.
        """
        self.wait()
        temporary = self.folder / f"step-{step:08d}.tmp"
        with self._told(step):
            if self.world.rank == 0:
                for stale in self.folder.glob("step-*.tmp"):  # a killed run's
                    shutil.rmtree(stale)
                temporary.mkdir(parents=True)
            barrier(self.world)
            _write_trainer(temporary / _trainer_file(self.world.rank), trainer)
            if self.world.rank == 0:
                (temporary / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
            written = _begin_to_write(state, temporary / "state", self._group, self.world)
        self._pending = self._worker.submit(self._finish, step, temporary, written)

    def _finish(self, step: int, temporary: Path, written: Future[Any]) -> None:
        """In the background: when all shards are there, rank 0 makes the checkpoint whole."""
        with self._told(step):
            try:
                written.result()
            except distributed_checkpoint().api.CheckpointException as error:
                raise OSError(_cause(error)) from error
            if self.world.rank == 0:
                self._make_whole(temporary, temporary.with_suffix(""))

    def _make_whole(self, temporary: Path, target: Path) -> None:
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {file.relative_to(temporary).as_posix(): _sha256(file) for file in files}
        (temporary / "checksums.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for path in [*files, temporary / "checksums.json", temporary / "state", temporary]:
            _sync(path)
        if target.exists():  # without checksums, else the run would have gone on from it
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(self.folder)
        for old in _finished(self.folder)[: -self.keep]:
            shutil.rmtree(old.rename(old.with_name(f"{old.name}.tmp")))  # never half there under its own name

    @contextmanager
    def _told(self, step: int) -> Iterator[None]:
        """An error of writing says which checkpoint was not written and which one is kept; nothing half stays."""
        try:
            yield
        except OSError as error:
            shutil.rmtree(self.folder / f"step-{step:08d}.tmp", ignore_errors=True)
            last = latest(self.folder)
            kept = f"{last.name} is kept" if last else "there is no older one"
            raise OSError(
                f"could not save the checkpoint of step {step} in {self.folder} ({error}); {kept}. "
                "Free space and run the same command again"
            ) from error

    def check(self) -> None:
        """Raise now what went wrong in the background, if anything did; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is whole; on other ranks than 0, until all of its shards are written.

        OSError says what was kept when it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the last checkpoint, after an error as well."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()


def _begin_to_write(state: dict[str, Any], folder: Path, group: Any, world: World) -> Future[Any]:
    """torch's `async_save`; without the look-ahead of its writer, whose thread would open a context of every rank on GPU 0."""
    library = distributed_checkpoint()
    options: dict[str, Any] = {"checkpoint_id": folder, "process_group": group}
    if "async_stager" not in inspect.signature(library.async_save).parameters:  # torch 2.8
        return library.async_save(state, **options)
    stager = library.staging.DefaultStager(library.staging.StagingOptions(False, False, False, False))
    options |= {"storage_writer": library.FileSystemWriter(folder, per_thread_copy_ahead=0), "async_stager": stager}
    written = library.async_save(state, no_dist=world.size == 1, **options)
    written.add_done_callback(lambda _: stager.close())
    return written


def distributed_checkpoint() -> Any:
    """torch.distributed.checkpoint, imported when it is needed: it takes a second that no story should wait for."""
    from torch.distributed import checkpoint

    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process, as intended
    return checkpoint


def _cause(error: Any) -> str:
    """What went wrong on the first rank where it did, out of a CheckpointException (which is no Exception)."""
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {' '.join(str(cause).split())}"


def _trainer_file(rank: int) -> str:
    return "trainer.pt" if rank == 0 else f"trainer-rank{rank}.pt"


def _write_trainer(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch itself tells of a full disk in riddles
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / "checksums.json").is_file())


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint in `folder`, if any."""
    finished = _finished(folder)
    return finished[-1] if finished else None


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found whole. `trainer_states` has one entry per rank of the run that saved it."""

    path: Path
    trainer_states: list[dict[str, Any]]
    config: dict[str, Any]

    def load_into(self, state: dict[str, Any], world: World) -> None:
        """Fill the tensors of `state`, whole or sharded, with those saved; what is no tensor is replaced.

        Raises ValueError naming what is missing, of another shape or no tensor.
        """
        from sonarkit.core.shards import Planner, Reader

        reader = Reader(self.path / "state")
        try:
            distributed_checkpoint().load(state, storage_reader=reader, planner=Planner(), no_dist=world.size == 1)
        except distributed_checkpoint().api.CheckpointException as error:
            raise ValueError(f"the weights or the optimizer in {self.path} do not fit this run: {_cause(error)}") from error


def read(path: Path, verify: bool = True) -> Saved:
    """What the checkpoint in folder `path` says, onto the CPU; weights and optimizer are read by `load_into`.

    Raises FileNotFoundError when there is none, ValueError naming the file that is missing, damaged or foreign; `verify`
    reads every file for that (one rank is enough).
    """
    if not (path / "checksums.json").is_file():
        raise FileNotFoundError(f"{path} holds no checksums.json, so no finished checkpoint; pass a folder like step-00001000")
    advice = f"delete {path} to resume from the checkpoint before it"
    try:
        sums: dict[str, str] = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
        unsound = [name for name, sha in sums.items() if not (path / name).is_file() or (verify and _sha256(path / name) != sha)]
    except (ValueError, AttributeError, RecursionError) as error:  # no JSON, or JSON of another shape
        raise ValueError(f"{path / 'checksums.json'} is damaged ({error}); {advice}") from error
    lacking = {_trainer_file(0), "config.json", "state/.metadata"} - set(sums)
    if unsound or lacking:
        raise ValueError(f"{path / sorted([*unsound, *lacking])[0]} is missing or damaged (its checksum is off); {advice}")
    ranks = sum(name.startswith("trainer") for name in sums)
    try:
        # onto the CPU: a tensor saved from rank 0's GPU would otherwise come back there on every rank
        states = [torch.load(path / _trainer_file(r), map_location="cpu", weights_only=True) for r in range(ranks)]
    except OSError:
        raise
    except Exception as error:  # bytes that are no pickle make an unpickler raise almost anything
        raise ValueError(f"a trainer state in {path} was not written by sonarkit ({type(error).__name__}); {advice}") from error
    return Saved(path, states, read_json(path / "config.json", advice))
