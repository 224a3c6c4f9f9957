"""The same reconstruction from each half of a scan: what both halves agree on is no counting noise."""

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.grouping import Indices, compact_batches
from ptycho_torch.engines.pipeline import Chain
from ptycho_torch.engines.state import Estimate


def half_indices(positions: NDArray[np.float64], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Two halves of the positions (n, 2), each in file order, that cover the field alike.

    Neighbours are paired, and each pair is dealt out by chance: a half chosen freely would leave holes.
    """
    first, second = [], []
    for pair in compact_batches(positions, 2, 1, rng):  # each in random order
        first.append(pair[0])
        second += pair[1:].tolist()
    return np.sort(np.array(first, np.int64)), np.sort(np.array(second, np.int64))


def half_chains(chain: Chain, rng: np.random.Generator) -> tuple[Chain, Chain]:
    """Two chains like ``chain``, which has not begun, each over one half of its positions.

    Both start where ``chain`` starts and go through the same stages; nothing that the whole scan taught reaches them,
    since it would be in both and pass for agreement. They are made on the canvas of ``chain``.

    Raises:
        DataError: there are fewer than two positions.
    """
    if len(chain.scan) < 2:
        raise DataError(f"--half_scan_frc on a scan of {len(chain.scan)} position, expected at least 2")
    first, second = (_part(chain, half) for half in half_indices(chain.estimate.positions.numpy(), rng))
    return first, second


def _part(chain: Chain, indices: Indices) -> Chain:
    held_out = None if chain.held_out is None else chain.held_out[indices]
    start = chain.estimate
    of_each = start.positions[indices], start.background, start.intensities[indices]
    estimate = Estimate(start.object, start.probe, *of_each, start.frame)
    scan = chain.scan.select(indices)
    return Chain(scan, chain.photons_per_unit, chain.stages, estimate, chain.seed, held_out=held_out)
