"""Positions that explain a network's picture: the object stays, and each pattern finds where on it it belongs."""

import torch
from torch import Tensor

from ptycho_torch.engines.optics import Optics
from ptycho_torch.engines.problem import Estimate, Measurement
from ptycho_torch.engines.refine import bounded, least_squares, slopes
from ptycho_torch.engines.start import fit_scale
from ptycho_torch.networks.batch import Batch
from ptycho_torch.physics.fourier import far_field
from ptycho_torch.physics.noise import noise_model
from ptycho_torch.physics.patches import Frame, split_positions
from ptycho_torch.physics.probe import power_of

LONGEST_STEP = 1.0
"""Pixels that a position may move on either axis for one picture, which is straight no farther."""

EXPECTED = 0.25
"""Pixels by which positions are off, as far as is known before a picture says more: what a pattern hardly tells moves
it less than that."""

TOGETHER = 64
"""Patterns computed at a time, for memory."""


class Settling:
    """Patterns that are moved to where pictures explain them best.

    Args:
        batch: the patterns, on the CPU.
        positions: (n, 2) float64 (y, x) in object pixels, where they are to begin with.
        probe: (M, N, N) complex in √photons, on the device to compute on.
        frame: the canvas of the pictures; no window may leave it by moving.
        bound: farthest that a position is moved on either axis, in pixels.
    """

    def __init__(self, batch: Batch, positions: Tensor, probe: Tensor, frame: Frame, bound: float) -> None:
        counts = batch.to(probe.device).counts
        mask = None if batch.mask is None else batch.mask.to(probe.device)
        self.measurement = Measurement(counts, mask, noise_model("amplitude"), float(counts.sum(dtype=torch.float64)))
        self.batch, self.first, self.probe, self.frame, self.bound = batch, positions, probe, frame, bound
        self.positions = positions
        """Where they are now."""

    @torch.no_grad()
    def settle(self, obj: Tensor) -> Batch:
        """The patterns where ``obj`` (rows, columns) complex, on the device, explains them best, to first order.

        The common shift of all of them is that of the object, and stays zero. There is one step for each picture: more
        would fit what is wrong with it, which was made where the positions were.
        """
        even = torch.ones(len(self.first), dtype=self.probe.real.dtype, device=self.probe.device)
        dark = torch.zeros_like(self.probe[0].real)
        estimate = Estimate(obj, self.probe, self.positions, dark, even, self.frame)
        estimate.object = obj * fit_scale(self.measurement, estimate)
        optics = Optics(self.measurement, estimate, fixed_probe=False)
        moves = torch.zeros_like(self.first)
        for indices in torch.arange(len(moves)).split(TOGETHER):
            moves[indices] = _displacements(optics, indices).to("cpu", torch.float64)
        self.positions = self.first + bounded(self.positions - self.first + moves, self.bound, "free")
        corners, fractions = split_positions(self.positions, self.probe.shape[-1])
        return self.batch._replace(corners=corners, fractions=fractions.float())


def _displacements(optics: Optics, indices: Tensor) -> Tensor:
    """By how much each position of a batch is off, (b, 2) (y, x) in pixels: a step of Gauss and Newton.

    A displacement changes the exit wave by ``P ∇O`` and the modulus behind by what of that is in its phase, which the
    least squares compare with the measured modulus. The exit wave's correction, by which engines move positions beside
    the object, knows nothing of that phase, and gets half as far.
    """
    probes, measurement = optics.probes(indices), optics.measurement
    waves = far_field(probes * optics.patches(indices)[:, None])
    modulus = power_of(waves).sqrt()
    missing, mask = measurement.counts[indices].sqrt() - modulus, measurement.mask_of(indices)
    divisor = modulus.clamp_min(torch.finfo(modulus.dtype).tiny)
    if mask is not None:
        missing = torch.where(mask, missing, torch.zeros_like(missing))
        divisor = torch.where(mask, divisor, torch.full_like(divisor, torch.inf))
    down, across = (
        (waves.conj() * far_field(probes * optics.cut(slope, indices)[:, None])).real.sum(1) / divisor
        for slope in slopes(optics.estimate.object)
    )
    damping = missing.square().mean((1, 2)) / EXPECTED**2
    return least_squares(down, across, missing, damping)[0].clamp(-LONGEST_STEP, LONGEST_STEP)
