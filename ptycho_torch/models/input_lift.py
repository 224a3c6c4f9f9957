"""The input of a network: the measured amplitude, and its back-projection by one data-consistency step."""

import torch
from torch import Tensor

from ptycho_torch.physics.forward import from_patches, from_vacuum
from ptycho_torch.physics.noise import GaussianAmplitude
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import compute_exit_wave_change, compute_patch_update

PROBE_POWER_FLOOR_FRACTION = 0.02
"""Regularization of the division by |P|², as a fraction of its maximum."""

MAX_AMPLITUDE_RATIO = 10.0
"""Largest factor on an amplitude in one data-consistency step: where almost no photons are expected, counting noise
dominates."""

INPUT_NOISE = GaussianAmplitude(offset_photons=0.0)
"""Noise model of the back-projection."""

INPUT_MIN_INTENSITY_FRACTION = 1e-12
"""Lower limit of the intensity expected by the back-projection, as a fraction of its maximum."""

STEP_NOISE = GaussianAmplitude(offset_photons=0.0, offset_fraction=1e-6, max_ratio=MAX_AMPLITUDE_RATIO)
"""Noise model of the data-consistency steps between backbones."""


def compute_log_amplitude(amplitudes: Tensor) -> Tensor:
    """Compute log(1 + A) / 3 of amplitudes (*, N, N) in √photons, from zero frequency at [0, 0] to the center.

    The divisor scales ten to a thousand photons, the usual range of patterns, to about one.
    """
    return torch.fft.fftshift(torch.log1p(amplitudes), dim=(-2, -1)) / 3


def compute_probe_amplitude(probe: Tensor) -> Tensor:
    """Compute √(Σ|P|²) over the modes of a probe (n, M, N, N), relative to its maximum, (n, N, N)."""
    amplitude = compute_power(probe).sqrt()
    return amplitude / (amplitude.amax((-2, -1), keepdim=True) + 1e-30)


def backproject_pattern(amplitudes: Tensor, probe: Tensor) -> Tensor:
    """Compute a first estimate of a patch: vacuum and one data-consistency step from it.

    The exit wave of vacuum is the probe P. With the change Δψ that gives its far field the measured amplitude A, the
    patch is ``P* (P + Δψ) / (|P|² + ε) = P* F⁻¹(A e^{i arg F(P)}) / (|P|² + ε)``, the ePIE step of Maiden &
    Rodenburg, Ultramicroscopy 109, 1256 (2009), eq. 5, summed over incoherent modes.

    Args:
        amplitudes: (n, N, N), zero frequency at [0, 0], in √photons.
        probe: (n, M, N, N) complex, shifted to each position's fraction of a pixel, in √photons.

    Returns:
        (n, N, N) complex: about the object at pixels of high probe power, zero outside the probe.
    """
    vacuum = from_vacuum(probe)
    largest = vacuum.intensity.amax((-2, -1), keepdim=True)
    expected = torch.maximum(vacuum.intensity, INPUT_MIN_INTENSITY_FRACTION * largest + 1e-30)
    change = compute_exit_wave_change(vacuum.detector, expected, amplitudes.square(), None, INPUT_NOISE)
    return compute_patch_update(probe + change, probe, PROBE_POWER_FLOOR_FRACTION)


def data_consistency_step(obj: Tensor, amplitudes: Tensor, probe: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute one data-consistency step of patches toward their measured patterns.

    Args:
        obj: (n, N, N) complex.
        amplitudes: (n, N, N), zero frequency at [0, 0], in √photons.
        probe: (n, M, N, N) complex, shifted to each position's fraction of a pixel, in √photons.
        mask: (n or 1, N, N) bool, True where a pixel counts; other pixels keep their expected amplitude. None: all
            count.

    Returns:
        (n, N, N) complex: the change of the patches, zero where the expected amplitudes are the measured amplitudes.
    """
    waves = from_patches(obj, probe)
    change = compute_exit_wave_change(waves.detector, waves.intensity, amplitudes.square(), mask, STEP_NOISE)
    return compute_patch_update(change, probe, PROBE_POWER_FLOOR_FRACTION)


def inpaint_masked(amplitudes: Tensor, mask: Tensor | None, probe: Tensor) -> Tensor:
    """Replace masked amplitudes by the amplitudes of the probe in vacuum, the most likely value without a measurement.

    A back-projection would treat a zero as a measurement, and a convolution would treat a hole as an edge.

    Args:
        amplitudes: (n, N, N) in √photons.
        mask: bool, broadcast to (n, N, N), True where a pixel counts. None: all count.
        probe: (n, M, N, N) complex, shifted to each position's fraction of a pixel, in √photons.
    """
    if mask is None:
        return amplitudes
    return torch.where(mask, amplitudes, from_vacuum(probe).intensity.sqrt())
