"""How sure a picture is: a standard deviation for each pixel, from how far the patterns would still move it.

A few epochs of a fast engine start from the picture and bring it nearer to the measured patterns. By what they change
it, it was wrong: that sees what the patches of a network all miss alike, which neither their spread nor a second pass
over its own picture does (``docs/findings.md``). What the engine cannot know is counting noise, which is added.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import PIE
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import fit_object_scale
from ptycho_torch.engines.pie import PieEngine
from ptycho_torch.engines.runner import EngineRunner
from ptycho_torch.engines.state import ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.evaluation.alignment import compute_covered_region, fit_complex_scale
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.patches import Canvas

REFINEMENT_EPOCHS = 8
"""Epochs of the engine."""

BATCHES_PER_EPOCH, MIN_BATCH_SIZE, MAX_BATCH_SIZE = 22, 8, 48
"""Batches an epoch, as far as their size lies within these bounds: what slow errors need is steps."""

ERROR_TO_CHANGE_RATIO = 1.15
"""The true error over the change: the engine goes most of the way to the truth, not all of it."""

NOISE_VARIANCE_RATIO = 3.0
"""Variance of the error over that of ideal counting: 1 / coverage, the inverse of the photons that lit a pixel."""

SMOOTHING_SIGMA_PX = 1.0
"""Pixels: sigma of the Gaussian over which squared changes are averaged to a local level."""


def add_uncertainty(
    reconstruction: Reconstruction,
    scan: Scan,
    *,
    device: torch.device | str = "cpu",
    observer: Observer | None = None,
) -> Reconstruction:
    """``reconstruction`` with the standard deviation of each pixel, sqrt(E|object − truth|²) after a complex factor.

    The three constants were fitted on simulated scans of five kinds of objects at 10⁴ and 10⁵ photons a pattern, by the
    likelihood of complex Gaussian errors (``benchmarks/uncertainty.py``).

    Args:
        reconstruction: of one network; its probe, positions and background are believed.
        scan: the patterns that it was made from, in that order.
        device: where to compute.
        observer: is told of every epoch.

    Returns:
        The same with ``uncertainty``: infinite where no light fell.

    Raises:
        DataError: nothing is covered.
    """
    region = compute_covered_region(reconstruction)
    moved = _refine_object(reconstruction, scan, torch.device(device), observer or SilentObserver())
    before = np.asarray(reconstruction.object, np.complex128)
    change = fit_complex_scale(moved, before, region) * moved - before
    variance = ERROR_TO_CHANGE_RATIO**2 * _smooth_squares(np.abs(change) ** 2, reconstruction.coverage)
    with np.errstate(divide="ignore"):
        variance += NOISE_VARIANCE_RATIO / np.asarray(reconstruction.coverage, np.float64)
    return replace(reconstruction, uncertainty=np.sqrt(variance).astype(np.float32))


@torch.no_grad()
def _refine_object(
    reconstruction: Reconstruction, scan: Scan, device: torch.device, observer: Observer
) -> NDArray[np.complex128]:
    """The object (rows, columns) after a few epochs on the patterns, everything but the object believed."""
    batch_size = min(max(len(scan) // BATCHES_PER_EPOCH, MIN_BATCH_SIZE), MAX_BATCH_SIZE)
    options = PIE(epochs=REFINEMENT_EPOCHS, batch_size=batch_size)
    measurement = make_measurement(scan, reconstruction.photons_per_unit, make_noise_model(options.loss), device)
    state = _make_state(reconstruction, device)
    state.object = state.object * fit_object_scale(measurement, state)
    # Steps and order of the batches come from a seed of its own: the same patterns give the same doubt.
    if not EngineRunner(PieEngine(measurement, state, options), seed=0).run(observer):
        raise KeyboardInterrupt
    return state.object.cpu().numpy().astype(np.complex128)


def _make_state(reconstruction: Reconstruction, device: torch.device) -> ReconstructionState:
    probe = torch.from_numpy(reconstruction.probe).to(device)
    state = make_vacuum_state(torch.from_numpy(reconstruction.positions), probe)
    # The result's own canvas, which is a wider one where positions were moved.
    top, left = reconstruction.origin_yx.tolist()
    state.canvas = Canvas((top, left), reconstruction.object.shape)
    state.object = torch.from_numpy(reconstruction.object).to(device)
    if reconstruction.background is not None:
        state.background = torch.from_numpy(reconstruction.background).to(device)
    return state


def _smooth_squares(squares: NDArray[np.float64], coverage: NDArray[np.floating]) -> NDArray[np.float64]:
    """Local mean of ``squares`` (rows, columns), weighted by the light; 0 where there is none."""
    from scipy.ndimage import gaussian_filter

    illumination = np.asarray(coverage, np.float64)
    total = np.asarray(gaussian_filter(illumination, SMOOTHING_SIGMA_PX), np.float64)
    mean = np.asarray(gaussian_filter(illumination * squares, SMOOTHING_SIGMA_PX), np.float64)
    return np.divide(mean, total, out=np.zeros_like(mean), where=total > 0)
