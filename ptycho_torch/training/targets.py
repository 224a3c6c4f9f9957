"""Targets of a training besides the measured patterns: an object from an engine, or the labels of a scan file."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.patches import extract_patches, split_positions
from ptycho_torch.physics.probe import compute_power

MAX_CHECKED_PATTERNS = 64
"""Patterns, spread over the scan, that the labels are checked against."""

MAX_ERROR_OVER_FLAT = 1.05
"""Largest error of the labels as a multiple of the error of a constant object."""


@dataclass(frozen=True, eq=False)
class ObjectTarget:
    """An object on its canvas, scaled for the probe of the network."""

    object: Tensor
    """(rows, columns) complex. It contains every patch of the training."""

    origin: Tensor
    """(2,) int64: object coordinates (y, x) of ``object[0, 0]``."""

    def compute_distance(self, patches: Tensor, probes: Tensor, corners: Tensor) -> Tensor:
        """Return the squared distance of each patch to the target, averaged with the illumination as weight, (n,).

        Args:
            patches: (n, N, N) complex, as predicted or after the overlap constraint.
            probes: (n, M, N, N) complex, shifted to the sub-pixel position of each pattern.
            corners: (n, 2) int64 object coordinates (y, x) of each patch's [0, 0] pixel.
        """
        target = extract_patches(self.object, corners - self.origin, patches.shape[-1])
        return compute_patch_distance(patches, target, compute_power(probes.detach()))

    def digest(self) -> str:
        """Return a short digest of the object."""
        return hashlib.sha256(self.object.cpu().numpy().tobytes()).hexdigest()[:16]


def compute_patch_distance(patches: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean squared distance of each patch to its target, (n,).

    Args:
        patches: (n, N, N) complex.
        target: (n, N, N) complex.
        weights: (n, N, N) real, not negative.
    """
    residual = patches - target
    squared = residual.real.square() + residual.imag.square()
    return (weights * squared).sum((-2, -1)) / weights.sum((-2, -1))


def make_object_target(obj: Tensor, coverage: Tensor, origin: tuple[int, int]) -> ObjectTarget:
    """Make a target whose weighted mean is real: the phase of an object is free, and a network starts at vacuum.

    Args:
        obj: (rows, columns) complex.
        coverage: (rows, columns) real, the illumination of the object.
        origin: object coordinates (y, x) of ``obj[0, 0]``.
    """
    phase = torch.sgn((obj * coverage).sum()).conj()
    return ObjectTarget(obj * phase, torch.tensor(origin, device=obj.device))


def make_reconstruction_target(result: Reconstruction, scan: Scan, device: torch.device) -> ObjectTarget:
    """Make a target of the object of ``result``, a reconstruction of ``scan``.

    Raises:
        DataError: a pattern of the scan lies outside the object, or the probe has another size.
    """
    size = result.probe.shape[-1]
    if size != scan.size:
        raise DataError(
            f"{scan.source or 'scan'}: patterns of {scan.size} pixels, and the target has a probe of {size}; expected "
            "a reconstruction of this scan; change `targets`"
        )
    corners, _ = split_positions(torch.from_numpy(scan.positions), size)
    first, last = corners.amin(0), corners.amax(0) + size
    origin = torch.from_numpy(result.origin_yx)
    if bool((first < origin).any() or (last > origin + torch.tensor(result.object.shape)).any()):
        raise DataError(
            f"{scan.source or 'scan'}: some patterns lie outside the object of the target; expected a reconstruction "
            "of this scan; change `targets`"
        )
    obj, coverage = (torch.from_numpy(array).to(device) for array in (result.object, result.coverage))
    return make_object_target(obj, coverage, (int(origin[0]), int(origin[1])))


class AmplitudeFit(NamedTuple):
    """Agreement of predicted amplitudes with the patterns."""

    r: float
    """Σ(s√λ − √k)² / Σk for the best factor s."""

    factor: float
    """The factor s."""


def prepare_labels(scan: Scan, batch: Batch, probe: Tensor) -> Tensor:
    """Return the labels of ``scan`` scaled for ``probe``, (n, N, N) complex64, after a check against the patterns.

    Args:
        scan: its ``labels`` are the array ``Y`` of the file.
        batch: all patterns of the scan.
        probe: (M, N, N) complex, in √photons.

    Raises:
        DataError: the scan has no labels; the labels are exit waves (without the probe they explain the patterns
            better than with it); or they explain the patterns no better than a constant object.
    """
    name = scan.source or "scan"
    if scan.labels is None:
        raise DataError(f"{name}: there are no labels Y; supervised training needs them; leave out `supervised`")
    chosen = np.linspace(0, len(scan) - 1, min(MAX_CHECKED_PATTERNS, len(scan))).round().astype(np.intp)
    checked, labels = batch.take(torch.from_numpy(chosen)), torch.from_numpy(scan.labels[chosen])
    probes = shift_probe(probe, checked.fractions)
    as_object = _fit_amplitudes(checked, labels, probes)
    as_exit_wave = _fit_amplitudes(checked, labels, torch.ones_like(probes[:, :1]))
    constant = _fit_amplitudes(checked, torch.ones_like(labels), probes)
    figures = (
        f"R {as_object.r:.3g} as object, {as_exit_wave.r:.3g} as exit wave, {constant.r:.3g} for a constant object"
    )
    if as_exit_wave.r < as_object.r:
        raise DataError(
            f"{name}: the labels Y are exit waves, probe times object ({figures}); expected patches of the object; "
            "divide them by the probe, or leave out `supervised`"
        )
    if as_object.r > MAX_ERROR_OVER_FLAT * constant.r:
        raise DataError(
            f"{name}: the labels Y match the patterns neither as object nor as exit wave ({figures}); expected patches "
            "of the object; check their order and orientation, or leave out `supervised`"
        )
    return torch.from_numpy(scan.labels) * as_object.factor


def _fit_amplitudes(batch: Batch, patches: Tensor, probes: Tensor) -> AmplitudeFit:
    """Compare the amplitudes of ``patches`` under ``probes`` with the patterns, with one factor for all."""
    amplitudes = from_patches(patches, probes).intensity.sqrt()
    if batch.mask is not None:
        amplitudes = torch.where(batch.mask, amplitudes, torch.zeros_like(amplitudes))
    overlap = float((amplitudes * batch.amplitudes).sum(dtype=torch.float64))
    power = float(amplitudes.square().sum(dtype=torch.float64))
    photons = float(batch.counts.sum(dtype=torch.float64))
    factor = overlap / max(power, 1e-30)
    return AmplitudeFit(1 - factor * overlap / photons, factor)


def align_phases(labels: Tensor, patches: Tensor, weights: Tensor) -> Tensor:
    """Return ``labels`` (n, N, N), each multiplied by the constant phase that brings it closest to its patch.

    No pattern determines this phase.
    """
    overlap = (weights * patches.detach() * labels.conj()).sum((-2, -1), keepdim=True)
    return labels * torch.sgn(overlap)
