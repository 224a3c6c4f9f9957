"""Batches of neighboring patterns of measured scans."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.data.grouping import Indices, make_compact_batches
from ptycho_torch.distributed.process_group import ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch, NetworkInputs

BATCHES_PER_CELL = 4
"""Batches that share a compact cell of the scanned area: they extend farther than compact ones at the same cost."""

MAX_CACHED_INPUT_BYTES = 2**28
"""Largest size of the cached network inputs of a scan. Caching needs a fixed probe and fixed positions."""

VALIDATION_BATCH_GROUPS = 64
"""Groups per validation batch."""


@dataclass(frozen=True, eq=False)
class PatternGroups:
    """The groups of patterns of one scan that a training or a validation uses."""

    scan: Batch
    """All patterns of the scan."""

    groups: Indices
    """(m, g²) indices into ``scan``; the first of each group is its own position."""

    positions: np.ndarray[Any, np.dtype[np.float64]]
    """(m, 2) (y, x) positions of the groups in pixels."""

    digest: str = ""
    """Digest of the scan and its photon scale; for a validation, its description."""

    probe: Tensor | None = None
    """(M, N, N) complex probe of these patterns in √photons; None: the probe of the model."""

    def batches(self, batch_size: int, spread: int, rng: np.random.Generator) -> Iterator[tuple[int, Tensor]]:
        """Yield batches of neighbors: the number of groups, and the sorted indices of their patterns."""
        for batch in make_compact_batches(self.positions, batch_size, spread, rng):
            yield len(batch), torch.from_numpy(np.unique(self.groups[batch]))


class _BatchIndices(NamedTuple):
    """The patterns of a batch."""

    scan_index: int
    groups: int
    indices: Tensor
    """(m,) int64."""


class _BatchDataset(torch.utils.data.Dataset[tuple[int, Batch]]):
    """The batches of an epoch, gathered on access; shared by the workers of a DataLoader."""

    def __init__(self, scans: list[Batch], batches: list[_BatchIndices]) -> None:
        self._scans, self._batches = scans, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[int, Batch]:
        batch = self._batches[index]
        return batch.groups, self._scans[batch.scan_index].take(batch.indices)


def iterate_batches(
    scans: Sequence[PatternGroups],
    batch_size: int,
    rng: np.random.Generator,
    process_group: ProcessGroup,
    num_workers: int = 0,
) -> Iterator[tuple[int, Batch]]:
    """Yield the batches of one epoch in random order, each from one scan.

    Args:
        scans: the groups of each scan.
        batch_size: groups per batch.
        rng: draws the batches; equal in all processes of the group.
        process_group: each process receives its part of every batch.
        num_workers: processes that prepare batches; 0 prepares them in this process.

    Yields:
        The number of groups in the whole batch, and the patterns of this process.
    """
    data, device = [scan.scan for scan in scans], scans[0].scan.corners.device
    batches = [
        _BatchIndices(index, groups, shard_indices(indices, process_group))
        for index, scan in enumerate(scans)
        for groups, indices in scan.batches(batch_size, BATCHES_PER_CELL, rng)
    ]
    if len(scans) > 1:  # the batches of a single scan are in random order already
        batches = [batches[index] for index in rng.permutation(len(batches))]
    if num_workers == 0:
        for scan_index, groups, indices in batches:
            yield groups, data[scan_index].take(indices.to(device))
        return
    on_cpu = [scan.to(torch.device("cpu")) for scan in data]
    loader = torch.utils.data.DataLoader(_BatchDataset(on_cpu, batches), batch_size=None, num_workers=num_workers)
    with _block_interrupts():  # workers inherit the mask, so that only this process receives ctrl-C
        prepared = iter(loader)
    for groups, batch in prepared:
        yield groups, batch.to(device)


def shard_indices(indices: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the part of ``indices`` (m,) that belongs to this process."""
    return indices[process_group.shard(len(indices))]


def cache_network_inputs(model: PtychoModel, patterns: PatternGroups) -> PatternGroups:
    """Return ``patterns`` with the network inputs of the scan, if they are constant and small enough to keep."""
    scan = patterns.scan
    if model.has_trainable_illumination(scan.scan_index):
        return patterns
    parts = torch.arange(len(scan.corners), device=scan.corners.device).split(VALIDATION_BATCH_GROUPS)
    first = model.compute_inputs(scan.take(parts[0]))
    bytes_per_pattern = sum(tensor[0].numel() * tensor.element_size() for tensor in first)
    if bytes_per_pattern * len(scan.corners) > MAX_CACHED_INPUT_BYTES:
        return patterns
    inputs = zip(*(model.compute_inputs(scan.take(part)) for part in parts), strict=True)
    return replace(patterns, scan=scan._replace(cached_inputs=NetworkInputs(*map(torch.cat, inputs))))


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Delay ctrl-C until the context ends; processes started in the context never receive it."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
