"""The interface through which library functions report progress."""

from typing import Protocol


class Observer(Protocol):
    """A receiver of progress. Library functions call it; the caller chooses the display."""

    def start(self, task: str, total: int) -> None:
        """Begin a task of ``total`` steps."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count ``steps`` more; ``figures`` are current values by name."""

    def finish(self) -> None:
        """End the task, complete or not."""


class SilentObserver:
    """An observer without a display: the default of every library function."""

    def start(self, task: str, total: int) -> None:
        """Begin a task; no effect."""
        del task, total

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count steps; no effect."""
        del steps, figures

    def finish(self) -> None:
        """End the task; no effect."""
