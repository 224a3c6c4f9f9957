"""The data of an iterative reconstruction: the measurement, and the state with all unknowns."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ptycho_torch.data.canvas_size import check_canvas_size
from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.batch import make_batch
from ptycho_torch.physics.noise import NoiseModel
from ptycho_torch.physics.patches import Canvas, Placement, make_canvas, split_positions

STATE_TENSOR_NAMES = ("object", "probe", "positions", "background", "intensities", "excluded")
"""Names of the tensors of a :class:`ReconstructionState`, also in checkpoints."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """The diffraction patterns of a scan in photons."""

    counts: Tensor
    """(n, N, N) float32 photons, zero frequency at [0, 0]; 0 where the mask is False."""

    mask: Tensor | None
    """(n or 1, N, N) bool, True where a pixel counts; None: all count."""

    noise: NoiseModel
    """Noise model of the detector."""

    photons: float
    """Sum of the photons on pixels that count."""

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def size(self) -> int:
        """Side N of a pattern in pixels."""
        return int(self.counts.shape[-1])

    def select_mask(self, indices: Tensor) -> Tensor | None:
        """Return the mask of the patterns at ``indices``, (len(indices) or 1, N, N); None: all pixels count."""
        return self.mask[indices] if self.mask is not None and len(self.mask) == len(self.counts) else self.mask


def make_measurement(scan: Scan, photons_per_unit: float, noise: NoiseModel, device: torch.device) -> Measurement:
    """Return the patterns of ``scan`` in photons, on ``device``."""
    batch = make_batch(scan, photons_per_unit).to(device)
    photons = float(batch.counts.sum(dtype=torch.float64))
    return Measurement(batch.counts, batch.mask, noise, photons)


@dataclass(eq=False)
class ReconstructionState:
    """The current estimate of all unknowns. Engines replace its tensors and never write into them."""

    object: Tensor
    """(rows, columns) complex, on ``canvas``."""

    probe: Tensor
    """(M, N, N) complex modes in √photons."""

    positions: Tensor
    """(n, 2) float64 (y, x) in object pixels, on the CPU."""

    background: Tensor
    """(N, N) photons added to every pattern, zero frequency at [0, 0]; not negative."""

    intensities: Tensor
    """(n,) power of the probe in each pattern, relative to its mean."""

    excluded: Tensor
    """(n,) bool on the CPU, True for patterns that no model explains and that the engines leave out."""

    canvas: Canvas
    """Origin and shape of the object in object coordinates."""

    @property
    def size(self) -> int:
        """Side N of a patch in pixels."""
        return int(self.probe.shape[-1])

    def compute_placement(self) -> Placement:
        """Return the corners (n, 2) int64 of the patches on the canvas and the sub-pixel shifts (n, 2) of the probe."""
        corners, fractions = split_positions(self.positions, self.size)
        return Placement(corners - corners.new_tensor(self.canvas.origin), fractions)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that engines change, by name."""
        return {name: getattr(self, name) for name in STATE_TENSOR_NAMES}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that :meth:`tensors` returned."""
        for name in STATE_TENSOR_NAMES:
            if name in tensors:  # checkpoints of older versions have no excluded patterns
                setattr(self, name, tensors[name])

    def find_included(self) -> Tensor:
        """Return the indices of the patterns that are not excluded, (m,) int64."""
        return torch.logical_not(self.excluded).nonzero()[:, 0]

    def copy(self) -> Self:
        """Return a state with copies of all tensors."""
        return type(self)(canvas=self.canvas, **{name: tensor.clone() for name, tensor in self.tensors().items()})


def make_vacuum_state(positions: Tensor, probe: Tensor, margin: int = 2) -> ReconstructionState:
    """Return a state whose object is vacuum (ones), without background and with equal intensities.

    Args:
        positions: (n, 2) float64 (y, x) in object pixels.
        probe: (M, N, N) complex64 in √photons, on the device to compute on.
        margin: Pixels of canvas beyond the outermost patches.

    Raises:
        DataError: the canvas needs more memory than the device has.
    """
    free = torch.cuda.mem_get_info(probe.device)[0] if probe.device.type == "cuda" else None
    check_canvas_size(positions.numpy(), probe.shape[-1] + 2 * margin, free)
    corners, _ = split_positions(positions, probe.shape[-1])
    canvas = make_canvas(corners, probe.shape[-1], margin)
    return ReconstructionState(
        object=torch.ones(canvas.shape, dtype=probe.dtype, device=probe.device),
        probe=probe,
        positions=positions,
        background=torch.zeros_like(probe[0].real),
        intensities=torch.ones(len(positions), dtype=probe.real.dtype, device=probe.device),
        excluded=torch.zeros(len(positions), dtype=torch.bool),
        canvas=canvas,
    )
