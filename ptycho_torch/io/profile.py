"""What a scan file holds and how far it keeps the contract: the findings of the describe command, as one value."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.data import contract
from ptycho_torch.data.contract import Violation
from ptycho_torch.data.coordinates import compute_illuminated_box, compute_structure_box, estimate_coordinate_scale
from ptycho_torch.data.layout import (
    ArrayHeader,
    Arrays,
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    find_layout,
    normalize_probe_shape,
)
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.io.npz import make_scan_from_arrays, read_arrays, read_headers

GEOMETRY_RULES = {"R2", "R5", "R6", "R7", "R11", "R12", "R13", "R14", "R15"}
"""Rules without which positions and probe mean nothing together."""


@dataclass(frozen=True)
class Profile:
    """The findings on one scan file. Lengths are in object pixels."""

    file: str
    """File name without its folder."""

    arrays: dict[str, dict[str, Any]]
    """By key: ``shape``, ``dtype``, and with statistics ``min``, ``max``, ``mean`` (complex: of the modulus) of the
    finite values, and ``not_finite``, the number of others."""

    axis_order: dict[str, str | None]
    """``order`` (nhw, hwn or None) and ``reason``."""

    measurement: dict[str, str | None]
    """``kind`` (amplitude, counts or None) and ``reason``."""

    photons: dict[str, Any] | None
    """``per_unit``, ``per_pattern`` and ``origin``; None without statistics or where a MUST is broken."""

    geometry: dict[str, Any] | None
    """``patterns``, ``size``, ``x`` and ``y`` (lowest, highest), ``step``, ``probe_diameter`` and ``overlap``."""

    object: dict[str, Any] | None
    """``shape``, ``seen`` and ``structure`` (first row, last row, first column, last column), ``on_grid``,
    ``coordinate_factor`` (what the coordinates must be multiplied by to be object pixels) and ``misfit_by_factor``."""

    metadata: dict[str, Any]
    """The file's own metadata."""

    violations: list[dict[str, str]]
    """``rule``, ``level`` (MUST, SHOULD) and ``message`` of each broken rule."""

    @property
    def valid(self) -> bool:
        """Whether the file keeps every MUST, so that it can be loaded."""
        return all(violation["level"] != "MUST" for violation in self.violations)

    def as_dict(self) -> dict[str, Any]:
        """All findings as JSON can hold them: figures that are not finite become None."""
        content: dict[str, Any] = _make_json_safe(dataclasses.asdict(self) | {"valid": self.valid})
        return content


def profile_scan_file(
    path: Path,
    *,
    stats: bool = True,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
) -> Profile:
    """Find out what the scan file at ``path`` holds, also where it breaks the contract.

    Args:
        path: NPZ file.
        stats: read the arrays; else their headers (and the metadata) only.
        axis_order: axis order of the diffraction, where the file leaves it open.
        measurement: what the diffraction holds, where the file leaves it open.

    Raises:
        DataError: the file cannot be read.
    """
    headers = read_headers(path)
    plain = [key for key, header in headers.items() if not header.dtype.hasobject]
    loaded = read_arrays(path, plain if stats else [key for key in plain if key in ("metadata", "_metadata")])
    arrays: Arrays = {**headers, **loaded}
    found = contract.find_violations(arrays, axis_order, measurement)
    layout = find_layout({key: arrays[key] for key in plain}, axis_order, measurement)
    broken = {violation.rule for violation in found if violation.level == "MUST"}
    photons = None
    if stats and not broken:
        scan = make_scan_from_arrays(loaded, name=path.name, axis_order=axis_order, measurement=measurement)
        scale = photon_scale(scan)
        photons = {
            "per_unit": scale.photons_per_unit,
            "per_pattern": scale.photons_per_pattern,
            "origin": scale.origin,
        }
    return Profile(
        file=Path(path).name,
        arrays={key: _summarize_array(array) for key, array in arrays.items()},
        axis_order={"order": layout.axis_order, "reason": layout.axis_reason},
        measurement={"kind": layout.measurement, "reason": layout.measurement_reason},
        photons=photons,
        geometry=_describe_geometry(loaded, layout) if stats and not broken & GEOMETRY_RULES else None,
        object=_describe_object(loaded, layout) if stats and not broken & (GEOMETRY_RULES | {"R16"}) else None,
        metadata=layout.metadata,
        violations=[_violation_to_strings(violation) for violation in found],
    )


def _violation_to_strings(violation: Violation) -> dict[str, str]:
    return {"rule": violation.rule, "level": violation.level, "message": violation.message}


def _summarize_array(array: NDArray[Any] | ArrayHeader) -> dict[str, Any]:
    """Shape, dtype and, for numbers that were read, their range."""
    summary: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc" or array.size == 0:
        return summary
    values = np.abs(array) if array.dtype.kind == "c" else array
    finite = values[np.isfinite(values)]
    if finite.size:
        figures = {"min": finite.min(), "max": finite.max(), "mean": finite.mean(dtype=np.float64)}
        summary |= {name: float(figure) for name, figure in figures.items()}
    return summary | {"not_finite": int(values.size - finite.size)}


def _describe_geometry(arrays: Mapping[str, NDArray[Any]], layout: DiffractionLayout) -> dict[str, Any]:
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1).astype(np.float64)
    probe = arrays["probeGuess"]
    probe = probe.reshape(normalize_probe_shape(probe.shape))
    size, count = compute_stack_size(arrays[str(find_diffraction_key(arrays))], layout)
    step, diameter = compute_median_step(positions), compute_probe_diameter(probe)
    (low_y, low_x), (high_y, high_x) = positions.min(0).tolist(), positions.max(0).tolist()
    return {
        "patterns": count,
        "size": size,
        "modes": 1 if probe.ndim == 2 else len(probe),
        "x": [low_x, high_x],
        "y": [low_y, high_y],
        "step": step,
        "probe_diameter": diameter,
        "overlap": None if step is None or not diameter > 0 else 1 - step / diameter,
    }


def compute_median_step(positions: NDArray[np.float64]) -> float | None:
    """Median distance of each of ``positions`` (n, 2) to its nearest neighbour, in pixels; None for a single one."""
    from scipy.spatial import cKDTree

    if len(positions) < 2:
        return None
    distances, _ = cKDTree(positions).query(positions, k=2)
    return float(np.median(distances[:, 1]))


def compute_probe_diameter(probe: NDArray[Any]) -> float:
    """Diameter in pixels of the evenly lit disc whose power has the same second moment as that of all modes.

    Such a disc of radius ρ has mean squared distance ρ²/2 from its centre, so the diameter is 2√2 times the root mean
    square distance.

    Args:
        probe: (N, N) or (M, N, N) complex.
    """
    power = np.square(np.abs(probe.astype(np.complex128)))
    power = power if power.ndim == 2 else power.sum(0)
    power = power / power.sum()
    rows, columns = np.arange(power.shape[0])[:, None], np.arange(power.shape[1])[None, :]
    center_y, center_x = (power * rows).sum(), (power * columns).sum()
    return float(2 * math.sqrt(2 * (power * ((rows - center_y) ** 2 + (columns - center_x) ** 2)).sum()))


def _describe_object(arrays: Mapping[str, NDArray[Any]], layout: DiffractionLayout) -> dict[str, Any] | None:
    """Whether the object lies on the coordinate grid: it holds all that the patterns see, its structure among it."""
    obj = arrays.get("objectGuess")
    size, _ = compute_stack_size(arrays[str(find_diffraction_key(arrays))], layout)
    if obj is None or size is None:
        return None
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1).astype(np.float64)
    illuminated_box, structure, scale = (
        compute_illuminated_box(positions, size),
        compute_structure_box(obj),
        estimate_coordinate_scale(positions, size, obj),
    )
    fits = all(
        contract.is_inside(illuminated_box[2 * axis], illuminated_box[2 * axis + 1], obj.shape[axis]) for axis in (0, 1)
    )
    structure_overlaps = structure is None or (
        all(
            structure[2 * i] <= illuminated_box[2 * i + 1] and structure[2 * i + 1] >= illuminated_box[2 * i]
            for i in (0, 1)
        )
    )
    return {
        "shape": list(obj.shape),
        "seen": illuminated_box,
        "structure": structure,
        "on_grid": fits and structure_overlaps and scale.factor == 1,
        "coordinate_factor": scale.factor,
        "misfit_by_factor": {f"{factor:g}": found for factor, found in scale.misfit.items()},
    }


def _make_json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _make_json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_make_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
