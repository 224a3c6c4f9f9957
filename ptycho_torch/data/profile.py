"""Profile of a scan file: content, layout, geometry, photons and broken rules, as one value."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.contract import find_violations
from ptycho_torch.data.conversion import make_scan_from_arrays
from ptycho_torch.data.coordinates import (
    compute_illuminated_box,
    compute_structure_box,
    estimate_coordinate_scale,
    is_inside,
)
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.data.findings import find_faults
from ptycho_torch.data.geometry import read_geometry
from ptycho_torch.data.layout import (
    ArrayHeader,
    Arrays,
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    find_layout,
    normalize_probe_shape,
)
from ptycho_torch.data.measured_quantity import resolve_measurement
from ptycho_torch.data.photons import photon_scale

GEOMETRY_RULES = {"R2", "R5", "R6", "R7", "R11", "R12", "R13", "R14", "R15"}
"""Rules that positions and probe must keep before geometry can be computed."""


@dataclass(frozen=True)
class Profile:
    """Profile of one scan file. Lengths are in object pixels."""

    file: str
    """File name without its folder."""

    arrays: dict[str, dict[str, Any]]
    """By key: ``shape``, ``dtype``, and with statistics ``min``, ``max``, ``mean`` of the finite values (complex: of
    the modulus) and ``not_finite``, the number of other values."""

    axis_order: dict[str, str | None]
    """``order`` (nhw, hwn or None) and ``reason``."""

    measurement: dict[str, str | None]
    """``kind`` (amplitude, counts or None) and ``reason``."""

    photons: dict[str, Any] | None
    """``per_unit``, ``per_pattern`` and ``origin``; None without statistics or if a MUST is broken."""

    geometry: dict[str, Any] | None
    """``patterns``, ``size``, ``modes``, ``x`` and ``y`` (lowest, highest), ``step``, ``probe_diameter`` and
    ``overlap``."""

    object: dict[str, Any] | None
    """``shape``, ``seen`` (the pixels that the patterns cover) and ``structure`` (both first row, last row, first
    column, last column), ``on_grid``, ``coordinate_factor`` (the factor from coordinates to object pixels) and
    ``misfit_by_factor``."""

    metadata: dict[str, Any]
    """Metadata of the file."""

    violations: list[dict[str, str]]
    """``rule``, ``level`` (MUST, SHOULD) and ``message`` of each broken rule."""

    findings: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """``name``, ``severity``, ``evidence``, ``setting`` and ``rule`` (that the fault breaks, or None) of each fault."""

    input: dict[str, Any] | None = None
    """``format``, ``mapping`` (``field``, ``path``, ``unit``, ``conversion``), ``assumptions`` and ``missing``, for a
    file of another format; None for a file of the contract."""

    geometry_m: dict[str, Any] | None = None
    """Wavelength, distance and pixel sizes in SI units, as far as they are known."""

    @property
    def valid(self) -> bool:
        """True if the file keeps every MUST and can be loaded."""
        return all(violation["level"] != "MUST" for violation in self.violations) and not any(
            finding["rule"] for finding in self.findings
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the profile as JSON values; numbers that are not finite become None."""
        content: dict[str, Any] = _make_json_safe(dataclasses.asdict(self) | {"valid": self.valid})
        return content


def make_profile(
    name: str,
    headers: Mapping[str, ArrayHeader],
    loaded: dict[str, NDArray[Any]],
    *,
    stats: bool = True,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
) -> Profile:
    """Compute the profile of the arrays of a scan file, which may break the contract.

    Args:
        name: file name.
        headers: headers of all arrays by key.
        loaded: arrays by key: all plain arrays with ``stats``, otherwise the metadata.
        stats: compute statistics, photons and geometry.
        axis_order: axis order of the diffraction; overrides the metadata and the shape.
        measurement: quantity in the diffraction array; overrides the metadata.
    """
    arrays: Arrays = {**headers, **loaded}
    violations = find_violations(arrays, axis_order, measurement)
    plain = {key: array for key, array in arrays.items() if not array.dtype.hasobject}
    layout = resolve_measurement(plain, find_layout(plain, axis_order, measurement))
    broken = {violation.rule for violation in violations if violation.level == "MUST"}
    photons, findings = None, []
    if stats and not broken:
        scan = make_scan_from_arrays(loaded, name=name, axis_order=axis_order, measurement=measurement)
        scale = photon_scale(scan)
        photons = {
            "per_unit": scale.photons_per_unit,
            "per_pattern": scale.photons_per_pattern,
            "origin": scale.origin,
        }
        findings = find_faults(scan)
    return Profile(
        file=name,
        arrays={key: _summarize_array(array) for key, array in arrays.items()},
        axis_order={"order": layout.axis_order, "reason": layout.axis_reason},
        measurement={"kind": layout.measurement, "reason": layout.measurement_reason},
        photons=photons,
        geometry=_describe_geometry(loaded, layout) if stats and not broken & GEOMETRY_RULES else None,
        object=_describe_object(loaded, layout) if stats and not broken & (GEOMETRY_RULES | {"R16"}) else None,
        metadata=layout.metadata,
        violations=[{"rule": v.rule, "level": v.level, "message": v.message} for v in violations],
        findings=[dataclasses.asdict(finding) for finding in findings],
        geometry_m=_describe_lengths(layout.metadata),
    )


def _describe_lengths(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Return the known lengths of the geometry in the metadata; None if there are none or they are invalid."""
    try:
        geometry = read_geometry(metadata)
    except DataError:
        return None
    return None if geometry is None else geometry.to_dict()


def _summarize_array(array: NDArray[Any] | ArrayHeader) -> dict[str, Any]:
    """Return shape, dtype and, for loaded numbers, their range."""
    summary: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc" or array.size == 0:
        return summary
    values = np.abs(array) if array.dtype.kind == "c" else array
    finite = values[np.isfinite(values)]
    if finite.size:
        statistics = {"min": finite.min(), "max": finite.max(), "mean": finite.mean(dtype=np.float64)}
        summary |= {name: float(value) for name, value in statistics.items()}
    return summary | {"not_finite": int(values.size - finite.size)}


def _describe_geometry(arrays: Mapping[str, NDArray[Any]], layout: DiffractionLayout) -> dict[str, Any]:
    positions = np.stack([np.ravel(arrays["ycoords"]), np.ravel(arrays["xcoords"])], axis=1).astype(np.float64)
    probe = arrays.get("probeGuess")
    probe = None if probe is None else probe.reshape(normalize_probe_shape(probe.shape))
    size, count = compute_stack_size(arrays[str(find_diffraction_key(arrays))], layout)
    step = compute_median_step(positions)
    diameter = None if probe is None else compute_probe_diameter(probe)
    modes = 0 if probe is None else 1 if probe.ndim == 2 else len(probe)
    (low_y, low_x), (high_y, high_x) = positions.min(0).tolist(), positions.max(0).tolist()
    return {
        "patterns": count,
        "size": size,
        "modes": modes,
        "x": [low_x, high_x],
        "y": [low_y, high_y],
        "step": step,
        "probe_diameter": diameter,
        "overlap": None if step is None or not diameter else 1 - step / diameter,
    }


def _describe_object(arrays: Mapping[str, NDArray[Any]], layout: DiffractionLayout) -> dict[str, Any] | None:
    """Describe the object and whether it lies on the coordinate grid, that is, contains all that the patterns cover."""
    obj = arrays.get("objectGuess")
    size, _ = compute_stack_size(arrays[str(find_diffraction_key(arrays))], layout)
    if obj is None or size is None:
        return None
    positions = np.stack([np.ravel(arrays["ycoords"]), np.ravel(arrays["xcoords"])], axis=1).astype(np.float64)
    illuminated_box = compute_illuminated_box(positions, size)
    structure = compute_structure_box(obj)
    scale = estimate_coordinate_scale(positions, size, obj)
    fits = all(is_inside(illuminated_box[2 * i], illuminated_box[2 * i + 1], obj.shape[i]) for i in (0, 1))
    overlaps = structure is None or all(
        structure[2 * i] <= illuminated_box[2 * i + 1] and structure[2 * i + 1] >= illuminated_box[2 * i]
        for i in (0, 1)
    )
    return {
        "shape": list(obj.shape),
        "seen": illuminated_box,
        "structure": structure,
        "on_grid": fits and overlaps and scale.factor == 1,
        "coordinate_factor": scale.factor,
        "misfit_by_factor": {f"{factor:g}": misfit for factor, misfit in scale.misfit.items()},
    }


def _make_json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _make_json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_make_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
