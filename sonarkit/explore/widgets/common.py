"""What the widgets share: a line that says what is going on, work in the background that can be stopped, figures that change."""

from __future__ import annotations

import html
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar
from weakref import WeakSet

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
from IPython import get_ipython


class Status(widgets.HTML):
    """One line under the controls: what is being done, how far it is, or what went wrong, as a sentence.

    Screen readers speak it when it changes. Text is shown as it stands, never as HTML.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_class("sk-status")
        self.text = ""
        self.say("")

    def say(self, text: str, done: int = 0, of: int = 0) -> None:
        """Show a line; with `of`, a progress bar of `done` steps before it."""
        self.text = text
        bar = f'<progress value="{done}" max="{of}"></progress> ' if of else ""
        self.value = f'<div role="status" aria-live="polite">{bar}{html.escape(text)}</div>'

    def fail(self, text: str) -> None:
        """Show what went wrong."""
        self.text = text
        self.value = f'<div role="alert" style="color: #D55E00"><b>⚠</b> {html.escape(text)}</div>'


class Caught:
    """`with Caught(status) as caught: ...`: an error of the block becomes a sentence in `status`, and is kept in `error`.

    Whatever it is, the user reads a sentence; the traceback stays with the error for whoever looks for it.
    """

    def __init__(self, status: Status) -> None:
        self.status = status
        self.error: BaseException | None = None

    def __enter__(self) -> Caught:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self.error = error
            self.status.fail(as_sentence(error))
        return isinstance(error, Exception)


class Work:
    """One piece of work at a time, in a thread of its own, so that the buttons stay alive.

    `on_change(busy)` is called when work begins and ends. An error of the work becomes a sentence in `status`; the
    exception is kept in `error`, with its traceback, for whoever looks for it.
    """

    def __init__(self, status: Status, on_change: Callable[[bool], None] = lambda busy: None) -> None:
        self.status, self.on_change = status, on_change
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was asked for; work looks at it between its steps."""
        return self._stop.is_set()

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work`; says so and does nothing when other work is under way."""
        if self.busy:
            self.status.say("Still working; that has to end first.")
            return
        self._stop.clear()
        self.error = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.on_change(True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the work to end after its present step."""
        self._stop.set()

    def wait(self, seconds: float = 60.0) -> None:
        """Until the work has ended. TimeoutError when it has not in `seconds`; errors of the work are not raised."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"the work has not ended within {seconds:g} s; stop() asks it to")

    def _run(self, work: Callable[[], None]) -> None:
        with Caught(self.status) as caught:
            work()
        self.error = caught.error or self.error
        self.on_change(False)


class OwnKeys(anywidget.AnyWidget):
    """Lets the controls in each box of class `sk-own-keys` have the keys that are pressed in them.

    JupyterLab takes arrows, Enter and letters for its own shortcuts wherever nothing can be typed: with the focus in a
    list of choices, the arrow keys would walk through the cells of the notebook.
    """

    _esm = """
    function keep(event) {
      if (event.target.closest(".sk-own-keys")) event.target.setAttribute("data-lm-suppress-shortcuts", "true");
    }
    export default { initialize() { document.addEventListener("focusin", keep); } };
    """


class Panel(widgets.VBox):
    """What fills the output of a notebook cell. It has the keys pressed in it, and is closed when its cell runs again.

    ipywidgets keeps a widget until it is closed, also when its output is gone from the page, and the widget keeps its model.
    ValueError from a closed panel for what it has let go of.
    """

    let_go: ClassVar[tuple[str, ...]] = ()  # attributes that are large; a closed panel no longer has them
    work: Work  # where it does something in the background
    _made_in: tuple[str | None, str | None] = (None, None)  # cell, and which run of it

    def __init__(self, children: Sequence[widgets.Widget]) -> None:
        super().__init__([*children, OwnKeys(layout=widgets.Layout(display="none"))])
        self.add_class("sk-own-keys")
        self._made_in = cell, run = _running_cell()
        for other in list(_PANELS):
            if cell is not None and other._made_in[0] == cell and other._made_in[1] != run:
                other.close()
        _PANELS.add(self)

    def close(self) -> None:
        """Take it off the page, with all its parts, end its work after the present step, and let go of models and vectors."""
        if hasattr(self, "work"):
            self.work.stop()
        if self.comm is not None:
            for part in list(_parts(self)):
                part.close()
        for name in self.let_go:
            self.__dict__.pop(name, None)
        super().close()

    def __getattr__(self, name: str) -> Any:
        if name in self.let_go:
            raise ValueError(f"this {type(self).__name__} is closed; run its cell again, or make another one")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_PANELS: WeakSet[Panel] = WeakSet()


def _running_cell() -> tuple[str | None, str | None]:
    """-> id of the notebook cell that runs now, where the page says it, as JupyterLab does; and id of this run of it."""
    message: dict[str, Any] = getattr(get_ipython(), "get_parent", dict)()
    return message.get("metadata", {}).get("cellId"), message.get("header", {}).get("msg_id")


def _parts(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """The widgets that a widget is made of, the innermost first."""
    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, widgets.Widget):
                yield from _parts(part)
                yield part


def as_sentence(error: BaseException) -> str:
    """An error in words. What is not the user's to mend names its place in the code, so that it can be reported."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError) and text:  # an ImportError names what to install
        return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
    place = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" in {place.name}, line {place.lineno}" if place else ""
    return f"Something went wrong that should not have ({type(error).__name__}{where}: {text}). Please report it."


class WholeFigure(go.FigureWidget):
    """A FigureWidget whose first message to the page holds the whole figure.

    plotly's own opens empty and fills itself with a second message; a busy page that draws between the two stays empty.
    """

    _built = False
    _config: dict[str, object]

    def __init__(self, figure: go.Figure) -> None:
        super().__init__(figure)
        self._config = {**self._config, "responsive": True}  # it follows the width of the page
        self._built = True
        self.open()

    def open(self) -> None:
        """Send the figure, which plotly would do before it is whole."""
        if self._built:
            super().open()


def show_in_place(shown: go.FigureWidget, figure: go.Figure) -> None:
    """Make the figure on the page look as `figure`, by its changes only, so that the reader's zoom stays.

    Pages that connect later, or again after a reload, see the same: plotly itself would show them the first state.
    """
    layout = figure.layout.to_plotly_json()
    layout.pop("template", None)
    with shown.batch_update():
        if [(trace.type, trace.name) for trace in shown.data] == [(trace.type, trace.name) for trace in figure.data]:
            for old, new in zip(shown.data, figure.data):
                old.update(new.to_plotly_json())
        else:
            shown.data = []
            shown.add_traces(figure.data)
        shown.update_layout(layout)
    if shown.comm is not None:  # it is not closed
        shown._repr_mimebundle_()  # where plotly sets what a new view is built from
