"""Probes by name, scaled to the size of a pattern, and incoherent modes made from one of them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.simulation.probe_families import PROBE_FAMILIES
from ptycho_torch.simulation.wavefields import make_pixel_grid

Probe = NDArray[np.complex128]

MODE_POWER_RATIO = 0.5
"""Power of each incoherent mode as a share of the one before."""

MAX_MODES = 15
"""Products of powers of y and x up to the fourth order."""


def make_structured(size: int) -> Probe:
    """A defocused lens with a central stop, coma and astigmatism: a lopsided, curved ring of about 0.23 size rms."""
    return make_from_pupil(size, aperture=0.2, stop=0.06, radius=0.31, coma=1.6, astigmatism=1.1)


def make_disk(size: int) -> Probe:
    """A defocused round aperture: a nearly even disk with fringes at its edge."""
    return make_from_pupil(size, aperture=0.2, stop=0.0, radius=0.25, coma=0.0, astigmatism=0.0)


def make_gaussian(size: int) -> Probe:
    """A Gaussian beam away from its waist: no edge, curved wavefront."""
    y, x = make_pixel_grid(size)
    reach = (y**2 + x**2) / (0.16 * size) ** 2
    return np.exp(-0.5 * reach + 1.2j * reach)


def make_family_member(family: str, number: int) -> Callable[[int], Probe]:
    """One probe of a family of :data:`~ptycho_torch.simulation.probe_families.PROBE_FAMILIES`: the draw of that number."""
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
"""Each makes a probe of ``size`` × ``size`` pixels, centred near ``[size//2, size//2]``."""


def make_from_pupil(size: int, aperture: float, stop: float, radius: float, coma: float, astigmatism: float) -> Probe:
    """The wave near the focus of a lens, as the Fourier transform of its pupil.

    Args:
        size: side in pixels.
        aperture: edge of the pupil in cycles a pixel, below ½.
        stop: edge of the central stop in cycles a pixel.
        radius: radius of the defocused disk as a share of ``size``: a ray through the pupil's edge lands there.
        coma: phase of the coma at the pupil's edge in rad.
        astigmatism: phase of the astigmatism at the pupil's edge in rad.
    """
    frequency = np.fft.fftfreq(size)
    ky, kx = np.meshgrid(frequency, frequency, indexing="ij")
    k = np.hypot(ky, kx)
    edge = 1 / size
    pupil = 0.25 * (1 + np.tanh((aperture - k) / edge)) * (1 + np.tanh((k - stop) / edge) if stop else 2)
    reach = k / aperture
    # A phase π d k² bends the ray at k by d k pixels, so d = radius · size / aperture lands the edge where asked.
    phase = np.pi * (radius * size / aperture) * k**2
    phase += coma * (3 * reach**2 - 2) * ky / aperture + astigmatism * (ky**2 - 2 * ky * kx - kx**2) / aperture**2
    return np.fft.fftshift(np.fft.ifft2(pupil * np.exp(1j * phase), norm="ortho"))


def make_incoherent_modes(probe: Probe, modes: int) -> NDArray[np.complex128]:
    """Orthogonal modes (modes, N, N): the probe, and the probe times polynomials, each of half the power before it.

    Raises:
        ConfigError: more modes than :data:`MAX_MODES` are asked for.
    """
    if modes > MAX_MODES:
        raise ConfigError(f"{modes} incoherent modes are asked for, expected at most {MAX_MODES}; lower --modes")
    y, x = (axis / probe.shape[0] for axis in make_pixel_grid(probe.shape[0]))
    orders = sorted(((i, j) for i in range(5) for j in range(5 - i)), key=sum)  # of y and x
    raw = np.stack([probe * y**i * x**j for i, j in orders[:modes]]).reshape(modes, -1)
    orthogonal = np.linalg.qr(raw.T)[0].T
    turned = orthogonal * np.exp(1j * np.angle((orthogonal.conj() * raw).sum(1)))[:, None]
    powers = MODE_POWER_RATIO ** np.arange(modes)
    return (turned * np.sqrt(powers / powers.sum())[:, None]).reshape(modes, *probe.shape)
