"""Pictures of figures, as small PNG files, drawn by plotly in a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (  # no sandbox, since root has none; no graphics card; and nothing that calls home
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium. ImportError without playwright, FileNotFoundError without a browser; both say how to get it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ImportError("this needs a browser that Python can drive: pip install playwright") from error
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)), playwright.chromium.executable_path)
        if not Path(path).is_file():
            raise FileNotFoundError(
                "no Chromium here; install it with: apt-get install chromium, or: playwright install chromium"
            )
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()
