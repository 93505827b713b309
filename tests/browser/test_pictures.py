"""Pictures of figures: small files of the size asked for, and none unless they are asked for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from sonarkit.explore import figures, pictures


def test_a_figure_becomes_a_small_picture(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONARKIT_SAVE_FIGURES", str(tmp_path / "figures"))
    points = np.random.default_rng(0).normal(size=(12, 2))
    figure = figures.story_path(points, [f"Sentence {i} <b>as it stands</b>." for i in range(12)], 2)
    pictures.save_png(figure, "path", width=700)  # the browser fixture's event loop runs here, as one does in a notebook
    data = (tmp_path / "figures" / "path.png").read_bytes()
    image = Image.open(io.BytesIO(data))
    assert image.size == (1400, 2 * figure.layout.height) and len(data) < 80_000
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert len(image.convert("RGB").getcolors()) > 20, "there is a plot in it"
    assert figure.layout.width is None, "the figure itself is left as it was"


def test_nothing_is_written_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SONARKIT_SAVE_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    pictures.save_png(figures.story_path(np.eye(2), ["A fox.", "A bear."]), "path")
    assert not list(tmp_path.iterdir())
