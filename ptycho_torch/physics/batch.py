"""Patterns as tensors: the whole scan once, and batches taken from it."""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.patches import split_positions


class NetworkInputs(NamedTuple):
    """What a network is shown of patterns: the same again and again, where nothing of their light learns."""

    amplitudes: Tensor
    """(n, N, N) in √photons, zero frequency at [0, 0], without holes."""

    probes: Tensor
    """(n, M, N, N) complex: the probe at each position's fraction."""

    channels: Tensor
    """(n, C, N, N) real: what the body of the network sees."""


class Batch(NamedTuple):
    """Patterns with the places of their patches; all arrays have the same first axis, but for a shared mask."""

    amplitudes: Tensor
    """(n, N, N) float32, in √photons, zero frequency at [0, 0]; 0 where the mask is False."""

    mask: Tensor | None
    """(n or 1, N, N) bool, True where a pixel counts, zero frequency at [0, 0]; None: all count."""

    corners: Tensor
    """(n, 2) int64: each patch's [0, 0] pixel in object coordinates."""

    fractions: Tensor
    """(n, 2) float32 in [-½, ½): shift of the probe on each patch, in pixels."""

    scan_index: int = 0
    """Which of a model's scans these patterns belong to: its probe lights them."""

    indices: Tensor | None = None
    """(n,) int64: which patterns of their scan these are; None: of none that a model refines positions of."""

    labels: Tensor | None = None
    """(n, N, N) complex64: the object under each pattern, for supervised training alone."""

    cached_inputs: NetworkInputs | None = None
    """What the network is shown, where it is at hand; None: it is computed when it is needed."""

    def take(self, indices: Tensor) -> Self:
        """The patterns at ``indices`` (m,) int64."""
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
        """The same on ``device``."""
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
        """The same patterns at other ``positions`` (n, 2) float64 (y, x) in object pixels."""
        corners, fractions = split_positions(positions, self.amplitudes.shape[-1])
        return self._replace(corners=corners, fractions=fractions.float())

    @property
    def counts(self) -> Tensor:
        """Photons, (n, N, N)."""
        return self.amplitudes.square()


def make_batch(scan: Scan, photons_per_unit: float, scan_index: int = 0) -> Batch:
    """All patterns of ``scan`` in √photons and in the order that FFTs want. Masked pixels are set to 0.

    ``source`` is which of a model's scans it is.
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
    """The scan's probe (M, N, N) complex64 with the power of the mean pattern.

    Its shape is the file's. Its power in vacuum was never measured, so the mean total of the patterns stands for it,
    and the object absorbs the factor between the two.
    """
    power = np.square(scan.amplitudes)
    if scan.mask is not None:
        power = np.where(scan.mask, power, 0)
    photons = power.sum(dtype=np.float64) / len(scan) * photons_per_unit
    probe = scan.probe * np.sqrt(photons / np.square(np.abs(scan.probe), dtype=np.float64).sum())
    return torch.from_numpy(probe.astype(np.complex64))
