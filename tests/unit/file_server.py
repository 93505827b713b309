"""A file server on 127.0.0.1 for the tests of downloads: it knows ranges and versions, and fails where a test says so."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler"], bool]  # called before a file is sent; True when it has answered itself


@dataclass
class FileServer:
    """What the server has and how it behaves; tests change it while it runs."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)  # by path, such as "/a.bin"
    etags: bool = True
    dates: bool = False
    ranges: bool = True
    lengths: bool = True
    heads: bool = True  # whether it knows HEAD
    content_type: str = "application/octet-stream"
    faults: list[Fault] = field(default_factory=list)  # one for each of the next GETs
    requests: list[tuple[str, str, Message]] = field(default_factory=list)  # method, path, headers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, method: str = "GET") -> list[tuple[str, str | None]]:
        """(path, Range) of every request of a method so far."""
        return [(path, headers["Range"]) for seen, path, headers in self.requests if seen == method]


class Handler(BaseHTTPRequestHandler):
    state: FileServer
    timeout = 60

    def do_HEAD(self) -> None:
        self.state.requests.append(("HEAD", self.path, self.headers))
        if self.state.heads:
            self.answer(body=False)
        else:
            self.send_error(501)

    def do_GET(self) -> None:
        self.state.requests.append(("GET", self.path, self.headers))
        fault = self.state.faults.pop(0) if self.state.faults else None
        if not (fault and fault(self)):
            self.answer()

    def answer(self, body: bool = True, stop_after: int | None = None) -> None:
        """A file, or the rest of it that was asked for; `stop_after` so many bytes of it the connection is cut."""
        data = self.state.files.get(re.sub(r"^http://[^/]*", "", self.path))  # a proxy is asked for the whole address
        if data is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        date = f"Mon, 01 Jan 2024 00:00:{len(data) % 60:02d} GMT"
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.state.ranges else 0
        start *= self.headers.get("If-Range") in (etag, date)
        if start >= len(data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", self.state.content_type)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.state.lengths:
            self.send_header("Content-Length", str(len(data) - start))
        if self.state.etags:
            self.send_header("ETag", etag)
        if self.state.dates:
            self.send_header("Last-Modified", date)
        self.end_headers()
        if body:
            self.wfile.write(data[start:][:stop_after])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def cut_after(size: int) -> Fault:
    """The connection ends after `size` bytes of what was promised."""

    def fault(handler: Handler) -> bool:
        handler.answer(stop_after=size)
        return True

    return fault


def status(code: int) -> Fault:
    """An answer without a file."""

    def fault(handler: Handler) -> bool:
        handler.send_error(code)
        return True

    return fault


@contextmanager
def file_server() -> Iterator[FileServer]:
    state = FileServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OneHandler", (Handler,), {"state": state})) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
