"""Numbers of patterns and scans: ``source_index`` in the file, and ``scan_index`` in a file of several scans."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.scan import Scan


def cut_scan(scan: Scan, indices: NDArray[np.intp]) -> Scan:
    """Return the patterns at ``indices`` as :meth:`Scan.select`, with their numbers in the file as ``source_index``."""
    if np.array_equal(indices, np.arange(len(scan))):
        return scan
    if scan.source_index is None:
        scan = replace(scan, source_index=np.arange(len(scan)))
    return scan.select(indices)


def require_single_scan(scan: Scan) -> None:
    """Raise :class:`ConfigError` if ``scan`` holds patterns of several scans, which have no common object."""
    numbers = [] if scan.scan_index is None else np.unique(scan.scan_index).tolist()
    if len(numbers) > 1:
        listed = ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
        raise ConfigError(
            f"{scan.source or 'scan'}: patterns of {len(numbers)} scans with the numbers {listed}; expected one scan; "
            "choose one by `scan_index`"
        )


def split_scans(scan: Scan) -> list[Scan]:
    """Return each scan of a file of several, by ascending number; a single scan is returned as it is."""
    if scan.scan_index is None:
        return [scan]
    numbers = np.unique(scan.scan_index)
    if len(numbers) < 2:
        return [scan]
    return [scan.select(np.flatnonzero(scan.scan_index == number)) for number in numbers]
