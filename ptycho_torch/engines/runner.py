"""Iterative engines: their interface, and the loop over epochs with its history, reverts and early end."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import IterativeOptions
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.grouping import Indices, make_compact_batches
from ptycho_torch.data.outlier_frames import describe_excluded
from ptycho_torch.engines.constraints import Constraint
from ptycho_torch.engines.cross_validation import HoldoutPixels, estimate_noise_floor
from ptycho_torch.engines.outliers import compute_pattern_errors, find_unexplained
from ptycho_torch.engines.position_search import search_positions
from ptycho_torch.engines.state import Measurement, ReconstructionState

MAX_ERROR_GROWTH = 1.2
"""Largest ratio of the errors of successive epochs; an epoch above it is reverted, and the steps are halved."""

NEGLIGIBLE_R = 1e-10
"""R below which the error may grow, since rounding dominates at the end of a noiseless fit."""

EXCLUSION_EPOCHS = (3, 5, 8, 13, 21, 34, 55)
"""Numbers of complete epochs after which the patterns are compared with the estimate."""

SEARCH_SEED_KEY = (0, 2)
"""Key of the generator of the search for positions, next to the seed: different from the keys of the epochs."""

STEP_SCALE_RECOVERY, MIN_STEP_SCALE = 1.2, 1 / 64
"""Factor by which reduced steps grow after each epoch without divergence, and the smallest factor on the steps."""

log = logging.getLogger(__name__)


def make_batches(options: IterativeOptions, positions: Tensor, rng: np.random.Generator) -> list[Tensor]:
    """Return the batches of one epoch as indices (b,) int64, each pattern once.

    Args:
        options: batch size, and the kind of batches, random or compact.
        positions: (n, 2) scan positions.
        rng: generator that draws the batches.
    """
    size = options.resolve_batch_size(len(positions))
    batches: list[Indices]
    if options.batches == "compact":
        batches = make_compact_batches(positions.numpy(), size, 1, rng)
    else:  # equal sizes, without a small remainder as the last batch
        batches = np.array_split(rng.permutation(len(positions)), math.ceil(len(positions) / size))
    return [torch.from_numpy(indices) for indices in batches]


class Engine(ABC):
    """An iterative engine, which improves an estimate batch by batch."""

    reverts_on_divergence = True
    """True if an epoch whose error grows is reverted; False for engines whose error may grow temporarily."""

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: IterativeOptions) -> None:
        self.measurement, self.state, self.options = measurement, state, options
        self.step_scale = 1.0
        """Factor on all steps, halved after a divergence."""
        self.constraint: Constraint | None = None
        """Constraint on the object at the end of each epoch; None: no constraint."""

    @abstractmethod
    def step(self, indices: Tensor, progress: float) -> float:
        """Update the estimate with one batch.

        Args:
            indices: (b,) int64 indices of the patterns.
            progress: fraction of the run that is complete, 0 to 1.

        Returns:
            Σ(√intensity − √counts)² of the batch before the step.
        """

    def begin_epoch(self, epoch: int, progress: float) -> None:
        """Prepare ``epoch``, counted from 0, before its first batch; no effect by default."""
        del epoch, progress

    def end_epoch(self, epoch: int, progress: float) -> None:
        """Complete ``epoch``, counted from 0, after its last batch; no effect by default."""
        del epoch, progress

    def handle_positions(self) -> None:
        """Adapt tensors of the engine after the search for positions changed all of them; no effect by default."""
        return

    def handle_exclusion(self) -> None:
        """Adapt tensors of the engine after the excluded patterns of the state changed; no effect by default."""
        return

    def apply_constraint(self) -> None:
        """Apply the constraint to the object, at the end of each epoch."""
        if self.constraint is not None:
            before = self.state.object
            self.propagate_constraint(before, self.constraint.apply(self.state))

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """Update tensors of the engine that depend on the object after the constraint has changed it.

        Args:
            before: (rows, columns) complex object before the constraint.
            change: function that applies the same change to a momentum of the object, (rows, columns).
        """
        del before, change

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors, by name, that the engine keeps between batches in addition to the estimate."""
        return {}

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        """Restore the tensors that :meth:`state_dict` returned."""
        del memory

    def reset(self) -> None:
        """Set the tensors of :meth:`state_dict` to zero, after a revert."""
        self.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in self.state_dict().items()})


@dataclass
class History:
    """Values of each epoch."""

    r: list[float] = field(default_factory=list)
    """R of each epoch, Σ(√intensity − √counts)² / photons, from each batch before its step."""

    seconds: list[float] = field(default_factory=list)
    """Seconds from the start of the run to the end of each epoch."""

    held_out_deviance: list[float] = field(default_factory=list)
    """Mean deviance of the held-out pixels after each epoch; empty without held-out pixels."""

    held_out_floor: list[float] = field(default_factory=list)
    """Expectation of the deviance from counting noise alone, after each epoch."""

    def truncate(self, epochs: int) -> None:
        """Remove the values after the first ``epochs`` epochs."""
        for values in vars(self).values():
            del values[epochs:]


class Snapshot(NamedTuple):
    """State of a run at the end of an epoch. Engines replace their tensors, so no copies are needed."""

    epochs: int
    all_tensors: dict[str, Tensor]
    safe: dict[str, Tensor]
    best: dict[str, Tensor]
    step_scale: float


class EngineRunner:
    """A run of an engine in progress.

    Args:
        engine: the engine, with its measurement and estimate.
        seed: seed of the batches.
        held_out: pixels that the measurement does not contain; None: no pixels are held out.
        keeps_better_start: whether the run ends with its initial estimate if that explains the patterns better.
        excludes_unexplained: whether the run leaves out patterns that its estimate does not explain.
    """

    uncertainty: NDArray[np.float32] | None = None
    """None: an iterative engine computes no uncertainty."""

    def __init__(
        self,
        engine: Engine,
        seed: int,
        held_out: HoldoutPixels | None = None,
        *,
        keeps_better_start: bool = False,
        excludes_unexplained: bool = True,
    ) -> None:
        self.engine, self.options, self.seed, self.held_out = engine, engine.options, seed, held_out
        self.history = History()
        self._initially_excluded = engine.state.excluded
        self._safe: dict[str, Tensor] = {}
        """Tensors before the last epoch whose error did not grow."""
        self._start = engine.state.tensors() if keeps_better_start else {}
        """Initial estimate to return to; empty if the run does not."""
        self._best: dict[str, Tensor] = {}
        """Estimate with the lowest held-out deviance; empty without ``patience``."""
        self._excludes_unexplained = excludes_unexplained
        self._exclusion_changed = False
        """True if the last epoch changed the excluded patterns, so that its R has another basis than the next."""
        self._noise_floor, self._noise_floor_due = math.nan, 1
        """Noise floor of R for the observer, and the epoch after which it is computed again."""

    def run(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run the epochs that are left.

        Args:
            observer: receives the progress.
            after_epoch: is called after each epoch; ctrl-C during the call reverts the epoch.

        Returns:
            True, or False if ctrl-C interrupted the run; the estimate is then the one after the last complete epoch.
        """
        done = len(self.history.r)
        started = time.perf_counter() - (self.history.seconds[-1] if done else 0.0)
        before = self._take_snapshot()
        observer.start("reconstruction", max(0, self.options.epochs - done))
        try:
            if not done:
                self._search_positions()
            for epoch in range(done, self.options.epochs):
                before = self._take_snapshot()
                if self._is_patience_exhausted() or not self._run_epoch(epoch, started):
                    break
                self._revert_divergence(before.all_tensors)
                self._exclude_unexplained()
                self._score_holdout()
                observer.advance(1, **self._collect_progress())
                if after_epoch is not None:
                    after_epoch()
            self._restore_best()
            self._restore_better_start()
        except KeyboardInterrupt:
            self._restore_snapshot(before)
            return False
        finally:
            observer.finish()
        return True

    def _search_positions(self) -> None:
        """Search for positions with large errors before the first epoch."""
        rng = np.random.default_rng([self.seed, *SEARCH_SEED_KEY])
        found = search_positions(self.engine.measurement, self.engine.state, self.options, rng)
        if found is not None:
            self.engine.state.positions = found
            self.engine.handle_positions()

    def _run_epoch(self, epoch: int, started: float) -> bool:
        """Run the batches of ``epoch`` within the time limit; return False if the time was over before the first."""
        options, measurement = self.options, self.engine.measurement
        # One generator per epoch: a resumed run draws the same batches.
        rng = np.random.default_rng([self.seed, epoch])
        state = self.engine.state
        included = state.find_included()
        batches = [included[batch] for batch in make_batches(options, state.positions[included], rng)]
        self.engine.begin_epoch(epoch, epoch / options.epochs)
        error, num_patterns = 0.0, 0
        for number, indices in enumerate(batches):
            progress = (epoch + number / len(batches)) / options.epochs
            if options.time_limit is not None:
                spent = (time.perf_counter() - started) / options.time_limit
                if spent >= 1:
                    break
                progress = max(progress, spent)
            error += self.engine.step(indices, progress)
            num_patterns += len(indices)
        if num_patterns:
            self.engine.end_epoch(epoch, (epoch + 1) / options.epochs)
            self.engine.apply_constraint()
            photons = measurement.photons
            if len(included) < len(measurement):
                photons = float(measurement.counts[included].sum(dtype=torch.float64))
            self.history.r.append(error / max(photons, 1e-30) * len(included) / num_patterns)
            self.history.seconds.append(time.perf_counter() - started)
        return num_patterns > 0

    def _exclude_unexplained(self) -> None:
        """Exclude the patterns that the estimate does not explain, at a few epochs of the run."""
        engine, state = self.engine, self.engine.state
        self._exclusion_changed = False
        if not self._excludes_unexplained or len(self.history.r) not in EXCLUSION_EPOCHS:
            return
        refines = self.options.update_positions
        excluded = find_unexplained(compute_pattern_errors(engine.measurement, state), refines)
        if excluded is None:
            return
        excluded = excluded | (state.excluded & self._initially_excluded)
        if not torch.equal(excluded, state.excluded):
            state.excluded = excluded
            engine.handle_exclusion()
            self._exclusion_changed = True
            log.warning("epoch %d: %s", len(self.history.r), describe_excluded(excluded.numpy()))

    def noise_floor(self) -> float:
        """Estimate the R that counting noise alone would cause at the rates of the estimate."""
        return estimate_noise_floor(self.engine.measurement, self.engine.state)

    def _collect_progress(self) -> dict[str, float]:
        """Return the values that the observer receives."""
        epochs = len(self.history.r)
        if epochs >= self._noise_floor_due:  # costs milliseconds, and the rates converge
            self._noise_floor, self._noise_floor_due = self.noise_floor(), 4 * epochs
        values = {"r": self.history.r[-1], "floor": self._noise_floor}
        return values if self.held_out is None else values | {"held_out": self.history.held_out_deviance[-1]}

    def _score_holdout(self) -> None:
        """Compute the deviance of the held-out pixels, and keep the estimate if it is the lowest so far."""
        if self.held_out is None:
            return
        state, history = self.engine.state, self.history
        score = self.held_out.score(state)
        history.held_out_deviance.append(score.deviance)
        history.held_out_floor.append(score.noise_floor)
        if self.options.patience is not None and self._find_best_epoch() == len(history.held_out_deviance) - 1:
            self._best = state.tensors()

    def _find_best_epoch(self) -> int:
        """Return the epoch, counted from 0, with the lowest held-out deviance; NaN counts as infinite."""
        deviance = np.array(self.history.held_out_deviance)
        return int(np.where(np.isnan(deviance), np.inf, deviance).argmin())

    def _is_patience_exhausted(self) -> bool:
        """Return True if the best epoch is ``patience`` epochs ago."""
        epochs = len(self.history.held_out_deviance)
        patience = self.options.patience
        return patience is not None and epochs > 0 and epochs - 1 - self._find_best_epoch() >= patience

    def _restore_best(self) -> None:
        """Restore the estimate with the lowest held-out deviance, if there is one."""
        if self._best:
            self.engine.state.restore(self._best)
            epoch = self._find_best_epoch()
            deviance = self.history.held_out_deviance[epoch]
            log.info(
                "restored epoch %d of %d, with the lowest held-out deviance, %.4g",
                epoch + 1,
                len(self.history.r),
                deviance,
            )

    def _restore_better_start(self) -> None:
        """Restore the initial estimate if the error of the patterns has grown, as in a few epochs of large steps."""
        state = self.engine.state
        if not self._start or not self.history.r:
            return
        initial: dict[str, Any] = dict(self._start)
        start = replace(state, **initial)
        start_error, error = (
            float(compute_pattern_errors(self.engine.measurement, each).squared_error[state.find_included()].sum())
            for each in (start, state)
        )
        if not error <= MAX_ERROR_GROWTH * start_error:
            log.warning(
                "the run ends with its initial estimate: %d epochs increased the error of the patterns by %.3g; "
                "expected a decrease; set `epochs` higher",
                len(self.history.r),
                error / max(start_error, 1e-30),
            )
            state.restore(self._start)

    def _collect_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the estimate and of the engine, without copies: engines never write into tensors."""
        engine_tensors = {f"memory.{name}": tensor for name, tensor in self.engine.state_dict().items()}
        return self.engine.state.tensors() | engine_tensors

    def _take_snapshot(self) -> Snapshot:
        return Snapshot(len(self.history.r), self._collect_tensors(), self._safe, self._best, self.engine.step_scale)

    def _restore_snapshot(self, before: Snapshot) -> None:
        self._restore_tensors(before.all_tensors)
        self._safe, self._best, self.engine.step_scale = before.safe, before.best, before.step_scale
        self.history.truncate(before.epochs)

    def _restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.engine.state.restore(tensors)
        self.engine.load_state_dict(_select_prefix(tensors, "memory."))

    def _revert_divergence(self, before: dict[str, Tensor]) -> None:
        """If the error grew, restore the tensors before the epoch that caused the growth, and halve the steps.

        An epoch records the error before its steps, so the cause is the epoch before the recorded growth.

        Args:
            before: tensors before the last epoch.
        """
        r, engine = self.history.r, self.engine
        if not engine.reverts_on_divergence:
            return
        comparable = len(r) > 1 and not self._exclusion_changed
        diverged = not math.isfinite(r[-1]) or (comparable and r[-1] > max(MAX_ERROR_GROWTH * r[-2], NEGLIGIBLE_R))
        if diverged:
            log.info("epoch %d: R grew from %.4g to %.4g; halving the steps", len(r), (r[-2:-1] or r)[0], r[-1])
            self._restore_tensors(self._safe or before)
            engine.reset()
            engine.step_scale = max(engine.step_scale / 2, MIN_STEP_SCALE)
        else:
            self._safe = before
            engine.step_scale = min(1.0, engine.step_scale * STEP_SCALE_RECOVERY)

    def extend(self, history: History) -> None:
        """Continue a completed run from its estimate and ``history``, as far as its options have more epochs.

        The schedule is that of the larger number of epochs; momentum and reduced steps are lost.
        """
        self.history, self._start = history, {}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the record (JSON) of a checkpoint, from which a run resumes exactly."""
        safe = {f"safe.{name}": tensor for name, tensor in self._safe.items()}
        start = {f"start.{name}": tensor for name, tensor in self._start.items()}
        best = {f"best.{name}": tensor for name, tensor in self._best.items()}
        record = vars(self.history) | {"caution": self.engine.step_scale}  # the stored key of older versions
        record["exclusion_changed"] = self._exclusion_changed
        return self._collect_tensors() | safe | best | start, record

    def load_state_dict(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Resume from the tensors and the record that :meth:`state_dict` returned."""
        self._safe = _select_prefix(tensors, "safe.")
        self._best = _select_prefix(tensors, "best.")
        self._start = _select_prefix(tensors, "start.")
        self._restore_tensors(tensors)
        self.history = History(**{name: list(record[name]) for name in vars(self.history)})
        self.engine.step_scale = record["caution"]
        self._exclusion_changed = record.get("exclusion_changed", False)


def _select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, by the rest of the name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
