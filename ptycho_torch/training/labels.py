"""Supervised training: the file's object patches as targets, once they are known to be the object."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.fourier import far_field
from ptycho_torch.physics.probe import compute_power

MAX_CHECKED_PATTERNS = 64
"""Patterns, spread over the scan, that tell what the labels are."""

MAX_ERROR_OVER_FLAT = 1.05
"""Error of the patterns, as a multiple of that of a flat object, beyond which labels are not of these patterns."""


class AmplitudeFit(NamedTuple):
    """How well amplitudes explain the patterns."""

    r: float
    """Σ(s√λ − √k)² / Σk with the best factor s."""

    factor: float
    """That factor."""


def prepare_labels(scan: Scan, batch: Batch, probe: Tensor) -> Tensor:
    """The scan's labels, (n, N, N) complex64, in the unit in which ``probe`` lights them.

    Args:
        scan: its ``labels`` are what the file calls ``Y``.
        batch: all of its patterns.
        probe: (M, N, N) complex, in √photons.

    Raises:
        DataError: there are none; or they are the illuminated object: propagated as they are, they explain the patterns
            better than lit by the probe; or they explain them no better than a flat object does.
    """
    name = scan.source or "scan"
    if scan.labels is None:
        raise DataError(f"{name}: --supervised needs labels, and there is no Y in it; leave --supervised out")
    chosen = np.linspace(0, len(scan) - 1, min(MAX_CHECKED_PATTERNS, len(scan))).round().astype(np.intp)
    some, labels = batch.take(torch.from_numpy(chosen)), torch.from_numpy(scan.labels[chosen])
    probes = shift_probe(probe, some.fractions)
    illuminated = _fit_amplitudes(some, probes * labels[:, None])
    unilluminated = _fit_amplitudes(some, labels[:, None])
    flat = _fit_amplitudes(some, probes)
    figures = f"R {illuminated.r:.3g} lit by the probe, {unilluminated.r:.3g} as it is, {flat.r:.3g} for a flat object"
    if unilluminated.r < illuminated.r:
        raise DataError(
            f"{name}: Y seems to be the illuminated object, probe times object, where the contract wants the object "
            f"({figures}); divide it by the probe, or leave --supervised out"
        )
    if illuminated.r > MAX_ERROR_OVER_FLAT * flat.r:
        raise DataError(
            f"{name}: Y seems to be neither the object under these patterns nor the illuminated object ({figures}); "
            "check its order and its orientation, or leave --supervised out"
        )
    return torch.from_numpy(scan.labels) * illuminated.factor


def _fit_amplitudes(batch: Batch, exit_waves: Tensor) -> AmplitudeFit:
    """How well the far fields of ``exit_waves`` (n, M, N, N) explain the patterns, with one factor for all."""
    amplitudes = compute_power(far_field(exit_waves)).sqrt()
    if batch.mask is not None:
        amplitudes = torch.where(batch.mask, amplitudes, torch.zeros_like(amplitudes))
    overlap = float((amplitudes * batch.amplitudes).sum(dtype=torch.float64))
    power = float(amplitudes.square().sum(dtype=torch.float64))
    photons = float(batch.counts.sum(dtype=torch.float64))
    factor = overlap / max(power, 1e-30)
    return AmplitudeFit(1 - factor * overlap / photons, factor)


def align_phases(labels: Tensor, patches: Tensor, weights: Tensor) -> Tensor:
    """``labels`` (n, N, N), each turned by a constant phase, which no pattern fixes, to be nearest to its patch."""
    overlap = (weights * patches.detach() * labels.conj()).sum((-2, -1), keepdim=True)
    return labels * torch.sgn(overlap)
