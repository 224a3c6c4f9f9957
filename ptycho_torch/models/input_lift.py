"""What a network sees of a pattern: the measured amplitude, and its lift into real space by one adjoint step."""

import torch
from torch import Tensor

from ptycho_torch.physics.fourier import far_field, inverse_far_field
from ptycho_torch.physics.probe import compute_power

PROBE_POWER_FLOOR_FRACTION = 0.02
"""Regularisation of the division by |P|², as a share of its maximum."""


def compute_log_amplitude(amplitudes: Tensor) -> Tensor:
    """log(1 + A) / 3 of amplitudes (*, N, N), corner-origin, in √photons; centred, as a network looks at pictures.

    The divisor brings ten to a thousand photons, what patterns mostly hold, to about one.
    """
    return torch.fft.fftshift(torch.log1p(amplitudes), dim=(-2, -1)) / 3


def compute_probe_amplitude(probe: Tensor) -> Tensor:
    """√(Σ|P|²) over the modes of a probe (n, M, N, N) as a share of its maximum, (n, N, N): where a patch is lit."""
    amplitude = compute_power(probe).sqrt()
    return amplitude / (amplitude.amax((-2, -1), keepdim=True) + 1e-30)


def backproject_pattern(amplitudes: Tensor, probe: Tensor) -> Tensor:
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
    expected = compute_power(waves).sqrt()
    floor = 1e-6 * expected.amax((-2, -1), keepdim=True) + 1e-30
    ratio = amplitudes / torch.maximum(expected, floor)
    return _divide_by_probe(inverse_far_field(waves * ratio[..., None, :, :]), probe)


def _divide_by_probe(waves: Tensor, probe: Tensor) -> Tensor:
    """``Σ P* ψ / (Σ |P|² + ε)`` over the modes: (n, M, N, N) complex exit waves to (n, N, N) complex."""
    probe_power = compute_power(probe)
    share = (probe_power + PROBE_POWER_FLOOR_FRACTION * probe_power.amax((-2, -1), keepdim=True) + 1e-30).reciprocal()
    overlap = probe.conj() * waves
    # Not divided: complex numbers are slow at that, even by real ones.
    return (overlap.squeeze(-3) if overlap.shape[-3] == 1 else overlap.sum(-3)) * share


MAX_AMPLITUDE_RATIO = 10.0
"""Largest factor on an amplitude in one correction: where next to nothing is expected, the noise of counting rules."""


def data_consistency_step(obj: Tensor, amplitudes: Tensor, probe: Tensor, mask: Tensor | None = None) -> Tensor:
    """One ePIE step from the patch ``obj`` towards the measured one; :func:`backproject_pattern` is the one from vacuum.

    Args:
        obj: (n, N, N) complex.
        amplitudes: (n, N, N), corner-origin, in √photons.
        probe: (n, M, N, N) complex, at each position's fraction, in √photons.
        mask: (n or 1, N, N) bool, True where a pixel counts: the others stay as they are expected. None: all count.

    Returns:
        (n, N, N) complex: what is to be added, zero where nothing is missing.
    """
    waves = far_field(probe * obj[..., None, :, :])
    # Under the root, so that its gradient stays finite where nothing is expected.
    power = compute_power(waves)
    expected = (power + 1e-6 * power.detach().amax((-2, -1), keepdim=True) + 1e-30).sqrt()
    excess = (amplitudes / expected).clamp(max=MAX_AMPLITUDE_RATIO) - 1
    if mask is not None:
        excess = torch.where(mask, excess, 0)
    return _divide_by_probe(inverse_far_field(waves * excess[..., None, :, :]), probe)


def inpaint_masked(amplitudes: Tensor, mask: Tensor | None, probe: Tensor) -> Tensor:
    """``amplitudes`` (n, N, N) with those of a flat object where ``mask`` (broadcastable, bool) is False.

    A lift takes a zero for a measurement, and a network a hole for an edge. Nothing is known there, and the light of
    the probe is the likeliest. ``probe`` is (n, M, N, N) complex, at each position's fraction.
    """
    if mask is None:
        return amplitudes
    return torch.where(mask, amplitudes, compute_power(far_field(probe)).sqrt())
