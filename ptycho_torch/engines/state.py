"""What an iterative engine is given, and what it changes: the measurement, and the estimate of all that is unknown."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.batch import make_batch
from ptycho_torch.physics.noise import NoiseModel
from ptycho_torch.physics.patches import Canvas, Placement, make_canvas, split_positions


@dataclass(frozen=True, eq=False)
class Measurement:
    """The patterns of a scan in photons, as every engine sees them."""

    counts: Tensor
    """(n, N, N) float32 photons, zero frequency at [0, 0]; 0 where the mask is False."""

    mask: Tensor | None
    """(n or 1, N, N) bool, True where a pixel counts; None: all count."""

    noise: NoiseModel
    """What the detector does."""

    photons: float
    """All photons on pixels that count."""

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def size(self) -> int:
        """N, the side of a pattern in pixels."""
        return int(self.counts.shape[-1])

    def select_mask(self, indices: Tensor) -> Tensor | None:
        """The mask of some patterns, (len(indices) or 1, N, N)."""
        return self.mask[indices] if self.mask is not None and len(self.mask) == len(self.counts) else self.mask


def make_measurement(scan: Scan, photons_per_unit: float, noise: NoiseModel, device: torch.device) -> Measurement:
    """The patterns of ``scan`` in photons, on ``device``."""
    batch = make_batch(scan, photons_per_unit).to(device)
    photons = float(batch.counts.sum(dtype=torch.float64))
    return Measurement(batch.counts, batch.mask, noise, photons)


@dataclass(eq=False)
class ReconstructionState:
    """All that is unknown, as far as it is known now. Engines replace its tensors; they do not write into them."""

    object: Tensor
    """(rows, columns) complex on the canvas ``frame``."""

    probe: Tensor
    """(M, N, N) complex modes in √photons."""

    positions: Tensor
    """(n, 2) float64 (y, x) in object pixels, on the CPU."""

    background: Tensor
    """(N, N) photons added to every pattern, zero frequency at [0, 0]; not negative."""

    intensities: Tensor
    """(n,) power of the probe in each pattern, over its mean: what the source gave."""

    canvas: Canvas
    """The canvas in object coordinates."""

    @property
    def size(self) -> int:
        """N, the side of a window in pixels."""
        return int(self.probe.shape[-1])

    def compute_placement(self) -> Placement:
        """Where each window lies on the canvas: corners (n, 2) int64, and fractions (n, 2) for the probe."""
        corners, fractions = split_positions(self.positions, self.size)
        return Placement(corners - corners.new_tensor(self.canvas.origin), fractions)

    def tensors(self) -> dict[str, Tensor]:
        """What changes, by name: for checkpoints and for going back."""
        return {name: getattr(self, name) for name in ("object", "probe", "positions", "background", "intensities")}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`tensors` gave."""
        for name in self.tensors():
            setattr(self, name, tensors[name])

    def copy(self) -> "ReconstructionState":
        """An estimate of its own."""
        return ReconstructionState(
            canvas=self.canvas, **{name: tensor.clone() for name, tensor in self.tensors().items()}
        )


def make_vacuum_state(positions: Tensor, probe: Tensor, margin: int = 2) -> ReconstructionState:
    """Vacuum everywhere: the object that engines start from unless they are given one.

    Args:
        positions: (n, 2) float64 (y, x) in object pixels.
        probe: (M, N, N) complex64 in √photons, on the device to compute on.
        margin: pixels of canvas beyond the outermost windows.
    """
    corners, _ = split_positions(positions, probe.shape[-1])
    canvas = make_canvas(corners, probe.shape[-1], margin)
    flat = torch.ones(canvas.shape, dtype=probe.dtype, device=probe.device)
    even = torch.ones(len(positions), dtype=probe.real.dtype, device=probe.device)
    return ReconstructionState(flat, probe, positions, torch.zeros_like(probe[0].real), even, canvas)
