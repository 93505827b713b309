"""The space explorer of notebook 03, and a training monitor, in a real JupyterLab with a real mouse and keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import nbformat
from lab import Lab, OpenNotebook
from playwright.sync_api import expect

expect.set_options(timeout=60_000)
# Where the map's point or place lies on the page: the n-th point of a trace, or a share of the way across the axes.
PLACE = """([trace, index]) => {
  const plot = document.querySelector(".sk-map .js-plotly-plot") ?? document.querySelector(".sk-map.js-plotly-plot");
  const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
  const x = trace === null ? index * xaxis._length : xaxis.d2p(plot.data[trace].x[index]);
  const y = trace === null ? index * yaxis._length : yaxis.d2p(plot.data[trace].y[index]);
  return [box.x + xaxis._offset + x, box.y + yaxis._offset + y];
}"""
DRAWN = "() => [...document.querySelectorAll('.sk-map, .sk-map *')].some(p => p._fullLayout && p.data.length > 5)"
DRAGS_A_LINE = "() => [...document.querySelectorAll('.sk-map, .sk-map *')].some(p => p._fullLayout?.dragmode === 'drawline')"


def at(notebook: OpenNotebook, trace: int | None, index: float) -> tuple[float, float]:
    """That place, once it has stopped moving: a page that has just been resized is laid out again for a while."""
    last, still = None, 0
    while still < 5:
        place = notebook.page.evaluate(PLACE, [trace, index])
        last, still = place, still + 1 if place == last else 0
        notebook.page.wait_for_timeout(100)
    return place[0], place[1]


def click(notebook: OpenNotebook, place: tuple[float, float]) -> None:
    """As a hand does: the mouse comes from beside, and rests, so that the plot knows what lies under it."""
    x, y = place
    notebook.page.mouse.move(x - 4, y - 4)
    notebook.page.mouse.move(x, y, steps=4)
    notebook.page.wait_for_timeout(300)
    notebook.page.mouse.click(x, y)


def test_space_explorer(open_notebook: Callable[[str], OpenNotebook]) -> None:
    notebook = open_notebook("03_embedding_space")
    notebook.run_all()
    page = notebook.page
    page.locator(".sk-explorer").scroll_into_view_if_needed()
    page.wait_for_function(DRAWN)
    page.locator(".sk-map").first.scroll_into_view_if_needed()
    neighbours, said, status = page.locator(".sk-neighbours"), page.locator(".sk-out"), page.locator(".sk-explorer .sk-status")

    click(notebook, at(notebook, 1, 3))  # the fourth English sentence
    expect(neighbours).to_contain_text("Nearest to")
    chosen = int(notebook.python("explorer.chosen"))
    expect(neighbours.locator("tr")).to_have_count(6)
    expect(neighbours).to_contain_text(
        json.loads(notebook.python("__import__('json').dumps(explorer.texts[explorer.chosen])")[1:-1])
    )
    expect(page.locator(".sk-point select")).to_have_value(notebook.python("explorer.point.options[explorer.chosen][0]")[1:-1])

    click(notebook, at(notebook, None, 0.03))  # the empty corner
    expect(said).to_contain_text("At (")
    notebook.screenshot("explorer", 1280, ".sk-explorer")
    notebook.screenshot("explorer", 800, ".sk-explorer")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function(DRAWN)

    page.locator(".sk-map").first.scroll_into_view_if_needed()
    page.locator("[data-val=drawline]").last.click()
    page.wait_for_function(DRAGS_A_LINE)
    start, end = at(notebook, 1, 0), at(notebook, 1, 8)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=8)
    page.mouse.up()
    expect(said).to_contain_text("100%")
    expect(said).to_contain_text("From “")

    page.locator(".sk-point select").focus()  # from here on the keyboard alone
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    expect(status).to_contain_text("Sentence 2 of")
    assert chosen != 1
    page.locator(".sk-noise [role=slider]").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("With noise of 0.3")
    page.locator(".sk-add input").fill("Der <b>Fuchs</b> lief nach Hause.")
    page.locator(".sk-add-lang select").select_option("deu_Latn")
    page.locator("button.sk-add-button").press("Enter")
    expect(neighbours).to_contain_text("Der <b>Fuchs</b> lief nach Hause.")
    page.locator("button.sk-walk").press("Enter")
    expect(said).to_contain_text("From “")
    draw_line = page.locator(".sk-map [data-val=drawline]")  # active since the line was drawn
    expect(draw_line).to_have_class(re.compile("active"))
    fill = draw_line.locator("path").evaluate("path => getComputedStyle(path).fill")
    assert fill == "rgb(0, 114, 178)", "the active button is to be seen"
    notebook.screenshot("explorer-walked", 1280, ".sk-explorer")
    expect(page.locator(".modebar-btn[data-title^=Share]")).to_have_count(0)  # of no figure of the notebook
    notebook.assert_quiet()


def test_training_monitor(open_notebook: Callable[[str], OpenNotebook], lab: Lab) -> None:
    folder = lab.folder / "monitor"
    folder.mkdir(parents=True)
    runs = folder / "runs" / "fox"
    runs.mkdir(parents=True)
    train = {"kind": "train", "seconds": 10.0, "lr": 1e-3, "tokens_per_s": 900.0, "seconds_left": 90.0}

    def write(*records: dict) -> None:
        with open(runs / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    write(*({**train, "step": step, "loss_nats_per_token": 5.0 / step} for step in (1, 2, 3)))
    source = "from sonarkit.explore.widgets.training_monitor import TrainingMonitor\nTrainingMonitor('runs', every=0.3)"
    cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    cells.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(cells, folder / "monitor.ipynb")

    notebook = open_notebook("../monitor/monitor")
    notebook.run_all()
    page, length = notebook.page, "n => document.querySelector('.js-plotly-plot')?.data?.[0]?.x?.length === n"
    page.wait_for_function(length, arg=3)
    page.locator("button.sk-follow").press("Enter")
    write(
        {**train, "step": 4, "loss_nats_per_token": 1.1},
        {"kind": "eval", "step": 4, "seconds": 12.0, "loss_nats_per_token": 1.3, "sample": "The fox <b>slept</b>."},
    )
    page.wait_for_function(length, arg=4)
    expect(page.locator(".sk-sample")).to_contain_text("The fox <b>slept</b>.")
    expect(page.locator(".sk-latest")).to_contain_text("1.1")
    notebook.screenshot("monitor", 1280, ".sk-monitor")
    notebook.screenshot("monitor", 800, ".sk-monitor")
    page.locator("button.sk-stop").press("Enter")
    expect(page.locator("button.sk-stop")).to_be_disabled()
    notebook.assert_quiet()
