"""The forward model from object patches to expected photons, shared by networks, engines and the simulator."""

from typing import NamedTuple

from torch import Tensor

from ptycho_torch.physics.fourier import far_field, fourier_shift, inverse_far_field
from ptycho_torch.physics.patches import extract_patches, split_positions
from ptycho_torch.physics.probe import compute_power


class Wavefields(NamedTuple):
    """All stages of the forward model, for a batch ``*`` of scan positions."""

    patches: Tensor
    """(*, N, N) complex: the object under the probe, on the pixel grid of the object."""

    exit: Tensor
    """(*, M, N, N) complex: exit wave of each of the M incoherent probe modes, in √photons."""

    detector: Tensor
    """(*, M, N, N) complex: far field of each mode, zero frequency at [0, 0]."""

    intensity: Tensor
    """(*, N, N) real: expected photons, the sum over modes of |detector|² (+ background)."""


def shift_probe(probe: Tensor, fractions: Tensor) -> Tensor:
    """Shift the probe by the sub-pixel part of each scan position.

    Args:
        probe: (M, N, N) complex modes.
        fractions: (n, 2) real shifts (y, x) in pixels.

    Returns:
        (n, M, N, N) complex.
    """
    return fourier_shift(probe, fractions[:, None, :].to(probe.real.dtype))


def compute_exit_waves(patches: Tensor, probe: Tensor) -> Tensor:
    """Compute the exit waves ``P O`` (*, M, N, N) of patches O (*, N, N) under a probe P (*, M, N, N)."""
    return probe * patches[..., None, :, :]


def project_onto_patches(waves: Tensor, probe: Tensor) -> Tensor:
    """Compute ``Σ P* ψ`` over the modes: the adjoint of :func:`compute_exit_waves`, (*, M, N, N) to (*, N, N)."""
    products = probe.conj() * waves
    return products.squeeze(-3) if products.shape[-3] == 1 else products.sum(-3)


def compute_detector_waves(patches: Tensor, probe: Tensor) -> Tensor:
    """Propagate patches (*, N, N) under ``probe`` (*, M, N, N) to the detector: the linear part of the model.

    Returns:
        (*, M, N, N) complex, zero frequency at [0, 0].
    """
    return far_field(compute_exit_waves(patches, probe))


def backpropagate_detector_waves(waves: Tensor, probe: Tensor) -> Tensor:
    """Propagate waves (*, M, N, N) back to patches (*, N, N): the adjoint of :func:`compute_detector_waves`."""
    return project_onto_patches(inverse_far_field(waves), probe)


def from_patches(patches: Tensor, probe: Tensor, background: Tensor | float = 0.0) -> Wavefields:
    """Propagate object patches under a probe.

    Args:
        patches: (*, N, N) complex.
        probe: (*, M, N, N) complex, in √photons, shifted to each position's fraction of a pixel.
        background: photons added to each pixel, broadcast to (*, N, N).
    """
    return _from_exit_waves(patches, compute_exit_waves(patches, probe), background)


def from_vacuum(probe: Tensor, background: Tensor | float = 0.0) -> Wavefields:
    """Propagate ``probe``, or any other wave (*, M, N, N), through vacuum: a transmission of 1."""
    patches = probe.new_ones(()).expand(*probe.shape[:-3], *probe.shape[-2:])
    return _from_exit_waves(patches, probe, background)


def from_object(obj: Tensor, probe: Tensor, positions: Tensor, background: Tensor | float = 0.0) -> Wavefields:
    """Propagate an object under a probe at each scan position.

    Args:
        obj: (rows, columns) complex.
        probe: (M, N, N) complex modes, in √photons.
        positions: (n, 2) float64 (y, x) in pixels, relative to ``obj[0, 0]``.
        background: photons added to each pixel, broadcast to (n, N, N).

    Raises:
        IndexError: a patch reaches outside the object.
    """
    corners, fractions = split_positions(positions, probe.shape[-1])
    patches = extract_patches(obj, corners, probe.shape[-1])
    return from_patches(patches, shift_probe(probe, fractions), background)


def _from_exit_waves(patches: Tensor, exit_waves: Tensor, background: Tensor | float) -> Wavefields:
    detector = far_field(exit_waves)
    return Wavefields(patches, exit_waves, detector, compute_power(detector) + background)
