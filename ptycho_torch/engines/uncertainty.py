"""Uncertainty of an object: a standard deviation per pixel, from the change in a few epochs of an iterative engine.

The epochs start from the object and fit it to the measured patterns, so the change of a pixel estimates its error. The
estimate includes errors that all patches of a network have in common, to which neither the spread of the patches nor
a second pass over the object is sensitive (``docs/findings.md``). The variance of counting noise is added.
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
"""Number of epochs of the engine."""

BATCHES_PER_EPOCH, MIN_BATCH_SIZE, MAX_BATCH_SIZE = 22, 8, 48
"""Number of batches per epoch, and the bounds of their size. Slowly varying errors need many steps."""

ERROR_TO_CHANGE_RATIO = 1.15
"""Ratio of the true error to the change, above 1 since the epochs remove most of the error, not all of it."""

NOISE_VARIANCE_RATIO = 3.0
"""Ratio of the variance from counting noise to 1 / coverage, the inverse of the photons on a pixel."""

SMOOTHING_SIGMA_PX = 1.0
"""Sigma in pixels of the Gaussian over which squared changes are averaged."""


def add_uncertainty(
    reconstruction: Reconstruction,
    scan: Scan,
    *,
    device: torch.device | str = "cpu",
    observer: Observer | None = None,
) -> Reconstruction:
    """Add the standard deviation per pixel, sqrt(E|object − truth|²) after a complex factor, to a reconstruction.

    The three constants were fitted on simulated scans of five kinds of objects at 10⁴ and 10⁵ photons per pattern, by
    the likelihood of complex Gaussian errors (``benchmarks/uncertainty.py``).

    Args:
        reconstruction: the result of a network. Its probe, positions and background are taken as exact.
        scan: the patterns of the reconstruction, in its order.
        device: device of the computation.
        observer: receives the progress.

    Returns:
        The reconstruction with ``uncertainty``, which is infinite where the coverage is 0.

    Raises:
        DataError: no pixel of the object is covered.
    """
    region = compute_covered_region(reconstruction)
    refined = _refine_object(reconstruction, scan, torch.device(device), observer or SilentObserver())
    before = np.asarray(reconstruction.object, np.complex128)
    change = fit_complex_scale(refined, before, region) * refined - before
    variance = ERROR_TO_CHANGE_RATIO**2 * _smooth_squares(np.abs(change) ** 2, reconstruction.coverage)
    with np.errstate(divide="ignore"):
        variance += NOISE_VARIANCE_RATIO / np.asarray(reconstruction.coverage, np.float64)
    return replace(reconstruction, uncertainty=np.sqrt(variance).astype(np.float32))


@torch.no_grad()
def _refine_object(
    reconstruction: Reconstruction, scan: Scan, device: torch.device, observer: Observer
) -> NDArray[np.complex128]:
    """Return the object (rows, columns) after :data:`REFINEMENT_EPOCHS` epochs that change the object only."""
    batch_size = min(max(len(scan) // BATCHES_PER_EPOCH, MIN_BATCH_SIZE), MAX_BATCH_SIZE)
    options = PIE(epochs=REFINEMENT_EPOCHS, batch_size=batch_size)
    measurement = make_measurement(scan, reconstruction.photons_per_unit, make_noise_model(options.loss), device)
    state = _make_state(reconstruction, device)
    state.object = state.object * fit_object_scale(measurement, state)
    # A fixed seed: the same patterns give the same uncertainty.
    if not EngineRunner(PieEngine(measurement, state, options), seed=0).run(observer):
        raise KeyboardInterrupt
    return state.object.cpu().numpy().astype(np.complex128)


def _make_state(reconstruction: Reconstruction, device: torch.device) -> ReconstructionState:
    """Return the state of an engine that starts from ``reconstruction``."""
    probe = torch.from_numpy(reconstruction.probe).to(device)
    state = make_vacuum_state(torch.from_numpy(reconstruction.positions), probe)
    # The canvas of a reconstruction is larger than the default if positions were refined.
    top, left = reconstruction.origin_yx.tolist()
    state.canvas = Canvas((top, left), reconstruction.object.shape)
    state.object = torch.from_numpy(reconstruction.object).to(device)
    if reconstruction.background is not None:
        state.background = torch.from_numpy(reconstruction.background).to(device)
    return state


def _smooth_squares(squares: NDArray[np.float64], coverage: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the local mean of ``squares`` (rows, columns) with the coverage as weight; 0 without coverage."""
    from scipy.ndimage import gaussian_filter

    illumination = np.asarray(coverage, np.float64)
    total = np.asarray(gaussian_filter(illumination, SMOOTHING_SIGMA_PX), np.float64)
    mean = np.asarray(gaussian_filter(illumination * squares, SMOOTHING_SIGMA_PX), np.float64)
    return np.divide(mean, total, out=np.zeros_like(mean), where=total > 0)
