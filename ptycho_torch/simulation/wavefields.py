"""What probes are made of: pupils, apertures and beams on a grid of N × N pixels, and how they are kept inside it.

Real-space grids are centred at ``[N//2, N//2]``, Fourier grids have zero frequency at ``[0, 0]``, frequencies are in
cycles a pixel.
"""

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.complex128]
Grid = NDArray[np.float64]


def make_pixel_grid(size: int) -> tuple[Grid, Grid]:
    """Row and column coordinates in pixels, zero at ``size // 2``."""
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(axis, axis, indexing="ij")


def make_frequency_grid(size: int) -> tuple[Grid, Grid]:
    """Row and column frequencies in cycles a pixel, zero at ``[0, 0]``."""
    axis = np.fft.fftfreq(size)
    return np.meshgrid(axis, axis, indexing="ij")


def make_soft_disk(reach: Grid, radius: float, edge: float) -> Grid:
    """1 where ``reach`` is below ``radius`` and 0 beyond, over about ``edge``."""
    return 0.5 + 0.5 * np.tanh((radius - reach) * (2 / edge))


def compute_phasor(phase: Grid) -> Wave:
    """exp(i ``phase``), faster than a complex exponential."""
    wave = np.empty(phase.shape, dtype=np.complex128)
    wave.real, wave.imag = np.cos(phase), np.sin(phase)
    return wave


def confine_wave(wave: Wave) -> Wave:
    """``wave`` (*, N, N) without what lies beyond half of the window, fading from 0.33 N on, and of unit power."""
    size = wave.shape[-1]
    y, x = make_pixel_grid(size)
    fade = np.clip((0.5 - np.hypot(y, x) / size) / 0.17, 0, 1)
    wave = wave * (fade * fade * (3 - 2 * fade))
    return wave / np.sqrt(np.square(wave.real).sum() + np.square(wave.imag).sum())


def make_pupil_wave(size: int, aperture: float, stop: float, phase: Grid, center: tuple[float, float] = (0, 0)) -> Wave:
    """The wave behind a lens: the Fourier transform of its pupil, centred in real space; not confined yet.

    Args:
        size: N.
        aperture: edge of the round pupil in cycles a pixel.
        stop: edge of the central stop in cycles a pixel; 0 for none.
        phase: (N, N) in rad, zero frequency at [0, 0].
        centre: of the pupil, in cycles a pixel.
    """
    ky, kx = make_frequency_grid(size)
    k = np.hypot(ky - center[0], kx - center[1])
    pupil = make_soft_disk(k, aperture, 2 / size)
    if stop:
        pupil = pupil - make_soft_disk(k, stop, 2 / size)
    return np.fft.fftshift(np.fft.ifft2(pupil * compute_phasor(phase), norm="ortho"))


def make_defocus_phase(size: int, aperture: float, radius: float) -> Grid:
    """Phase (N, N) in rad by which a ray through the pupil's edge lands ``radius`` · N pixels from the centre.

    A phase π d k² bends the ray at k by d k pixels, so d = radius · N / aperture.
    """
    ky, kx = make_frequency_grid(size)
    return np.pi * (radius * size / aperture) * (ky**2 + kx**2)


def propagate(wave: Wave, distance: float) -> Wave:
    """``wave`` (*, N, N) after free space of ``distance`` = λ z / pixel², in pixels²: Fresnel's exp(−iπ d k²)."""
    ky, kx = make_frequency_grid(wave.shape[-1])
    return np.fft.ifft2(np.fft.fft2(wave) * compute_phasor(-np.pi * distance * (ky**2 + kx**2)))


def make_aperture_wave(
    size: int, half_width: float, fresnel_number: float, slope: float, squareness: float, aspect: float, rotation: float
) -> Wave:
    """A wave some way behind an aperture, by Fresnel propagation; not confined yet.

    Args:
        size: N.
        half_width: of the aperture in pixels.
        fresnel_number: half_width² / (λ z): many fringes where it is large.
        slope: local frequency at the aperture's edge in cycles a pixel: the beam converges or diverges.
        squareness: power of the superellipse: 2 is round, from 8 on it is square.
        aspect: height over width.
        turn: rotation in rad.
    """
    y, x = make_pixel_grid(size)
    across, along = y * np.cos(rotation) - x * np.sin(rotation), y * np.sin(rotation) + x * np.cos(rotation)
    reach = (np.abs(across / aspect) ** squareness + np.abs(along) ** squareness) ** (1 / squareness)
    opening = make_soft_disk(reach, half_width, 2.0).astype(np.complex128)
    behind = propagate(opening, half_width**2 / fresnel_number)
    return behind * compute_phasor(np.pi * slope / half_width * (y**2 + x**2))


def make_beam(size: int, radius: float, slope: float, charge: int) -> Wave:
    """A Laguerre-Gaussian beam without radial nodes; not confined yet.

    Args:
        size: N.
        radius: root mean square distance from the axis in pixels.
        slope: local frequency at that distance in cycles a pixel: the curvature of the wavefront.
        charge: turns of the phase round the axis; 0 is a Gaussian.
    """
    y, x = make_pixel_grid(size)
    squared = y**2 + x**2
    waist = radius**2 / (abs(charge) + 1)
    amplitude = np.exp(-0.5 * squared / waist) * (squared / waist) ** (abs(charge) / 2)
    return amplitude * compute_phasor(np.pi * slope / radius * squared + charge * np.arctan2(y, x))
