"""Positions that explain a network's picture: the object stays, and each pattern finds where on it it belongs."""

import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.initialization import fit_object_scale
from ptycho_torch.engines.measurement_model import MeasurementModel
from ptycho_torch.engines.nuisance import clip_displacements, compute_object_gradient, solve_displacements
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.fourier import far_field
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.patches import Canvas
from ptycho_torch.physics.probe import compute_power

MAX_STEP_PX = 1.0
"""Pixels that a position may move on either axis for one picture, which is straight no farther."""

PRIOR_POSITION_SIGMA_PX = 0.25
"""Pixels by which positions are off, as far as is known before a picture says more: what a pattern hardly tells moves
it less than that."""

PATTERNS_PER_CHUNK = 64
"""Patterns computed at a time, for memory."""


def check_position_bound(bound: float | None, size: int) -> None:
    """Raise ConfigError where positions may move by more than a pattern's side of ``size`` pixels."""
    if bound is not None and bound > size:
        raise ConfigError(
            f"--position_bound is {bound:g}: a pattern that is off by more than its {size} pixels has nothing to be "
            "found by; choose less"
        )


class GaussNewtonPositionRefiner:
    """Patterns that are moved to where pictures explain them best.

    Args:
        batch: the patterns, on the CPU.
        positions: (n, 2) float64 (y, x) in object pixels, where they are to begin with.
        probe: (M, N, N) complex in √photons, on the device to compute on.
        frame: the canvas of the pictures; no window may leave it by moving.
        bound: farthest that a position is moved on either axis, in pixels.
        background: (N, N) photons in every pattern, zero frequency at [0, 0]; None: none.
    """

    def __init__(
        self,
        batch: Batch,
        positions: Tensor,
        probe: Tensor,
        canvas: Canvas,
        bound: float,
        background: Tensor | None = None,
    ) -> None:
        counts = batch.to(probe.device).counts
        mask = None if batch.mask is None else batch.mask.to(probe.device)
        self.measurement = Measurement(
            counts, mask, make_noise_model("amplitude"), float(counts.sum(dtype=torch.float64))
        )
        self.batch, self.initial_positions, self.probe, self.canvas, self.bound = batch, positions, probe, canvas, bound
        dark = torch.zeros_like(probe[0].real)
        self.background = dark if background is None else background.detach().to(dark)
        self.positions = positions
        """Where they are now."""

    @torch.no_grad()
    def refine(self, obj: Tensor) -> Batch:
        """The patterns where ``obj`` (rows, columns) complex, on the device, explains them best, to first order.

        The common shift of all of them is that of the object, and stays zero. There is one step for each picture: more
        would fit what is wrong with it, which was made where the positions were.
        """
        even = torch.ones(len(self.initial_positions), dtype=self.probe.real.dtype, device=self.probe.device)
        state = ReconstructionState(obj, self.probe, self.positions, self.background, even, self.canvas)
        state.object = obj * fit_object_scale(self.measurement, state)
        optics = MeasurementModel(self.measurement, state, fixed_probe=False)
        moves = torch.zeros_like(self.initial_positions)
        for indices in torch.arange(len(moves)).split(PATTERNS_PER_CHUNK):
            moves[indices] = _estimate_displacements(optics, indices).to("cpu", torch.float64)
        self.positions = self.initial_positions + clip_displacements(
            self.positions - self.initial_positions + moves, self.bound, "free"
        )
        return self.batch.replace_positions(self.positions)


def _estimate_displacements(optics: MeasurementModel, indices: Tensor) -> Tensor:
    """By how much each position of a batch is off, (b, 2) (y, x) in pixels: a step of Gauss and Newton.

    A displacement changes the exit wave by ``P ∇O`` and the modulus behind by what of that is in its phase, which the
    least squares compare with the measured modulus. The exit wave's correction, by which engines move positions beside
    the object, knows nothing of that phase, and gets half as far. How bright the probe was may differ from one pattern
    to the next: each has a factor of its own, or positions would run to where the object is brighter.
    """
    probes, measurement = optics.probes(indices), optics.measurement
    waves = far_field(probes * optics.patches(indices)[:, None])
    modulus = (compute_power(waves) + optics.state.background).sqrt()
    missing, mask = measurement.counts[indices].sqrt() - modulus, measurement.select_mask(indices)
    counted = modulus if mask is None else torch.where(mask, modulus, torch.zeros_like(modulus))
    inverse = torch.where(counted > 0, 1 / counted, torch.zeros_like(counted))
    changes = [
        (waves.conj() * far_field(probes * optics.extract(slope, indices)[:, None])).real.sum(1) * inverse
        for slope in compute_object_gradient(optics.state.object)
    ]
    down, across, missing = (_project_out(counted, part) for part in (*changes, torch.where(counted > 0, missing, 0)))
    damping = missing.square().mean((1, 2)) / PRIOR_POSITION_SIGMA_PX**2
    return solve_displacements(down, across, missing, damping)[0].clamp(-MAX_STEP_PX, MAX_STEP_PX)


def _project_out(known: Tensor, part: Tensor) -> Tensor:
    """What of ``part`` is no multiple of ``known``, both (b, N, N) real."""
    power = known.square().sum((1, 2), keepdim=True).clamp_min(torch.finfo(known.dtype).tiny)
    return part - known * ((known * part).sum((1, 2), keepdim=True) / power)
