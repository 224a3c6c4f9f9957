"""Refinement of the scan positions against the object that a network predicted."""

import torch
from torch import Tensor

from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.noise import fit_amplitude_scale, select_scale_patterns
from ptycho_torch.physics.patches import Canvas, extract_patches, split_positions
from ptycho_torch.physics.position_refinement import compute_object_slopes, estimate_by_modulus, limit_displacements

CHUNK_SIZE = 64
"""Number of patterns per chunk, which bounds the memory."""


class GaussNewtonPositionRefiner:
    """Positions that move to where a given object predicts the patterns best.

    Args:
        batch: The patterns, on the CPU.
        positions: (n, 2) float64 (y, x) initial positions in object pixels.
        probe: (M, N, N) complex in √photons, on the device to compute on.
        canvas: Canvas of the objects; no patch may leave it by moving.
        bound: Largest displacement per axis from the initial positions, in pixels.
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
        self.batch, self.initial_positions, self.probe, self.canvas, self.bound = batch, positions, probe, canvas, bound
        self._on_device, self._size = batch.to(probe.device), probe.shape[-1]
        none = torch.zeros_like(probe[0].real)
        self.background = none if background is None else background.detach().to(none)
        self.positions = positions
        """Current positions, (n, 2) float64."""

    @torch.no_grad()
    def refine(self, obj: Tensor) -> Batch:
        """Move the positions by one Gauss-Newton step against ``obj`` and return the batch at the new positions.

        The scale of the object is fitted to the patterns first. More steps per object would fit its errors, since it
        was reconstructed at the previous positions.

        Args:
            obj: (rows, columns) complex, on the device of the probe.
        """
        obj = obj * self._fit_object_scale(obj)
        slopes = compute_object_slopes(obj)
        moves = torch.zeros_like(self.initial_positions)
        for indices in torch.arange(len(moves)).split(CHUNK_SIZE):
            part = self._on_device.take(indices)
            corners, probes = self._place_probe(indices)
            patches, slope_y, slope_x = (extract_patches(canvas, corners, self._size) for canvas in (obj, *slopes))
            move, _ = estimate_by_modulus(patches, (slope_y, slope_x), probes, part.counts, part.mask, self.background)
            moves[indices] = move.to("cpu", torch.float64)
        displacements = self.positions - self.initial_positions + moves
        self.positions = self.initial_positions + limit_displacements(displacements, self.bound)
        return self.batch.replace_positions(self.positions)

    def _fit_object_scale(self, obj: Tensor) -> float:
        """Return the factor on ``obj`` that fits the amplitudes of patterns spread over the scan best."""
        chosen = select_scale_patterns(len(self.initial_positions))
        part = self._on_device.take(chosen)
        corners, probes = self._place_probe(chosen)
        intensity = from_patches(extract_patches(obj, corners, self._size), probes, self.background).intensity
        return fit_amplitude_scale(intensity, part.counts, part.mask)

    def _place_probe(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corners (b, 2) of the current patches on the canvas, and the probes (b, M, N, N) there."""
        corners, fractions = split_positions(self.positions[indices], self._size)
        corners = corners - corners.new_tensor(self.canvas.origin)
        return corners.to(self.probe.device), shift_probe(self.probe, fractions.to(self.probe.device))
