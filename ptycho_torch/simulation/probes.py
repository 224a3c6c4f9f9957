"""Probes by name, scaled to the size of a pattern, and incoherent modes of a probe."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.simulation.probe_families import PROBE_FAMILIES
from ptycho_torch.simulation.wavefields import make_pixel_grid

Probe = NDArray[np.complex128]

MODE_POWER_RATIO = 0.5
"""Ratio of the powers of consecutive incoherent modes."""

MAX_MODES = 15
"""Number of products of powers of y and x up to fourth order."""


def make_structured(size: int) -> Probe:
    """Make the probe of a defocused lens with central stop, coma and astigmatism: an asymmetric ring."""
    return make_from_pupil(size, aperture=0.2, stop=0.06, radius=0.31, coma=1.6, astigmatism=1.1)


def make_disk(size: int) -> Probe:
    """Make the probe of a defocused round aperture: a nearly uniform disk with fringes at its edge."""
    return make_from_pupil(size, aperture=0.2, stop=0.0, radius=0.25, coma=0.0, astigmatism=0.0)


def make_gaussian(size: int) -> Probe:
    """Make a Gaussian beam away from its waist: no edge, curved wavefront."""
    y, x = make_pixel_grid(size)
    reach = (y**2 + x**2) / (0.16 * size) ** 2
    return np.exp(-0.5 * reach + 1.2j * reach)


def make_family_member(family: str, number: int) -> Callable[[int], Probe]:
    """Return a function that draws a fixed probe of :data:`~ptycho_torch.simulation.probe_families.PROBE_FAMILIES`.

    Args:
        family: name of the family.
        number: seed of the draw.
    """
    return lambda size: PROBE_FAMILIES[family](size, np.random.default_rng(number))


PROBES: dict[str, Callable[[int], Probe]] = {
    "structured": make_structured,
    "disk": make_disk,
    "gaussian": make_gaussian,
    "fresnel": make_family_member("fresnel", 4),
    "zone_plate": make_family_member("zone_plate", 2),
    "zernike": make_family_member("zernike", 2),
    "defocus": make_family_member("defocus", 4),
    "vortex": make_family_member("vortex", 1),
    "speckle": make_family_member("speckle", 2),
}
"""Functions that make a probe of ``size`` × ``size`` pixels, centered near ``[size//2, size//2]``."""


def make_from_pupil(size: int, aperture: float, stop: float, radius: float, coma: float, astigmatism: float) -> Probe:
    """Make the wave near the focus of a lens, the Fourier transform of its pupil.

    Args:
        size: side in pixels.
        aperture: edge of the pupil in cycles per pixel, below ½.
        stop: edge of the central stop in cycles per pixel.
        radius: radius of the defocused disk as a fraction of ``size``, reached by rays at the edge of the pupil.
        coma: phase of the coma at the edge of the pupil in rad.
        astigmatism: phase of the astigmatism at the edge of the pupil in rad.
    """
    frequency = np.fft.fftfreq(size)
    ky, kx = np.meshgrid(frequency, frequency, indexing="ij")
    k = np.hypot(ky, kx)
    edge = 1 / size
    pupil = 0.25 * (1 + np.tanh((aperture - k) / edge)) * (1 + np.tanh((k - stop) / edge) if stop else 2)
    reach = k / aperture
    # A phase π d k² displaces the ray at k by d k pixels; d = radius · size / aperture moves the edge to the radius.
    phase = np.pi * (radius * size / aperture) * k**2
    phase += coma * (3 * reach**2 - 2) * ky / aperture + astigmatism * (ky**2 - 2 * ky * kx - kx**2) / aperture**2
    return np.fft.fftshift(np.fft.ifft2(pupil * np.exp(1j * phase), norm="ortho"))


def make_incoherent_modes(probe: Probe, modes: int) -> NDArray[np.complex128]:
    """Make orthogonal modes from a probe: the probe, and the probe times polynomials, with halving power.

    Args:
        probe: (N, N) complex.
        modes: number of modes.

    Returns:
        (modes, N, N).

    Raises:
        ConfigError: ``modes`` exceeds :data:`MAX_MODES`.
    """
    if modes > MAX_MODES:
        raise ConfigError(f"`modes` is {modes}; expected at most {MAX_MODES}; choose fewer")
    y, x = (axis / probe.shape[0] for axis in make_pixel_grid(probe.shape[0]))
    orders = sorted(((i, j) for i in range(5) for j in range(5 - i)), key=sum)  # of y and x
    raw = np.stack([probe * y**i * x**j for i, j in orders[:modes]]).reshape(modes, -1)
    orthogonal = np.linalg.qr(raw.T)[0].T
    aligned = orthogonal * np.exp(1j * np.angle((orthogonal.conj() * raw).sum(1)))[:, None]
    powers = MODE_POWER_RATIO ** np.arange(modes)
    return (aligned * np.sqrt(powers / powers.sum())[:, None]).reshape(modes, *probe.shape)
