"""The loop around every iterative engine: epochs of batches, a schedule, a guard against divergence, and a history."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.observer import Observer
from ptycho_torch.data.grouping import Indices, compact_batches
from ptycho_torch.engines.problem import Estimate, Measurement

GROWTH = 1.2
"""An epoch whose error is this many times the one before it is taken back, and the steps are halved."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long an engine runs, and in what batches."""

    epochs: int
    """Passes over all patterns."""

    batch_size: int
    """Patterns a batch; engines that need all patterns at once use it for memory only."""

    batches: str = "random"
    """``random``: each batch from all over the field; ``compact``: each batch a neighbourhood."""

    time_limit: float | None = None
    """Seconds after which no batch is begun; the schedule of the steps is then by time where that is further on."""

    def order(self, positions: Tensor, rng: np.random.Generator) -> list[Tensor]:
        """The batches of one epoch as indices, each pattern once."""
        found: list[Indices]
        if self.batches == "compact":
            found = compact_batches(positions.numpy(), self.batch_size, 1, rng)
        else:
            count = math.ceil(len(positions) / self.batch_size)
            found = np.array_split(rng.permutation(len(positions)), count)  # of even size: none is a small remainder
        return [torch.from_numpy(indices) for indices in found]


class Engine(ABC):
    """An iterative engine: it brings an estimate nearer to a measurement, a batch at a time."""

    guarded = True
    """Whether an error that grows is to be taken back; not for engines whose error is not meant to fall steadily."""

    def __init__(self, measurement: Measurement, estimate: Estimate) -> None:
        self.measurement, self.estimate = measurement, estimate
        self.caution = 1.0
        """Factor on all steps: halved where they diverge."""

    @abstractmethod
    def step(self, indices: Tensor, progress: float) -> float:
        """Take the batch ``indices`` into account.

        Args:
            indices: (b,) int64.
            progress: 0 at the start of the run, 1 at its end.

        Returns:
            Σ (√intensity − √counts)² of the batch before the step.
        """

    def begin_epoch(self, epoch: int, progress: float) -> None:
        """Before the batches of ``epoch`` (from 0)."""
        del epoch, progress

    def end_epoch(self, epoch: int, progress: float) -> None:
        """After the batches of ``epoch``."""
        del epoch, progress

    def memory(self) -> dict[str, Tensor]:
        """What the engine remembers between batches besides the estimate, by name: for checkpoints."""
        return {}

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`memory` gave."""
        del memory

    def forget(self) -> None:
        """Drop the memory: after a step back."""
        self.recall({name: torch.zeros_like(tensor) for name, tensor in self.memory().items()})


@dataclass
class History:
    """Figures of each epoch."""

    r: list[float] = field(default_factory=list)
    """Σ (√intensity − √counts)² / photons, each batch before its step."""

    seconds: list[float] = field(default_factory=list)
    """Since the start of the run, at the end of each epoch."""


class Run:
    """A run of an engine in progress."""

    def __init__(self, engine: Engine, schedule: Schedule, seed: int) -> None:
        self.engine, self.schedule, self.seed = engine, schedule, seed
        self.history = History()
        self._safe: dict[str, Tensor] = {}
        """Everything as it was before the last epoch whose error did not grow."""

    def go(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run to the end of the schedule.

        Args:
            observer: is told of every epoch.
            after_epoch: called when an epoch is complete; ctrl-C within it takes that epoch back.

        Returns:
            True, or False when ctrl-C ended it: then the estimate is as it was after the last whole epoch.
        """
        schedule, estimate = self.schedule, self.engine.estimate
        started = time.perf_counter() - (self.history.seconds[-1] if self.history.seconds else 0.0)
        whole, done = self._everything(), len(self.history.r)
        observer.begin("reconstruction", max(0, schedule.epochs - len(self.history.r)))
        try:
            for epoch in range(len(self.history.r), schedule.epochs):
                whole, done = self._everything(), epoch
                # A generator for each epoch, so that a run goes on exactly from wherever it was left.
                rng = np.random.default_rng([self.seed, epoch])
                batches = schedule.order(estimate.positions, rng)
                self.engine.begin_epoch(epoch, epoch / schedule.epochs)
                error, seen = 0.0, 0
                for number, indices in enumerate(batches):
                    progress = (epoch + number / len(batches)) / schedule.epochs
                    if schedule.time_limit is not None:
                        spent = (time.perf_counter() - started) / schedule.time_limit
                        if spent >= 1:
                            break
                        progress = max(progress, spent)
                    error += self.engine.step(indices, progress)
                    seen += len(indices)
                if not seen:
                    break
                self.engine.end_epoch(epoch, (epoch + 1) / schedule.epochs)
                self.history.r.append(error / self.engine.measurement.photons * len(self.engine.measurement) / seen)
                self.history.seconds.append(time.perf_counter() - started)
                observer.advance(r=self.history.r[-1])
                self._guard(whole)
                if after_epoch is not None:
                    after_epoch()
        except KeyboardInterrupt:
            self._back_to(whole)
            del self.history.r[done:], self.history.seconds[done:]
            return False
        finally:
            observer.end()
        return True

    def _everything(self) -> dict[str, Tensor]:
        """Estimate and memory. Engines replace tensors and never write into those, so nothing is copied."""
        memory = {f"memory.{name}": tensor for name, tensor in self.engine.memory().items()}
        return self.engine.estimate.tensors() | memory

    def _back_to(self, kept: dict[str, Tensor]) -> None:
        self.engine.estimate.restore(kept)
        self.engine.recall({name.removeprefix("memory."): kept[name] for name in kept if name.startswith("memory.")})

    def _guard(self, whole: dict[str, Tensor]) -> None:
        """Where the error grew, go back to before the epoch that spoilt it, and take smaller steps from there."""
        r = self.history.r
        if not self.engine.guarded:
            return
        spoilt = not math.isfinite(r[-1]) or (len(r) > 1 and r[-1] > GROWTH * r[-2])
        if spoilt and self._safe:
            log.info("epoch %d: the error grew from %.4g to %.4g; half the steps from here", len(r), *r[-2:])
            self._back_to(self._safe)
            self.engine.forget()
            self.engine.caution /= 2
        else:
            self._safe = whole

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that :meth:`resume` needs to go on exactly: tensors, and what JSON can hold."""
        safe = {f"safe.{name}": tensor for name, tensor in self._safe.items()}
        note = {"r": self.history.r, "seconds": self.history.seconds, "caution": self.engine.caution}
        return self._everything() | safe, note

    def resume(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._safe = {name.removeprefix("safe."): tensors[name] for name in tensors if name.startswith("safe.")}
        self._back_to(tensors)
        self.history = History(list(note["r"]), list(note["seconds"]))
        self.engine.caution = note["caution"]
