"""Measure the wall time of the stages of a command."""

from time import perf_counter


class Clock:
    """A stopwatch; ``seconds`` holds the wall time of each stage, measured from the end of the previous stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def record(self, stage: str) -> None:
        """End the stage ``stage`` and store its time."""
        now = perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
