"""Results of other programs: object, probe and positions of a file as a reconstruction."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.assemble import compute_unit_factor, convert_probe
from ptycho_torch.io.parts import ScanParts

STORED_POSITIONS = "as in the file of another program"
"""Entry ``positions`` of the metadata of a result whose positions have an origin of their own."""


def assemble_result(parts: ScanParts, path: Path) -> Reconstruction:
    """Convert object, probe and positions of a file to a reconstruction.

    Args:
        parts: content of the file.
        path: the file, for errors.

    Raises:
        DataError: object, probe, positions or the object pixel are missing, or do not fit together.
    """
    name = str(path)
    if parts.object is None or parts.probe is None or parts.positions is None:
        found = [label for label in ("object", "probe", "positions") if getattr(parts, label) is not None]
        raise DataError(
            f"{name}: found {', '.join(found) or 'nothing'} (format {parts.report.format}); expected object, probe and "
            "positions"
        )
    probe = convert_probe(parts, int(parts.probe.shape[-1]), name)
    obj = np.asarray(parts.object)
    while obj.ndim > 2 and obj.shape[0] == 1:
        obj = obj[0]
    if obj.ndim != 2 or probe is None:
        raise DataError(f"{name}: the object has shape {obj.shape}; expected (rows, columns)")
    geometry = parts.geometry.complete(probe.shape[-1])
    positions = assemble_positions(parts, path)
    origin = get_stored_origin(parts)
    metadata: dict[str, Any] = {
        "method": f"result of another program ({parts.report.format})",
        "positions": STORED_POSITIONS,
        "source": path.name,
    }
    if parts.position_numbers is not None:
        metadata["source_index"] = parts.position_numbers.tolist()
    return Reconstruction(
        object=np.ascontiguousarray(obj, np.complex64),
        coverage=compute_probe_coverage(probe, positions - origin, obj.shape),
        origin_yx=origin,
        probe=np.ascontiguousarray(probe, np.complex64),
        positions=positions,
        geometry=None if geometry == Geometry() else geometry,
        intensities=_convert_intensities(parts),
        metadata=metadata,
    )


def _convert_intensities(parts: ScanParts) -> NDArray[np.float32] | None:
    """Return the power of the probe in each pattern relative to its mean; None: not stored, or equal."""
    photons = parts.intensities
    if photons is None or parts.positions is None or len(photons) != len(parts.positions) or (photons <= 0).any():
        return None
    relative = (photons / photons.mean()).astype(np.float32)
    return None if (relative == relative[0]).all() else relative


def assemble_positions(parts: ScanParts, path: Path) -> NDArray[np.float64]:
    """Return the positions (n, 2) of a file in object pixels.

    They are relative to the object of the file if it has one, unless the file stores ``origin_yx`` of its object.

    Args:
        parts: content of the file, with positions.
        path: the file, for errors.

    Raises:
        ConfigError: the positions are in a length and the object pixel is unknown.
    """
    geometry = parts.geometry
    if parts.probe is not None:
        geometry = geometry.complete(int(parts.probe.shape[-1]))
    factor = compute_unit_factor(parts.position_unit, geometry, 1.0, str(path))
    origin = np.asarray(parts.object_origin or (0.0, 0.0))
    positions: NDArray[np.float64] = (np.asarray(parts.positions, np.float64) - origin) * factor
    return positions + get_stored_origin(parts)


def get_stored_origin(parts: ScanParts) -> NDArray[np.int64]:
    """Return the object coordinates (2,) of the first pixel of the object; (0, 0) if the file stores none."""
    return np.asarray(parts.metadata.get("origin_yx", (0, 0)), np.int64)


def compute_probe_coverage(
    probe: NDArray[Any], positions: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the probe power summed over all positions at each object pixel, without sub-pixel shifts.

    Args:
        probe: (M, N, N) complex modes.
        positions: (n, 2) (y, x) in object pixels.
        shape: shape of the object, with origin (0, 0); power outside is left out.
    """
    size = probe.shape[-1]
    power = np.square(np.abs(probe)).sum(0)
    coverage = np.zeros([side + 2 * size for side in shape])
    corners = np.floor(positions + 0.5).astype(np.int64) - size // 2 + size
    inside = ((corners >= 0) & (corners + size <= coverage.shape)).all(1)
    for row, column in corners[inside]:
        coverage[row : row + size, column : column + size] += power
    return coverage[size:-size, size:-size].astype(np.float32)
