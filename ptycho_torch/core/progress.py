"""Progress of a run: a bar on a terminal, a line of text in a notebook, or lines of the log."""

import logging
from importlib import import_module
from time import monotonic
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

NOTEBOOK_INTERVAL_S = 0.2
"""Shortest time between two updates of a notebook."""


class ProgressObserver:
    """An observer that displays the progress of a task.

    On a terminal it draws a bar on stderr, in a notebook it updates one line below the cell, and elsewhere it logs a
    line at each tenth of the task. Pass it as ``observer`` to a function of the library.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._display: _Display
        if console.is_jupyter:
            self._display = _NotebookLine()
        elif console.is_terminal:
            self._display = _Bar(console)
        else:
            self._display = _LogLines()

    def start(self, task: str, total: int) -> None:
        """Begin a task of ``total`` steps."""
        self._display.start(task, total)

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count ``steps`` more and display ``figures`` by name."""
        self._display.advance(steps, "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def finish(self) -> None:
        """End the task, complete or not."""
        self._display.finish()


class _Display(Protocol):
    def start(self, task: str, total: int) -> None: ...
    def advance(self, steps: int, text: str) -> None: ...
    def finish(self) -> None: ...


class _Bar:
    """A progress bar on a terminal."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=console)

    def start(self, task: str, total: int) -> None:
        self._bar.start()
        self._task = self._bar.add_task(task, total=total, figures="")

    def advance(self, steps: int, text: str) -> None:
        self._bar.update(self._task, advance=steps, figures=text)

    def finish(self) -> None:
        self._bar.stop()


class _NotebookLine:
    """A line of text below the cell of a notebook; needs IPython only, not ipywidgets."""

    def start(self, task: str, total: int) -> None:
        self._task, self._total, self._done, self._text, self._time = task, total, 0, "", monotonic()
        display = import_module("IPython.display").display
        self._handle: Any = display(self._format(), raw=True, display_id=True)

    def advance(self, steps: int, text: str) -> None:
        self._done, self._text = self._done + steps, text
        if monotonic() - self._time >= NOTEBOOK_INTERVAL_S or self._done == self._total:
            self._time = monotonic()
            self._handle.update(self._format(), raw=True)

    def finish(self) -> None:
        self._handle.update(self._format(), raw=True)

    def _format(self) -> dict[str, str]:
        return {"text/plain": f"{self._task}: {self._done} of {self._total}  {self._text}".rstrip()}


class _LogLines:
    """A line of the log at each tenth of a task."""

    def __init__(self) -> None:
        self._log = logging.getLogger("ptycho_torch")

    def start(self, task: str, total: int) -> None:
        self._task, self._total, self._done, self._last_tenth = task, total, 0, 0

    def advance(self, steps: int, text: str) -> None:
        self._done += steps
        if self._done == self._total or self._done * 10 // self._total > self._last_tenth:
            self._last_tenth = self._done * 10 // self._total
            self._log.info("%s: %d of %d  %s", self._task, self._done, self._total, text)

    def finish(self) -> None:
        pass
