"""Products of Ptychodus (``product.h5``, ``product.npz``): probe, object and positions in meters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry, compute_photon_wavelength
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.export import (
    Hdf5Writer,
    compute_photons,
    get_position_numbers,
    make_object_canvas,
    put_result_origin,
    read_result_origin,
    require_photon_energy,
    solve_geometry,
    write_hdf5,
)
from ptycho_torch.io.formats.base import ResultWriter, ScanWriter
from ptycho_torch.io.formats.members import list_members, read_member, read_scalar, read_vector
from ptycho_torch.io.formats.ptychodus_patterns import list_diffraction_files, write_patterns
from ptycho_torch.io.parts import InputReport, ScanParts

ENERGY_NAMES = ("photon_energy_eV", "probe_energy_eV")
"""Names of the photon energy, the newer first."""

ARRAY_NAMES = {"probe_position_x_m", "probe_position_y_m", "probe", "object"}


def compute_half_pixel(size: int) -> float:
    """Return the offset of our position from that of programs that put the center of the probe at (N - 1)/2.

    Args:
        size: N, side of the probe in pixels.
    """
    return 0.5 if size % 2 == 0 else 0.0


def compute_centered_origin(
    shape: tuple[int, ...], size: int, pixel: tuple[float, float], center: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Return the position of the first pixel of an object whose middle, (side - 1)/2, is at ``center``.

    Args:
        shape: (rows, columns) of the object.
        size: N, side of the probe in pixels.
        pixel: sides (y, x) of an object pixel.
        center: position (y, x) of the middle, in the unit of ``pixel``.
    """
    half = compute_half_pixel(size)
    rows, columns = shape[-2:]
    return center[0] - pixel[0] * ((rows - 1) / 2 + half), center[1] - pixel[1] * ((columns - 1) / 2 + half)


class PtychodusProductFormat(ScanWriter, ResultWriter):
    """Products of Ptychodus, with the diffraction file beside them."""

    name = "ptychodus"
    title = "Ptychodus product (.h5, .npz), with its diffraction file"
    result_suffixes = (".h5", ".hdf5")
    writes_pair = True
    omitted_parts = ("scan_index",)

    def matches(self, file: InputFile) -> bool:
        names = list_members(file)
        if names.isdisjoint(ARRAY_NAMES):
            return False
        facts = names if file.hdf5 is None else set(file.hdf5.get_attributes("/"))
        return not facts.isdisjoint(ENERGY_NAMES)

    def list_partners(self, path: Path) -> Sequence[Path]:
        return list_diffraction_files(path)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        report = InputReport(self.name)
        facts = _read_facts(file)
        probe = read_probe(file, report)
        obj = read_object(file, report)
        height, width = (_require_length(file, facts, f"object_pixel_{side}_m") for side in ("height", "width"))
        report.add("object pixel", "object: pixel_height_m, pixel_width_m", "m")
        center = (_require(file, facts, "object_center_y_m"), _require(file, facts, "object_center_x_m"))
        positions = np.stack([read_vector(file, f"probe_position_{axis}_m") for axis in "yx"], 1)
        report.add("positions", "probe_position_y_m, probe_position_x_m", "m", "the middle of an array is (side - 1)/2")
        numbers = None
        if "probe_position_indexes" in list_members(file):
            numbers = read_member(file, "probe_position_indexes", kinds="iu", ndim=1).astype(np.int64)
        photons = None
        if "probe_photon_counts" in list_members(file):
            photons = read_vector(file, "probe_photon_counts", len(positions))
        for name, values in (("probe_position_indexes", numbers), ("probe_photon_counts", photons)):
            if values is not None and len(values) != len(positions):
                raise DataError(f"{file.path}: {name} has {len(values)} values for {len(positions)} positions")
        return ScanParts(
            positions=positions,
            position_numbers=numbers,
            probe=probe,
            object=obj,
            object_origin=compute_centered_origin(obj.shape, probe.shape[-1], (height, width), center),
            intensities=None if photons is None or not (photons > 0).all() else photons,
            geometry=_make_geometry(file, facts, (height, width), report),
            metadata=read_result_origin(file.hdf5),
            report=report,
        )

    def write_scan(self, path: Path, scan: Scan) -> None:
        name = str(path)
        geometry = solve_geometry(scan.geometry, scan.size, name)
        obj, origin = make_object_canvas(scan)
        photons = compute_photons(scan)
        mean = float(np.where(_broadcast_mask(scan), photons, 0).sum(dtype=np.float64) / len(scan))
        probe = scan.require_probe()
        partner = next((each for each in list_diffraction_files(path) if each != path), None)
        if partner is None:
            raise DataError(f"{path}: the name is one of a diffraction file; expected another, such as product.h5")
        with write_hdf5(path) as writer:
            _write_product(writer, probe, obj, scan.positions - origin, geometry, mean, name)
            writer.put("probe_position_indexes", np.arange(len(scan)))
            write_patterns(partner, photons, scan.mask, geometry)

    def write_result(self, path: Path, result: Reconstruction) -> None:
        size = result.probe.shape[-1]
        geometry = solve_geometry(result.geometry, size, str(path))
        power = float(np.square(np.abs(result.probe)).sum(dtype=np.float64))
        with write_hdf5(path) as writer:
            positions = result.positions - result.origin_yx
            _write_product(writer, result.probe, result.object, positions, geometry, power, str(path))
            writer.put("probe_position_indexes", get_position_numbers(result))
            put_result_origin(writer, result)
            if result.intensities is not None:
                writer.put("probe_photon_counts", result.intensities.astype(np.float64) * power)


def read_probe(file: InputFile, report: InputReport) -> NDArray[np.complexfloating]:
    """Read the probe modes, (modes, N, N); a probe per pattern becomes its mean.

    Raises:
        DataError: the probe is missing or has no modes.
    """
    probe = read_member(file, "probe", kinds="c", ndim=(2, 3, 4))
    report.add("probe", "probe")
    if 0 in probe.shape:
        raise DataError(f"{file.path}: probe has shape {probe.shape}; expected (modes, N, N)")
    if probe.ndim < 4:
        return probe if probe.ndim == 3 else probe[None]
    if len(probe) == 1:
        modes: NDArray[np.complexfloating] = probe[0]
        return modes
    weights = np.zeros(len(probe))
    weights[0] = 1
    if "opr_weights" in list_members(file):
        stored = read_member(file, "opr_weights", kinds="iuf", ndim=2)
        if stored.shape[1] != len(probe) or not len(stored):
            raise DataError(f"{file.path}: opr_weights has shape {stored.shape}; expected (n, {len(probe)})")
        weights = stored.mean(0)
    report.assumptions.append(
        f"probe: the mean over the patterns of {len(probe)} orthogonal relaxation modes is the first mode"
    )
    first = np.einsum("k,kyx->yx", weights, probe[:, 0])
    return np.concatenate([first[None], probe[0, 1:]])


def read_object(file: InputFile, report: InputReport) -> NDArray[np.complexfloating]:
    """Read the object, (rows, columns); layers are multiplied.

    Raises:
        DataError: the object is missing or has no layers.
    """
    obj = read_member(file, "object", kinds="c", ndim=(2, 3))
    report.add("object", "object")
    if obj.ndim == 3:
        if not len(obj):
            raise DataError(f"{file.path}: object has shape {obj.shape}; expected (layers, rows, columns)")
        if len(obj) > 1:
            report.assumptions.append(f"object: the product of {len(obj)} layers is read")
        obj = np.prod(obj, axis=0)
    result: NDArray[np.complexfloating] = obj
    return result


def _read_facts(file: InputFile) -> dict[str, float]:
    """Return the numbers of a product by their names in an NPZ file, where attributes of arrays have a prefix."""
    facts: dict[str, float] = {}
    if file.hdf5 is None:
        names = list_members(file)
        wanted = [f"{array}_{fact}" for array in ("probe", "object") for fact in _ARRAY_FACTS]
        return {name: read_scalar(file, name) for name in (*_PRODUCT_FACTS, *wanted) if name in names}
    attributes = {name: value for name, value in file.hdf5.get_attributes("/").items() if name in _PRODUCT_FACTS}
    for array in ("probe", "object"):
        found = file.hdf5.get_attributes(f"/{array}")
        attributes |= {f"{array}_{name}": value for name, value in found.items() if name in _ARRAY_FACTS}
    for name, value in attributes.items():
        if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "biuf":
            raise DataError(f"{file.path}: the attribute {name} is {value!r}; expected one number")
        facts[name] = float(value.reshape(-1)[0])
    return facts


_PRODUCT_FACTS = (*ENERGY_NAMES, "detector_object_distance_m", "far_field")
_ARRAY_FACTS = ("pixel_width_m", "pixel_height_m", "center_x_m", "center_y_m")


def _require(file: InputFile, facts: dict[str, float], name: str) -> float:
    value = facts.get(name)
    if value is None or not np.isfinite(value):
        raise DataError(f"{file.path}: {name} is {value}; expected a finite number")
    return value


def _require_length(file: InputFile, facts: dict[str, float], name: str) -> float:
    value = _require(file, facts, name)
    if value <= 0:
        raise DataError(f"{file.path}: {name} is {value}; expected a positive length in meters")
    return value


def _make_geometry(
    file: InputFile, facts: dict[str, float], pixel: tuple[float, float], report: InputReport
) -> Geometry:
    name = next((name for name in ENERGY_NAMES if name in facts), None)
    if name is not None:
        report.add("wavelength", name, "eV", "energy to wavelength")
    distance = facts.get("detector_object_distance_m")
    if distance is not None and not (np.isfinite(distance) and distance > 0):
        report.assumptions.append(f"detector_object_distance_m is {distance}: the distance is unknown")
        distance = None
    if distance is not None:
        report.add("distance", "detector_object_distance_m", "m")
    return Geometry(
        wavelength_m=None if name is None else compute_photon_wavelength(_require_length(file, facts, name)),
        distance_m=distance,
        object_pixel_m=pixel,
        propagation="far_field" if facts.get("far_field", 1.0) else "near_field",
    )


def _broadcast_mask(scan: Scan) -> NDArray[np.bool_]:
    return np.broadcast_to(True if scan.mask is None else scan.mask, scan.amplitudes.shape)


def _write_product(
    writer: Hdf5Writer,
    probe: NDArray[Any],
    obj: NDArray[Any],
    positions: NDArray[np.float64],
    geometry: Geometry,
    photons: float,
    name: str,
) -> None:
    """Write a product whose object has its middle at the position (0, 0).

    Args:
        writer: the file.
        probe: (modes, N, N).
        obj: (rows, columns).
        positions: (n, 2) in pixels of ``obj``.
        geometry: complete geometry.
        photons: power of the probe in photons.
        name: the file, for errors.
    """
    pixel = geometry.object_pixel_m
    assert pixel is not None  # complete
    facts = {
        "name": "ptycho_torch",
        "comments": "",
        "detector_object_distance_m": geometry.distance_m,
        "photon_energy_eV": require_photon_energy(geometry, name),
        "probe_photon_count": photons,
        "exposure_time_s": 0.0,
        "mass_attenuation_m2_per_kg": 0.0,
        "tomography_angle_deg": 0.0,
        "focus_object_distance_m": 0.0,
        "tilt_angle_deg": 0.0,
        "far_field": True,
    }
    writer.set_attributes("/", **facts)
    origin = compute_centered_origin(obj.shape, probe.shape[-1], pixel)
    meters = positions * pixel + origin
    sides = {"pixel_height_m": pixel[0], "pixel_width_m": pixel[1]}
    writer.put("probe_position_x_m", meters[:, 1])
    writer.put("probe_position_y_m", meters[:, 0])
    writer.put("probe", probe[None].astype(np.complex64), sides)
    writer.put("object", obj[None].astype(np.complex64), sides | {"center_x_m": 0.0, "center_y_m": 0.0})
    for empty in ("object_layer_spacing_m", "loss_epochs", "loss_values"):
        writer.put(empty, np.zeros(0))
