"""Files of several scans, which ``scan_index`` numbers."""

import numpy as np

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.scan import Scan


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
