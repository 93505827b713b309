"""One JupyterLab and one Chromium for all tests of this folder; for each test a fresh copy of the notebooks, and fresh pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from lab import PATIENCE, Lab, OpenNotebook, running_lab
from playwright.sync_api import Browser

from sonarkit.cli import copy_notebooks
from sonarkit.core.paths import notebooks_folder
from sonarkit.explore.pictures import chromium

COPIES = count(1)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Where there is none: a skip on a user's machine, a failure in CI."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(chromium())
        except FileNotFoundError as missing:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(missing))
        yield started


@pytest.fixture(scope="session")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def open_notebook(browser: Browser, lab: Lab, tmp_path: Path) -> Iterator[Callable[[str], OpenNotebook]]:
    """`open_notebook("00_start_here")`: that notebook open in a page, its kernel started. See lab.py for what it can do."""
    screenshots = Path(os.environ.get("SONARKIT_SCREENSHOTS", tmp_path))
    screenshots.mkdir(parents=True, exist_ok=True)
    opened: list[OpenNotebook] = []

    def open_one(name: str) -> OpenNotebook:
        folder = str(next(COPIES))
        copy_notebooks(notebooks_folder(), lab.folder / folder)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE * 1000)
        opened.append(OpenNotebook(page, screenshots))
        page.goto(lab.url(f"doc/tree/{folder}/{name}.ipynb"))
        opened[-1].wait_until_ready()
        return opened[-1]

    yield open_one
    for notebook in opened:
        notebook.close()
