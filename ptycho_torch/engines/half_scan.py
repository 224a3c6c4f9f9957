"""The same reconstruction from each half of a scan: what both halves agree on is no counting noise."""

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.grouping import Indices, make_compact_batches
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.state import ReconstructionState


def split_half_indices(positions: NDArray[np.float64], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Two halves of the positions (n, 2), each in file order, that cover the field alike.

    Neighbours are paired, and each pair is dealt out by chance: a half chosen freely would leave holes.
    """
    first, second = [], []
    for pair in make_compact_batches(positions, 2, 1, rng):  # each in random order
        first.append(pair[0])
        second += pair[1:].tolist()
    return np.sort(np.array(first, np.int64)), np.sort(np.array(second, np.int64))


def make_half_pipelines(pipeline: PipelineRun, rng: np.random.Generator) -> tuple[PipelineRun, PipelineRun]:
    """Two chains like ``chain``, which has not begun, each over one half of its positions.

    Both start where ``chain`` starts and go through the same stages; nothing that the whole scan taught reaches them,
    since it would be in both and pass for agreement. They are made on the canvas of ``chain``.

    Raises:
        DataError: there are fewer than two positions.
    """
    if len(pipeline.scan) < 2:
        raise DataError(f"`half_scan_frc` on a scan of {len(pipeline.scan)} position, expected at least 2")
    first, second = (
        _make_half_pipeline(pipeline, half) for half in split_half_indices(pipeline.state.positions.numpy(), rng)
    )
    return first, second


def _make_half_pipeline(pipeline: PipelineRun, indices: Indices) -> PipelineRun:
    held_out = None if pipeline.held_out is None else pipeline.held_out[indices]
    start = pipeline.state
    of_each = start.positions[indices], start.background, start.intensities[indices]
    state = ReconstructionState(start.object, start.probe, *of_each, start.canvas)
    scan = pipeline.scan.select(indices)
    return PipelineRun(scan, pipeline.photons_per_unit, pipeline.stages, state, pipeline.seed, held_out=held_out)
