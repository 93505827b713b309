"""Fetching files over HTTP so that a cut connection, a killed process or a full disk costs no byte that has come.

1. What comes goes into `<name>.part`, locked by the process that writes it; `<name>.part.json` tells which version of
   which file it is a part of, so that the next try asks for the rest only (Range and If-Range, RFC 9110, 13 and 14).
2. When it is whole, its length, its SHA-256 where that is known and the CRC-32s inside a `.pt` file are checked.
3. Its SHA-256 is written to `<name>.sha256`, as `sha256sum` writes it, and only then the part gets the file's name.

Proxies are those of the environment (`http_proxy`, `https_proxy`, `no_proxy`), certificates those of `SSL_CERT_FILE`.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import ssl
import struct
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tqdm.auto import tqdm

try:
    import fcntl
except ImportError:  # Windows has none: each process fetches into a part of its own
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte after which a connection counts as cut
RETRIES = 5  # with waits of 1, 2, 4, 8 and 16 seconds: a router that starts again, not a server that is gone
PASSING = {408, 429, 500, 502, 503, 504}  # answers of a server that may be well a moment later
OFFLINE = ("SONARKIT_OFFLINE", "HF_HUB_OFFLINE")
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before 1.6: no zip file, no checksums


class _Cut(Exception):
    """This try failed in a way that another may not."""


class _NoSuchRange(_Cut):
    """The server has no bytes where the part ends."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch from `url` to `path`, with its SHA-256 in hexadecimal where that is known."""

    url: str
    path: Path
    sha256: str | None = None


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    *,
    progress: bool = True,
    retries: int = RETRIES,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Fetch one file, unless it is there already, and return its path. See `download_all`."""
    return download_all([Remote(url, Path(path), sha256)], progress=progress, retries=retries, sleep=sleep)[0]


def download_all(
    files: Sequence[Remote],
    *,
    progress: bool = True,
    retries: int = RETRIES,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Path]:
    """Fetch the files that are not there yet, with one progress bar in bytes over them all, and return all their paths.

    A part that an earlier call left is gone on with. Connections that are cut and answers such as 503 are tried
    again `retries` times a file, after `sleep(seconds)`. Several processes may ask for one file at once: one fetches
    it, the others wait. Where all files are there, no request is made.

    Raises OSError before it begins where the disk has no room, and where the server or the network fails for good
    (what came is kept); FileNotFoundError offline (SONARKIT_OFFLINE=1 or HF_HUB_OFFLINE=1); ValueError for an address
    that is not http or https, when a file that is there is not the one of this SHA-256, and when what came is not what
    was published (it is deleted).
    """
    missing = [file for file in files if not _is_here(file)]
    if missing:
        _check_urls(missing)
        refuse_offline(missing)
        for file in missing:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        sizes = [_persist(partial(_size, file), file, retries, sleep, lambda _: None) for file in missing]
        free = _check_room(missing, sizes)
        total = sum(filter(None, sizes)) if None not in sizes else None
        come = [_come(file.path) for file in missing]
        if progress:
            much = "of unknown size" if total is None else f"{_amount(total)} in all"
            names = ", ".join(file.path.name for file in missing)
            print(f"fetching {names}: {much}, {_amount(sum(come))} of it is here; {_amount(free)} are free", file=sys.stderr)
            print(f"from {urlsplit(missing[0].url).netloc} to {missing[0].path.parent}", file=sys.stderr)
        done = 0
        with tqdm(total=total, initial=sum(come), unit="B", unit_scale=True, disable=not progress) as bar:
            for i, file in enumerate(missing):
                bar.set_description(file.path.name)
                later = sum(come[i + 1 :])
                _fetch(file, retries, sleep, bar, done + later)
                done += file.path.stat().st_size
                bar.update(done + later - bar.n)
    return [file.path for file in files]


def verify(path: str | Path, sha256: str | None = None) -> str:
    """Read a whole file and check it: against `sha256`, else against the `<name>.sha256` that `download` left beside it,
    and a `.pt` file against the CRC-32s inside it. Returns its SHA-256 in hexadecimal.

    Raises FileNotFoundError when it is absent, ValueError when it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} is missing; download or copy it again")
    with open(path, "rb") as file:
        came = hashlib.file_digest(file, "sha256").hexdigest()
    damage = _mismatch(sha256 or _recorded(path), came) or _damage_inside(path, path.suffix)
    if damage:
        raise ValueError(f"{path} is damaged: {damage}. Delete it, and download or copy it again")
    return came


# ---------------------------------------------------------------------- before it begins


def _is_here(file: Remote) -> bool:
    """Whether the file is there; ValueError when it is another one than `file.sha256` says."""
    if not file.path.is_file():
        return False
    damage = file.sha256 and _mismatch(file.sha256, _recorded(file.path) or verify(file.path))
    if damage:
        raise ValueError(f"{file.path} is another file than was asked for: {damage}. Delete it to download it again")
    return True


def _check_urls(files: Sequence[Remote]) -> None:
    for file in files:
        if not re.fullmatch(r"https?://[^/\s]\S*", file.url):
            raise ValueError(f"expected an address like https://host/file, got {file.url!r}")


def offline() -> str:
    """The environment variable that forbids the network, "" where none does."""
    said = (name for name in OFFLINE if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on"))
    return next(said, "")


def refuse_offline(files: Sequence[Remote]) -> None:
    """FileNotFoundError with all addresses and places where files are missing and the environment says to stay offline."""
    missing = [file for file in files if not file.path.is_file()]
    if missing and (said := offline()):
        wanted = "; ".join(f"{file.url} to {file.path}" for file in missing)
        raise FileNotFoundError(
            f"{said} is set, and there are files still to fetch. Unset it, or copy them where they belong: {wanted}"
        )


def _size(file: Remote) -> int | None:
    """Length in bytes as the server tells it, None where it does not."""
    try:
        with _open(file, method="HEAD") as response:
            length: str | None = response.headers.get("Content-Length")
    except NotImplementedError:
        return None
    return int(length) if length and length.isdigit() else None


def _check_room(files: Sequence[Remote], sizes: Sequence[int | None]) -> int:
    """Free bytes on the disk of the first file; OSError where the rest of the files does not fit."""
    folders: dict[int, Path] = {}  # by disk
    needed: dict[int, int] = {}
    for file, size in zip(files, sizes):
        disk = os.stat(file.path.parent).st_dev
        folders.setdefault(disk, file.path.parent)
        needed[disk] = needed.get(disk, 0) + max((size or 0) - _come(file.path), 0)
    free = {disk: shutil.disk_usage(folder).free for disk, folder in folders.items()}
    for disk, folder in folders.items():
        if needed[disk] > free[disk]:
            raise OSError(
                f"no room in {folder}: {_amount(needed[disk])} are to come, {_amount(free[disk])} are free on its disk. "
                "Free space there, or let SONARKIT_CACHE name a folder on another one"
            )
    return next(iter(free.values()))


def _come(path: Path) -> int:
    """Bytes that an earlier try left."""
    try:
        return _part_path(path).stat().st_size
    except FileNotFoundError:  # none, or another process has just given it the file's name
        return 0


def _amount(size: int) -> str:
    return f"{tqdm.format_sizeof(size)}B"


# ---------------------------------------------------------------------- a part on disk


def _part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@dataclass
class _Part:
    """The open part of a file, and what is known of the version that it is a part of."""

    path: Path
    file: io.FileIO
    size: int = 0  # bytes in it
    total: int | None = None  # bytes of the whole file, where the server told
    validator: str | None = None  # ETag or date of the version, without which no rest can be asked for

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def resume(self, url: str) -> None:
        """Go on from what is on disk where that is known to be of `url`, else from nothing."""
        try:
            known = json.loads(self._about.read_text(encoding="utf-8"))
            self.total, self.validator = known["total"], known["validator"]
            size = os.fstat(self.file.fileno()).st_size
            whole = self.total is not None and size == self.total
            if known["url"] != url or not (self.validator or whole) or size > (self.total or size):
                raise ValueError("a part of something else")
        except (OSError, ValueError, KeyError, TypeError):
            self.begin_again()
            return
        self.file.seek(0)
        while chunk := self.file.read(CHUNK):
            self.digest.update(chunk)
            self.size += len(chunk)

    def begin_again(self, url: str = "", total: int | None = None, validator: str | None = None) -> None:
        """Throw away what has come; what comes next is of this version."""
        self.file.truncate(0)
        self.size, self.total, self.validator, self.digest = 0, total, validator, hashlib.sha256()
        self._about.write_text(json.dumps({"url": url, "total": total, "validator": validator}), encoding="utf-8")

    def append(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        try:
            while rest:  # a disk that fills up takes the beginning
                written = self.file.write(rest)
                self.digest.update(rest[:written])
                self.size += written
                rest = rest[written:]
        except OSError as error:
            raise OSError(
                f"could not write {self.path} ({error}); the {_amount(self.size)} that came are kept. "
                "Free space, and run the same again to go on"
            ) from error

    def discard(self) -> None:
        self._about.unlink(missing_ok=True)  # first: without the part the lock is gone, and the next one writes its own
        self.path.unlink(missing_ok=True)

    def publish(self, path: Path) -> None:
        """Give the part the file's name, and its SHA-256 a file beside it."""
        os.fsync(self.file.fileno())
        _record_path(path).write_text(f"{self.digest.hexdigest()}  {path.name}\n", encoding="utf-8")
        if fcntl is None:  # Windows renames no file that is open
            self.file.close()
        os.replace(self.path, path)
        self._about.unlink(missing_ok=True)

    @property
    def _about(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")


@contextmanager
def _own_part(path: Path, tell: Callable[[str], object]) -> Iterator[_Part]:
    """Open the part of `path` for this process alone, and wait until that is so.

    The lock is on the part itself and goes with the process that holds it, so none is ever stale. Whoever waited finds
    the part renamed or deleted, and looks again.
    """
    while True:
        part = _part_path(path)
        file = open(part, "a+b", buffering=0)  # noqa: SIM115 - closed below
        try:
            if fcntl is None:
                raise OSError("no locks on this system")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("another process is fetching it")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: a part of our own, which only this process goes on with
            file.close()
            if not _come(path):
                part.unlink(missing_ok=True)
            part = part.with_name(f"{path.name}.{os.getpid()}.part")
            file = open(part, "a+b", buffering=0)  # noqa: SIM115
        with file:
            if _is_still(part, file.fileno()):
                yield _Part(part, file)
                return


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` names the open file; whoever held the lock before may have renamed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------- one file


def _fetch(file: Remote, retries: int, sleep: Callable[[float], object], bar: tqdm, start: int) -> None:
    """Bring one file under its name. `start` is where the bar stands at its first byte."""
    with _own_part(file.path, bar.set_postfix_str) as part:
        if file.path.is_file():  # by the process that we waited for
            part.discard()
            return
        part.resume(file.url)
        _persist(lambda: _go_on(file, part, bar, start), file, retries, sleep, bar.set_postfix_str, part)
        bar.set_postfix_str("checking")
        damage = _mismatch(file.sha256, part.digest.hexdigest()) or _damage_inside(part.path, file.path.suffix)
        if damage:
            part.discard()
            raise ValueError(
                f"what came from {file.url} is not what was published: {damage}. It was deleted; run the same again, "
                f"and if it fails again copy the file to {file.path} by another way"
            )
        part.publish(file.path)
        bar.set_postfix_str("")


def _persist(
    attempt: Callable[[], T],
    file: Remote,
    retries: int,
    sleep: Callable[[float], object],
    tell: Callable[[str], object],
    part: _Part | None = None,
) -> T:
    """Try until it works, `retries` times again at most since more of the part came; then OSError with what is kept and what
    to do."""
    tried = 0
    while True:
        before = part.size if part else 0
        try:
            return attempt()
        except _Cut as cut:
            tried = 1 if part and part.size > before else tried + 1
            if tried > retries:
                kept = f"the {_amount(part.size)} that came are kept, " if part and part.size else ""
                raise OSError(
                    f"could not fetch {file.url}: {cut} ({tried} tries); {kept}run the same again to go on, "
                    f"or copy the file to {file.path}"
                ) from cut
            wait = min(2 ** (tried - 1), 30)
            tell(f"{cut}; try {tried + 1} of {retries + 1} in {wait} s")
            sleep(wait)


def _go_on(file: Remote, part: _Part, bar: tqdm, start: int) -> None:
    """Ask for what the part lacks and append it. Raises _Cut where the part is not whole after that."""
    if part.total is not None and part.size == part.total:  # a process was killed between the last byte and the name
        return
    headers = {}
    if part.size and part.validator:
        headers = {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    try:
        with _open(file, headers) as response:
            if response.status == 206:
                if not _continues(part, response.headers.get("Content-Range", "")):
                    part.begin_again()
                    raise _Cut("the file on the server has changed")
            else:  # the first try, another version by now, or a server that knows no ranges
                length = response.headers.get("Content-Length", "")
                part.begin_again(file.url, int(length) if length.isdigit() else None, _validator(response))
            _check_room([file], [part.total])
            while (part.total is None or part.size < part.total) and (chunk := _read(response)):
                part.append(chunk)
                bar.update(start + part.size - bar.n)  # downwards where it began again
    except _NoSuchRange:
        part.begin_again()
        raise
    if part.total is not None and part.size < part.total:
        raise _Cut(f"the connection was cut at {_amount(part.size)} of {_amount(part.total)}")


def _continues(part: _Part, content_range: str) -> bool:
    """Whether `bytes 100-999/1000` begins where the part ends, in a file of the same length."""
    told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
    return told is not None and int(told[1]) == part.size and told[3] in ("*", str(part.total))


def _validator(response: Any) -> str | None:
    """What names the version of a file: a strong ETag (a weak one does not vouch for single bytes), else its date."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _open(file: Remote, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
    """The response to a request for a file, its body unread.

    Raises _Cut for what may pass, NotImplementedError for a HEAD the server does not know, OSError for what is final.
    """
    request = urllib.request.Request(file.url, headers={"User-Agent": "sonarkit", **(headers or {})}, method=method)
    try:
        # an opener of our own: that of urlopen keeps the proxies of its first call
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in PASSING:
            raise _Cut(f"the server answered {error.code} {error.reason}") from None
        if error.code == 416:
            raise _NoSuchRange("the file on the server has changed") from None
        if method == "HEAD" and error.code in (405, 501):
            raise NotImplementedError from None
        raise OSError(
            f"the server answered {error.code} {error.reason} for {file.url}; check the address, "
            f"or copy the file to {file.path} by another way"
        ) from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise OSError(
                f"the certificate of {urlsplit(file.url).hostname} does not hold ({reason.verify_message}); if your network "
                "puts its own in between, let SSL_CERT_FILE name the file that vouches for it"
            ) from None
        raise _Cut(str(reason) or type(reason).__name__) from None
    if response.headers.get_content_type() == "text/html" and file.path.suffix not in (".html", ".htm"):
        response.close()
        raise OSError(
            f"{file.url} gave a web page, not the file: a proxy or a login page may stand before it. "
            f"Open it in a browser, and copy the file to {file.path}"
        )
    return response


def _read(response: Any) -> bytes:
    try:
        return response.read1(CHUNK)  # what is there: on a slow line a whole chunk would be long to lose
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was cut ({error})") from None


# ---------------------------------------------------------------------- checksums


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    """The SHA-256 that was written beside a file when it came."""
    try:
        told = re.match(r"[0-9a-f]{64}\b", _record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told[0] if told else None


def _mismatch(expected: str | None, came: str) -> str | None:
    return f"expected SHA-256 {expected}, got {came}" if expected and expected.lower() != came else None


def _damage_inside(path: Path, suffix: str) -> str | None:
    """What is wrong with a `.pt` file by its own checksums, None where nothing is or it has none."""
    if suffix != ".pt":
        return None
    with open(path, "rb") as file:
        if file.read(len(OLD_TORCH)) == OLD_TORCH:
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        return f"it is no whole zip file, as a .pt file is ({error})"
    except OSError as error:
        if error.errno != errno.EINVAL:  # the disk's; a damaged table of contents points before the beginning
            raise
        return f"it is no whole zip file, as a .pt file is ({error})"
    return f"the CRC-32 of its entry {entry} is off" if entry else None
