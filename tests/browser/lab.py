"""A real JupyterLab in a real browser, for tests of notebooks and widgets as their reader meets them.

    def test_story_teller(open_notebook):                   # the fixture is in conftest.py
        notebook = open_notebook("06_generation")           # a fresh copy, in a fresh page, with a fresh kernel
        notebook.run_all()                                  # every cell; fails on the first cell that raised
        page = notebook.page                                # playwright's page: notebook.page.locator(...), .keyboard
        page.locator(".sk-prompt input").fill("A fox.")
        page.locator("button.sk-run").click()
        playwright.sync_api.expect(page.locator(".sk-out")).to_contain_text("fox", timeout=60_000)
        notebook.screenshot("story", width=800)             # PNGs of the whole notebook; selector=".sk-story": of a part
        notebook.assert_quiet()                             # no error in the console, no request to elsewhere

`notebook.errors` are console errors and exceptions of the page, `notebook.outside` the addresses off this machine that the
page asked for; `notebook.python("expression")` evaluates in the notebook's kernel. Give widgets a class
(`widget.add_class("sk-run")`) and find them by it; plots are `.js-plotly-plot`, with `.data` in JavaScript. Kernel messages
arrive late: wait for what should be seen (`expect(...)`), never for a time. Screenshots go to the folder that the
environment variable SONARKIT_SCREENSHOTS names, else to the test's temporary one.

JupyterLab is started once, by `sonarkit lab`, with configuration, data and home of its own, where a kernel `python3` of another
Python lies in wait, as it may in a user's. Without a Chromium (`apt-get install chromium`) the tests are skipped, and in CI
(environment variable CI=true) they fail.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page

CLONE = Path(__file__).resolve().parents[2]
PATIENCE = 240  # seconds; they matter on a machine that is busy with something else only
PIECE = 1600  # pixels of height in one screenshot
NO_NEWS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
}
# Run > Run All pressed as soon as the kernel says idle is lost once in six; waiting for all of this, never.
READY = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = app.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""
RUN_ALL = """async () => {
  const app = window.jupyterapp;
  const panel = app.shell.currentWidget;
  const late = new Promise((_, no) => setTimeout(() => no(new Error("the cells did not end in 10 minutes")), 600000));
  await Promise.race([app.commands.execute("notebook:run-all-cells"), late]);
  return panel.content.model.sharedModel.cells.filter((cell) => cell.cell_type === "code").map((cell) => ({
    ran: cell.execution_count !== null,
    errors: cell.outputs.filter((o) => o.output_type === "error").map((o) => `${o.ename}: ${o.evalue}`),
  }));
}"""
RUN_LAST = """async () => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = notebook.widgets.findLastIndex((cell) => cell.model.type === "code");
  await window.jupyterapp.commands.execute("notebook:run-cell");
}"""
ASK_KERNEL = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const asked = kernel.requestExecute({code: "", silent: true, store_history: false, user_expressions: {answer: code}});
  const answer = (await asked.done).content.user_expressions.answer;
  if (answer.status !== "ok") throw new Error(`${answer.ename}: ${answer.evalue}`);
  return answer.data["text/plain"];
}"""
TO_THE_TOP = """() => {
  const scrolled = document.querySelector(".jp-WindowedPanel-outer");
  scrolled.scrollTop = 0;
  return scrolled.getBoundingClientRect().top + document.querySelector(".jp-WindowedPanel-viewport").scrollHeight;
}"""


@dataclass
class Lab:
    """A running JupyterLab: its address, the token that opens it, and the folder that it shows."""

    address: str
    token: str
    folder: Path

    def url(self, path: str) -> str:
        return f"{self.address}/{path}{'&' if '?' in path else '?'}token={self.token}"

    def request(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.address}/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return bytes(answer.read())


@contextmanager
def running_lab(home: Path) -> Iterator[Lab]:
    """`sonarkit lab`, isolated in the empty folder `home`; its log is `home/log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), home / "notebooks")
    _configure(home, port, lab.token)
    environment = {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PREFER_ENV_PATH": "0",  # so that the kernel which lies in wait would be taken
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CLONE), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "sonarkit.cli", "lab", "--folder", str(lab.folder), "--no-browser", "--allow-root"]
    with (
        open(home / "log", "wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            _wait_until_up(lab, process, home / "log")
            yield lab
            lab.request("api/shutdown", "POST")
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _configure(home: Path, port: int, token: str) -> None:
    server = {
        "ServerApp": {"ip": "127.0.0.1", "port": port, "port_retries": 0},
        "IdentityProvider": {"token": token},
        "LabApp": {"expose_app_in_browser": True},
        "KernelManager": {"transport": "ipc"},
    }
    foreign = {"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "Another Python", "language": "python"}
    for path, content in {
        "config/jupyter_server_config.json": server,
        "config/labconfig/default_setting_overrides.json": NO_NEWS,
        "data/kernels/python3/kernel.json": foreign,
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(json.dumps(content))


def _wait_until_up(lab: Lab, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lab.request("api/status")
            return
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@dataclass
class OpenNotebook:
    """A notebook in a page of its own. `errors` and `outside` grow while it is open."""

    page: Page
    screenshots: Path
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.context.on("request", lambda request: self._note(request.url))
        self.page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("data", "blob") and address.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(url)

    def wait_until_ready(self) -> None:
        """Until the notebook is shown and its kernel answers; closed before that, JupyterLab may not find its end."""
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel")
        self.page.evaluate(READY)

    def run_all(self) -> None:
        """Run every cell and wait for the end. AssertionError when a cell raised or was not reached."""
        cells = self.page.evaluate(RUN_ALL)
        raised = [error for cell in cells for error in cell["errors"]]
        assert not raised, raised
        assert all(cell["ran"] for cell in cells), "some cells were not run"

    def run_last(self) -> None:
        """Run the last code cell, again."""
        self.page.evaluate(RUN_LAST)

    def python(self, expression: str) -> str:
        """The repr of an expression in the notebook's kernel."""
        return str(self.page.evaluate(ASK_KERNEL, expression))

    def wait_for_plots(self, count: int = 1) -> Any:
        """Until at least `count` plots are drawn; returns their locator."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('.js-plotly-plot .main-svg').length && "
            "document.querySelectorAll('.js-plotly-plot').length >= count",
            arg=count,
            timeout=PATIENCE * 1000,
        )
        return self.page.locator(".js-plotly-plot")

    def screenshot(self, name: str, width: int = 1280, selector: str | None = None) -> list[Path]:
        """PNGs of the page at this width: `NAME-WIDTH.png` of what `selector` finds first, else the whole notebook in pieces.

        The pieces are `NAME-WIDTH-1.png` and so on, from top to bottom.
        """
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.wait_for_timeout(500)  # plots follow the new width
        if selector is not None:
            path = self.screenshots / f"{name}-{width}.png"
            self.page.locator(selector).first.screenshot(path=path)
            return [path]
        height = round(self.page.evaluate(TO_THE_TOP))
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(500)
        self.page.evaluate(TO_THE_TOP)
        tops = range(0, height, PIECE)
        paths = [self.screenshots / f"{name}-{width}-{i}.png" for i in range(1, len(tops) + 1)]
        for path, top in zip(paths, tops):
            self.page.screenshot(path=path, clip={"x": 0, "y": top, "width": width, "height": min(PIECE, height - top)})
        return paths

    def assert_quiet(self) -> None:
        """No error in the browser's console, and nothing left this machine."""
        assert not self.errors, self.errors
        assert not self.outside, self.outside

    def close(self) -> None:
        """Stop the kernel and close the page."""
        self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")
        self.page.context.close()
