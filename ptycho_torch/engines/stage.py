"""One stage of a pipeline: the interface that iterative engines and networks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import EngineOptions
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.grouping import Indices
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.runner import History
from ptycho_torch.engines.state import ReconstructionState


class StageInput(NamedTuple):
    """The data that a stage works on."""

    scan: Scan
    """The patterns to reconstruct."""

    full_scan: Scan
    """The scan that ``scan`` is a part of."""

    centers: Indices
    """Indices of the patterns of ``scan`` in ``full_scan``, (n,)."""

    photons_per_unit: float
    """Photons per squared unit of the amplitudes, of the state."""

    photons_per_unit_setting: float | None
    """The value of the setting; None: not set."""

    state: ReconstructionState
    """The estimate, which the stage updates."""

    held_out: NDArray[np.bool_] | None = None
    """(n, N, N), centered like the patterns: pixels that iterative stages do not use."""

    stage_number: int = 0
    """Number of stages before this stage."""

    seed: int = 0
    process_group: ProcessGroup = SINGLE_PROCESS

    @property
    def device(self) -> torch.device:
        """Device of the state."""
        return self.state.object.device


class StageRunner(Protocol):
    """A stage in progress."""

    @property
    def history(self) -> History:
        """Values of each completed epoch."""

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """Standard deviation of each pixel of the canvas; None: not computed."""

    def run(self, observer: Observer, after_epoch: Callable[[], None] | None = None) -> bool:
        """Run to the end; return False if ctrl-C interrupted the run after a completed epoch."""

    def noise_floor(self) -> float:
        """Return the R that counting noise alone would leave."""

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the record of a checkpoint."""

    def load_state_dict(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class Stage(ABC):
    """A stage of a pipeline, made from the options of its engine."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @property
    def requires_cpu(self) -> bool:
        """Return True if the stage runs on the CPU only."""
        return False

    @abstractmethod
    def make_runner(self, given: StageInput) -> StageRunner:
        """Return the stage ready to run on ``given``."""

    @abstractmethod
    def check(self, given: StageInput) -> None:
        """Raise PtychoError if the stage lacks something."""

    @abstractmethod
    def compute_reach(self, scan: Scan, initial: NDArray[np.float64], device: torch.device) -> float:
        """Return how far the stage may move the positions from ``initial`` (n, 2), in pixels."""

    def select_photon_scale(self, scan: Scan, photons_per_unit: float | None, device: torch.device) -> float:
        """Return the photons per squared unit of amplitude with which a pipeline starts.

        Args:
            scan: the scan to reconstruct.
            photons_per_unit: the value of the setting; None: not set.
            device: device of the pipeline.
        """
        del device
        return photon_scale(scan, photons_per_unit).photons_per_unit

    def select_centers(self, scan: Scan, device: torch.device) -> Indices:
        """Return the indices of the patterns that a pipeline reconstructs, if this is its first stage."""
        del device
        return np.arange(len(scan))

    def get_positions(self, scan: Scan, device: torch.device) -> NDArray[np.float64]:
        """Return the positions (n, 2) with which a pipeline starts, if this is its first stage."""
        del device
        return scan.positions

    def get_probe(self, scan: Scan, photons_per_unit: float | None, device: torch.device) -> NDArray[Any] | None:
        """Return the probe (M, N, N) of the stage itself for a scan without one; None: the stage has none.

        Args:
            scan: the scan to reconstruct.
            photons_per_unit: the value of the setting; None: not set.
            device: device of the pipeline.
        """
        del scan, photons_per_unit, device
        return None

    def describe(self, given: StageInput) -> dict[str, Any]:
        """Return metadata of the result; JSON."""
        del given
        return {}

    def get_history(self, given: StageInput) -> dict[str, list[float]]:
        """Return the history of the training of the engine; empty for engines without training."""
        del given
        return {}
