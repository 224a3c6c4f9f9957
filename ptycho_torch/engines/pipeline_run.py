"""A pipeline in progress on one scan: its stages, checkpoints and result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import EngineOptions, IterativeOptions
from ptycho_torch.core.errors import DataError
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.grouping import Indices
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.measurement_model import compute_coverage
from ptycho_torch.engines.registry import make_holdout, make_stage
from ptycho_torch.engines.runner import EngineRunner, History
from ptycho_torch.engines.stage import Stage, StageInput, StageRunner
from ptycho_torch.engines.state import ReconstructionState
from ptycho_torch.evaluation.half_split import split_half_indices
from ptycho_torch.evaluation.matching import EXCLUDED_KEY, INDICES_KEY, SOURCE_INDEX_KEY
from ptycho_torch.models.checkpoint import load_checkpoint, save_checkpoint


@dataclass
class PipelineRun:
    """A pipeline in progress on one scan."""

    scan: Scan
    photons_per_unit: float
    stages: Sequence[EngineOptions]
    state: ReconstructionState
    seed: int = 0
    num_finished_stages: int = 0
    """Number of completed stages."""

    held_out: NDArray[np.bool_] | None = None
    """(n, N, N), centered like the patterns: pixels that no iterative stage uses, for cross-validation."""

    history: dict[str, list[float]] = field(default_factory=lambda: {"epoch": [], "stage": [], "r": [], "r_floor": []})
    """Values of each epoch of the completed iterative stages."""

    seconds: list[list[float]] = field(default_factory=list)
    """For each completed iterative stage, the seconds from its start to the end of each epoch."""

    runner: StageRunner | None = None
    """The stage in progress."""

    uncertainty: NDArray[np.float32] | None = None
    """Standard deviation of each pixel of the canvas; None: the last stage computed none."""

    full_scan: Scan | None = None
    """The scan that ``scan`` is a part of; None: ``scan`` itself."""

    centers: Indices | None = None
    """Indices of the patterns of ``scan`` in ``full_scan``; None: all patterns."""

    photons_per_unit_setting: float | None = None
    """The value of the setting; None: not set."""

    process_group: ProcessGroup = SINGLE_PROCESS

    def __post_init__(self) -> None:
        self._stages: list[Stage] = [make_stage(options) for options in self.stages]

    @property
    def device(self) -> torch.device:
        """Device of the state."""
        return self.state.object.device

    def make_stage_input(self, number: int) -> StageInput:
        """Return the data for the stage ``number``, counted from 0."""
        return StageInput(
            self.scan,
            self.scan if self.full_scan is None else self.full_scan,
            np.arange(len(self.scan)) if self.centers is None else self.centers,
            self.photons_per_unit,
            self.photons_per_unit_setting,
            self.state,
            self.held_out,
            number,
            self.seed,
            self.process_group,
        )

    def run(self, observer: Observer | None = None, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run all stages that are left.

        Args:
            observer: receives the progress.
            after_epoch: is called after each epoch.

        Returns:
            True, or False if ctrl-C interrupted the run; the state is then the one after the last complete epoch.
        """
        while self.num_finished_stages < len(self.stages):
            if not self.run_stage(observer or SilentObserver(), after_epoch):
                return False
        return True

    @torch.no_grad()
    def run_stage(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run the next stage, or the rest of it; arguments and result are those of :meth:`run`."""
        self.prepare_stage()
        assert self.runner is not None
        if not self.runner.run(observer, after_epoch):
            return False
        self.history = self._collect_history()
        if self.runner.history.seconds:
            self.seconds.append(self.runner.history.seconds)
        self.uncertainty = self.runner.uncertainty
        self.num_finished_stages += 1
        self.runner = None
        return True

    def save(self, path: Path, run_settings: dict[str, Any]) -> None:
        """Write a checkpoint from which :meth:`load` resumes exactly; ``run_settings`` must then be the same."""
        tensors = self.state.tensors()
        record: dict[str, Any] = {}
        if self.runner is not None:
            tensors, record = self.runner.state_dict()
        if self.uncertainty is not None:
            tensors = tensors | {"uncertainty": torch.from_numpy(self.uncertainty)}
        record |= {"finished": self.num_finished_stages, "under_way": self.runner is not None, "history": self.history}
        save_checkpoint(path, tensors, record, self._get_checkpoint_settings() | run_settings)

    def load(self, path: Path, run_settings: dict[str, Any]) -> None:
        """Resume from the checkpoint at ``path``.

        Raises:
            BundleError: the checkpoint is damaged.
            ConfigError: the checkpoint was made with other settings.
        """
        stored, record = load_checkpoint(path, self._get_checkpoint_settings() | run_settings)
        uncertainty = stored.pop("uncertainty", None)
        self.uncertainty = None if uncertainty is None else uncertainty.numpy()
        tensors = {name: tensor.to(self.device) for name, tensor in stored.items()}
        tensors |= {name: tensors[name].cpu() for name in tensors if name.endswith(("positions", "excluded"))}
        self.num_finished_stages, self.history = record["finished"], record["history"]
        self.state.restore(tensors)
        if not record["under_way"] and self.num_finished_stages == len(self.stages):
            self._extend_last_stage()
        if record["under_way"]:
            self.prepare_stage()
            assert self.runner is not None
            self.runner.load_state_dict(tensors, record)

    def _extend_last_stage(self) -> None:
        """Resume the last stage, which is complete, if its options now have more epochs."""
        last, rows = len(self.stages) - 1, np.array(self.history["stage"]) == len(self.stages)
        options, done = self.stages[last], int(rows.sum())
        if not isinstance(options, IterativeOptions) or not 0 < done < options.epochs:
            return
        parts = {name: np.array(values)[rows].tolist() for name, values in self.history.items()}
        self.history = {name: np.array(values)[np.logical_not(rows)].tolist() for name, values in self.history.items()}
        self.num_finished_stages = last
        estimate = self.state.tensors()
        self.prepare_stage()
        assert isinstance(self.runner, EngineRunner)
        self.state.restore(estimate)
        deviances = (parts.get(name, []) for name in ("held_out_deviance", "held_out_floor"))
        self.runner.extend(History(parts["r"], [0.0] * done, *deviances))

    def _get_checkpoint_settings(self) -> dict[str, Any]:
        return {"stages": [options.engine for options in self.stages]}

    def prepare_stage(self) -> None:
        """Prepare the next stage, unless it is in progress."""
        if self.runner is None:
            number = self.num_finished_stages
            self.runner = self._stages[number].make_runner(self.make_stage_input(number))

    def split(self, rng: np.random.Generator) -> tuple[Self, Self]:
        """Return two runs of the same stages, each on one half of the positions, for an unstarted run.

        Both halves start from the initial estimate of this run, on its canvas. No result of the whole scan is used,
        since it would be common to both halves and raise their correlation.

        Args:
            rng: generator that draws the halves.

        Raises:
            DataError: there are fewer than two positions.
        """
        if len(self.scan) < 2:
            raise DataError(
                f"the scan has {len(self.scan)} position; expected at least 2 to split it; leave out `half_scan_frc`"
            )
        first, second = split_half_indices(self.state.positions.numpy(), rng)
        return self._select(first), self._select(second)

    def _select(self, indices: Indices) -> Self:
        """Return an unstarted run on the patterns at ``indices``, with the same settings and initial estimate."""
        held_out = None if self.held_out is None else self.held_out[indices]
        state = replace(
            self.state,
            positions=self.state.positions[indices],
            intensities=self.state.intensities[indices],
            excluded=self.state.excluded[indices],
        )
        scan = self.scan.select(indices)
        return type(self)(scan, self.photons_per_unit, self.stages, state, self.seed, held_out=held_out)

    def check(self) -> None:
        """Raise PtychoError if a stage that has not run lacks something."""
        for number in range(self.num_finished_stages, len(self.stages)):
            self._stages[number].check(self.make_stage_input(number))

    def compute_holdout_scores(self) -> dict[str, float]:
        """Return the scores of the estimate on the held-out pixels, by the names of ``metrics.json``."""
        holdout = make_holdout(self.make_stage_input(0))
        if holdout is None:
            return {}
        score = holdout.score(self.state)
        return {
            "held_out_deviance": score.deviance,
            "held_out_deviance_floor": score.noise_floor,
            "held_out_pixels": len(holdout),
        }

    def _collect_history(self) -> dict[str, list[float]]:
        """Return the values of each epoch so far, including the stage in progress.

        The floor of R is computed once per stage, from its last estimate: within a stage it barely changes.
        """
        if self.runner is None or not self.runner.history.r:
            return self.history
        current, done = self.runner.history, len(self.history["epoch"])
        epochs = len(current.r)
        added = {
            "epoch": [float(done + i + 1) for i in range(epochs)],
            "stage": [float(self.num_finished_stages + 1)] * epochs,
            "r": current.r,
            "r_floor": [self.runner.noise_floor()] * epochs,
        }
        if self.held_out is not None:
            added |= {"held_out_deviance": current.held_out_deviance, "held_out_floor": current.held_out_floor}
        return {name: self.history.get(name, []) + values for name, values in added.items()}

    def make_metadata(self) -> dict[str, Any]:
        """Return the origin of the reconstruction, without paths and clock: the same work gives the same bytes."""
        scan = self.scan if self.full_scan is None else self.full_scan
        indices: dict[str, Any] = {}
        if self.centers is not None and len(self.centers) < len(scan):
            indices[INDICES_KEY] = self.centers.tolist()
        if self.scan.source_index is not None:
            indices[SOURCE_INDEX_KEY] = self.scan.source_index.tolist()
        excluded = self.state.excluded.nonzero()[:, 0].numpy()
        if len(excluded):
            indices[EXCLUDED_KEY] = (excluded if self.centers is None else self.centers[excluded]).tolist()
        moved = bool((self.state.positions.numpy() != self.scan.positions).any())
        metadata: dict[str, Any] = {}
        for number, stage in enumerate(self._stages):
            metadata |= stage.describe(self.make_stage_input(number))
        if len(self.stages) > 1 and "epochs" in metadata:  # of the training of a network, not of this result
            metadata["network_epochs"] = metadata.pop("epochs")
        if len(self.stages) > 1 or "method" not in metadata:
            metadata["method"] = "engine " + " → ".join(options.engine for options in self.stages)
        return (
            metadata
            | indices
            | {
                "scan": scan.source.name if scan.source else "scan",
                "scan_digest": scan.digest(),
                "seed": self.seed,
                "positions": "refined" if moved else "as in the scan",
            }
        )

    @torch.no_grad()
    def make_reconstruction(self, metadata: dict[str, Any] | None = None) -> Reconstruction:
        """Return the current estimate as a reconstruction; ``metadata`` are added to :meth:`make_metadata`."""
        state = self.state
        history = self._collect_history()
        if not history["epoch"] and self.num_finished_stages:
            last = self.num_finished_stages - 1
            history = self._stages[last].get_history(self.make_stage_input(last)) or history
        return Reconstruction(
            object=state.object.cpu().numpy().astype(np.complex64),
            coverage=compute_coverage(state).cpu().numpy().astype(np.float32),
            origin_yx=np.array(state.canvas.origin, dtype=np.int64),
            probe=state.probe.cpu().numpy().astype(np.complex64),
            positions=state.positions.numpy().copy(),
            photons_per_unit=self.photons_per_unit,
            geometry=self.scan.geometry,
            background=_select_background(state),
            intensities=_select_intensities(state),
            uncertainty=self.uncertainty,
            history=history,
            metadata=self.make_metadata() | (metadata or {}),
        )


def _select_background(state: ReconstructionState) -> NDArray[np.float32] | None:
    return state.background.cpu().numpy().astype(np.float32) if bool(state.background.any()) else None


def _select_intensities(state: ReconstructionState) -> NDArray[np.float32] | None:
    constant = bool((state.intensities == 1).all())
    return None if constant else state.intensities.cpu().numpy().astype(np.float32)
