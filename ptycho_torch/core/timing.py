"""How long each stage of a command takes."""

from time import perf_counter


class Clock:
    """Wall seconds by stage, each since the last lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def record(self, stage: str) -> None:
        """End the stage called ``stage``."""
        now = perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
