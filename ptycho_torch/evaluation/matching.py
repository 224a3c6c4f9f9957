"""Match the patterns of a result and of a scan, of which either may be a part of the other."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.grouping import Indices
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.foreign_result import STORED_POSITIONS

EXCLUDED_KEY = "excluded_patterns"
"""Entry of the metadata of a result: indices in the scan of the patterns that its engine left out."""

INDICES_KEY, SOURCE_INDEX_KEY = "indices", "source_index"
"""Entries of the metadata of a result of a part of a scan: indices of its patterns in the scan, and in the file that
the scan was cut from."""


def match_patterns(reconstruction: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    """Return the result and the scan with only the patterns that both have, in one order.

    A result of some patterns of a scan records their indices, and a scan that was cut from another file has
    ``source_index``. Result and scan are returned unchanged if neither relates them. The positions of the result of
    another program, whose origin is its own, replace those of the scan.

    Args:
        reconstruction: a result.
        scan: measured patterns.
    """
    reconstruction, scan = _select_common(reconstruction, scan)
    is_foreign = reconstruction.metadata.get("positions") == STORED_POSITIONS
    if is_foreign and len(scan) == len(reconstruction.positions):
        scan = replace(scan, positions=reconstruction.positions)
    return reconstruction, scan


def _select_common(reconstruction: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    chosen = _read_indices(reconstruction, INDICES_KEY)
    if chosen is not None and reconstruction.metadata.get("scan_digest") == scan.digest():
        return reconstruction, scan.select(chosen)
    if len(scan) == len(reconstruction.positions):
        return reconstruction, scan
    of_result = _read_indices(reconstruction, SOURCE_INDEX_KEY)
    of_scan = scan.source_index
    if of_result is None and of_scan is None:
        return reconstruction, scan
    if of_result is None:
        of_result = np.arange(len(reconstruction.positions))
    if of_scan is None:
        of_scan = np.arange(len(scan))
    _, rows_of_result, rows_of_scan = np.intersect1d(of_result, of_scan, return_indices=True)
    if not len(rows_of_scan):
        return reconstruction, scan
    order = np.argsort(rows_of_scan)
    return select_patterns(reconstruction, rows_of_result[order]), scan.select(rows_of_scan[order])


def select_patterns(reconstruction: Reconstruction, indices: Indices) -> Reconstruction:
    """Return the result with the positions and intensities of the patterns at ``indices``."""
    intensities = reconstruction.intensities
    excluded = find_excluded(reconstruction)
    metadata = reconstruction.metadata
    if excluded.any():
        metadata = {key: value for key, value in metadata.items() if key != INDICES_KEY}
        metadata |= {EXCLUDED_KEY: np.flatnonzero(excluded[indices]).tolist()}
    return replace(
        reconstruction,
        positions=reconstruction.positions[indices],
        intensities=None if intensities is None else intensities[indices],
        metadata=metadata,
    )


def find_excluded(reconstruction: Reconstruction) -> NDArray[np.bool_]:
    """Return True for the positions of the result whose patterns its engine left out, (n,)."""
    excluded = reconstruction.metadata.get(EXCLUDED_KEY)
    chosen = _read_indices(reconstruction, INDICES_KEY)
    if chosen is None:
        chosen = np.arange(len(reconstruction.positions))
    known = [index for index in excluded if isinstance(index, int)] if isinstance(excluded, list) else []
    return np.isin(chosen, known)


def _read_indices(reconstruction: Reconstruction, key: str) -> NDArray[np.intp] | None:
    """Return the indices that the metadata record, one for each position; None: none are recorded."""
    values = reconstruction.metadata.get(key)
    if not isinstance(values, list) or len(values) != len(reconstruction.positions):
        return None
    return np.asarray(values, np.intp)
