"""Pictures of figures, as small PNG files, drawn by plotly in a headless Chromium.

The notebooks make the pictures of the README themselves, with the weights at hand:

    python -m sonarkit.explore.pictures notebooks/figures

runs every notebook that calls `save_png`. Without that, `save_png` does nothing: a reader's notebook writes no file.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sonarkit.core.errors import user_errors
from sonarkit.core.paths import notebooks_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOLDER_VARIABLE = "SONARKIT_SAVE_FIGURES"
SCALE, PNG_COLOURS = 2, 64  # sharp on fine screens; few enough colours that a picture is some 50 kB
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
DRAW = "async (figure) => { await Plotly.newPlot('figure', figure.data, figure.layout, {staticPlot: true}); }"


def save_png(figure: go.Figure, name: str, width: int = 900, height: int | None = None) -> None:
    """Write the figure as NAME.png into the folder that the environment variable SONARKIT_SAVE_FIGURES names, if any.

    `width` and `height` are in pixels, of which the file has twice as many; without `height` it is the figure's own.
    Raises ImportError and FileNotFoundError that say what to install.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(png(figure, width, height))


def png(figure: go.Figure, width: int = 900, height: int | None = None) -> bytes:
    """The figure on white, as the bytes of a PNG file with few colours. Raises as `save_png`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("small pictures need Pillow: pip install pillow") from error
    drawn = go.Figure(figure).update_layout(autosize=False, width=width, paper_bgcolor="white", plot_bgcolor="white")
    drawn.update_layout(height=height or drawn.layout.height)
    with ThreadPoolExecutor(1) as elsewhere:  # playwright refuses a thread with an event loop, as a notebook's is
        large = elsewhere.submit(_draw, drawn.to_json()).result()
    small = io.BytesIO()
    Image.open(io.BytesIO(large)).convert("RGB").quantize(PNG_COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def _draw(figure_json: str) -> bytes:
    with chromium() as browser:
        page = browser.new_page(device_scale_factor=SCALE, viewport={"width": 1920, "height": 1080})
        page.set_content('<!doctype html><div id="figure"></div>')
        page.add_script_tag(content=get_plotlyjs())
        page.evaluate(f"async (text) => ({DRAW})(JSON.parse(text))", figure_json)
        return page.locator("#figure .svg-container").screenshot()


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
            raise FileNotFoundError("no Chromium here; install it: apt-get install chromium, or: playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


def main() -> None:
    """Run the notebooks that save pictures, which go into the folder named by the one argument."""
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError as error:
        raise ImportError("running notebooks needs nbclient: pip install nbclient") from error
    if len(sys.argv) != 2:
        raise ValueError("expected one argument, the folder for the pictures: python -m sonarkit.explore.pictures FOLDER")
    os.environ[FOLDER_VARIABLE] = str(Path(sys.argv[1]).resolve())
    for path in sorted(notebooks_folder().glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if any("save_png(" in cell.source for cell in notebook.cells):
            NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
            print(path.name)


if __name__ == "__main__":
    with user_errors():
        main()
