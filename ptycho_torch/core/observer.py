"""How long work reports its progress without knowing who listens."""

from typing import Protocol


class Observer(Protocol):
    """Receives progress. Library code calls it; commands decide what a person sees."""

    def start(self, task: str, total: int) -> None:
        """A task of ``total`` steps starts."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """``steps`` more are done; ``figures`` are the numbers worth showing now."""

    def finish(self) -> None:
        """The task is over, complete or not."""


class SilentObserver:
    """Listens and says nothing: the default of every library function."""

    def start(self, task: str, total: int) -> None:
        del task, total

    def advance(self, steps: int = 1, **figures: float) -> None:
        del steps, figures

    def finish(self) -> None:
        pass
