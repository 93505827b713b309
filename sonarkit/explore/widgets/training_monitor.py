"""The training monitor: curves and latest numbers of runs as they are written, and the sample stories they told.

Wiring only: what it shows are the records of `metrics.jsonl` (see `training.metrics`), drawn by `figures.loss_curves`.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
from tqdm import tqdm

from sonarkit.explore import figures
from sonarkit.explore.widgets.common import Caught, Panel, Status, WholeFigure, as_sentence, show_in_place
from sonarkit.training.metrics import read_metrics

METRICS, LOSS = "metrics.jsonl", "loss_nats_per_token"
NOT_METRICS = ("step", "seconds", "minutes", "seconds_left")
STYLE = """<style>
.sk-monitor .sk-latest table { border-collapse: collapse; line-height: 1.5; }
.sk-monitor .sk-latest th, .sk-monitor .sk-latest td { padding: 1px 12px; text-align: right; font-variant-numeric: tabular-nums; }
.sk-monitor .sk-latest th { font-weight: normal; opacity: 0.75; }
.sk-monitor .sk-latest th:first-child { text-align: left; padding-left: 0; }
.sk-monitor .sk-latest tbody th { font-weight: bold; opacity: 1; }
.sk-monitor .sk-curves, .sk-monitor .sk-curves > * { min-width: 0; width: 100%; }
.sk-monitor .sk-sample p { line-height: 1.5; margin: 0; max-width: 42em; }
</style>"""
Record = dict[str, Any]


# ---------------------------------------------------------------------- what is shown, without a widget


class Runs:
    """The records of several runs, read again only where a file has changed.

    `places` are run folders and folders of runs; a run is a folder with metrics.jsonl. `records` has them by the run's
    name, in the order in which runs were found, with `minutes` beside `seconds`. ValueError for no places.
    """

    def __init__(self, places: str | Path | Sequence[str | Path]) -> None:
        self.places = [Path(place) for place in ([places] if isinstance(places, str | Path) else places)]
        if not self.places:
            raise ValueError("expected a folder of runs, or a list of run folders, got an empty list")
        self.records: dict[str, list[Record]] = {}
        self._names: dict[Path, str] = {}
        self._states: dict[Path, tuple[int, ...]] = {}  # size, time and inode of each file when it was read
        self._bad: dict[Path, str] = {}

    @property
    def problems(self) -> list[str]:
        """Sentences about files that could not be read, or that there is no run yet; [] where all is well."""
        if self._names:
            return list(self._bad.values())
        places = " or ".join(str(place) for place in self.places)
        return [f"There is no run in {places} yet; a run is a folder with {METRICS}, and Refresh finds it."]

    def read(self) -> bool:
        """Look for new runs and new records. -> whether anything changed."""
        found = dict.fromkeys(p for place in self.places for p in (place / METRICS, *sorted(place.glob(f"*/{METRICS}"))))
        states = {path: state for path in found if (state := _state(path))}
        changed = [path for path, state in states.items() if state != self._states.get(path)]
        gone = self._names.keys() - states.keys()
        for path in gone:
            self.records.pop(self._names.pop(path))
            self._bad.pop(path, None)
        self._states = states
        for path in changed:
            name = self._names.setdefault(path, self._names.get(path) or self._new_name(path))
            try:
                self.records[name] = [{**record, "minutes": record["seconds"] / 60} for record in read_metrics(path)]
                self._bad.pop(path, None)
            except (OSError, ValueError) as error:  # what was read before stays
                self.records.setdefault(name, [])
                self._bad[path] = as_sentence(error)
        return bool(changed or gone)

    def _new_name(self, path: Path) -> str:
        """The folder's name, with as many of its parents as tell it from the other runs."""
        parts = path.resolve().parent.parts
        names = ("/".join(parts[-n:]) for n in range(1, len(parts) + 1))
        return next((name for name in names if name not in self.records), str(path.resolve().parent))


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file does: a run that goes on puts another file in its place. None without a file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def metric_names(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """The numbers that any run's records hold, the loss first."""
    keys = {key for run in records.values() for r in run for key, value in r.items() if isinstance(value, int | float)}
    return sorted(keys - set(NOT_METRICS), key=lambda key: (key != LOSS, not key.startswith("loss"), key))


def planned_steps(record: Record) -> int | None:
    """How many steps the run of a `train` record will take, from its `seconds_left`; None where its rounding hides that."""
    step, seconds = record["step"], record["seconds"]
    if not record["seconds_left"]:
        return int(step)
    if not seconds or 0.05 * step / seconds > 0.4:  # seconds_left is rounded to tenths
        return None
    return round(step * (1 + record["seconds_left"] / seconds))


def latest_html(records: Mapping[str, Sequence[Record]], metric: str = LOSS) -> str:
    """A table of each run's newest numbers: step, the metric in training and evaluation, speed, rate and time left."""
    head = ("run", "step", metric, "at evaluation", "tokens/s", "learning rate", "time left")
    rows = []
    for name, run in records.items():
        train = next((r for r in reversed(run) if r["kind"] == "train"), None)
        judged = next((r for r in reversed(run) if r["kind"] == "eval" and metric in r), None)
        cells = ["no step yet", "", "", "", "", ""]
        if train:
            steps = planned_steps(train)
            left = train["seconds_left"]
            cells = [
                f"{train['step']:,}" + (f" of {steps:,}" if steps else ""),
                _number(train.get(metric)),
                _number(judged[metric]) if judged else "–",
                f"{train['tokens_per_s']:,.0f}",
                f"{train['lr']:.2e}",
                tqdm.format_interval(left) if left else "finished",
            ]
        elif judged:
            cells[2] = _number(judged[metric])
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    columns = "".join(f'<th scope="col">{html.escape(column.replace("_", " "))}</th>' for column in head)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def sample_html(record: Record) -> str:
    """The story told at an evaluation, as it stands."""
    return f"<p>{html.escape(record['sample'])}</p>"


# ---------------------------------------------------------------------- the widget


class TrainingMonitor(Panel):
    """Follows runs by their metrics files: curves, latest numbers, and the sample story of each evaluation.

        TrainingMonitor("runs").follow()               # every run in this folder, also those that begin later
        TrainingMonitor(["runs/a", "runs/b"]).refresh()   # these two, once

    `follow` reads what has changed every `every` seconds, in the background, until `stop`; `refresh` reads it once. What
    goes wrong is a sentence in `status`. ValueError for no runs to look for and an `every` that is not above 0.
    """

    _stop: threading.Event | None = None

    def __init__(self, runs: str | Path | Sequence[str | Path], every: float = 2.0) -> None:
        if every <= 0:
            raise ValueError(f"every must be above 0 seconds, got {every}")
        self.runs, self.every = Runs(runs), every
        self.figure: go.FigureWidget | None = None  # built whole once there is something to draw
        self._lock = threading.RLock()  # the thread that follows, and the kernel's, where buttons are pressed
        self._thread: threading.Thread | None = None
        self._showing = False  # we set the controls now, not the reader
        self._build()
        super().__init__(self._layout())
        self.add_class("sk-monitor")
        self.refresh()

    # ------------------------------------------------------------------ what the buttons do

    def follow(self) -> TrainingMonitor:
        """Show what the runs write as they write it, until `stop`. Returns itself, so that a cell can end with it."""
        with self._lock:
            if not self.following:
                self._stop = threading.Event()
                # A daemon: it never keeps the kernel from ending.
                self._thread = threading.Thread(target=self._follow, args=(self._stop,), daemon=True)
                self._thread.start()
            self._enable()
        return self

    def stop(self) -> None:
        """No longer follow; what is shown stays."""
        with self._lock:
            if self._stop is not None:
                self._stop.set()
            self._enable()

    def refresh(self) -> None:
        """Read what has changed, and show it."""
        with self._lock, Caught(self.status):
            if self.runs.read() or not self.status.text:
                self._show()

    def wait(self, seconds: float = 60.0) -> None:
        """Until the thread of a monitor that was stopped has ended. TimeoutError when it has not in `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"still following after {seconds:g} s; stop() ends it")

    def close(self) -> None:
        """Take it off the page; it no longer follows."""
        if self._stop is not None:
            self._stop.set()
        super().close()

    @property
    def following(self) -> bool:
        """Whether it shows what the runs write, as they write it."""
        return self._thread is not None and self._thread.is_alive() and not (self._stop and self._stop.is_set())

    # ------------------------------------------------------------------ how it is done

    def _follow(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.refresh()
            stop.wait(self.every)

    def _enable(self) -> None:
        self.follow_button.disabled, self.stop_button.disabled = self.following, not self.following

    def _show(self, whole: bool = False) -> None:
        """Everything as the records now are; `whole` also forgets the zoom, which another metric or axis makes useless."""
        records = self.runs.records
        names = metric_names(records)
        if list(self.metric.options) != names:
            self._set(self.metric, names, self.metric.value if self.metric.value in names else next(iter(names), None))
        metric = self.metric.value
        if metric:
            self._draw(figures.loss_curves(records, metric, self.x.value), whole)
        self.latest.value = latest_html(records, metric or LOSS) if records else ""
        self._show_samples()
        problems = self.runs.problems
        if problems:
            (self.status.fail if records else self.status.say)(" ".join(problems))
        else:
            self.status.say(f"{len(records)} run{'s' if len(records) > 1 else ''}: {', '.join(records)}.")

    def _draw(self, figure: go.Figure, whole: bool) -> None:
        if self.figure is None:
            self.figure = WholeFigure(figure)
            self.plot.children = [self.figure]
            return
        if whole:
            figure.update_xaxes(autorange=True).update_yaxes(autorange=True)
        show_in_place(self.figure, figure)

    def _show_samples(self) -> None:
        """The runs and evaluations that have a story. The newest is shown, unless the reader has chosen an older one."""
        told = {
            run: [r for r in records if r["kind"] == "eval" and r.get("sample")] for run, records in self.runs.records.items()
        }
        runs = [run for run in told if told[run]]
        if list(self.run.options) != runs:
            self._set(self.run, runs, self.run.value if self.run.value in runs else next(iter(runs), None))
        options = [(_evaluation_label(r), r["step"]) for r in told.get(self.run.value, [])]
        before = list(self.evaluation.options)
        if before != options:
            steps, newest = [step for _, step in options], not before or self.evaluation.value == before[-1][1]
            kept = self.evaluation.value in steps and not newest
            self._set(self.evaluation, options, self.evaluation.value if kept else next(reversed(steps), None))
        self.samples.layout.display = "" if runs else "none"
        self._show_sample()

    def _show_sample(self) -> None:
        records = self.runs.records.get(self.run.value, [])
        told = [r for r in records if r.get("sample") and r["step"] == self.evaluation.value]
        self.sample.value = sample_html(told[-1]) if told else ""

    def _set(self, select: widgets.Select | widgets.Dropdown, options: Sequence[Any], value: Any) -> None:
        """Other options, on our own account: the observers are for the reader's choices."""
        self._showing = True
        try:
            select.options, select.value = options, value
        finally:
            self._showing = False

    def _chosen(self, show: Callable[[], None]) -> Callable[[object], None]:
        """An observer that shows what the reader has chosen."""

        def observe(change: object) -> None:
            if not self._showing:
                with self._lock:
                    show()

        return observe

    def _build(self) -> None:
        narrow = {"description_width": "initial"}
        self.metric = widgets.Dropdown(description="Metric", options=[], style=narrow).add_class("sk-metric")
        self.x = widgets.ToggleButtons(
            options=[("steps", "step"), ("minutes", "minutes")], tooltips=["over steps", "over minutes"]
        )
        self.x.style.button_width = "80px"
        self.x.add_class("sk-x")
        self.follow_button = widgets.Button(description="Follow", tooltip="Show what the runs write as they write it")
        self.stop_button = widgets.Button(description="Stop", tooltip="No longer follow", disabled=True)
        self.refresh_button = widgets.Button(description="Refresh", tooltip="Read once what has changed")
        for button, name in ((self.follow_button, "follow"), (self.stop_button, "stop"), (self.refresh_button, "refresh")):
            button.add_class(f"sk-{name}").layout.width = "90px"
            button.on_click(lambda _, name=name: getattr(self, name)())
        self.plot, self.latest, self.status = (
            widgets.VBox().add_class("sk-curves"),
            widgets.HTML().add_class("sk-latest"),
            Status(),
        )
        self.run = widgets.Dropdown(description="Story of", options=[], style=narrow).add_class("sk-sample-run")
        self.evaluation = widgets.Select(options=[], rows=6, layout={"width": "220px"}).add_class("sk-evaluations")
        self.sample = widgets.HTML(layout={"flex": "1 1 320px"}).add_class("sk-sample")
        for control in (self.metric, self.x):
            control.observe(self._chosen(lambda: self._show(whole=True)), "value")
        self.run.observe(self._chosen(self._show_samples), "value")
        self.evaluation.observe(self._chosen(self._show_sample), "value")

    def _layout(self) -> list[widgets.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        buttons = [self.follow_button, self.stop_button, self.refresh_button]
        story = widgets.HBox([self.evaluation, self.sample], layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        self.samples = widgets.VBox([self.run, story], layout={"display": "none"})
        controls = widgets.HBox([self.metric, self.x, *buttons], layout=wrap)
        return [widgets.HTML(STYLE), controls, self.status, self.plot, self.latest, self.samples]


def _evaluation_label(record: Record) -> str:
    loss = record.get(LOSS)
    return f"step {record['step']:,}" + (f"   loss {loss:.3f}" if loss is not None else "")
