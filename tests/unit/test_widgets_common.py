"""The status line and work in the background."""

from __future__ import annotations

import threading

import comm
import ipywidgets as widgets
import plotly.graph_objects as go
import pytest
from comm.base_comm import BaseComm
from ipywidgets.widgets.widget import _instances

from sonarkit.explore.widgets import common
from sonarkit.explore.widgets.common import Panel, Status, WholeFigure, Work, as_sentence, show_in_place


def test_status_shows_text_as_it_stands() -> None:
    status = Status()
    status.say("telling <b>3</b>", 3, 32)
    assert status.text == "telling <b>3</b>"
    assert "telling &lt;b&gt;3&lt;/b&gt;" in status.value and '<progress value="3" max="32">' in status.value
    status.fail("no <script>")
    assert "<script>" not in status.value and 'role="alert"' in status.value


def test_work_reports_stops_and_refuses_a_second() -> None:
    status, changes, begun = Status(), [], threading.Event()
    work = Work(status, changes.append)

    def until_stopped() -> None:
        begun.set()
        while not work.stopping:
            begun.wait(0.001)
        status.say("stopped")

    work.start(until_stopped)
    assert begun.wait(5) and work.busy
    work.start(lambda: status.say("never"))
    assert status.text == "Still working; that has to end first."
    with pytest.raises(TimeoutError, match="has not ended within 0.01 s"):
        work.wait(0.01)
    work.stop()
    work.wait(5)
    assert (status.text, changes, work.busy) == ("stopped", [True, False], False)


def test_errors_become_sentences_and_the_next_work_starts_clean() -> None:
    def wrong() -> None:
        raise ValueError("the prompt holds no sentence; begin with one")

    work = Work(Status())
    work.start(wrong)
    work.wait(5)
    assert work.status.text == "The prompt holds no sentence; begin with one."
    assert isinstance(work.error, ValueError)
    work.start(lambda: work.status.say("fine"))
    work.wait(5)
    assert (work.status.text, work.error) == ("fine", None)


def test_an_error_of_ours_says_where() -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        text = as_sentence(error)
    assert "KeyError in test_an_error_of_ours_says_where, line" in text and text.endswith("Please report it.")
    assert as_sentence(OSError("disk full!")) == "Disk full!"


def test_a_figures_first_message_holds_the_whole_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict] = []

    class Recorder(BaseComm):
        def publish_msg(self, msg_type, data=None, **_) -> None:
            if msg_type == "comm_open" and "_widget_data" in data["state"]:
                opened.append(data["state"])

    monkeypatch.setattr(comm, "create_comm", Recorder)
    WholeFigure(go.Figure(go.Scatter(x=[1], y=[2]), {"title": "Whole"}))
    (state,) = opened
    assert len(state["_widget_data"]) == 1 and state["_widget_layout"]["title"] == {"text": "Whole"}


def test_a_figure_changes_in_place_or_gets_other_traces() -> None:
    shown = WholeFigure(go.Figure([go.Scatter(name="a", y=[1])]))
    shown.layout.xaxis.range = [0, 5]
    trace = shown.data[0]
    show_in_place(shown, go.Figure([go.Scatter(name="a", y=[1, 2])]))
    assert shown.data[0] is trace and list(trace.y) == [1, 2]
    show_in_place(shown, go.Figure([go.Scatter(name="b", y=[3]), go.Scatter(name="a", y=[4])]))
    assert [trace.name for trace in shown.data] == ["b", "a"] and shown.layout.xaxis.range == (0, 5)
    assert [trace["name"] for trace in shown._widget_data] == ["b", "a"], "what a later page is built from"


def test_running_a_cell_again_closes_what_it_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    message: dict = {}

    class Shell:
        def get_parent(self) -> dict:
            return message

    def run(cell: str | None, number: str, panels: int = 1) -> list[Panel]:
        message.update(header={"msg_id": number}, metadata={"cellId": cell} if cell else {})
        return [Panel([widgets.HBox([widgets.Button()])]) for _ in range(panels)]

    monkeypatch.setattr(common, "get_ipython", Shell)
    (other,), former = run("b", "1"), run("a", "2", 2)
    unnamed = run(None, "3") + run(None, "4")  # from a page that does not say which cell it runs
    assert all(panel.comm for panel in [other, *former, *unnamed])
    (newer,) = run("a", "5")
    assert [panel.comm for panel in former] == [None, None]
    assert all(panel.comm for panel in [newer, other, *unnamed])


def test_nothing_is_kept_of_a_closed_panel() -> None:
    before, status = set(_instances), Status()
    figure = WholeFigure(go.Figure(go.Scatter(y=[1])))
    panel = Panel([widgets.VBox([widgets.Select(options=["a"]), figure]), status])
    panel.work = Work(status)
    assert len(set(_instances) - before) > 10
    panel.close()
    panel.close()
    assert set(_instances) <= before and panel.work.stopping
    show_in_place(figure, go.Figure(go.Scatter(y=[2])))
    assert list(figure.data[0].y) == [2], "harmless, if nobody sees it"
