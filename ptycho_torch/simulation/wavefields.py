"""Wavefields for simulated probes: pupils, apertures and beams on a grid of N × N pixels.

Real-space grids are centered at ``[N//2, N//2]``, Fourier grids have zero frequency at ``[0, 0]``, and frequencies are
in cycles per pixel.
"""

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.complex128]
Grid = NDArray[np.float64]


def make_pixel_grid(size: int) -> tuple[Grid, Grid]:
    """Return row and column coordinates in pixels, zero at ``size // 2``."""
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(axis, axis, indexing="ij")


def make_frequency_grid(size: int) -> tuple[Grid, Grid]:
    """Return row and column frequencies in cycles per pixel, zero at ``[0, 0]``."""
    axis = np.fft.fftfreq(size)
    return np.meshgrid(axis, axis, indexing="ij")


def make_soft_disk(reach: Grid, radius: float, edge: float) -> Grid:
    """Return 1 where ``reach`` is below ``radius`` and 0 beyond, with an edge of width ``edge``."""
    return 0.5 + 0.5 * np.tanh((radius - reach) * (2 / edge))


def compute_phasor(phase: Grid) -> Wave:
    """Return exp(i ``phase``), faster than a complex exponential."""
    wave = np.empty(phase.shape, dtype=np.complex128)
    wave.real, wave.imag = np.cos(phase), np.sin(phase)
    return wave


def confine_wave(wave: Wave) -> Wave:
    """Return ``wave`` (*, N, N) with unit power, faded to zero between radii of 0.33 N and 0.5 N."""
    size = wave.shape[-1]
    y, x = make_pixel_grid(size)
    fade = np.clip((0.5 - np.hypot(y, x) / size) / 0.17, 0, 1)
    wave = wave * (fade * fade * (3 - 2 * fade))
    return wave / np.sqrt(np.square(wave.real).sum() + np.square(wave.imag).sum())


def make_pupil_wave(size: int, aperture: float, stop: float, phase: Grid, center: tuple[float, float] = (0, 0)) -> Wave:
    """Return the wave in the focal region of a lens, the Fourier transform of its pupil, centered in real space.

    Args:
        size: N.
        aperture: edge of the round pupil in cycles per pixel.
        stop: edge of the central stop in cycles per pixel; 0 for none.
        phase: (N, N) in rad, zero frequency at [0, 0].
        center: center of the pupil in cycles per pixel.
    """
    ky, kx = make_frequency_grid(size)
    k = np.hypot(ky - center[0], kx - center[1])
    pupil = make_soft_disk(k, aperture, 2 / size)
    if stop:
        pupil = pupil - make_soft_disk(k, stop, 2 / size)
    return np.fft.fftshift(np.fft.ifft2(pupil * compute_phasor(phase), norm="ortho"))


def make_defocus_phase(size: int, aperture: float, radius: float) -> Grid:
    """Return the phase (N, N) in rad that moves a ray at the edge of the pupil ``radius`` · N pixels from the center.

    A phase π d k² displaces the ray at k by d k pixels, so d = radius · N / aperture.
    """
    ky, kx = make_frequency_grid(size)
    return np.pi * (radius * size / aperture) * (ky**2 + kx**2)


def propagate(wave: Wave, distance: float) -> Wave:
    """Return ``wave`` (*, N, N) after Fresnel propagation by ``distance`` = λ z / pixel²: the factor exp(−iπ d k²)."""
    ky, kx = make_frequency_grid(wave.shape[-1])
    return np.fft.ifft2(np.fft.fft2(wave) * compute_phasor(-np.pi * distance * (ky**2 + kx**2)))


def make_aperture_wave(
    size: int, half_width: float, fresnel_number: float, slope: float, squareness: float, aspect: float, rotation: float
) -> Wave:
    """Return the wave behind an aperture by Fresnel propagation.

    Args:
        size: N.
        half_width: half width of the aperture in pixels.
        fresnel_number: half_width² / (λ z); a large number gives many fringes.
        slope: local frequency at the edge of the aperture in cycles per pixel; the sign gives the curvature.
        squareness: exponent of the superellipse: 2 is round, 8 and above is square.
        aspect: height over width.
        rotation: rotation in rad.
    """
    y, x = make_pixel_grid(size)
    across, along = y * np.cos(rotation) - x * np.sin(rotation), y * np.sin(rotation) + x * np.cos(rotation)
    reach = (np.abs(across / aspect) ** squareness + np.abs(along) ** squareness) ** (1 / squareness)
    opening = make_soft_disk(reach, half_width, 2.0).astype(np.complex128)
    wave = propagate(opening, half_width**2 / fresnel_number)
    return wave * compute_phasor(np.pi * slope / half_width * (y**2 + x**2))


def make_beam(size: int, radius: float, slope: float, charge: int) -> Wave:
    """Return a Laguerre-Gaussian beam without radial nodes.

    Args:
        size: N.
        radius: root mean square distance from the axis in pixels.
        slope: local frequency at that distance in cycles per pixel; gives the curvature of the wavefront.
        charge: number of 2π phase turns around the axis; 0 is a Gaussian beam.
    """
    y, x = make_pixel_grid(size)
    squared = y**2 + x**2
    waist = radius**2 / (abs(charge) + 1)
    amplitude = np.exp(-0.5 * squared / waist) * (squared / waist) ** (abs(charge) / 2)
    return amplitude * compute_phasor(np.pi * slope / radius * squared + charge * np.arctan2(y, x))
