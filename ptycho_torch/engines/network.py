"""A trained network as a stage of a pipeline: one pass over the scan and stitching of the patches."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import NetworkEngine
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.findings import locate_outlier_frames
from ptycho_torch.data.grouping import Indices, check_group_size
from ptycho_torch.data.outlier_frames import describe_excluded
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.engines.initialization import paste_object
from ptycho_torch.engines.runner import History
from ptycho_torch.engines.stage import Stage, StageInput
from ptycho_torch.engines.state import ReconstructionState
from ptycho_torch.engines.uncertainty import add_uncertainty
from ptycho_torch.io.inputs import read_positions
from ptycho_torch.models.calibration import ScanCalibration, select_calibration
from ptycho_torch.models.onnx import load_onnx_network
from ptycho_torch.models.probe_estimation import make_gaussian_probe
from ptycho_torch.models.saved_model import Model, load_model
from ptycho_torch.physics.position_refinement import check_position_bound
from ptycho_torch.prediction.predict import compute_extra_margin, predict_scan

log = logging.getLogger(__name__)


class NetworkStage(Stage):
    """A stage that runs a trained network.

    Raises:
        ConfigError: the options name no model.
    """

    options: NetworkEngine

    def __init__(self, options: NetworkEngine) -> None:
        super().__init__(options)
        if options.model is None and options.model_path is None:
            raise ConfigError(
                "the engine `neural` has no model; expected a trained model; set `model_path` to its folder"
            )
        self._model: Model | None = None
        self._calibration: tuple[Scan, float | None, ScanCalibration] | None = None
        """The last calibration, with its scan and its photon scale: it is needed several times."""

    @property
    def requires_cpu(self) -> bool:
        return self.options.onnx is not None

    @property
    def position_bound(self) -> float | None:
        """Largest displacement of a position in pixels; None: positions are fixed."""
        return self.options.position_bound if self.options.update_positions else None

    def load_model(self, device: torch.device) -> Model:
        """Return the model on ``device``, with the exported network if there is one."""
        if self._model is None:
            model = self.options.model
            if model is None:
                assert self.options.model_path is not None
                model = load_model(self.options.model_path, device)
            elif self.options.onnx or model.model.device.type != device.type:
                model = replace(model, model=copy.deepcopy(model.model).to(device))
            if self.options.onnx:
                load_onnx_network(model.model, self.options.onnx)
            self._model = model
        return self._model

    def select_precision(self, device: torch.device) -> str:
        """Return fp32 or bf16; an exported network computes in fp32."""
        return "fp32" if self.options.onnx else select_precision(self.options.precision, device)

    def calibrate(self, scan: Scan, photons_per_unit: float | None, device: torch.device) -> ScanCalibration:
        """Return probe, photon scale, positions and background that the model uses for ``scan``.

        A training scan keeps the photon scale of the training, in which its probe was learned; the result is then
        converted to ``photons_per_unit``.
        """
        model = self.load_model(device)
        is_training_scan = model.find_scan(scan.digest()) is not None
        scale = None if is_training_scan else photons_per_unit
        if self._calibration is not None and self._calibration[0] is scan and self._calibration[1] == scale:
            return self._calibration[2]
        needs_probe = not is_training_scan and len(model.scans) != 1 and self.options.probe is None
        with_probe = scan
        if scan.probe is None and needs_probe:
            log.info("the scan and the model have no probe: it is estimated from the patterns")
            with_probe = replace(scan, probe=make_gaussian_probe(scan, None, np.random.default_rng(0)))
        calibration = select_calibration(model, with_probe, self.options.probe, scale)
        if self.options.positions is not None:
            positions = read_positions(self.options.positions, len(scan), "positions", scan.source_index)
            calibration = calibration._replace(position_offsets=torch.from_numpy(positions - scan.positions))
        self._calibration = scan, scale, calibration
        return calibration

    def select_photon_scale(self, scan: Scan, photons_per_unit: float | None, device: torch.device) -> float:
        scale = photons_per_unit or self.calibrate(scan, None, device).photons_per_unit
        stated = scan.photons_per_unit
        if photons_per_unit is None and stated and not np.isclose(stated, scale, rtol=1e-3):
            log.warning(
                "%s states %.6g photons per squared unit; the scale %.6g of the model is used; set `photons_per_unit` "
                "if this file is in another unit",
                scan.source.name if scan.source else "the scan",
                stated,
                scale,
            )
        return scale

    def select_centers(self, scan: Scan, device: torch.device) -> Indices:
        count = self.options.n_images or len(scan)
        check_group_size(self.options.gridsize or self.load_model(device).gridsize, len(scan))
        if count > len(scan):
            raise ConfigError(f"`n_images` is {count}; expected at most {len(scan)}, the positions of the scan")
        return np.linspace(0, len(scan) - 1, count).round().astype(np.intp)

    def get_positions(self, scan: Scan, device: torch.device) -> NDArray[np.float64]:
        return self.calibrate(scan, None, device).apply_positions(scan).positions

    def get_probe(self, scan: Scan, photons_per_unit: float | None, device: torch.device) -> NDArray[Any] | None:
        probe: NDArray[Any] = self.calibrate(scan, photons_per_unit, device).probe.detach().cpu().numpy()
        return probe

    def compute_reach(self, scan: Scan, initial: NDArray[np.float64], device: torch.device) -> float:
        learned = np.abs(self.get_positions(scan, device) - initial).max(initial=0.0)
        return float(learned) + compute_extra_margin(self.position_bound)

    def check(self, given: StageInput) -> None:
        self.calibrate(given.full_scan, given.photons_per_unit_setting, given.device)
        check_position_bound(self.position_bound, given.scan.size)
        if self.options.n_images is not None and given.stage_number:
            raise ConfigError("`n_images` is set for a later stage; expected in the first stage only; leave it out")

    def describe(self, given: StageInput) -> dict[str, Any]:
        model = self.load_model(given.device)
        calibration = self.calibrate(given.full_scan, given.photons_per_unit_setting, given.device)
        return {
            "method": f"network {model.model.config.name}" + (" by onnxruntime" if self.options.onnx else ""),
            "probe": calibration.probe_source,
            "epochs": model.provenance.get("epochs"),
            "gridsize": self.options.gridsize or model.gridsize,
            "precision": self.select_precision(given.device),
            "validation": model.provenance.get("validation"),
        }

    def get_history(self, given: StageInput) -> dict[str, list[float]]:
        return dict(self.load_model(given.device).provenance.get("history", {}))

    def make_runner(self, given: StageInput) -> "NetworkRunner":
        return NetworkRunner(self, given)


@dataclass
class NetworkRunner:
    """One run of a network on the state of a pipeline."""

    stage: NetworkStage
    given: StageInput
    uncertainty: NDArray[np.float32] | None = None

    @property
    def history(self) -> History:
        """Return an empty history: a network has no epochs."""
        return History()

    def noise_floor(self) -> float:
        """Return NaN: there are no epochs whose R needs a floor."""
        return float("nan")

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state: an interrupted pass starts again."""
        return self.given.state.tensors(), {}

    def load_state_dict(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Do nothing: the pipeline restored the state."""

    def run(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Predict the object, write it and the calibration of the model into the state, and return True."""
        del after_epoch
        given, state, options = self.given, self.given.state, self.stage.options
        model = self.stage.load_model(given.device)
        calibration = self.stage.calibrate(given.full_scan, given.photons_per_unit_setting, given.device)
        if calibration.is_scan_probe:  # an earlier stage may have improved the probe of the scan
            calibration = calibration._replace(probe=state.probe, photons_per_unit=given.photons_per_unit)
        log.info("probe: %s", calibration.probe_source)
        if options.positions is not None:
            log.info("positions: from %s", options.positions.name)
        elif calibration.position_offsets is not None:
            log.info("positions: from the training of the model on this scan")
        scan = self._set_positions(calibration)
        self._exclude_outliers(scan)
        excluded = np.zeros(len(scan), np.bool_)
        excluded[given.centers] = state.excluded.numpy()
        result = predict_scan(
            model.model,
            scan,
            calibration.photons_per_unit,
            gridsize=options.gridsize or model.gridsize,
            centers=given.centers,
            batch_size=options.batch_size or 64,
            precision=self.stage.select_precision(given.device),
            observer=observer,
            probe=calibration.probe,
            position_bound=self.stage.position_bound,
            background=calibration.background,
            excluded=excluded,
            process_group=given.process_group,
        )
        self._update_state(result, calibration)
        if options.uncertainty and given.process_group.is_main:
            patterns = replace(scan.select(given.centers), positions=result.positions)
            with_background = calibration.attach_background(result)
            with_uncertainty = add_uncertainty(with_background, patterns, device=given.device, observer=observer)
            self.uncertainty = _paste_uncertainty(state, with_uncertainty)
        return True

    def _exclude_outliers(self, scan: Scan) -> None:
        """Leave out the patterns of ``scan`` that do not fit to the patterns at the nearest positions."""
        outliers = torch.zeros(len(scan), dtype=torch.bool)
        outliers[torch.from_numpy(locate_outlier_frames(scan).indices)] = True
        state = self.given.state
        excluded = state.excluded | outliers[torch.from_numpy(self.given.centers)]
        if not bool(excluded.all()) and bool((excluded & torch.logical_not(state.excluded)).any()):
            state.excluded = excluded
            log.warning("%s", describe_excluded(excluded.numpy()))

    def _set_positions(self, calibration: ScanCalibration) -> Scan:
        """Return the full scan at the positions of the state if a stage moved them, otherwise of the model."""
        given = self.given
        positions = given.state.positions.numpy()
        calibrated = calibration.apply_positions(given.full_scan)
        if np.array_equal(positions, given.full_scan.positions[given.centers]):
            return calibrated
        moved = calibrated.positions.copy()
        moved[given.centers] = positions
        return replace(calibrated, positions=moved)

    def _update_state(self, result: Reconstruction, calibration: ScanCalibration) -> None:
        """Write the object into the state, with the probe, positions and background that belong to it."""
        state, device = self.given.state, self.given.device
        scale = self.given.photons_per_unit / calibration.photons_per_unit
        state.probe = calibration.probe.detach().to(device) * scale**0.5
        state.positions = torch.from_numpy(result.positions.copy())
        if calibration.background is not None:
            state.background = calibration.background.detach().to(device) * scale
        state.object = paste_object(state, result.object, result.origin_yx).to(device)


def _paste_uncertainty(state: ReconstructionState, result: Reconstruction) -> NDArray[np.float32]:
    """Return the uncertainty of ``result`` on the canvas of ``state``, infinite elsewhere."""
    assert result.uncertainty is not None
    values = paste_object(state, result.uncertainty, result.origin_yx).real
    inside = paste_object(state, np.zeros_like(result.uncertainty), result.origin_yx).real == 0
    return torch.where(inside, values, torch.inf).numpy().astype(np.float32)
