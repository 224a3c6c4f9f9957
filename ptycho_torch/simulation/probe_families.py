"""Families of random probes that cover the width, curvature and bandwidth of measured probes.

Lengths are drawn as fractions of N, with bounds that keep rays inside the window and pupils inside the detector: no
ray lands beyond 0.36 N from the axis of the beam and no pupil exceeds 0.41 cycles per pixel. Diffraction beyond these
bounds is cut by :func:`~ptycho_torch.simulation.wavefields.confine_wave`. At least 95 % of the power lies within the
central 3/4 of the window, and at least 95 % of the far field within the central 7/8 of the detector, along each axis.
For comparison, the probe of LCLS run 1084 has an rms radius of 0.24 N and an rms frequency of 0.27 cycles per pixel;
for the probe of the APS Siemens star these are 0.17 N and 0.15 cycles per pixel.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.simulation.wavefields import (
    Grid,
    Wave,
    compute_phasor,
    confine_wave,
    make_aperture_wave,
    make_beam,
    make_defocus_phase,
    make_frequency_grid,
    make_pixel_grid,
    make_pupil_wave,
    make_soft_disk,
    propagate,
)

MAX_PUPIL_CYCLES_PER_PX = 0.41
"""Largest pupil edge in cycles per pixel; the edge of the detector remains for scattering by the object."""

MAX_RAY_OFFSET_FRACTION = 0.36
"""Largest distance of a ray from the center as a fraction of N, before a random shift of the probe."""


def draw_fresnel(size: int, rng: np.random.Generator) -> Wave:
    """Draw the wave behind a round, square or rounded aperture, with few or many fringes, converging or diverging."""
    half_width = rng.uniform(0.1, 0.27) * size
    fresnel_number = np.exp(rng.uniform(np.log(2), np.log(40)))
    squareness, aspect, turn = rng.choice([2.0, 4.0, 12.0]), rng.uniform(0.7, 1), rng.uniform(0, np.pi)
    return confine_wave(make_aperture_wave(size, half_width, fresnel_number, draw_slope(rng), squareness, aspect, turn))


def draw_zone_plate(size: int, rng: np.random.Generator) -> Wave:
    """Draw the defocused first order of a zone plate with central stop and order-sorting aperture: a ring."""
    aperture, radius = draw_pupil_edge(size, rng), draw_sign(rng) * rng.uniform(0.12, MAX_RAY_OFFSET_FRACTION)
    phase = make_defocus_phase(size, aperture, radius) + draw_aberrations(size, aperture, rng, 0.3)
    y, x = make_pixel_grid(size)
    sorting = make_soft_disk(np.hypot(y, x), rng.uniform(1.05, 1.5) * abs(radius) * size + 1, 2.0)
    wave = make_pupil_wave(size, aperture, rng.uniform(0.2, 0.65) * aperture, phase, draw_offset(rng, 0.02))
    return shift_randomly(sorting * wave, rng)


def draw_zernike(size: int, rng: np.random.Generator) -> Wave:
    """Draw the defocused wave of a lens with random Zernike aberrations up to spherical aberration."""
    aperture, radius = draw_pupil_edge(size, rng), draw_sign(rng) * rng.uniform(0.06, 0.3)
    phase = make_defocus_phase(size, aperture, radius) + draw_aberrations(size, aperture, rng, rng.uniform(0.3, 1.5))
    return shift_randomly(
        make_pupil_wave(size, aperture, 0.0, limit_ray_offset(phase, aperture), draw_offset(rng, 0.02)), rng
    )


def draw_defocus(size: int, rng: np.random.Generator) -> Wave:
    """Draw a Gaussian beam or the wave of a round lens, at or on either side of the focus."""
    if rng.random() < 0.5:
        radius = rng.uniform(max(0.06 * size, 2.0), 0.2 * size)
        return shift_randomly(make_beam(size, radius, rng.uniform(-0.16, 0.16), 0), rng)
    aperture, radius = draw_pupil_edge(size, rng), rng.uniform(-MAX_RAY_OFFSET_FRACTION, MAX_RAY_OFFSET_FRACTION)
    if abs(radius) < 0.1:  # near the focus, only a narrow pupil gives a spot of several pixels
        aperture = min(aperture, rng.uniform(4, 8) / size)
    return shift_randomly(make_pupil_wave(size, aperture, 0.0, make_defocus_phase(size, aperture, radius)), rng)


def draw_vortex(size: int, rng: np.random.Generator) -> Wave:
    """Draw a vortex beam: a ring with one to three 2π phase turns around its axis, converging or diverging."""
    charge = int(rng.integers(1, 4))
    radius = rng.uniform(max(0.09 * size, charge + 1.0), 0.22 * size)
    return shift_randomly(make_beam(size, radius, rng.uniform(-0.15, 0.15), int(draw_sign(rng)) * charge), rng)


def draw_speckle(size: int, rng: np.random.Generator) -> Wave:
    """Draw the speckle of a diffuser under a round or Gaussian envelope, alone or on a smooth beam."""
    edge_slope = draw_slope(rng) / 2
    aperture = min(draw_pupil_edge(size, rng), MAX_PUPIL_CYCLES_PER_PX - abs(edge_slope))
    white = rng.standard_normal((2, size, size))
    grains = make_pupil_wave(size, aperture, 0.0, np.pi * white[0])
    grains /= np.sqrt(np.mean(np.square(np.abs(grains))))
    y, x = make_pixel_grid(size)
    reach, radius = np.hypot(y, x), rng.uniform(0.12, 0.27) * size
    envelope = make_soft_disk(reach, radius, 4.0) if rng.random() < 0.5 else np.exp(-((reach / radius) ** 2))
    smooth = rng.choice([0.0, rng.uniform(0, 2)])
    return shift_randomly(envelope * (grains + smooth) * compute_phasor(np.pi * edge_slope / radius * reach**2), rng)


PROBE_FAMILIES: dict[str, Callable[[int, np.random.Generator], Wave]] = {
    "fresnel": draw_fresnel,
    "zone_plate": draw_zone_plate,
    "zernike": draw_zernike,
    "defocus": draw_defocus,
    "vortex": draw_vortex,
    "speckle": draw_speckle,
}
"""Functions that draw a probe (N, N) of unit power from a random generator; N is at least 16."""


def draw_pupil_edge(size: int, rng: np.random.Generator) -> float:
    """Draw the edge of a pupil in cycles per pixel, log-uniform; its focus is narrower than N / 5."""
    return float(np.exp(rng.uniform(np.log(min(max(0.07, 4 / size), 0.3)), np.log(MAX_PUPIL_CYCLES_PER_PX))))


def draw_slope(rng: np.random.Generator) -> float:
    """Draw the local frequency at the edge of a beam in cycles per pixel, of either sign."""
    return float(rng.uniform(-0.3, 0.3))


def draw_sign(rng: np.random.Generator) -> float:
    """Draw 1 or −1."""
    return float(rng.choice([-1.0, 1.0]))


def draw_offset(rng: np.random.Generator, max_offset: float) -> tuple[float, float]:
    """Draw two numbers within ±``max_offset``."""
    y, x = rng.uniform(-max_offset, max_offset, 2)
    return float(y), float(x)


def shift_randomly(wave: Wave, rng: np.random.Generator) -> Wave:
    """Return ``wave`` shifted by a random number of pixels, at most 0.03 N, and confined to the window."""
    max_offset = int(0.03 * wave.shape[-1])
    down, right = rng.integers(-max_offset, max_offset + 1, 2)
    return confine_wave(np.roll(wave, (down, right), (0, 1)))


def draw_aberrations(size: int, aperture: float, rng: np.random.Generator, strength: float) -> Grid:
    """Draw the phase (N, N) in rad of astigmatism, coma, trefoil and spherical aberration, in total ``strength`` rms.

    The Zernike polynomials are numbers 5 to 11 of Noll (J. Opt. Soc. Am. 66, 207 (1976)), of unit rms on the pupil.
    """
    ky, kx = make_frequency_grid(size)
    y, x = ky / aperture, kx / aperture
    squared = y**2 + x**2
    modes = (
        np.sqrt(24) * x * y,
        np.sqrt(6) * (x**2 - y**2),
        np.sqrt(8) * (3 * squared - 2) * y,
        np.sqrt(8) * (3 * squared - 2) * x,
        np.sqrt(8) * (3 * x**2 - y**2) * y,
        np.sqrt(8) * (x**2 - 3 * y**2) * x,
        np.sqrt(5) * (6 * squared**2 - 6 * squared + 1),
    )
    weights = strength * rng.standard_normal(len(modes)) / np.sqrt(len(modes))
    return np.asarray(sum(weight * mode for weight, mode in zip(weights, modes, strict=True)))


def limit_ray_offset(phase: Grid, aperture: float) -> Grid:
    """Return ``phase`` on a pupil, scaled down if a ray lands beyond :data:`MAX_RAY_OFFSET_FRACTION`.

    The offset of a ray in pixels is the slope of the phase divided by 2π.
    """
    size = phase.shape[-1]
    ky, kx = make_frequency_grid(size)
    inside = np.hypot(ky, kx) < aperture
    centered = np.fft.fftshift(np.where(inside, phase, np.nan))
    slopes = [np.abs(np.diff(centered, axis=axis)) for axis in (0, 1)]
    farthest = max(float(np.nanmax(part)) for part in slopes) * size / (2 * np.pi)
    return phase * min(1.0, MAX_RAY_OFFSET_FRACTION * size / farthest)


def draw_modes(probe: Wave, modes: int, rng: np.random.Generator) -> NDArray[np.complex128]:
    """Draw orthogonal incoherent modes (modes, N, N) of unit total power.

    The first mode is the probe; the next are the probe times slow ramps and curvatures in random directions,
    orthogonalized. Each has a tenth to half of the power of the previous mode.
    """
    if modes == 1:
        return confine_wave(probe[None])
    y, x = (axis / probe.shape[0] for axis in make_pixel_grid(probe.shape[0]))
    turn = rng.uniform(0, np.pi)
    along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
    shapes = (along * compute_phasor(np.full(y.shape, rng.uniform(0, np.pi))), across + rng.normal() * along**2)
    orthogonal = [probe / np.linalg.norm(probe)]
    for shape in shapes[: modes - 1]:
        mode = probe * shape
        for other in orthogonal:
            mode = mode - other * np.vdot(other, mode)
        orthogonal.append(mode / np.linalg.norm(mode))
    shares = np.cumprod(np.append(1.0, rng.uniform(0.1, 0.5, modes - 1)))
    return np.stack(orthogonal) * np.sqrt(shares / shares.sum())[:, None, None]


def draw_probe(size: int, names: tuple[str, ...], rng: np.random.Generator) -> NDArray[np.complex128]:
    """Draw a probe (M, N, N) of unit power from one of the families ``names``, with one to three incoherent modes."""
    probe = PROBE_FAMILIES[names[rng.integers(len(names))]](size, rng)
    return draw_modes(probe, int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])), rng)


def perturb_probe(modes: Wave, amount: float, rng: np.random.Generator) -> NDArray[np.complex128]:
    """Draw a perturbed copy of the probe ``modes`` (M, N, N), of unit power.

    The copy is scaled (by 0.1 · ``amount`` rms), shifted (by 0.02 N · ``amount`` rms per axis) and defocused (its outer
    rays move by 0.03 N · ``amount`` rms), and its modes are mixed (by 0.1 · ``amount`` of the field).
    """
    size = modes.shape[-1]
    widening, mixing = 0.1 * amount, 0.1 * amount
    scale = np.exp(-widening * rng.standard_normal())
    shifts = 0.02 * amount * size * rng.standard_normal(2)
    down, across = (make_resampling_matrix(size, scale, shift) for shift in shifts)
    power = np.square(np.abs(np.fft.fft2(modes))).sum(0)
    ky, kx = make_frequency_grid(size)
    bandwidth = np.sqrt((power * (ky**2 + kx**2)).sum() / power.sum())
    distance = 0.03 * amount * size / bandwidth * rng.standard_normal()
    wave = propagate(down @ modes @ across.T, distance)
    if len(modes) > 1:
        leak = rng.standard_normal((2, len(modes), len(modes)))
        wave = wave + mixing * np.tensordot(leak[0] + 1j * leak[1], wave, 1)
    return wave / np.linalg.norm(wave)


def make_resampling_matrix(size: int, scale: float, shift: float) -> Grid:
    """Return the matrix (N, N) that shifts a signal by ``shift`` pixels and scales its width by 1 / ``scale``.

    The matrix interpolates by the Fourier series of N samples and is exact for band-limited signals; values beyond the
    window are zero.
    """
    axis = np.arange(size, dtype=np.float64) - size // 2
    source = scale * (axis - shift)
    distance = source[:, None] - axis[None, :]
    # The sum of exp(2πi k d / N) over the N frequencies; the Nyquist frequency counts half on either side.
    whole = np.abs(distance / size - np.rint(distance / size)) < 1e-9
    angle = np.pi * np.where(whole, 0.5, distance) / size
    kernel = np.sin(size * angle) / (size * np.tan(angle))
    return np.where(whole, 1.0, kernel) * (np.abs(source) <= size / 2)[:, None]
