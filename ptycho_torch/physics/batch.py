"""Patterns as tensors: the whole scan once, and batches taken from it."""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.patches import split_positions


class NetworkInputs(NamedTuple):
    """Network inputs of patterns, which can be cached while probe and positions are fixed."""

    amplitudes: Tensor
    """(n, N, N) in √photons, zero frequency at [0, 0], masked pixels filled."""

    probes: Tensor
    """(n, M, N, N) complex: the probe at each position's fraction."""

    channels: Tensor
    """(n, C, N, N) real: input channels of the first backbone."""


class Batch(NamedTuple):
    """Patterns with the positions of their patches; all arrays have the same first axis, except for a shared mask."""

    amplitudes: Tensor
    """(n, N, N) float32, in √photons, zero frequency at [0, 0]; 0 where the mask is False."""

    mask: Tensor | None
    """(n or 1, N, N) bool, True where a pixel counts, zero frequency at [0, 0]; None: all count."""

    corners: Tensor
    """(n, 2) int64: each patch's [0, 0] pixel in object coordinates."""

    fractions: Tensor
    """(n, 2) float32 in [-½, ½): shift of the probe on each patch, in pixels."""

    scan_index: int = 0
    """Index of the scan of the model, and so of the probe, of these patterns."""

    indices: Tensor | None = None
    """(n,) int64: indices of the patterns in their scan; None: the model has no position offsets for them."""

    labels: Tensor | None = None
    """(n, N, N) complex64: the object patch of each pattern, for supervised training only."""

    cached_inputs: NetworkInputs | None = None
    """Cached network inputs; None: they are computed when they are needed."""

    def take(self, indices: Tensor) -> Self:
        """Return the patterns at ``indices`` (m,) int64."""
        mask = self.mask[indices] if self.mask is not None and len(self.mask) == len(self.amplitudes) else self.mask
        return self._replace(
            amplitudes=self.amplitudes[indices],
            mask=mask,
            corners=self.corners[indices],
            fractions=self.fractions[indices],
            indices=None if self.indices is None else self.indices[indices],
            labels=None if self.labels is None else self.labels[indices],
            cached_inputs=None
            if self.cached_inputs is None
            else NetworkInputs(*(tensor[indices] for tensor in self.cached_inputs)),
        )

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        return self._replace(
            amplitudes=self.amplitudes.to(device),
            mask=mask,
            corners=self.corners.to(device),
            fractions=self.fractions.to(device),
            indices=None if self.indices is None else self.indices.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            cached_inputs=None
            if self.cached_inputs is None
            else NetworkInputs(*(tensor.to(device) for tensor in self.cached_inputs)),
        )

    def replace_positions(self, positions: Tensor) -> Self:
        """Return the patterns at other ``positions`` (n, 2) float64 (y, x) in object pixels."""
        corners, fractions = split_positions(positions, self.amplitudes.shape[-1])
        return self._replace(corners=corners, fractions=fractions.float())

    @property
    def counts(self) -> Tensor:
        """Photons, (n, N, N)."""
        return self.amplitudes.square()


def make_batch(scan: Scan, photons_per_unit: float, scan_index: int = 0) -> Batch:
    """Convert all patterns of ``scan`` to √photons with zero frequency at [0, 0]. Masked pixels are set to 0.

    ``scan_index`` is the index of the scan in its model.
    """
    amplitudes = np.fft.ifftshift(scan.amplitudes, axes=(-2, -1))  # a copy
    amplitudes *= np.float32(photons_per_unit**0.5)
    mask = None
    if scan.mask is not None:
        centered = scan.mask if scan.mask.ndim == 3 else scan.mask[None]
        mask = torch.from_numpy(np.fft.ifftshift(centered, axes=(-2, -1)))
        amplitudes = np.where(mask.numpy(), amplitudes, np.float32(0))
    placement = split_positions(torch.from_numpy(scan.positions), scan.size)
    fractions, indices = placement.fractions.float(), torch.arange(len(scan))
    return Batch(torch.from_numpy(amplitudes), mask, placement.corners, fractions, scan_index, indices)


def scale_probe_to_photons(scan: Scan, photons_per_unit: float) -> Tensor:
    """Scale the probe of ``scan``, (M, N, N) complex64, to the power of the mean pattern.

    The power in vacuum was not measured, so the mean total count replaces it, and the object absorbs the factor between
    the two powers.
    """
    power = np.square(scan.amplitudes)
    if scan.mask is not None:
        power = np.where(scan.mask, power, 0)
    photons = power.sum(dtype=np.float64) / len(scan) * photons_per_unit
    modes = scan.require_probe()
    probe = modes * np.sqrt(photons / np.square(np.abs(modes), dtype=np.float64).sum())
    return torch.from_numpy(probe.astype(np.complex64))
