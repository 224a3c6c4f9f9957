"""Engines one after the other: each starts from what the one before it left."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import EngineOptions, IterativeOptions, NetworkEngine
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.holdout import mask_pixels
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.cross_validation import HoldoutPixels
from ptycho_torch.engines.initialization import fit_object_scale, paste_object, set_num_modes
from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.registry import make_constraint, make_engine
from ptycho_torch.engines.runner import EngineRunner
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_measurement
from ptycho_torch.models.calibration import ScanCalibration, select_calibration
from ptycho_torch.models.saved_model import Model, load_model, load_tensors, save_tensors
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.position_refinement import check_position_bound
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.prediction.predict import predict_scan

log = logging.getLogger(__name__)


@dataclass
class PipelineRun:
    """A reconstruction by stages, in progress."""

    scan: Scan
    photons_per_unit: float
    stages: Sequence[EngineOptions]
    state: ReconstructionState
    seed: int = 0
    num_finished_stages: int = 0
    """Stages that are complete."""

    held_out: NDArray[np.bool_] | None = None
    """(n, N, N), centred as the patterns: pixels that no iterative stage sees; all of them are judged by these."""

    history: dict[str, list[float]] = field(default_factory=lambda: {"epoch": [], "stage": [], "r": [], "r_floor": []})
    """Figures of each epoch of the iterative stages that are complete."""

    seconds: list[list[float]] = field(default_factory=list)
    """For each iterative stage complete, the seconds since its start at the end of each epoch."""

    runner: EngineRunner | None = None
    """The stage under way, where it is iterative."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.state.object.device

    @torch.no_grad()
    def run_stage(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run the next stage, or what is left of it; ``after_epoch`` as in :meth:`~ptycho_torch.engines.runner.EngineRunner.run`.

        Returns:
            True, or False when ctrl-C ended it: then everything is as it was after the last whole epoch.
        """
        stage = self.stages[self.num_finished_stages]
        if isinstance(stage, NetworkEngine):
            self._run_network(stage, observer)
        else:
            self.prepare_stage()
            assert self.runner is not None
            if not self.runner.run(observer, after_epoch):
                return False
            self.history = self._collect_history()
            self.seconds.append(self.runner.history.seconds)
        self.num_finished_stages += 1
        self.runner = None
        return True

    def save(self, path: Path, run_settings: dict[str, Any]) -> None:
        """Write all that :meth:`load` needs to go on exactly."""
        tensors = self.state.tensors()
        note: dict[str, Any] = {}
        if self.runner is not None:
            tensors, note = self.runner.state_dict()
        note |= {"finished": self.num_finished_stages, "under_way": self.runner is not None, "history": self.history}
        # A checkpoint may name one tensor twice, which the format does not: each is written as a copy of its own.
        save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, note | {"of": run_settings})

    def load(self, path: Path, run_settings: dict[str, Any]) -> None:
        """Go on from the checkpoint at ``path``.

        Raises:
            BundleError: it is damaged.
            ConfigError: it was made with other settings, so that going on would mix two runs.
        """
        tensors, note = load_tensors(path)
        differing = [name for name, value in run_settings.items() if note.get("of", {}).get(name) != value]
        if differing:
            raise ConfigError(
                f"{path}: cannot go on with another {', '.join(differing)}; set it back, or drop --resume"
            )
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        tensors |= {name: tensors[name].cpu() for name in tensors if name.endswith("positions")}
        self.num_finished_stages, self.history = note["finished"], note["history"]
        self.state.restore(tensors)
        if note["under_way"]:
            self.prepare_stage()
            assert self.runner is not None
            self.runner.load_state_dict(tensors, note)

    def prepare_stage(self) -> None:
        """Make ready the iterative stage that is next, unless it is under way."""
        if self.runner is None:
            stage = self.stages[self.num_finished_stages]
            assert isinstance(stage, IterativeOptions)
            self._check_holdout(stage)
            measurement = self.make_stage_measurement(stage)
            if stage.probe_modes is not None:
                self.state.probe = set_num_modes(self.state.probe, stage.probe_modes)
            self.state.object = self.state.object * fit_object_scale(measurement, self.state)
            engine = make_engine(measurement, self.state, stage)
            self.runner = EngineRunner(engine, self.seed + self.num_finished_stages, self._make_holdout())

    def check(self) -> None:
        """Raise PtychoError where a stage to come lacks something, before the first one runs."""
        for stage in self.stages[self.num_finished_stages :]:
            if isinstance(stage, NetworkEngine):
                self._load_stage_model(stage)
            elif isinstance(stage, IterativeOptions):
                self._check_holdout(stage)
                make_constraint(stage, self.state)

    def _check_holdout(self, stage: IterativeOptions) -> None:
        if stage.patience is not None and self.held_out is None:
            raise ConfigError(
                f"`patience` is {stage.patience} for {stage.engine}, which needs held-out pixels; set `holdout`, for "
                "example to 0.02"
            )

    def make_stage_measurement(self, stage: IterativeOptions) -> Measurement:
        """The patterns as ``stage`` sees them."""
        scan = self.scan if self.held_out is None else mask_pixels(self.scan, self.held_out)
        return make_measurement(scan, self.photons_per_unit, make_noise_model(stage.loss), self.device)

    def _make_holdout(self) -> HoldoutPixels | None:
        return (
            HoldoutPixels(self.scan, self.held_out, self.photons_per_unit, self.device)
            if self.held_out is not None
            else None
        )

    def compute_holdout_scores(self) -> dict[str, float]:
        """What the held-out pixels say about the estimate as it stands, by the names of ``metrics.json``."""
        holdout = self._make_holdout()
        if holdout is None:
            return {}
        found = holdout.score(self.state)
        return {
            "held_out_deviance": found.deviance,
            "held_out_deviance_floor": found.noise_floor,
            "held_out_pixels": len(holdout),
        }

    def _collect_history(self) -> dict[str, list[float]]:
        """Figures of each epoch so far, those of the stage under way among them.

        The floor of R is that of the stage's last estimate: within a stage it hardly changes, and it takes time.
        """
        if self.runner is None:
            return self.history
        found, done = self.runner.history, len(self.history["epoch"])
        epochs = len(found.r)
        further = {
            "epoch": [float(done + i + 1) for i in range(epochs)],
            "stage": [float(self.num_finished_stages + 1)] * epochs,
            "r": found.r,
            "r_floor": [self.runner.noise_floor()] * epochs,
        }
        if self.held_out is not None:
            further |= {"held_out_deviance": found.held_out_deviance, "held_out_floor": found.held_out_floor}
        return {name: self.history.get(name, []) + values for name, values in further.items()}

    def _load_stage_model(self, stage: NetworkEngine) -> Model:
        if stage.model_path is None:
            raise ConfigError("the network engine has no model; set `model_path` to a folder written by train")
        bundle = load_model(stage.model_path, self.device)
        if bundle.model.size != self.scan.size:
            raise DataError(
                f"{stage.model_path}: trained on patterns of {bundle.model.size} pixels a side, and the "
                f"scan has {self.scan.size}; train on this scan"
            )
        check_position_bound(stage.position_bound if stage.update_positions else None, self.scan.size)
        return bundle

    def _run_network(self, stage: NetworkEngine, observer: Observer) -> None:
        bundle = self._load_stage_model(stage)
        calibration = select_calibration(bundle, self.scan)
        if calibration.is_scan_probe:  # the probe as it stands may be better than the file's
            calibration = calibration._replace(probe=self.state.probe, photons_per_unit=self.photons_per_unit)
        placed = self._apply_positions(calibration)
        result = predict_scan(
            bundle.model,
            placed,
            calibration.photons_per_unit,
            gridsize=bundle.gridsize,
            batch_size=stage.batch_size or 64,
            observer=observer,
            probe=calibration.probe,
            position_bound=stage.position_bound if stage.update_positions else None,
            background=calibration.background,
        )
        # The network's object belongs to the network's probe, positions and background.
        scale = self.photons_per_unit / calibration.photons_per_unit
        self.state.probe = calibration.probe.to(self.device) * scale**0.5
        self.state.positions = torch.from_numpy(result.positions.copy())
        if calibration.background is not None:
            self.state.background = calibration.background.detach().to(self.device) * scale
        self.state.object = paste_object(self.state, result.object, result.origin_yx).to(self.device)

    def _apply_positions(self, calibration: ScanCalibration) -> Scan:
        """The scan with its positions as they were refined before, else as the network learned them on it."""
        positions = self.state.positions.numpy()
        if np.array_equal(positions, self.scan.positions):
            return calibration.apply_positions(self.scan)
        return replace(self.scan, positions=positions)

    @torch.no_grad()
    def make_reconstruction(self, metadata: dict[str, Any] | None = None) -> Reconstruction:
        """The reconstruction as it stands. No clock is in it: the same work gives the same bytes."""
        state = self.state
        return Reconstruction(
            object=state.object.cpu().numpy().astype(np.complex64),
            coverage=compute_coverage(state).cpu().numpy().astype(np.float32),
            origin_yx=np.array(state.canvas.origin, dtype=np.int64),
            probe=state.probe.cpu().numpy().astype(np.complex64),
            positions=state.positions.numpy().copy(),
            photons_per_unit=self.photons_per_unit,
            background=_background(state),
            intensities=_intensities(state),
            history=self._collect_history(),
            metadata=metadata or {},
        )


def _background(state: ReconstructionState) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    return state.background.cpu().numpy().astype(np.float32) if bool(state.background.any()) else None


def _intensities(state: ReconstructionState) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    even = bool((state.intensities == 1).all())
    return None if even else state.intensities.cpu().numpy().astype(np.float32)


def compute_coverage(state: ReconstructionState) -> torch.Tensor:
    """Probe power summed over all positions, each at its fraction of a pixel, (rows, columns) real."""
    total = torch.zeros(state.canvas.shape, dtype=state.probe.real.dtype, device=state.probe.device)
    view = ProbeObjectView(state)
    for part in torch.arange(len(state.positions)).split(64):
        total += view.place(compute_power(view.probes(part)), part)
    return total
