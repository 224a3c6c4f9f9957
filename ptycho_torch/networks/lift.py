"""What a network sees of a pattern: the measured amplitude, and its lift into real space by one adjoint step."""

import torch
from torch import Tensor

from ptycho_torch.physics.fourier import far_field, inverse_far_field
from ptycho_torch.physics.probe import power_of

POWER_FLOOR = 0.02
"""Regularisation of the division by |P|², as a share of its maximum."""


def log_amplitude(amplitudes: Tensor) -> Tensor:
    """log(1 + A) / 3 of amplitudes (*, N, N), corner-origin, in √photons; centred, as a network looks at pictures.

    The divisor brings ten to a thousand photons, what patterns mostly hold, to about one.
    """
    return torch.fft.fftshift(torch.log1p(amplitudes), dim=(-2, -1)) / 3


def probe_amplitude(probe: Tensor) -> Tensor:
    """√(Σ|P|²) over the modes of a probe (n, M, N, N) as a share of its maximum, (n, N, N): where a patch is lit."""
    amplitude = power_of(probe).sqrt()
    return amplitude / (amplitude.amax((-2, -1), keepdim=True) + 1e-30)


def lift(amplitudes: Tensor, probe: Tensor) -> Tensor:
    """One step from a flat object towards the measured one, as a picture in real space.

    The exit wave of a flat object is the probe; its far field gets the measured amplitude, comes back, and is
    divided by the probe: ``P* F⁻¹(A e^{i arg F(P)}) / (|P|² + ε)``, the ePIE step of Maiden & Rodenburg,
    Ultramicroscopy 109, 1256 (2009), eq. 5, summed over incoherent modes.

    Args:
        amplitudes: (n, N, N), corner-origin, in √photons.
        probe: (n, M, N, N) complex, at each position's fraction, in √photons.

    Returns:
        (n, N, N) complex: about the object where the probe is bright, fading to zero outside.
    """
    waves = far_field(probe)
    expected = power_of(waves).sqrt()
    floor = 1e-6 * expected.amax((-2, -1), keepdim=True) + 1e-30
    ratio = amplitudes / torch.maximum(expected, floor)
    power = power_of(probe)
    numerator = (probe.conj() * inverse_far_field(waves * ratio[..., None, :, :])).sum(-3)
    return numerator / (power + POWER_FLOOR * power.amax((-2, -1), keepdim=True) + 1e-30)
