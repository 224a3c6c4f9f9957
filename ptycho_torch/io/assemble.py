"""Conversion of the content of a scan file to a scan: pairing, corrections, orientation, window, units, origin."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import METERS_PER_UNIT, InputSettings
from ptycho_torch.core.errors import ConfigError, ContractError, DataError
from ptycho_torch.data.fixes import align_probe
from ptycho_torch.data.geometry import Geometry, make_wavelength
from ptycho_torch.data.near_field import estimate_shadow_motion
from ptycho_torch.data.resample import bin_scan, resample_probe
from ptycho_torch.data.scan import Scan
from ptycho_torch.data.scan_numbers import cut_scan
from ptycho_torch.io.frames import correct_frames, cut_window, get_reference_size, orient_frames
from ptycho_torch.io.parts import InputReport, ScanParts, merge_geometry
from ptycho_torch.io.selection import read_frame_indices

BORDER_PX = 2
"""Pixels between the edge of the object and the outermost patch of a scan whose origin is free."""

MIN_INTENSITY_VARIATION = 0.01
"""Relative standard deviation of the incident intensity that is reported."""

RESULT_FOUND = ", but object and probe, so that the file is a result"
RESULT_USES = "; a result is the start of a reconstruction as `init`, and an input of evaluate and load_reconstruction"
"""Parts of the error about a result in the place of a scan."""

FAR_FIELD_EXPECTED = "expected far-field patterns, the only propagation of the forward model of this version"


def assemble_scan(parts: ScanParts, settings: InputSettings, path: Path) -> Scan:
    """Convert the content of a scan file to a scan.

    Args:
        parts: content of the file and of its partner; each conversion is added to its report.
        settings: settings of reading.
        path: the file, for errors and the metadata.

    Raises:
        ConfigError: a setting is missing or does not fit.
        DataError: patterns or positions are missing, do not fit together, or are of a near field.
        ContractError: the result breaks the contract.
    """
    name = str(path)
    require_far_field(parts.geometry, settings, name, parts.report)
    parts = _pair_patterns(parts, settings, name)
    frames = correct_frames(parts, settings, name)
    geometry = _orient_geometry(_override_geometry(parts.geometry, settings), settings)
    reference_size = get_reference_size(parts, frames)
    size = settings.crop or reference_size
    frames = cut_window(orient_frames(frames, settings), settings, size, parts, name)
    scale = reference_size / size
    geometry = geometry.scale_pixels(object_factor=scale)
    if settings.pixel_size is not None:
        geometry = replace(geometry, object_pixel_m=(settings.pixel_size, settings.pixel_size))
    geometry = geometry.complete(size)
    placement = _convert_positions(parts, settings, geometry, size, scale, name)
    values = frames.values
    amplitudes = np.sqrt(values, dtype=np.float32) if frames.measurement == "counts" else values.astype(np.float32)
    photons = settings.photons_per_unit or parts.photons_per_unit
    probe = convert_probe(parts, size, name)
    scan = Scan(
        amplitudes=amplitudes,
        positions=placement.positions,
        probe=probe,
        mask=frames.mask,
        truth=_convert_object(parts, scale, placement.keeps_object),
        scan_index=parts.scan_index,
        source_index=parts.source_index,
        nominal_positions=placement.nominal,
        labels=None if scale != 1 else parts.labels,
        photons_per_unit=photons or (1.0 if frames.measurement == "counts" else None),
        geometry=None if geometry == Geometry() else geometry,
        metadata=_make_metadata(parts, settings, path),
        source=path,
    )
    _refuse_shadow_images(scan, parts, settings, name)
    if settings.center == "auto":
        scan, aligned = align_probe(scan)
        parts.report.assumptions.extend(aligned)
    _report_intensities(parts)
    scan = finish_scan(bin_scan(scan, settings.bin), settings, select_frames=False)
    _list_missing(parts, scan)
    return scan


def finish_scan(scan: Scan, settings: InputSettings, *, select_frames: bool = True) -> Scan:
    """Return the scan with the settings applied that need no conversion of its arrays.

    Args:
        scan: the scan.
        settings: settings of reading.
        select_frames: apply the setting ``frames``.

    Raises:
        ConfigError: ``frames`` or ``scan_index`` selects no pattern.
    """
    if select_frames and settings.frames is not None:
        scan = cut_scan(scan, read_frame_indices(settings.frames, len(scan)))
    if settings.scan_index is not None:
        scan = select_scan_index(scan, settings.scan_index)
    overridden = _override_geometry(scan.geometry or Geometry(), settings)
    if settings.pixel_size is not None:
        overridden = replace(overridden, object_pixel_m=(settings.pixel_size, settings.pixel_size))
    if select_frames and overridden != (scan.geometry or Geometry()):
        scan = replace(scan, geometry=overridden.complete(scan.size))
    return scan


def select_scan_index(scan: Scan, number: int) -> Scan:
    """Return the patterns of the scan ``number`` of a file of several scans.

    Raises:
        ConfigError: no pattern has this number.
    """
    if scan.scan_index is None:
        raise ConfigError(
            f"{scan.source or 'scan'}: `scan_index` is {number} and the file numbers no scans; omit `scan_index`"
        )
    chosen = np.flatnonzero(scan.scan_index == number)
    if not len(chosen):
        numbers = ", ".join(map(str, np.unique(scan.scan_index)[:20]))
        raise ConfigError(f"{scan.source or 'scan'}: `scan_index` is {number}; expected one of {numbers}")
    return scan.select(chosen)


def require_far_field(geometry: Geometry | None, settings: InputSettings, name: str, report: InputReport) -> None:
    """Check that neither the setting ``propagation`` nor the file states a near field.

    Args:
        geometry: geometry that the file states.
        settings: settings of reading.
        name: file, for the error.
        report: record of the file, with the place of the statement.

    Raises:
        DataError: the patterns are a near field.
    """
    stated = "far_field" if geometry is None else geometry.propagation
    if (settings.propagation or stated) == "near_field":
        places = [entry.path for entry in report.mapping if entry.field == "propagation"]
        evidence = f" by {places[0]}" if places else ""
        raise DataError(
            f"{name}: the patterns are a near field{evidence}; {FAR_FIELD_EXPECTED}; set `propagation` to far_field to "
            "read them all the same"
        )


def _refuse_shadow_images(scan: Scan, parts: ScanParts, settings: InputSettings, name: str) -> None:
    """Refuse patterns whose motion with the positions is that of a near field, unless a setting or probe decides."""
    unit = settings.position_unit or parts.position_unit
    if settings.propagation is not None or scan.probe is not None or unit == "pixel":
        return
    motion = estimate_shadow_motion(np.square(scan.amplitudes), scan.positions, scan.mask)
    if motion is not None and motion.is_near_field:
        raise DataError(
            f"{name}: a near field: {motion.describe(scan.size)}; {FAR_FIELD_EXPECTED}; set `propagation` to far_field "
            "to read them all the same"
        )


def _pair_patterns(parts: ScanParts, settings: InputSettings, name: str) -> ScanParts:
    """Return the parts with one position per pattern, for the selected frames."""
    for part, label, default in (
        ("patterns", "patterns", "set `patterns_file` or `diffraction_key`"),
        ("positions", "scan positions", "set `positions_file` or `positions_key`"),
    ):
        if getattr(parts, part) is None:
            hints = (each.partition(": ")[2] for each in parts.report.missing if each.startswith(f"{part}: "))
            is_result = part == "patterns" and parts.object is not None and parts.probe is not None
            raise DataError(
                f"{name}: no {label} in the file (format {parts.report.format}){RESULT_FOUND if is_result else ''}; "
                f"expected one per position; {next(hints, default)}{RESULT_USES if is_result else ''}"
            )
    assert parts.patterns is not None  # checked above
    assert parts.positions is not None
    patterns = parts.patterns
    if patterns.ndim != 3 or 0 in patterns.shape or patterns.dtype.kind not in "biuf":
        raise ContractError(
            "R4",
            f"{name}: the patterns are {patterns.dtype} of shape {patterns.shape}; expected real, (n, rows, columns)",
        )
    if parts.positions.ndim != 2 or parts.positions.shape[1] != 2:
        raise ContractError("R11", f"{name}: the positions have shape {parts.positions.shape}; expected (n, 2)")
    of_patterns = np.arange(len(patterns))
    of_positions = np.arange(len(parts.positions))
    if parts.pattern_numbers is not None and parts.position_numbers is not None:
        common, of_patterns, of_positions = np.intersect1d(
            parts.pattern_numbers, parts.position_numbers, return_indices=True
        )
        left_out = (len(patterns) - len(common), len(parts.positions) - len(common))
        if any(left_out):
            parts.report.assumptions.append(
                f"paired by number: {len(common)} patterns have a position; {left_out[0]} patterns and {left_out[1]} "
                "positions without partner are left out"
            )
        if not len(common):
            raise DataError(f"{name}: no pattern has the number of a position; change `positions_file`")
    elif len(patterns) != len(parts.positions):
        raise ContractError(
            "R11",
            f"{name}: {len(parts.positions)} positions for {len(patterns)} patterns; expected one per pattern; change "
            "`positions_file`, or select patterns with `frames`",
        )
    all_patterns = chosen = np.arange(len(of_patterns))
    if settings.frames is not None:
        chosen = read_frame_indices(settings.frames, len(of_patterns))
        of_patterns, of_positions = of_patterns[chosen], of_positions[chosen]
    per_pattern = ("patterns", "scan_index", "source_index", "intensities", "labels")
    selected: dict[str, Any] = {key: _take(getattr(parts, key), of_patterns, len(patterns)) for key in per_pattern}
    selected |= {
        key: _take(getattr(parts, key), of_positions, len(parts.positions))
        for key in ("positions", "nominal_positions")
    }
    if parts.source_index is None and not np.array_equal(chosen, all_patterns):
        selected["source_index"] = chosen.astype(np.int64)
    mask = parts.mask
    if mask is not None and mask.ndim == 3:
        selected["mask"] = _take(mask, of_patterns, len(patterns))
    return replace(parts, **selected)


def _take(array: NDArray[Any] | None, indices: NDArray[Any], count: int) -> NDArray[Any] | None:
    if array is None or len(array) != count or np.array_equal(indices, np.arange(count)):
        return array
    return array[indices]


def _override_geometry(geometry: Geometry, settings: InputSettings) -> Geometry:
    """Return the geometry with the quantities that settings give."""
    wavelength, radiation = make_wavelength(settings.wavelength, settings.energy_ev, settings.voltage_kv)
    pixel = settings.detector_pixel
    given = Geometry(
        wavelength_m=wavelength,
        distance_m=settings.distance,
        detector_pixel_m=None if pixel is None else (pixel, pixel),
        radiation=radiation or geometry.radiation,
        propagation=settings.propagation or geometry.propagation,
    )
    merged = replace(merge_geometry(given, geometry), propagation=given.propagation)
    changed = given.wavelength_m or given.distance_m or given.detector_pixel_m
    # A stored object pixel is void where a quantity that determines it is given.
    if changed and merged.compute_far_field_pixel(1) is not None:
        merged = replace(merged, object_pixel_m=None)
    return merged


def _orient_geometry(geometry: Geometry, settings: InputSettings) -> Geometry:
    pair = geometry.detector_pixel_m
    return replace(geometry, detector_pixel_m=(pair[1], pair[0])) if settings.transpose and pair else geometry


@dataclass(frozen=True)
class Placement:
    """Positions in object pixels."""

    positions: NDArray[np.float64]
    nominal: NDArray[np.float64] | None
    keeps_object: bool
    """True if the object of the file lies on the grid of the positions."""


def _convert_positions(
    parts: ScanParts, settings: InputSettings, geometry: Geometry, size: int, scale: float, name: str
) -> Placement:
    """Return the positions in object pixels: swapped, negated, scaled, converted and rotated as settings give."""
    unit = settings.position_unit or parts.position_unit
    raw = np.asarray(parts.positions, np.float64)
    factor = compute_unit_factor(unit, geometry, scale, name)
    angle = np.deg2rad(settings.rotation)
    pivot = raw.mean(0)

    def transform(points: NDArray[np.float64]) -> NDArray[np.float64]:
        if settings.rotation:
            y, x = (points - pivot).T
            rotated = (y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle))
            points = np.stack(rotated, 1) + pivot
        if settings.swap_xy:
            points = points[:, ::-1]
        signs = np.array([-1.0 if settings.negate_y else 1.0, -1.0 if settings.negate_x else 1.0])
        moved: NDArray[np.float64] = points * signs * factor * settings.position_scale
        return moved

    positions = transform(raw)
    nominal = None if parts.nominal_positions is None else transform(np.asarray(parts.nominal_positions, np.float64))
    origin = np.zeros(2)
    if parts.object is not None and parts.object_origin is not None:
        origin = transform(np.array([parts.object_origin]))[0]
    elif unit != "pixel" and parts.object is None and np.isfinite(positions).all():
        origin = positions.min(0) - size // 2 - BORDER_PX
    plain = not (settings.rotation or settings.swap_xy or settings.negate_y or settings.negate_x)
    parts.report.add(
        "object pixel",
        "",
        "" if geometry.object_pixel_m is None else "m",
        "unknown" if geometry.object_pixel_m is None else "{:.4g} × {:.4g} (y, x)".format(*geometry.object_pixel_m),
    )
    return Placement(
        positions - origin,
        None if nominal is None else nominal - origin,
        plain or parts.object_origin is None,
    )


def compute_unit_factor(unit: str, geometry: Geometry, scale: float, name: str) -> NDArray[np.float64]:
    """Return the object pixels per unit of the stored positions, (2,) (y, x)."""
    if unit == "pixel":
        return np.array([1.0, 1.0]) / scale
    if geometry.object_pixel_m is None:
        missing = [
            text
            for value, text in (
                (geometry.wavelength_m, "the wavelength (`energy_ev`, `voltage_kv` or `wavelength`)"),
                (geometry.distance_m, "the distance (`distance`)"),
                (geometry.detector_pixel_m, "the detector pixel (`detector_pixel`)"),
            )
            if value is None
        ]
        raise ConfigError(
            f"{name}: the positions are in {unit}s and the object pixel is unknown: {', '.join(missing)} missing; set "
            "them, or `pixel_size`"
        )
    return METERS_PER_UNIT[unit] / np.asarray(geometry.object_pixel_m)


def convert_probe(parts: ScanParts, size: int, name: str) -> NDArray[Any] | None:
    if parts.probe is None:
        return None
    probe = parts.probe
    if probe.ndim not in (2, 3) or probe.dtype.kind != "c" or probe.shape[-1] != probe.shape[-2]:
        raise ContractError(
            "R13",
            f"{name}: the probe is {probe.dtype} of shape {probe.shape}; expected complex, (N, N) or (modes, N, N)",
        )
    probe = probe if probe.ndim == 3 else probe[None]
    return probe if probe.shape[-1] == size else resample_probe(probe, size)


def _convert_object(parts: ScanParts, scale: float, keeps_object: bool) -> NDArray[Any] | None:
    """Return the object of the file, if it is on the pixel grid of the patterns."""
    obj = parts.object
    while obj is not None and obj.ndim > 2 and obj.shape[0] == 1:
        obj = obj[0]
    if obj is None:
        return None
    if obj.ndim != 2 or scale != 1 or not keeps_object:
        reason = f"it has shape {obj.shape}" if obj.ndim != 2 else "it is on another pixel grid"
        parts.report.assumptions.append(f"the object of the file is left out: {reason}")
        return None
    return obj


def _make_metadata(parts: ScanParts, settings: InputSettings, path: Path) -> dict[str, Any]:
    """Return the metadata of the file, with the settings that differ from the defaults."""
    defaults = asdict(InputSettings())
    changes = {key: value for key, value in asdict(settings).items() if value != defaults[key]}
    changes = {key: value.name if isinstance(value, Path) else value for key, value in changes.items()}
    known = () if parts.report.format in ("generic", "npz") else (("format", parts.report.format),)
    return parts.metadata | {"converted": changes | {"source": path.name} | dict(known)}


def _report_intensities(parts: ScanParts) -> None:
    """Record how much the incident intensity varies by the file; the patterns stay as measured."""
    values = parts.intensities
    if values is None or not (np.isfinite(values).all() and values.mean() > 0):
        return
    variation = float(values.std() / values.mean())
    if variation > MIN_INTENSITY_VARIATION:
        parts.report.assumptions.append(
            f"the incident intensity in the file varies by {variation:.1%} (standard deviation); the patterns are not "
            "divided by it; `update_intensity` of an engine fits the power of the probe in each pattern"
        )


def _list_missing(parts: ScanParts, scan: Scan) -> None:
    """Complete the record of what is missing, and drop what another file or a setting has given."""
    geometry = scan.geometry or Geometry()
    missing = parts.report.missing
    given = ["patterns", "positions"] + ["probe"] * (scan.probe is not None)
    given += ["object pixel"] * (geometry.object_pixel_m is not None)
    missing[:] = [each for each in missing if each.partition(":")[0] not in given]
    # Electron microscopes calibrate the object pixel, not distance and detector pixel.
    calibrated = geometry.radiation == "electron" and geometry.object_pixel_m is not None
    for value, text in (
        (scan.probe is not None, "probe: estimated where it is needed, or set `init_probe` or `probe_key`"),
        (geometry.wavelength_m, "wavelength: set `energy_ev`, `voltage_kv` or `wavelength`"),
        (geometry.distance_m or calibrated, "distance from object to detector: set `distance`"),
        (geometry.detector_pixel_m or calibrated, "detector pixel: set `detector_pixel`"),
        (geometry.object_pixel_m, "object pixel: set `pixel_size`"),
    ):
        label = text.partition(":")[0]
        if not value and not any(each.startswith(label) for each in missing):
            missing.append(text)
