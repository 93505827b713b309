"""Notebook 06 in JupyterLab: a story is told sentence by sentence, stopped, and steered, with the mouse and with the keyboard."""

from __future__ import annotations

from collections.abc import Callable

from lab import PATIENCE, OpenNotebook
from playwright.sync_api import Page, expect

PROMPT = 'One day, a fox named "Tom & <b>Mia</b>" found an old key.'
expect.set_options(timeout=PATIENCE * 1000)
TOLD = "document.querySelectorAll('.sk-story tr[data-by=model]').length"


def told(page: Page) -> int:
    return int(page.evaluate(TOLD))


def wait_for_sentences(page: Page, count: int) -> None:
    page.wait_for_function(f"count => {TOLD} >= count", arg=count, timeout=PATIENCE * 1000)


def test_a_story_is_told_stopped_and_steered(open_notebook: Callable[[str], OpenNotebook]) -> None:
    notebook = open_notebook("06_generation")
    notebook.run_all()
    page = notebook.page
    prompt, tell, stop = page.locator(".sk-prompt textarea"), page.locator("button.sk-tell"), page.locator("button.sk-stop")
    prompt.fill(PROMPT)
    prompt.press("Tab")
    expect(page.locator(".sk-lang select")).to_be_focused()
    page.get_by_label("Max. sentences").fill("200")
    page.get_by_label("Max. sentences").press("Tab")
    page.get_by_label("Noise").fill("0.4")  # so that it neither ends nor repeats itself soon
    page.get_by_label("Noise").press("Tab")

    # Sentences arrive one by one, and Stop stops.
    page.evaluate(
        f"""() => {{
          window.counts = [];
          new MutationObserver(() => {{
            if (window.counts.at(-1) !== {TOLD}) window.counts.push({TOLD});
          }}).observe(document.querySelector('.sk-story'), {{childList: true, subtree: true}});
        }}"""
    )
    tell.press("Enter")
    wait_for_sentences(page, 2)
    expect(tell).to_be_disabled()
    stop.click()
    expect(tell).to_be_enabled()
    counts = page.evaluate("window.counts")
    assert len([count for count in counts if count]) >= 2 and counts == sorted(counts), counts
    expect(page.locator(".sk-story")).to_contain_text(PROMPT)
    expect(page.locator(".sk-story td b")).to_have_count(0)
    for width in (1280, 800):
        notebook.screenshot("told", width, ".sk-teller")

    # Another way on from the prompt: gone to and asked for by keyboard, the second candidate taken.
    tree = page.locator(".sk-tree select")
    tree.focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".sk-story tr[aria-current] td").first).to_have_text(str(counts[-1]))
    page.keyboard.press("Home")
    expect(page.locator(".sk-story tr[aria-current]")).to_contain_text(PROMPT)
    assert told(page) == 0
    page.locator("button.sk-propose").press("Space")
    options = page.locator(".sk-candidates input[type=radio]")
    expect(options.nth(1)).to_be_attached()
    options.nth(0).focus()
    page.keyboard.press("ArrowDown")
    second = page.locator(".sk-candidates .widget-radio-box label").nth(1).inner_text()
    expect(options.nth(1)).to_be_checked()
    page.locator("button.sk-take").press("Enter")
    wait_for_sentences(page, 1)
    said = page.locator(".sk-story tr[aria-current] .sk-said").inner_text()
    assert second.startswith(said) and said
    assert tree.locator("option").count() > 3  # the first way is still there

    # A sentence of one's own in its place; then the model goes on from there.
    page.locator(".sk-edit textarea").fill("Nobody heard it.")
    page.locator("button.sk-replace").click()
    expect(page.locator(".sk-story tr[aria-current]")).to_contain_text("Nobody heard it. (yours)")
    page.locator("button.sk-back").click()
    expect(page.locator(".sk-story tr[aria-current]")).to_contain_text(PROMPT)
    for width in (1280, 800):
        notebook.screenshot("steered", width, ".sk-teller")

    # An error is a sentence.
    prompt.fill(" ")
    tell.click()
    expect(page.locator(".sk-status [role=alert]")).to_contain_text("The prompt holds no sentence")

    # The cell runs again: a new teller, and the former one is closed with all that belongs to it.
    parts = notebook.python("globals().update(former=teller) or len(__import__('ipywidgets').widgets.widget._instances)")
    notebook.run_last()
    expect(page.locator(".sk-story")).to_contain_text("Nothing is told yet.")
    expect(page.locator(".sk-teller")).to_have_count(1)
    assert notebook.python("(former.comm is None, teller.comm is None, len(former.tree.nodes) > 3)") == "(True, False, True)"
    assert notebook.python("len(__import__('ipywidgets').widgets.widget._instances)") == parts

    # The theme may be dark. Nothing to assert but that it draws without an error; the screenshots are for the eye.
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    for width in (1280, 800):
        notebook.screenshot("06_dark", width)
    notebook.assert_quiet()
