"""How sure a picture is: a standard deviation for each pixel, from how far the patterns would still move it.

A few epochs of a fast engine start from the picture and bring it nearer to the measured patterns. By what they change
it, it was wrong: that sees what the patches of a network all miss alike, which neither their spread nor a second pass
over its own picture does (``docs/findings.md``). What the engine cannot know is counting noise, which is added.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import fit_scale
from ptycho_torch.engines.registry import make_engine, schedule_of
from ptycho_torch.engines.runner import Run
from ptycho_torch.engines.state import Estimate, flat_estimate, measurement_of
from ptycho_torch.evaluation.alignment import best_scale, covered_region
from ptycho_torch.physics.noise import noise_model
from ptycho_torch.physics.patches import Frame

EPOCHS = 8
"""Epochs of the engine."""

BATCHES, SMALLEST, LARGEST = 22, 8, 48
"""Batches an epoch, as far as their size lies within these bounds: what slow errors need is steps."""

CHANGE_FACTOR = 1.15
"""The true error over the change: the engine goes most of the way to the truth, not all of it."""

NOISE_FACTOR = 3.0
"""Variance of the error over that of ideal counting: 1 / coverage, the inverse of the photons that lit a pixel."""

LEVEL = 1.0
"""Pixels: sigma of the Gaussian over which squared changes are averaged to a local level."""


def with_uncertainty(
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
    region = covered_region(reconstruction)
    moved = _improved(reconstruction, scan, torch.device(device), observer or SilentObserver())
    before = np.asarray(reconstruction.object, np.complex128)
    change = best_scale(moved, before, region) * moved - before
    variance = CHANGE_FACTOR**2 * _level(np.abs(change) ** 2, reconstruction.coverage)
    with np.errstate(divide="ignore"):
        variance += NOISE_FACTOR / np.asarray(reconstruction.coverage, np.float64)
    return replace(reconstruction, uncertainty=np.sqrt(variance).astype(np.float32))


@torch.no_grad()
def _improved(
    reconstruction: Reconstruction, scan: Scan, device: torch.device, observer: Observer
) -> NDArray[np.complex128]:
    """The object (rows, columns) after a few epochs on the patterns, everything but the object believed."""
    batch_size = min(max(len(scan) // BATCHES, SMALLEST), LARGEST)
    stage = StageConfig(engine="pie", epochs=EPOCHS, batch_size=batch_size)
    measurement = measurement_of(scan, reconstruction.photons_per_unit, noise_model(stage.loss), device)
    estimate = _estimate(reconstruction, device)
    estimate.object = estimate.object * fit_scale(measurement, estimate)
    # Steps and order of the batches come from a seed of its own: the same patterns give the same doubt.
    if not Run(make_engine(measurement, estimate, stage), schedule_of(stage), seed=0).go(observer):
        raise KeyboardInterrupt
    return estimate.object.cpu().numpy().astype(np.complex128)


def _estimate(reconstruction: Reconstruction, device: torch.device) -> Estimate:
    probe = torch.from_numpy(reconstruction.probe).to(device)
    estimate = flat_estimate(torch.from_numpy(reconstruction.positions), probe)
    # The result's own canvas, which is a wider one where positions were moved.
    top, left = reconstruction.origin_yx.tolist()
    estimate.frame = Frame((top, left), reconstruction.object.shape)
    estimate.object = torch.from_numpy(reconstruction.object).to(device)
    if reconstruction.background is not None:
        estimate.background = torch.from_numpy(reconstruction.background).to(device)
    return estimate


def _level(squares: NDArray[np.float64], coverage: NDArray[np.floating]) -> NDArray[np.float64]:
    """Local mean of ``squares`` (rows, columns), weighted by the light; 0 where there is none."""
    from scipy.ndimage import gaussian_filter

    light = np.asarray(coverage, np.float64)
    total = np.asarray(gaussian_filter(light, LEVEL), np.float64)
    mean = np.asarray(gaussian_filter(light * squares, LEVEL), np.float64)
    return np.divide(mean, total, out=np.zeros_like(mean), where=total > 0)
