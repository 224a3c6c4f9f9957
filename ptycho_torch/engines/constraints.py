"""What is known of the object beforehand, for all engines: where it is, and how bright it can be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.errors import DataError
from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.state import ReconstructionState
from ptycho_torch.io.npz import read_arrays


class Constraint:
    """Holds an object, at the end of each epoch, to a support and a largest amplitude.

    Outside the support is vacuum: one complex value everywhere, the mean of the object there, weighted by the light.
    Its amplitude and phase are not given, since the probe's power and phase leave them free. A support between 0 and 1
    pulls the object towards it.

    Args:
        support: (rows, columns) real from 0, outside, to 1; None: everywhere.
        max_amplitude: in the object's unit; None: unbounded.
    """

    def __init__(self, support: Tensor | None, max_amplitude: float | None) -> None:
        self.support, self.max_amplitude = support, max_amplitude

    def apply(self, state: ReconstructionState) -> Callable[[Tensor], Tensor]:
        """Hold the object of ``estimate``.

        Returns:
            The same for a momentum of the object (rows, columns): what would drive it out again is taken from it.
        """
        flatten = self._make_flattener(state)
        obj = flatten(state.object)
        if self.max_amplitude is None:
            state.object = obj
            return flatten
        amplitude = obj.abs()
        over = amplitude > self.max_amplitude
        state.object = torch.where(over, obj * (self.max_amplitude / amplitude.clamp_min(1e-30)), obj)
        return lambda momentum: torch.where(over, torch.zeros_like(momentum), flatten(momentum))

    def _make_flattener(self, state: ReconstructionState) -> Callable[[Tensor], Tensor]:
        """Makes a canvas (rows, columns) one value outside the support."""
        if self.support is None:
            return lambda canvas: canvas
        outside = 1 - self.support
        illumination = ProbeObjectView(state).make_illumination_map().sum_positions()
        weights = outside * (illumination + 1e-6 * illumination.amax())
        weights = weights / weights.sum().clamp_min(1e-30)
        return lambda canvas: canvas + outside * ((weights * canvas).sum() - canvas)


def read_support(path: Path, state: ReconstructionState) -> Tensor:
    """The ``support`` in an NPZ file on the canvas of ``estimate``, (rows, columns) real; 0 where the file has none.

    Its [0, 0] pixel is at ``origin_yx``, as in a reconstruction; (0, 0) where the file does not say.

    Raises:
        DataError: the file holds no such array, or it shares no pixel with the canvas.
    """
    arrays = read_arrays(path, ("support", "origin_yx"))
    found = arrays.get("support")
    if found is None or found.ndim != 2 or found.dtype.kind not in "biuf" or not ((found >= 0) & (found <= 1)).all():
        said = "none" if found is None else f"{found.dtype} of shape {found.shape}"
        raise DataError(
            f"{path}: expected support, an array of two axes with values from 0 to 1 (found {said}); check --support"
        )
    origin = np.asarray(arrays.get("origin_yx", (0, 0)))
    if origin.shape != (2,) or not np.equal(np.mod(origin, 1), 0).all():
        raise DataError(f"{path}: origin_yx is {origin.tolist()}, expected two whole numbers; check --support")
    placed = np.zeros(state.canvas.shape, np.float32)
    start = origin.astype(np.int64) - np.array(state.canvas.origin)
    low, high = np.maximum(start, 0), np.minimum(start + found.shape, placed.shape)
    if (high <= low).any():
        raise DataError(
            f"{path}: its support lies at {origin.tolist()} with {found.shape} pixels, and the scan's canvas at "
            f"{list(state.canvas.origin)} with {list(placed.shape)}: they share no pixel; check --support"
        )
    inside = found[low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]]
    placed[low[0] : high[0], low[1] : high[1]] = inside
    return torch.from_numpy(placed).to(state.object.device)
