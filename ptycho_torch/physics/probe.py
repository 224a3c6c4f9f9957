"""Power, center and orthogonal modes of a probe."""

import torch
from torch import Tensor


def compute_power(modes: Tensor) -> Tensor:
    """Compute the power of a wave summed over its incoherent modes: (*, M, N, N) complex to (*, N, N) real."""
    power = modes.real.square() + modes.imag.square()
    return power.squeeze(-3) if power.shape[-3] == 1 else power.sum(-3)


def orthogonalize_modes(modes: Tensor) -> Tensor:
    """Replace the modes by orthogonal modes of the same intensities, ordered by decreasing power.

    Modes mixed by a unitary matrix give the same intensities everywhere, so the singular vectors are equivalent
    (Odstrčil, Baksh, Boden, Card, Chad, Frey & Brocklesby, Opt. Express 24, 8360 (2016)). Each keeps the phase of
    its largest component.

    Args:
        modes: (M, N, N) complex.
    """
    if len(modes) == 1:
        return modes
    flat = modes.flatten(1)
    left, strengths, right = torch.linalg.svd(flat, full_matrices=False)
    strongest = left.abs().argmax(0)
    phase = torch.sgn(left[strongest, torch.arange(len(modes), device=modes.device)])
    return (phase[:, None] * strengths[:, None] * right).reshape(modes.shape)


def compute_center(power: Tensor) -> Tensor:
    """Compute the center of mass (y, x) of ``power`` (N, N) real, in pixels, (2,)."""
    total = power.sum()
    rows, columns = (torch.arange(n, dtype=power.dtype, device=power.device) for n in power.shape)
    return torch.stack([(power.sum(1) * rows).sum(), (power.sum(0) * columns).sum()]) / total
