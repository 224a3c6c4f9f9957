"""Prior knowledge of the object that every engine can enforce: a support and a largest amplitude."""

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
    """A support and a largest amplitude, enforced on the object at the end of each epoch.

    Outside the support the object is vacuum: one complex value, the mean of the object there, weighted by the
    illumination. The value is not prescribed, because power and phase of the probe leave it free. A support between 0
    and 1 moves the object toward that value.

    Args:
        support: (rows, columns) real, from 0 outside to 1 inside; None: everywhere 1.
        max_amplitude: In the unit of the object; None: no limit.
    """

    def __init__(self, support: Tensor | None, max_amplitude: float | None) -> None:
        self.support, self.max_amplitude = support, max_amplitude

    def apply(self, state: ReconstructionState) -> Callable[[Tensor], Tensor]:
        """Constrain the object of ``state``.

        Returns:
            A function that removes from a momentum of the object (rows, columns) the part that would violate the
            constraint again.
        """
        flatten = self._make_flattener(state)
        obj = flatten(state.object)
        if self.max_amplitude is None:
            state.object = obj
            return flatten
        amplitude = obj.abs()
        exceeds = amplitude > self.max_amplitude
        state.object = torch.where(exceeds, obj * (self.max_amplitude / amplitude.clamp_min(1e-30)), obj)
        return lambda momentum: torch.where(exceeds, torch.zeros_like(momentum), flatten(momentum))

    def _make_flattener(self, state: ReconstructionState) -> Callable[[Tensor], Tensor]:
        """Return a function that replaces a canvas (rows, columns) outside the support by its weighted mean there."""
        if self.support is None:
            return lambda canvas: canvas
        outside = 1 - self.support
        illumination = ProbeObjectView(state).make_illumination_map().sum_positions()
        weights = outside * (illumination + 1e-6 * illumination.amax())
        weights = weights / weights.sum().clamp_min(1e-30)
        return lambda canvas: canvas + outside * ((weights * canvas).sum() - canvas)


def read_support(path: Path, state: ReconstructionState) -> Tensor:
    """Read the array ``support`` of an NPZ file onto the canvas of ``state``, (rows, columns) real.

    Its [0, 0] pixel is at ``origin_yx``, as in a reconstruction, or at (0, 0) if the file has no origin. Pixels of the
    canvas that the file does not cover are 0.

    Raises:
        DataError: The file has no such array, or the array shares no pixel with the canvas.
    """
    arrays = read_arrays(path, ("support", "origin_yx"))
    support = arrays.get("support")
    if support is None:
        raise DataError(f"{path}: found no support; expected an array named support; check `support`")
    if support.ndim != 2 or support.dtype.kind not in "biuf" or not ((support >= 0) & (support <= 1)).all():
        raise DataError(
            f"{path}: support is {support.dtype} of shape {support.shape}; expected an array of two axes with values "
            "from 0 to 1; check `support`"
        )
    origin = np.asarray(arrays.get("origin_yx", (0, 0)))
    if origin.shape != (2,) or not np.equal(np.mod(origin, 1), 0).all():
        raise DataError(f"{path}: origin_yx is {origin.tolist()}; expected two whole numbers; check `support`")
    on_canvas = np.zeros(state.canvas.shape, np.float32)
    start = origin.astype(np.int64) - np.array(state.canvas.origin)
    low, high = np.maximum(start, 0), np.minimum(start + support.shape, on_canvas.shape)
    if (high <= low).any():
        raise DataError(
            f"{path}: the support is at {origin.tolist()} with {support.shape} pixels, and the canvas of the scan at "
            f"{list(state.canvas.origin)} with {list(on_canvas.shape)}: they share no pixel; check `support`"
        )
    overlap = support[low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]]
    on_canvas[low[0] : high[0], low[1] : high[1]] = overlap
    return torch.from_numpy(on_canvas).to(state.object.device)
