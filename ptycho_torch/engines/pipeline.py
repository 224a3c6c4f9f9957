"""Engines one after the other: each starts from what the one before it left."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.holdout import without
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.cross_validation import HeldOut
from ptycho_torch.engines.initialization import fit_scale, placed_object, with_modes
from ptycho_torch.engines.measurement_model import Scene
from ptycho_torch.engines.modulus_positions import require_bound
from ptycho_torch.engines.registry import constraint_of, make_engine, schedule_of
from ptycho_torch.engines.runner import Run
from ptycho_torch.engines.state import Estimate, Measurement, measurement_of
from ptycho_torch.models.calibration import Light, light_for
from ptycho_torch.models.saved_model import Bundle, load_bundle, load_tensors, save_tensors
from ptycho_torch.physics.noise import noise_model
from ptycho_torch.physics.probe import power_of
from ptycho_torch.prediction.predict import reconstruct_by_network

log = logging.getLogger(__name__)


@dataclass
class Chain:
    """A reconstruction by stages, in progress."""

    scan: Scan
    photons_per_unit: float
    stages: list[StageConfig]
    estimate: Estimate
    seed: int = 0
    finished: int = 0
    """Stages that are complete."""

    held_out: NDArray[np.bool_] | None = None
    """(n, N, N), centred as the patterns: pixels that no iterative stage sees; all of them are judged by these."""

    history: dict[str, list[float]] = field(default_factory=lambda: {"epoch": [], "stage": [], "r": [], "r_floor": []})
    """Figures of each epoch of the iterative stages that are complete."""

    seconds: list[list[float]] = field(default_factory=list)
    """For each iterative stage complete, the seconds since its start at the end of each epoch."""

    run: Run | None = None
    """The stage under way, where it is iterative."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.estimate.object.device

    @torch.no_grad()
    def next_stage(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run the next stage, or what is left of it; ``after_epoch`` as in :meth:`~ptycho_torch.engines.runner.Run.go`.

        Returns:
            True, or False when ctrl-C ended it: then everything is as it was after the last whole epoch.
        """
        stage = self.stages[self.finished]
        if stage.engine == "neural":
            self._by_network(stage, observer)
        else:
            self.begin()
            assert self.run is not None
            if not self.run.go(observer, after_epoch):
                return False
            self.history = self._history()
            self.seconds.append(self.run.history.seconds)
        self.finished += 1
        self.run = None
        return True

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        """Write all that :meth:`load` needs to go on exactly."""
        tensors = self.estimate.tensors()
        note: dict[str, Any] = {}
        if self.run is not None:
            tensors, note = self.run.state()
        note |= {"finished": self.finished, "under_way": self.run is not None, "history": self.history}
        # A checkpoint may name one tensor twice, which the format does not: each is written as a copy of its own.
        save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, note | {"of": fingerprint})

    def load(self, path: Path, fingerprint: dict[str, Any]) -> None:
        """Go on from the checkpoint at ``path``.

        Raises:
            BundleError: it is damaged.
            ConfigError: it was made with other settings, so that going on would mix two runs.
        """
        tensors, note = load_tensors(path)
        differing = [name for name, value in fingerprint.items() if note.get("of", {}).get(name) != value]
        if differing:
            raise ConfigError(
                f"{path}: cannot go on with another {', '.join(differing)}; set it back, or drop --resume"
            )
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        tensors |= {name: tensors[name].cpu() for name in tensors if name.endswith("positions")}
        self.finished, self.history = note["finished"], note["history"]
        self.estimate.restore(tensors)
        if note["under_way"]:
            self.begin()
            assert self.run is not None
            self.run.resume(tensors, note)

    def begin(self) -> None:
        """Make ready the iterative stage that is next, unless it is under way."""
        if self.run is None:
            stage = self.stages[self.finished]
            self._require_held_out(stage)
            measurement = self.measurement(stage)
            if stage.probe_modes is not None:
                self.estimate.probe = with_modes(self.estimate.probe, stage.probe_modes)
            self.estimate.object = self.estimate.object * fit_scale(measurement, self.estimate)
            engine = make_engine(measurement, self.estimate, stage)
            self.run = Run(engine, schedule_of(stage), self.seed + self.finished, self._judge())

    def check(self) -> None:
        """Raise PtychoError where a stage to come lacks something, before the first one runs."""
        for stage in self.stages[self.finished :]:
            self._require_held_out(stage)
            if stage.engine == "neural":
                self._bundle(stage)
            constraint_of(stage, self.estimate)

    def _require_held_out(self, stage: StageConfig) -> None:
        if stage.patience is not None and (self.held_out is None or stage.engine == "neural"):
            raise ConfigError(
                f"--patience is {stage.patience} for {stage.engine}, and nothing tells when to stop: it needs an "
                "iterative engine and held-out pixels, as by --holdout 0.02"
            )

    def measurement(self, stage: StageConfig) -> Measurement:
        """The patterns as ``stage`` sees them."""
        scan = self.scan if self.held_out is None else without(self.scan, self.held_out)
        return measurement_of(scan, self.photons_per_unit, noise_model(stage.loss), self.device)

    def _judge(self) -> HeldOut | None:
        return (
            HeldOut(self.scan, self.held_out, self.photons_per_unit, self.device) if self.held_out is not None else None
        )

    def held_out_figures(self) -> dict[str, float]:
        """What the held-out pixels say about the estimate as it stands, by the names of ``metrics.json``."""
        judge = self._judge()
        if judge is None:
            return {}
        found = judge.judge(self.estimate)
        return {
            "held_out_deviance": found.deviance,
            "held_out_deviance_floor": found.floor,
            "held_out_pixels": len(judge),
        }

    def _history(self) -> dict[str, list[float]]:
        """Figures of each epoch so far, those of the stage under way among them.

        The floor of R is that of the stage's last estimate: within a stage it hardly changes, and it takes time.
        """
        if self.run is None:
            return self.history
        found, done = self.run.history, len(self.history["epoch"])
        epochs = len(found.r)
        further = {
            "epoch": [float(done + i + 1) for i in range(epochs)],
            "stage": [float(self.finished + 1)] * epochs,
            "r": found.r,
            "r_floor": [self.run.floor()] * epochs,
        }
        if self.held_out is not None:
            further |= {"held_out_deviance": found.held_out_deviance, "held_out_floor": found.held_out_floor}
        return {name: self.history.get(name, []) + values for name, values in further.items()}

    def _bundle(self, stage: StageConfig) -> Bundle:
        if stage.model_path is None:
            raise ConfigError("--engine neural needs a trained network: give --model_path, a folder written by train")
        bundle = load_bundle(stage.model_path, self.device)
        if bundle.model.size != self.scan.size:
            raise DataError(
                f"{stage.model_path}: trained on patterns of {bundle.model.size} pixels a side, and the "
                f"scan has {self.scan.size}; train on this scan"
            )
        require_bound(stage.position_bound if stage.update_positions else None, self.scan.size)
        return bundle

    def _by_network(self, stage: StageConfig, observer: Observer) -> None:
        bundle = self._bundle(stage)
        light = light_for(bundle, self.scan)
        if light.own:  # the probe as it stands may be better than the file's
            light = light._replace(probe=self.estimate.probe, photons_per_unit=self.photons_per_unit)
        placed = self._placed(light)
        result = reconstruct_by_network(
            bundle.model,
            placed,
            light.photons_per_unit,
            gridsize=bundle.gridsize,
            batch_size=stage.batch_size or 64,
            observer=observer,
            probe=light.probe,
            position_bound=stage.position_bound if stage.update_positions else None,
            background=light.background,
        )
        # The network's object belongs to the network's probe, positions and background.
        scale = self.photons_per_unit / light.photons_per_unit
        self.estimate.probe = light.probe.to(self.device) * scale**0.5
        self.estimate.positions = torch.from_numpy(result.positions.copy())
        if light.background is not None:
            self.estimate.background = light.background.detach().to(self.device) * scale
        self.estimate.object = placed_object(self.estimate, result.object, result.origin_yx).to(self.device)

    def _placed(self, light: Light) -> Scan:
        """The scan with its positions as they were refined before, else as the network learned them on it."""
        positions = self.estimate.positions.numpy()
        if np.array_equal(positions, self.scan.positions):
            return light.placed(self.scan)
        return replace(self.scan, positions=positions)

    @torch.no_grad()
    def result(self, metadata: dict[str, Any] | None = None) -> Reconstruction:
        """The reconstruction as it stands. No clock is in it: the same work gives the same bytes."""
        estimate = self.estimate
        return Reconstruction(
            object=estimate.object.cpu().numpy().astype(np.complex64),
            coverage=coverage_of(estimate).cpu().numpy().astype(np.float32),
            origin_yx=np.array(estimate.frame.origin, dtype=np.int64),
            probe=estimate.probe.cpu().numpy().astype(np.complex64),
            positions=estimate.positions.numpy().copy(),
            photons_per_unit=self.photons_per_unit,
            background=_background(estimate),
            intensities=_intensities(estimate),
            history=self._history(),
            metadata=metadata or {},
        )


def _background(estimate: Estimate) -> "np.ndarray[Any, np.dtype[np.float32]] | None":
    return estimate.background.cpu().numpy().astype(np.float32) if bool(estimate.background.any()) else None


def _intensities(estimate: Estimate) -> "np.ndarray[Any, np.dtype[np.float32]] | None":
    even = bool((estimate.intensities == 1).all())
    return None if even else estimate.intensities.cpu().numpy().astype(np.float32)


def coverage_of(estimate: Estimate) -> torch.Tensor:
    """Probe power summed over all positions, each at its fraction of a pixel, (rows, columns) real."""
    total = torch.zeros(estimate.frame.shape, dtype=estimate.probe.real.dtype, device=estimate.probe.device)
    scene = Scene(estimate)
    for part in torch.arange(len(estimate.positions)).split(64):
        total += scene.placed(power_of(scene.probes(part)), part)
    return total
