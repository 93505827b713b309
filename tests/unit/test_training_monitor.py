"""The training monitor: what it reads again, what it shows, and that it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonarkit.explore.widgets import training_monitor
from sonarkit.explore.widgets.training_monitor import LOSS, Runs, TrainingMonitor, latest_html, planned_steps


def train_record(step: int, loss: float | None = 2.0, steps: int = 100) -> dict[str, Any]:
    seconds = 3.0 * step
    return {
        "kind": "train",
        "step": step,
        "seconds": seconds,
        LOSS: loss,
        "lr": 1e-3,
        "tokens_per_s": 1234.5,
        "seconds_left": round(seconds / step * (steps - step), 1),
    }


def eval_record(step: int, sample: str | None = None, **results: float) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "seconds": 3.0 * step + 1, **results, **({"sample": sample} if sample else {})}


def append(run: Path, *records: dict[str, Any]) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return run


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def curves(monitor: TrainingMonitor) -> dict[str, list[float]]:
    assert monitor.figure is not None
    return {trace.name: list(trace.y) for trace in monitor.figure.data}


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = training_monitor.read_metrics
    monkeypatch.setattr(training_monitor, "read_metrics", lambda path: read.append(path.parent.name) or original(path))
    append(tmp_path / "a", train_record(1))
    append(tmp_path / "b", train_record(1))
    runs = Runs(tmp_path)
    assert runs.read() and read == ["a", "b"] and not runs.problems
    assert not runs.read() and read == ["a", "b"]
    append(tmp_path / "b", train_record(2))
    append(tmp_path / "c", train_record(1))
    assert runs.read() and read == ["a", "b", "b", "c"]
    assert [r["step"] for r in runs.records["b"]] == [1, 2] and runs.records["b"][1]["minutes"] == 0.1


def test_a_half_written_line_a_run_that_begins_again_and_one_that_is_deleted(tmp_path: Path) -> None:
    run = append(tmp_path / "a", train_record(1), train_record(2))
    runs = Runs([run])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert runs.read() and [r["step"] for r in runs.records["a"]] == [1, 2]
    (run / "metrics.jsonl").write_text(json.dumps(train_record(1, 9.0)) + "\n")
    assert runs.read() and [r[LOSS] for r in runs.records["a"]] == [9.0]
    (run / "metrics.jsonl").unlink()
    assert runs.read() and not runs.records and "no run" in runs.problems[0]


def test_a_damaged_file_is_a_sentence_and_the_other_run_is_shown(tmp_path: Path) -> None:
    append(tmp_path / "good", train_record(1))
    (append(tmp_path / "bad") / "metrics.jsonl").write_text("not json\n" + json.dumps(train_record(1)) + "\n")
    monitor = TrainingMonitor(tmp_path)
    assert "line 1: expected a JSON object" in monitor.status.text and "alert" in monitor.status.value
    assert curves(monitor) == {"good, training": [2.0]}
    monitor.refresh()  # what is damaged is not read again, and still told
    assert "line 1" in monitor.status.text


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = Runs([append(tmp_path / "x" / "run", train_record(1)), append(tmp_path / "y" / "run", train_record(1))])
    runs.read()
    assert list(runs.records) == ["run", "y/run"]


def test_no_folder_is_a_sentence_until_a_run_is_there(tmp_path: Path) -> None:
    monitor = TrainingMonitor(tmp_path / "runs")
    assert monitor.status.text.startswith("There is no run in ") and monitor.figure is None
    append(tmp_path / "runs" / "first", train_record(10))
    monitor.refresh_button.click()
    assert monitor.status.text == "1 run: first." and curves(monitor) == {"first, training": [2.0]}
    with pytest.raises(ValueError, match="empty list"):
        TrainingMonitor([])
    with pytest.raises(ValueError, match="above 0 seconds"):
        TrainingMonitor(tmp_path, every=0)


def test_curves_grow_in_place_and_keep_the_zoom(tmp_path: Path) -> None:
    append(tmp_path / "a", train_record(10, 3.0), eval_record(10, loss_nats_per_token=3.5, bits_per_byte=1.0))
    monitor = TrainingMonitor(tmp_path)
    figure = monitor.figure
    assert figure is not None
    line = figure.data[0]
    figure.layout.xaxis.range = [0, 5]
    append(tmp_path / "a", train_record(20, 2.5))
    monitor.refresh()
    assert monitor.figure is figure and figure.data[0] is line and list(line.y) == [3.0, 2.5]
    assert list(figure._widget_data[0]["y"]) == [3.0, 2.5], "what a page that connects later is built from"
    append(tmp_path / "b", train_record(10, None), train_record(20, 1.0))  # another run: another line
    monitor.refresh()
    assert curves(monitor) == {"a, training": [3.0, 2.5], "a, evaluation": [3.5], "b, training": [None, 1.0]}
    assert figure.layout.xaxis.range == (0, 5) and not figure.layout.xaxis.autorange

    monitor.x.value = "minutes"
    assert list(figure.data[0].x) == [0.5, 1.0] and figure.layout.xaxis.autorange
    assert list(monitor.metric.options)[0] == LOSS
    monitor.metric.value = "bits_per_byte"
    assert curves(monitor) == {"a, evaluation": [1.0]}


def test_latest_numbers() -> None:
    table = latest_html(
        {"<a>": [train_record(20), eval_record(20, loss_nats_per_token=2.25)], "b": [train_record(100, None)], "c": []}
    )
    assert "&lt;a&gt;" in table and "<a>" not in table
    for shown in (
        "20 of 100",
        "<td>2</td>",
        "<td>2.25</td>",
        "1,234",
        "1.00e-03",
        "04:00",
        "100 of 100",
        "finished",
        "no step yet",
    ):
        assert shown in table
    assert planned_steps({"step": 1000, "seconds": 0.5, "seconds_left": 0.5}) is None
    assert planned_steps({"step": 137, "seconds": 58.078, "seconds_left": round(58.078 / 137 * 2863, 1)}) == 3000


def test_the_newest_story_is_shown_until_another_is_chosen(tmp_path: Path) -> None:
    run = append(tmp_path / "a", train_record(10), eval_record(10, "Fox <b>one</b>.", loss_nats_per_token=3.0))
    monitor = TrainingMonitor(run)
    assert "Fox &lt;b&gt;one&lt;/b&gt;." in monitor.sample.value and monitor.samples.layout.display == ""
    append(run, eval_record(20, "Fox two."))
    monitor.refresh()
    assert [label for label, _ in monitor.evaluation.options] == ["step 10   loss 3.000", "step 20"]
    assert "Fox two." in monitor.sample.value
    monitor.evaluation.value = 10
    append(run, eval_record(30, "Fox three."))
    append(tmp_path / "b", eval_record(5, "Bear."))
    monitor.refresh()
    assert monitor.evaluation.value == 10 and "one" in monitor.sample.value


def test_stories_of_several_runs(tmp_path: Path) -> None:
    append(tmp_path / "a", eval_record(10, "Fox."))
    append(tmp_path / "b", eval_record(10, "Bear."), eval_record(20, "Bears."))
    append(tmp_path / "codec", eval_record(10, bleu=3.0))
    monitor = TrainingMonitor(tmp_path)
    assert list(monitor.run.options) == ["a", "b"] and "Fox." in monitor.sample.value
    monitor.run.value = "b"
    assert monitor.evaluation.value == 20 and "Bears." in monitor.sample.value


def test_following_ends_when_it_is_stopped(tmp_path: Path) -> None:
    run = append(tmp_path / "a", train_record(10))
    monitor = TrainingMonitor(run, every=0.01).follow()
    assert monitor.following and monitor.follow_button.disabled and monitor._thread is not None and monitor._thread.daemon
    with pytest.raises(TimeoutError, match="stop"):
        monitor.wait(0.02)
    append(run, train_record(20, 1.5))
    until(lambda: curves(monitor) == {"a, training": [2.0, 1.5]})
    monitor.stop_button.click()
    monitor.wait(5)
    assert not monitor.following and monitor.stop_button.disabled
    append(run, train_record(30, 1.0))
    assert threading.active_count() >= 1 and len(curves(monitor)["a, training"]) == 2
    monitor.follow_button.click()
    until(lambda: len(curves(monitor)["a, training"]) == 3)
    monitor.close()
    monitor.wait(5)
