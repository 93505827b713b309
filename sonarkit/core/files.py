"""Folders of files, on this machine or behind a URL that fsspec reads: `s3://`, `gs://`, `memory://` and others.

Only what a store needs: whole files, written in one step. An object store puts a file there whole or not at all; locally a
temporary file is renamed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import unquote, urlsplit

from sonarkit.core.checkpoint import write_atomically

OBJECT_STORES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}  # and their packages
Place = str | Path


def open_folder(place: Place) -> Folder:
    """The folder at a path or URL, whether it is there or not. ValueError, with the line to install, for what needs a package."""
    url = as_url(place)
    if url is None:
        return Folder(Path(place))
    if url.startswith("file://"):
        return Folder(Path(unquote(urlsplit(url).path)))
    return RemoteFolder(url)


def as_url(place: Place) -> str | None:
    """The URL that `place` is; None for a path. A pathlib.Path made of a URL has lost one of its slashes: it comes back."""
    name = str(place)
    if isinstance(place, Path):
        name = re.sub(r"^([a-z][a-z0-9+.]+):/(?!/)", "file:///" if name.startswith("file:/") else r"\1://", name)
    return name if re.match(r"^[a-z][a-z0-9+.:]+://", name) else None


class Folder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def make(self) -> None:
        """Make it, with the folders above it, unless it is there."""
        self.path.mkdir(parents=True, exist_ok=True)

    def names(self) -> set[str]:
        """The files in it, half-written ones (`.tmp`) too; none when it is not there."""
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()

    def exists(self, name: str) -> bool:
        """Whether it holds a file of this name."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """All of a file. FileNotFoundError where it is not there."""
        return (self.path / name).read_bytes()

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """`read` of each file, many at once where that is faster."""
        return [self.read(name) for name in names]

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all. OSError says what is left and what to do."""
        write_atomically(self.path / name, lambda temporary: temporary.write_bytes(data))

    def remove(self, names: Iterable[str]) -> None:
        """Delete files that are there."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder behind a URL. An object store has no folders: there is nothing to `make`."""

    def __init__(self, url: str) -> None:
        self._files, self._root = _behind(url)
        self.url = url

    def __str__(self) -> str:
        return self.url

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def make(self) -> None:
        if _scheme(self.url) not in OBJECT_STORES:  # they have no folders, and would make a bucket of a misspelt name
            self._files.makedirs(self._root, exist_ok=True)

    def names(self) -> set[str]:
        try:
            return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False)}
        except FileNotFoundError:
            return set()

    def exists(self, name: str) -> bool:
        try:
            return bool(self._files.info(self._at(name))["type"] == "file")
        except FileNotFoundError:  # `isfile` would take missing rights for a missing file
            return False

    def read(self, name: str) -> bytes:
        return self._files.cat_file(self._at(name))

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        found: dict[str, Any] = self._files.cat([self._at(name) for name in names]) if names else {}  # many at once
        by_name = {path.rsplit("/", 1)[-1]: data for path, data in found.items()}
        return [by_name[name] for name in names]

    def write(self, name: str, data: bytes) -> None:
        try:
            self._files.pipe_file(self._at(name), data)
        except OSError as error:
            raise OSError(
                f"could not write {self.url}/{name} ({error}); free space or check the rights, and start again"
            ) from error

    def remove(self, names: Iterable[str]) -> None:
        if paths := [self._at(name) for name in names]:
            self._files.rm(paths)


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL, to be read from its beginning to its end; as much of a `Path` as reading takes.

    `path` is its place in `files`, fsspec's file system.
    """

    url: str
    path: str
    files: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """The last ending of its name, with the full stop."""
        return PurePosixPath(self.name).suffix

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The file, opened."""
        file: IO[bytes] = self.files.open(self.path, mode)
        return file


def remote_files(url: str) -> list[RemoteFile]:
    """The file at a URL, or all of a folder's, by name; hidden ones are left out. FileNotFoundError where there is nothing."""
    files, root = _behind(url)
    if files.isfile(root):
        return [RemoteFile(url, root, files)]
    found = sorted(path for path in files.find(root) if "/." not in path[len(root) :])
    if not found:
        raise FileNotFoundError(f"nothing at {url}; check the name, and the rights")
    begin = url[: url.rindex(root.strip("/"))] if root.strip("/") in url else f"{_scheme(url)}://"
    return [RemoteFile(begin + path.lstrip("/"), path, files) for path in found]


def _behind(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path there. ValueError, with the line to install, for what needs a package."""
    try:
        import fsspec.core
    except ImportError as error:
        raise ValueError(f"{url} needs a package: pip install fsspec{_and_its_own(url)}") from error
    try:
        # no cache of listings: other ranks write into the folder
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(f"{url} needs a package ({error}): pip install fsspec{_and_its_own(url)}") from error
    except ValueError as error:
        raise ValueError(f"{url} is no place that fsspec knows ({error}); expected a folder, s3://, gs:// or the like") from error
    return files, str(root)


def _scheme(url: str) -> str:
    return url.partition("://")[0].rpartition(":")[2]


def _and_its_own(url: str) -> str:
    package = OBJECT_STORES.get(_scheme(url))
    return f" {package}" if package else ""
