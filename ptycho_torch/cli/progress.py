"""Progress and log messages of a command on stderr."""

import logging

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ptycho_torch.cli.messages import FlagFormatter
from ptycho_torch.config.base import CommonOptions


def set_up_logging(config: CommonOptions, mute: bool = False) -> None:
    """Send the package's log to stderr: warnings with ``--quiet``, everything with ``--debug``, none if ``mute``."""
    level = logging.DEBUG if config.debug else logging.WARNING if config.quiet else logging.INFO
    level = logging.CRITICAL if mute else level
    handler = logging.StreamHandler()
    handler.setFormatter(
        FlagFormatter("%(message)s" if level == logging.INFO else "%(levelname)s %(message)s", type(config))
    )
    logger = logging.getLogger("ptycho_torch")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)


class ProgressObserver:
    """A progress bar on a terminal; where stderr is not a terminal, a line of the log at each tenth of the way."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._log = logging.getLogger("ptycho_torch")

    def start(self, task: str, total: int) -> None:
        self._task, self._total, self._done, self._last_tenth = task, total, 0, 0
        if self._bar:
            self._bar.start()
            self._bar_task = self._bar.add_task(task, total=total, figures="")

    def advance(self, steps: int = 1, **figures: float) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._done += steps
        if self._bar:
            self._bar.update(self._bar_task, advance=steps, figures=text)
        elif self._done == self._total or self._done * 10 // self._total > self._last_tenth:
            self._last_tenth = self._done * 10 // self._total
            self._log.info("%s: %d of %d  %s", self._task, self._done, self._total, text)

    def finish(self) -> None:
        if self._bar:
            self._bar.stop()
