"""The loop around every iterative engine: epochs of batches, a schedule, a guard against divergence, a history, and an
end where held-out pixels are predicted no better."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import IterativeOptions
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.grouping import Indices, make_compact_batches
from ptycho_torch.engines.constraints import Constraint
from ptycho_torch.engines.cross_validation import HoldoutPixels, estimate_noise_floor
from ptycho_torch.engines.state import Measurement, ReconstructionState

MAX_ERROR_GROWTH = 1.2
"""An epoch whose error is this many times the one before it is taken back, and the steps are halved."""

NEGLIGIBLE_R = 1e-10
"""R below which an error may grow: a noiseless fit at its end, where rounding decides."""

STEP_SCALE_RECOVERY, MIN_STEP_SCALE = 1.2, 1 / 64
"""What shortened steps grow by with each good epoch, until they are whole again; and how short they become at most."""

log = logging.getLogger(__name__)


def make_batches(options: IterativeOptions, positions: Tensor, rng: np.random.Generator) -> list[Tensor]:
    """Return the batches of one epoch as indices (b,) int64, each pattern once.

    Args:
        options: batch size, and whether a batch is random or compact.
        positions: (n, 2) scan positions.
        rng: draws the batches.
    """
    size = options.resolve_batch_size(len(positions))
    batches: list[Indices]
    if options.batches == "compact":
        batches = make_compact_batches(positions.numpy(), size, 1, rng)
    else:  # of equal sizes: the last batch is not a small remainder
        batches = np.array_split(rng.permutation(len(positions)), math.ceil(len(positions) / size))
    return [torch.from_numpy(indices) for indices in batches]


class Engine(ABC):
    """An iterative engine: it brings an estimate nearer to a measurement, a batch at a time."""

    reverts_on_divergence = True
    """Whether an error that grows is to be taken back; not for engines whose error is not meant to fall steadily."""

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: IterativeOptions) -> None:
        self.measurement, self.state, self.options = measurement, state, options
        self.step_scale = 1.0
        """Factor on all steps: halved where they diverge."""
        self.constraint: Constraint | None = None
        """What the object is held to at the end of each epoch."""

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

    def apply_constraint(self) -> None:
        """Hold the object to what is known of it beforehand; at the end of each epoch."""
        if self.constraint is not None:
            before = self.state.object
            self.propagate_constraint(before, self.constraint.apply(self.state))

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """Bring along what moves with the object, which was ``before`` and has been constrained.

        Args:
            before: (rows, columns) complex.
            change: what is to be done to a momentum of the object, (rows, columns).
        """
        del before, change

    def state_dict(self) -> dict[str, Tensor]:
        """What the engine remembers between batches besides the estimate, by name: for checkpoints."""
        return {}

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""
        del memory

    def reset(self) -> None:
        """Drop the memory: after a step back."""
        self.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in self.state_dict().items()})


@dataclass
class History:
    """Figures of each epoch."""

    r: list[float] = field(default_factory=list)
    """Σ (√intensity − √counts)² / photons, each batch before its step."""

    seconds: list[float] = field(default_factory=list)
    """Since the start of the run, at the end of each epoch."""

    held_out_deviance: list[float] = field(default_factory=list)
    """Mean deviance of the held-out pixels after each epoch; empty where none are held out."""

    held_out_floor: list[float] = field(default_factory=list)
    """What counting noise alone would leave of it."""

    def truncate(self, epochs: int) -> None:
        """Forget what came after so many ``epochs``."""
        for figures in vars(self).values():
            del figures[epochs:]


class Snapshot(NamedTuple):
    """A run at the end of an epoch, to come back to. Engines replace tensors, so nothing is copied."""

    epochs: int
    all_tensors: dict[str, Tensor]
    safe: dict[str, Tensor]
    best: dict[str, Tensor]
    step_scale: float


class EngineRunner:
    """A run of an engine in progress; ``held_out`` are pixels that its measurement does not hold."""

    uncertainty: NDArray[np.float32] | None = None
    """An iterative engine computes no uncertainty."""

    def __init__(self, engine: Engine, seed: int, held_out: HoldoutPixels | None = None) -> None:
        self.engine, self.options, self.seed, self.held_out = engine, engine.options, seed, held_out
        self.history = History()
        self._safe: dict[str, Tensor] = {}
        """Everything as it was before the last epoch whose error did not grow."""
        self._best: dict[str, Tensor] = {}
        """The estimate that predicted the held-out pixels best, where the run may end by it."""
        self._noise_floor, self._noise_floor_due = math.nan, 1
        """That of R for whoever watches, and the epoch after which it is found anew."""

    def run(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run to the end of the options.

        Args:
            observer: is told of every epoch.
            after_epoch: called when an epoch is complete; ctrl-C within it takes that epoch back.

        Returns:
            True, or False when ctrl-C ended it: then the estimate is as it was after the last whole epoch.
        """
        done = len(self.history.r)
        started = time.perf_counter() - (self.history.seconds[-1] if done else 0.0)
        before = self._take_snapshot()
        observer.start("reconstruction", max(0, self.options.epochs - done))
        try:
            for epoch in range(done, self.options.epochs):
                before = self._take_snapshot()
                if self._is_patience_exhausted() or not self._run_epoch(epoch, started):
                    break
                self._revert_divergence(before.all_tensors)
                self._score_holdout()
                observer.advance(1, **self._collect_progress())
                if after_epoch is not None:
                    after_epoch()
            self._restore_best()
        except KeyboardInterrupt:
            self._restore_snapshot(before)
            return False
        finally:
            observer.finish()
        return True

    def _run_epoch(self, epoch: int, started: float) -> bool:
        """Run the batches of ``epoch``, as far as there is time; False where there was none for a single one."""
        options, measurement = self.options, self.engine.measurement
        # A generator for each epoch, so that a run goes on exactly from wherever it was left.
        rng = np.random.default_rng([self.seed, epoch])
        batches = make_batches(options, self.engine.state.positions, rng)
        self.engine.begin_epoch(epoch, epoch / options.epochs)
        error, seen = 0.0, 0
        for number, indices in enumerate(batches):
            progress = (epoch + number / len(batches)) / options.epochs
            if options.time_limit is not None:
                spent = (time.perf_counter() - started) / options.time_limit
                if spent >= 1:
                    break
                progress = max(progress, spent)
            error += self.engine.step(indices, progress)
            seen += len(indices)
        if seen:
            self.engine.end_epoch(epoch, (epoch + 1) / options.epochs)
            self.engine.apply_constraint()
            self.history.r.append(error / measurement.photons * len(measurement) / seen)
            self.history.seconds.append(time.perf_counter() - started)
        return seen > 0

    def noise_floor(self) -> float:
        """The R that counting noise alone would leave, at the model's rates."""
        return estimate_noise_floor(self.engine.measurement, self.engine.state)

    def _collect_progress(self) -> dict[str, float]:
        """What a person watches."""
        epochs = len(self.history.r)
        if epochs >= self._noise_floor_due:  # the rates change less and less, and it takes some milliseconds
            self._noise_floor, self._noise_floor_due = self.noise_floor(), 4 * epochs
        told = {"r": self.history.r[-1], "floor": self._noise_floor}
        return told if self.held_out is None else told | {"held_out": self.history.held_out_deviance[-1]}

    def _score_holdout(self) -> None:
        """Ask the held-out pixels, and keep the estimate where they were never predicted better."""
        if self.held_out is None:
            return
        state, history = self.engine.state, self.history
        found = self.held_out.score(state)
        history.held_out_deviance.append(found.deviance)
        history.held_out_floor.append(found.noise_floor)
        if self.options.patience is not None and self._best_epoch() == len(history.held_out_deviance) - 1:
            self._best = state.tensors()

    def _best_epoch(self) -> int:
        """The epoch (from 0) whose held-out deviance is lowest; NaN is never."""
        deviance = np.array(self.history.held_out_deviance)
        return int(np.where(np.isnan(deviance), np.inf, deviance).argmin())

    def _is_patience_exhausted(self) -> bool:
        """Whether patience is at its end."""
        epochs = len(self.history.held_out_deviance)
        patience = self.options.patience
        return patience is not None and epochs > 0 and epochs - 1 - self._best_epoch() >= patience

    def _restore_best(self) -> None:
        if self._best:
            self.engine.state.restore(self._best)
            epoch = self._best_epoch()
            deviance = self.history.held_out_deviance[epoch]
            log.info("epoch %d of %d is kept: held-out deviance %.4g", epoch + 1, len(self.history.r), deviance)

    def _collect_tensors(self) -> dict[str, Tensor]:
        """Estimate and memory. Engines replace tensors and never write into those, so nothing is copied."""
        memory = {f"memory.{name}": tensor for name, tensor in self.engine.state_dict().items()}
        return self.engine.state.tensors() | memory

    def _take_snapshot(self) -> Snapshot:
        return Snapshot(len(self.history.r), self._collect_tensors(), self._safe, self._best, self.engine.step_scale)

    def _restore_snapshot(self, before: Snapshot) -> None:
        self._restore_tensors(before.all_tensors)
        self._safe, self._best, self.engine.step_scale = before.safe, before.best, before.step_scale
        self.history.truncate(before.epochs)

    def _restore_tensors(self, kept: dict[str, Tensor]) -> None:
        self.engine.state.restore(kept)
        self.engine.load_state_dict(
            {name.removeprefix("memory."): kept[name] for name in kept if name.startswith("memory.")}
        )

    def _revert_divergence(self, whole: dict[str, Tensor]) -> None:
        """Where the error grew, go back to before the epoch that spoilt it, and take smaller steps from there."""
        r, engine = self.history.r, self.engine
        if not engine.reverts_on_divergence:
            return
        diverged = not math.isfinite(r[-1]) or (len(r) > 1 and r[-1] > max(MAX_ERROR_GROWTH * r[-2], NEGLIGIBLE_R))
        if diverged:
            log.info("epoch %d: R grew from %.4g to %.4g; half the steps from here", len(r), (r[-2:-1] or r)[0], r[-1])
            self._restore_tensors(self._safe or whole)
            engine.reset()
            engine.step_scale = max(engine.step_scale / 2, MIN_STEP_SCALE)
        else:
            self._safe = whole
            engine.step_scale = min(1.0, engine.step_scale * STEP_SCALE_RECOVERY)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that :meth:`load_state_dict` needs to go on exactly: tensors, and what JSON can hold."""
        safe = {f"safe.{name}": tensor for name, tensor in self._safe.items()}
        best = {f"best.{name}": tensor for name, tensor in self._best.items()}
        note = vars(self.history) | {"caution": self.engine.step_scale}
        return self._collect_tensors() | safe | best, note

    def load_state_dict(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._safe = {name.removeprefix("safe."): tensors[name] for name in tensors if name.startswith("safe.")}
        self._best = {name.removeprefix("best."): tensors[name] for name in tensors if name.startswith("best.")}
        self._restore_tensors(tensors)
        self.history = History(**{name: list(note[name]) for name in vars(self.history)})
        self.engine.step_scale = note["caution"]
