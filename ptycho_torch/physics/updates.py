"""The data-consistency step: from measured counts to a change of the exit waves and of the object under the probe.

Networks, object stages and iterative engines share these functions; they differ in the noise model, in its limits, and
in the illumination by which the change is divided.
"""

import torch
from torch import Tensor

from ptycho_torch.physics.forward import project_onto_patches
from ptycho_torch.physics.fourier import inverse_far_field
from ptycho_torch.physics.noise import NoiseModel
from ptycho_torch.physics.probe import compute_power


def compute_detector_change(
    detector: Tensor, intensity: Tensor, counts: Tensor, mask: Tensor | None, noise: NoiseModel
) -> Tensor:
    """Compute the change of the detector waves that moves the expected intensity toward the measured counts.

    Args:
        detector: (*, M, N, N) complex, zero frequency at [0, 0].
        intensity: (*, N, N) expected photons: the power of ``detector``, plus a background.
        counts: (*, N, N) measured photons.
        mask: bool, broadcast to (*, N, N), True where a pixel counts: other pixels do not change. None: all count.
        noise: the noise model; it gives one relative change for all modes of a pixel.

    Returns:
        (*, M, N, N) complex.
    """
    change = noise.relative_change(intensity, counts)
    if mask is not None:
        # Multiplication by the mask would keep values that are not finite.
        change = torch.where(mask, change, torch.zeros_like(change))
    return change[..., None, :, :] * detector


def compute_exit_wave_change(
    detector: Tensor, intensity: Tensor, counts: Tensor, mask: Tensor | None, noise: NoiseModel
) -> Tensor:
    """Compute the change of the exit waves (*, M, N, N) that moves the intensity toward the measured counts.

    The back-propagated :func:`compute_detector_change`, which has the same arguments.
    """
    return inverse_far_field(compute_detector_change(detector, intensity, counts, mask, noise))


def normalize_by_illumination(direction: Tensor, illumination: Tensor, floor_fraction: float) -> Tensor:
    """Divide ``direction`` by the illumination plus a fraction of its maximum.

    Args:
        direction: (*, rows, columns) complex: ``Σ P* Δψ``, on patches or on a canvas.
        illumination: (*, rows, columns) real: ``Σ |P|²`` on the same pixels, in photons.
        floor_fraction: regularization, as a fraction of the maximum over the last two axes.
    """
    floor = floor_fraction * illumination.amax((-2, -1), keepdim=True) + 1e-30
    # Multiplication by the reciprocal: division of complex numbers, also by real numbers, is slow.
    return direction * (illumination + floor).reciprocal()


def compute_patch_update(change: Tensor, probe: Tensor, floor_fraction: float) -> Tensor:
    """Compute the update ``Σ P* Δψ / (Σ |P|² + ε)`` of each patch by itself.

    Source: the ePIE step of Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009), eq. 5, summed over the modes.

    Args:
        change: Δψ, (*, M, N, N) complex, the change of the exit waves.
        probe: P, (*, M, N, N) complex.
        floor_fraction: ε as a fraction of the maximum of Σ |P|².

    Returns:
        (*, N, N) complex.
    """
    return normalize_by_illumination(project_onto_patches(change, probe), compute_power(probe), floor_fraction)
