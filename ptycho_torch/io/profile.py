"""Profile of a scan file, read from disk."""

from pathlib import Path

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.data.profile import Profile, make_profile
from ptycho_torch.io.npz import read_arrays, read_headers


def profile_scan_file(
    path: str | Path,
    *,
    stats: bool = True,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
) -> Profile:
    """Return the profile of the scan file at ``path``, which may break the contract.

    Args:
        path: NPZ file.
        stats: read the arrays and compute statistics; otherwise read headers and metadata only.
        axis_order: axis order of the diffraction; overrides the metadata and the shape.
        measurement: quantity in the diffraction array; overrides the metadata.

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(path)
    headers = read_headers(path)
    plain = [key for key, header in headers.items() if not header.dtype.hasobject]
    loaded = read_arrays(path, plain if stats else [key for key in plain if key in ("metadata", "_metadata")])
    return make_profile(path.name, headers, loaded, stats=stats, axis_order=axis_order, measurement=measurement)
