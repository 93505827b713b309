"""Reading what `torch.distributed.checkpoint` wrote without running code of it.

Its reader unpickles the index (`.metadata`), and its planner what is no tensor, by Python's own unpickler, which calls whatever a
file names. Here an index may hold the classes that an index is made of, and all else is read with `weights_only=True`.

To be imported when a checkpoint is read: it takes a second that no story should wait for.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, f"{kind}Metadata") for kind in ("", "TensorStorage", "ChunkStorage", "BytesStorage")),
    *((_METADATA, name) for name in ("MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *(("torch", name) for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module.split(".")[0] == "pathlib" and name.endswith("Path"):  # where it was written, on whatever system
            return PurePath
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index does, and sonarkit runs no code of a file")


def _unpickled(data: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
        # The unpickler's memory of objects is a list, made as long as the largest number at once.
        if opcode.name.endswith("PUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it numbers an object {argument} in {len(data)} bytes")
    return _Unpickler(io.BytesIO(data)).load()


class Reader(FileSystemReader):
    """Reads the folder of a checkpoint. ValueError for an index that is damaged, foreign or points out of it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, held against the classes that it may be made of."""
        path = Path(self.path, ".metadata")
        data = path.read_bytes()
        try:
            index: Metadata = _unpickled(data)
            outside = [str(at.relative_path) for at in index.storage_data.values() if PurePath(at.relative_path).parts[1:]]
        except Exception as error:  # damaged bytes make an unpickler raise almost anything
            raise ValueError(f"{path} is no index of a checkpoint ({error})") from error
        if outside:
            raise ValueError(f"{path} points to {outside[0]}, out of its folder")
        return index


class Planner(DefaultLoadPlanner):
    """Loads numbers, texts and lists of them for what is no tensor. ValueError for what would run code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """What is no tensor, put where `read_item` says."""
        plain, name = io.BytesIO(), read_item.dest_index.fqn
        try:
            torch.save(torch.load(value, map_location="cpu", weights_only=True), plain)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{name} holds more than numbers and texts, and sonarkit runs no code of a file") from error
        plain.seek(0)
        super().load_bytes(read_item, plain)  # unpickles what we have just written
