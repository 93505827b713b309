"""The first notebook, as its reader sees it: every plot drawn, nothing asked of the network, no error in the console."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from lab import OpenNotebook
from playwright.sync_api import expect

import sonarkit


def test_the_first_notebook_runs_and_draws_its_plots(open_notebook: Callable[[str], OpenNotebook]) -> None:
    notebook = open_notebook("00_start_here")
    notebook.run_all()
    plots = notebook.wait_for_plots(4)
    assert all(plots.nth(i).evaluate("plot => plot.data.length") >= 1 for i in range(plots.count()))
    expect(notebook.page.locator(".jp-RenderedMermaid img, .jp-RenderedMermaid svg").first).to_be_visible()
    for width in (1280, 800):
        assert len(notebook.screenshot("00_start_here", width)) >= 2
    notebook.assert_quiet()


def test_the_kernel_is_the_one_that_has_sonarkit(open_notebook: Callable[[str], OpenNotebook]) -> None:
    """Though a kernel of the same name and of another Python lies in the user's folder."""
    notebook = open_notebook("01_sentences_and_encoding")
    assert notebook.python("__import__('sys').executable") == repr(sys.executable)
    assert Path(eval(notebook.python("__import__('sonarkit').__file__"))).samefile(sonarkit.__file__)
    assert os.path.basename(os.path.dirname(eval(notebook.python("__import__('os').getcwd()")))) == "notebooks"


def test_what_goes_wrong_is_noticed(open_notebook: Callable[[str], OpenNotebook]) -> None:
    """A console error, an exception of the page, and a request to elsewhere, each by its name."""
    notebook = open_notebook("00_start_here")
    notebook.page.evaluate("() => { console.error('spilt milk'); setTimeout(() => { throw new Error('a burst pipe'); }); }")
    notebook.page.evaluate("() => fetch('http://elsewhere.invalid/').catch(() => null)")
    notebook.page.wait_for_timeout(100)
    assert notebook.outside == ["http://elsewhere.invalid/"]
    assert any("spilt milk" in error for error in notebook.errors) and any("burst pipe" in error for error in notebook.errors)
