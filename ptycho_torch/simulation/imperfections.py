"""Simulated scans with the imperfections of a real measurement: an instrument that is not known exactly."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.scan import Scan
from ptycho_torch.simulation.scan import SimulationSettings, simulate_from_settings
from ptycho_torch.simulation.wavefields import make_pixel_grid


@dataclass(frozen=True)
class Imperfections:
    """Differences between a measurement and the model of its scan file."""

    background_fraction: float = 0.01
    """Photons of a smooth background, the same in all patterns, as a fraction of the photons per pattern."""

    position_error_px: float = 1.5
    """Root mean square of the errors of the scan positions per axis, in pixels."""

    intensity_fluctuation: float = 0.1
    """Standard deviation of the power of the source per pattern, relative to its mean."""

    dead_fraction: float = 0.02
    """Fraction of the detector pixels that the mask leaves out."""

    probe_phase_error_rad: float = 0.5
    """Phase error of the probe of the file at its edge, a defocus."""


class ImperfectScan(NamedTuple):
    """A scan with imperfections, and their true values."""

    scan: Scan
    """The scan as measured: positions with errors and one mode of the probe; ``truth`` is the true object."""

    positions: NDArray[np.float64]
    """(n, 2) true positions (y, x)."""

    probe: NDArray[np.complex64]
    """(M, N, N) true probe."""

    background: NDArray[np.float64]
    """(N, N) photons, centered like the patterns."""

    intensities: NDArray[np.float64]
    """(n,) power of the source in each pattern, relative to its mean."""


def simulate_imperfect_scan(settings: SimulationSettings, imperfections: Imperfections, seed: int = 0) -> ImperfectScan:
    """Simulate the scan of ``settings`` with imperfections; the same seed gives the same scan.

    The file has the first mode of the probe with a phase error, and positions with errors of zero mean.

    Args:
        settings: object, probe, trajectory, modes and photons; at least one photon per pattern.
        imperfections: size of each imperfection.
        seed: seed of all random numbers.
    """
    clean = simulate_from_settings(replace(settings, photons=0.0), seed)
    rng = np.random.default_rng([seed, 1])
    intensities = np.clip(rng.normal(1, imperfections.intensity_fluctuation, len(clean)), 0.1, None)
    intensities /= intensities.mean()
    rates = np.square(clean.amplitudes, dtype=np.float64) * intensities[:, None, None]
    rates *= settings.photons / rates.sum((1, 2)).mean()
    background = _make_background(clean.size, imperfections.background_fraction * settings.photons)
    counts = rng.poisson(rates + background)
    mask = rng.random(background.shape) >= imperfections.dead_fraction
    errors = rng.normal(0, imperfections.position_error_px, clean.positions.shape)
    measured = replace(
        clean,
        amplitudes=np.sqrt(np.where(mask, counts, 0)).astype(np.float32),
        positions=clean.positions + errors - errors.mean(0),
        probe=_add_defocus(clean.require_probe()[:1], imperfections.probe_phase_error_rad),
        mask=mask,
    )
    return ImperfectScan(measured, clean.positions, clean.require_probe(), background, intensities)


def _make_background(size: int, photons: float) -> NDArray[np.float64]:
    """Return a smooth background (N, N) with ``photons`` in total: air scatter around the beam on a constant."""
    y, x = make_pixel_grid(size)
    shape = 0.5 + np.exp(-((y - 0.1 * size) ** 2 + x**2) / (2 * (0.25 * size) ** 2))
    return np.asarray(photons * shape / shape.sum(), np.float64)


def _add_defocus(probe: NDArray[np.complex64], phase_rad: float) -> NDArray[np.complex64]:
    """Return ``probe`` (M, N, N) with a quadratic phase that reaches ``phase_rad`` at a quarter of its side."""
    y, x = make_pixel_grid(probe.shape[-1])
    phase = phase_rad * (y**2 + x**2) / (0.25 * probe.shape[-1]) ** 2
    return np.asarray(probe * np.exp(1j * phase), np.complex64)
