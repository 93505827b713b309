"""Downloads against a server on this machine that cuts, lies and fails: nothing half is ever taken for a file."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import random
import resource
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from file_server import FileServer, Handler, cut_after, file_server, status

from sonarkit.core import download as downloads
from sonarkit.core.download import Remote, download, download_all, verify

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
PATIENCE = 600  # seconds; they matter on a busy machine only


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", *downloads.OFFLINE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with file_server() as state:
        state.files["/a.bin"] = DATA
        yield state


class Clock:
    """A sleep that only notes how long it was to be."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def fetch(server: FileServer, path: Path, sha256: str | None = None, name: str = "/a.bin", retries: int = 5) -> list[float]:
    """Download `name` to `path`; the waits between the tries."""
    clock = Clock()
    assert download(server.url + name, path, sha256, progress=False, retries=retries, sleep=clock) == path
    return clock.waits


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"embed.weight": torch.arange(20_000.0), "bias": torch.ones(7)}}, buffer)
    return buffer.getvalue()


# ---------------------------------------------------------------------- where all goes well


def test_a_file_comes_with_its_checksum_and_is_not_fetched_twice(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    assert fetch(server, path, SHA.upper()) == []
    assert path.read_bytes() == DATA
    assert names(path.parent) == {"a.bin", "a.bin.sha256"}
    assert (path.parent / "a.bin.sha256").read_text() == f"{SHA}  a.bin\n"
    assert verify(path) == SHA
    seen = len(server.requests)
    fetch(server, path)
    fetch(server, path, SHA)
    assert len(server.requests) == seen


def test_several_files_share_one_bar(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files |= {"/b.bin": DATA[:1000], "/empty": b""}
    server.faults = [cut_after(100_000)]
    files = [Remote(server.url + name, tmp_path / name[1:]) for name in ("/a.bin", "/b.bin", "/empty")]
    assert download_all(files, sleep=Clock()) == [file.path for file in files]
    assert [file.path.read_bytes() for file in files] == [DATA, DATA[:1000], b""]
    told = capsys.readouterr().err
    assert "fetching a.bin, b.bin, empty: 301kB in all, 0.00B of it is here;" in told
    assert f"from 127.0.0.1:{server.port} to {tmp_path}" in told
    assert "301k/301k" in told
    assert "cut at 100kB of 300kB; try 2 of 6 in 1 s" in told
    download_all(files)
    assert capsys.readouterr().err == ""


def test_a_server_without_head_or_lengths_will_do(server: FileServer, tmp_path: Path) -> None:
    server.heads = server.lengths = False
    fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_the_proxy_of_the_environment_is_asked(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    download("http://weights.invalid/a.bin", tmp_path / "a.bin", progress=False)
    assert server.asked() == [("http://weights.invalid/a.bin", None)]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server, tmp_path / "b.bin")
    assert server.asked()[1] == ("/a.bin", None)


# ---------------------------------------------------------------------- connections that are cut


@pytest.mark.parametrize("known_by", ["etag", "date"])
def test_a_cut_connection_is_gone_on_with(server: FileServer, tmp_path: Path, known_by: str) -> None:
    server.etags, server.dates = known_by == "etag", known_by == "date"
    server.faults = [cut_after(100_000), cut_after(50_000)]
    assert fetch(server, tmp_path / "a.bin", SHA) == [1, 1]
    assert server.asked() == [("/a.bin", None), ("/a.bin", "bytes=100000-"), ("/a.bin", "bytes=150000-")]
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert names(tmp_path) == {"a.bin", "a.bin.sha256"}
    assert verify(tmp_path / "a.bin") == SHA


def test_retries_end_and_the_next_call_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.faults = [cut_after(60_000)] * 3 + [cut_after(0)] * 2
    clock = Clock()
    with pytest.raises(OSError, match=r"cut at 180kB of 300kB \(3 tries\); the 180kB that came are kept, run the same again"):
        download(server.url + "/a.bin", tmp_path / "a.bin", progress=False, retries=2, sleep=clock)
    assert clock.waits == [1, 1, 1, 2], "what gets on is not given up"
    assert names(tmp_path) == {"a.bin.part", "a.bin.part.json"}
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked()[-1] == ("/a.bin", "bytes=180000-")
    assert (tmp_path / "a.bin").read_bytes() == DATA


def leave_a_part(server: FileServer, folder: Path, size: int = 100_000) -> None:
    server.faults = [cut_after(size)]
    with pytest.raises(OSError, match="cut"):
        fetch(server, folder / "a.bin", retries=0)
    assert (folder / "a.bin.part").read_bytes() == DATA[:size]
    server.requests.clear()


def test_a_server_without_ranges_sends_all_again(server: FileServer, tmp_path: Path) -> None:
    leave_a_part(server, tmp_path)
    server.ranges = False
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked() == [("/a.bin", "bytes=100000-")]
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_without_a_version_the_part_is_not_trusted(server: FileServer, tmp_path: Path) -> None:
    server.etags = False
    server.faults = [cut_after(100_000)]
    assert fetch(server, tmp_path / "a.bin", SHA) == [1]
    assert server.asked() == [("/a.bin", None), ("/a.bin", None)]


def test_a_file_that_changed_on_the_server_is_begun_again(server: FileServer, tmp_path: Path) -> None:
    leave_a_part(server, tmp_path)
    server.files["/a.bin"] = DATA[::-1]
    fetch(server, tmp_path / "a.bin")
    assert server.asked() == [("/a.bin", "bytes=100000-")]
    assert (tmp_path / "a.bin").read_bytes() == DATA[::-1]
    assert verify(tmp_path / "a.bin") == hashlib.sha256(DATA[::-1]).hexdigest()


def test_a_server_that_ignores_versions_is_caught_by_the_length(server: FileServer, tmp_path: Path) -> None:
    leave_a_part(server, tmp_path)
    server.files["/a.bin"] = DATA + b"longer"

    def trusting(handler: Handler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 100000-{len(DATA) + 5}/{len(DATA) + 6}")
        handler.end_headers()
        return True

    server.faults = [trusting]
    assert fetch(server, tmp_path / "a.bin") == [1]
    assert server.asked() == [("/a.bin", "bytes=100000-"), ("/a.bin", None)]
    assert (tmp_path / "a.bin").read_bytes() == DATA + b"longer"


def test_a_range_that_the_server_refuses_is_begun_again(server: FileServer, tmp_path: Path) -> None:
    leave_a_part(server, tmp_path)
    server.faults = [status(416)]
    assert fetch(server, tmp_path / "a.bin", SHA) == [1]
    assert server.asked() == [("/a.bin", "bytes=100000-"), ("/a.bin", None)]


def test_a_whole_part_is_only_checked_and_named(server: FileServer, tmp_path: Path) -> None:
    leave_a_part(server, tmp_path)
    (tmp_path / "a.bin.part").write_bytes(DATA)  # killed between the last byte and the name
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked() == []
    assert names(tmp_path) == {"a.bin", "a.bin.sha256"}


@pytest.mark.parametrize("about", [None, "{", "[]", '{"url": "http://127.0.0.1/other", "total": 300000, "validator": "\\"x\\""}'])
def test_a_part_of_unknown_origin_is_begun_again(server: FileServer, tmp_path: Path, about: str | None) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"something else")
    if about:
        (tmp_path / "a.bin.part.json").write_text(about)
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked() == [("/a.bin", None)]


def test_a_part_longer_than_the_file_is_begun_again(server: FileServer, tmp_path: Path) -> None:
    leave_a_part(server, tmp_path)
    (tmp_path / "a.bin.part").write_bytes(DATA + b"more")
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked() == [("/a.bin", None)]


def test_a_killed_process_costs_nothing_that_came(server: FileServer, tmp_path: Path) -> None:
    over = threading.Event()

    def stall(handler: Handler) -> bool:
        handler.answer(stop_after=200_000)
        return over.wait(PATIENCE)

    server.faults = [stall]
    process = start(server, tmp_path)
    part = tmp_path / "a.bin.part"
    deadline = time.monotonic() + PATIENCE
    while not (part.exists() and part.stat().st_size == 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    over.set()
    assert not (tmp_path / "a.bin").exists()
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked()[1:] == [("/a.bin", "bytes=200000-")]


# ---------------------------------------------------------------------- what the server answers


def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.faults = [status(503), status(429)]
    assert fetch(server, tmp_path / "a.bin", SHA) == [1, 2]


def test_a_server_that_stays_busy_or_away_is_named(server: FileServer, tmp_path: Path) -> None:
    server.faults = [status(503)] * 9
    with pytest.raises(OSError, match=r"the server answered 503 Service Unavailable \(3 tries\); run the same again"):
        fetch(server, tmp_path / "a.bin", retries=2)
    assert len(server.asked()) == 3
    clock = Clock()
    with pytest.raises(OSError, match=r"could not fetch http://127.0.0.1:9/a.bin: .*refused.*copy the file to .*a\.bin"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", progress=False, sleep=clock)
    assert clock.waits == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_final_answer_is_not_asked_for_again(server: FileServer, tmp_path: Path, code: int) -> None:
    server.faults = [status(code)]
    with pytest.raises(OSError, match=f"the server answered {code} .*check the address"):
        fetch(server, tmp_path / "a.bin")
    assert len(server.asked()) == 1
    assert not (tmp_path / "a.bin").exists()


def test_a_missing_file_is_told_before_the_others_are_fetched(server: FileServer, tmp_path: Path) -> None:
    files = [Remote(server.url + name, tmp_path / name[1:]) for name in ("/a.bin", "/absent.bin")]
    with pytest.raises(OSError, match=r"404 Not Found for http://127.0.0.1:\d+/absent.bin"):
        download_all(files, progress=False, sleep=Clock())
    assert server.asked() == []


def test_a_web_page_is_no_file(server: FileServer, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(OSError, match=r"a web page, not the file.*copy the file to .*a\.bin"):
        fetch(server, tmp_path / "a.bin")
    assert names(tmp_path) == set()


def test_a_certificate_that_does_not_hold_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = ssl.SSLCertVerificationError(1, "certificate verify failed")
    reason.verify_message = "self-signed certificate in certificate chain"

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(reason)

    monkeypatch.setattr(downloads.urllib.request.OpenerDirector, "open", refuse)
    clock = Clock()
    with pytest.raises(OSError, match="certificate of weights.invalid does not hold .self-signed.*SSL_CERT_FILE"):
        download("https://weights.invalid/a.bin", tmp_path / "a.bin", progress=False, sleep=clock)
    assert clock.waits == []


@pytest.mark.parametrize("url", ["ftp://host/a.bin", "file:///etc/hosts", "a.bin", "https://", "http://host/a b"])
def test_an_address_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"expected an address like https://host/file, got '"):
        download(url, tmp_path / "a.bin")


@pytest.mark.parametrize("variable", ["SONARKIT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(FileNotFoundError, match=rf"{variable} is set.*copy them.*: {server.url}/a.bin to {tmp_path}/a.bin$"):
        fetch(server, tmp_path / "a.bin")
    assert server.requests == []
    (tmp_path / "a.bin").write_bytes(DATA)
    fetch(server, tmp_path / "a.bin")
    monkeypatch.setenv(variable, "0")
    fetch(server, tmp_path / "b.bin")


# ---------------------------------------------------------------------- what is no good


def test_a_wrong_checksum_deletes_the_file(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected SHA-256 {'0' * 64}, got {SHA}. It was deleted; run the same again"):
        fetch(server, tmp_path / "a.bin", "0" * 64)
    assert names(tmp_path) == set()
    fetch(server, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="another file than was asked for: expected SHA-256 0.*Delete it"):
        fetch(server, tmp_path / "a.bin", "0" * 64)
    (tmp_path / "a.bin.sha256").unlink()  # copied by hand
    fetch(server, tmp_path / "a.bin", SHA)


def test_a_torch_file_is_held_to_its_own_checksums(server: FileServer, tmp_path: Path) -> None:
    whole = server.files["/m.pt"] = torch_file()
    fetch(server, tmp_path / "m.pt", name="/m.pt")
    assert verify(tmp_path / "m.pt") == hashlib.sha256(whole).hexdigest()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    page = b"<html>Please log in</html>"
    for damaged, said in ((flipped, "CRC-32 of its entry .* is off"), (whole[:-100], "no whole zip"), (page, "no whole zip")):
        server.files["/bad.pt"] = bytes(damaged)
        with pytest.raises(ValueError, match=f"{said}.*deleted"):
            fetch(server, tmp_path / "bad.pt", name="/bad.pt")
        assert names(tmp_path) == {"m.pt", "m.pt.sha256"}


def test_a_torch_file_of_before_1_6_has_no_checksums(server: FileServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"bias": torch.ones(7)}, buffer, _use_new_zipfile_serialization=False)
    server.files["/m.pt"] = buffer.getvalue()
    fetch(server, tmp_path / "m.pt", name="/m.pt")


def test_damage_to_a_zip_file_is_always_an_error_of_ours(tmp_path: Path) -> None:
    """Whatever byte is off, the answer is a sentence or, where that byte does not matter, the same entries."""
    path, chance = tmp_path / "m.pt", random.Random(2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", b"a pickle")
        archive.writestr("m/data/0", b"a tensor" * 10)
    whole = buffer.getvalue()
    told = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        told += downloads._damage_inside(path, ".pt") is not None
    assert told > 50


def test_damage_after_the_download_is_found(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    fetch(server, path)
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"a.bin is damaged: expected SHA-256 {SHA}, got .*Delete it, and download"):
        verify(path)
    (tmp_path / "a.bin.sha256").write_text("no checksum")
    verify(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.bin is missing; download or copy"):
        verify(path)


# ---------------------------------------------------------------------- disks


def test_no_room_is_told_before_anything_is_fetched(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [250_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(OSError, match=f"no room in {tmp_path}: 300kB are to come, 250kB are free.*SONARKIT_CACHE"):
        fetch(server, tmp_path / "a.bin")
    assert server.asked() == []
    server.heads = False  # then the file itself tells
    with pytest.raises(OSError, match="no room"):
        fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").stat().st_size == 0
    server.heads, free[0] = True, 10**9
    leave_a_part(server, tmp_path)
    free[0] = 250_000
    fetch(server, tmp_path / "a.bin", SHA)
    server.files["/b.bin"] = server.files["/c.bin"] = DATA[:200_000]
    with pytest.raises(OSError, match="no room in .*: 400kB are to come"):
        download_all([Remote(server.url + name, tmp_path / name[1:]) for name in ("/b.bin", "/c.bin")], progress=False)


def test_a_disk_that_fills_up_keeps_the_part(server: FileServer, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (123_456, hard))
    try:
        with pytest.raises(OSError, match=r"could not write .*a\.bin\.part .*the 123kB that came are kept. Free space"):
            fetch(server, tmp_path / "a.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.bin.part").read_bytes() == DATA[:123_456]
    fetch(server, tmp_path / "a.bin", SHA)
    assert server.asked() == [("/a.bin", None), ("/a.bin", "bytes=123456-")]


# ---------------------------------------------------------------------- several at once


def start(server: FileServer, folder: Path) -> subprocess.Popen[bytes]:
    code = f"from sonarkit.core.download import download; download({server.url + '/a.bin'!r}, {str(folder / 'a.bin')!r}, {SHA!r})"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])


def test_two_processes_fetch_a_file_once(server: FileServer, tmp_path: Path) -> None:
    def until_both_are_here(handler: Handler) -> bool:
        deadline = time.monotonic() + PATIENCE
        while len(server.asked("HEAD")) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        handler.answer(stop_after=100_000)
        time.sleep(0.2)  # so that the other one surely waits
        return True

    server.faults = [until_both_are_here]
    processes = [start(server, tmp_path) for _ in range(2)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    assert server.asked() == [("/a.bin", None), ("/a.bin", "bytes=100000-")]
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert names(tmp_path) == {"a.bin", "a.bin.sha256"}


def test_many_threads_fetch_a_file_once(server: FileServer, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server, tmp_path / "a.bin", SHA)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked()) == 1
    assert names(tmp_path) == {"a.bin", "a.bin.sha256"}


def test_a_file_system_without_locks_gets_a_part_for_each_process(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    server.faults = [cut_after(100_000)]
    with pytest.raises(OSError, match="cut"):
        fetch(server, tmp_path / "a.bin", retries=0)
    mine = f"a.bin.{os.getpid()}.part"
    assert names(tmp_path) == {mine, f"{mine}.json"}
    assert json.loads((tmp_path / f"{mine}.json").read_text())["total"] == len(DATA)
    fetch(server, tmp_path / "a.bin", SHA)
    assert names(tmp_path) == {"a.bin", "a.bin.sha256"}
