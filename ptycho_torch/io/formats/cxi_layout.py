"""Read the paths of CXI files, which NXcxi_ptycho shares."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import PLANCK_TIMES_LIGHT_SPEED_J_M, Geometry, Propagation
from ptycho_torch.io.export import read_result_origin
from ptycho_torch.io.formats.layers import flatten_layers
from ptycho_torch.io.formats.ptychodus_product import compute_centered_origin
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.units import UNIT_FACTORS

ENTRY = "/entry_1"
DETECTOR = f"{ENTRY}/instrument_1/detector_1"
SOURCE = f"{ENTRY}/instrument_1/source_1"
PATTERN_PATHS = (f"{ENTRY}/data_1/data", f"{DETECTOR}/data")
POSITION_PATHS = (
    f"{ENTRY}/sample_1/geometry_1/translation",
    f"{ENTRY}/data_1/translation",
    f"{DETECTOR}/translation",
    f"{ENTRY}/sample_1/geometry/translation",
)
BEAM_ENERGY_PATHS = (
    f"{ENTRY}/instrument_1/beam_1/incident_beam_energy",
    f"{ENTRY}/instrument_1/beam_1/energy",
    f"{ENTRY}/sample_1/beam_1/incident_beam_energy",
)
"""Photon energy of NeXus files, where the energy of the source may be that of the machine."""

TITLE_PATHS = (f"{ENTRY}/title", f"{ENTRY}/experiment_description", f"{ENTRY}/experiment_identifier")

SIGNAL_BIT = 0x1000
"""Value of the mask of a pixel with signal above background, which counts."""

WAVELENGTH_RANGE_M = (1e-12, 1e-7)
"""Wavelengths of photons in ptychography."""


def read_cxi(tree: Hdf5File, settings: InputSettings, name: str) -> ScanParts:
    """Read the entry 1 of a CXI file.

    Args:
        tree: the file.
        settings: settings of reading; a given wavelength replaces that of the file, which is not read.
        name: name of the format.

    Raises:
        DataError: a dataset is damaged, has another rank or kind, or the energy is no energy in joules.
    """
    report = InputReport(name)
    parts: dict[str, Any] = read_patterns(tree, PATTERN_PATHS, report)
    pixel, directions = _read_pixel(tree, report)
    wavelength = read_wavelength(
        tree, settings, f"{SOURCE}/wavelength", (*BEAM_ENERGY_PATHS, f"{SOURCE}/energy"), report
    )
    parts |= _read_detector(tree, wavelength, report)
    parts["positions"] = _read_positions(tree, directions, report)
    parts |= _read_images(tree, report)
    numbers = f"{ENTRY}/ptychodus/probe_position_indexes"
    if parts.get("patterns") is None and tree.has(numbers):
        parts["position_numbers"] = tree.read(numbers, kinds="iu", ndim=1).astype(np.int64)
    elif parts["positions"] is None and parts.get("patterns") is not None:
        parts["pattern_numbers"] = np.arange(len(parts["patterns"]))
    return ScanParts(
        **parts,
        geometry=Geometry(
            wavelength_m=wavelength,
            distance_m=read_length(tree, (f"{DETECTOR}/distance",), "distance", report),
            detector_pixel_m=pixel,
            object_pixel_m=_read_object_pixel(tree, report),
            propagation=_find_propagation(tree, report),
        ),
        metadata=read_result_origin(tree),
        report=report,
    )


def read_patterns(tree: Hdf5File, paths: tuple[str, ...], report: InputReport) -> dict[str, Any]:
    """Read the patterns at the first of ``paths`` that exists: (n, rows, columns), or scan axes in front, or one.

    Raises:
        DataError: the dataset is damaged, or no stack of real numbers.
    """
    path = tree.find(*paths)
    if path is None:
        report.missing.append(f"patterns: expected at {' or '.join(paths)}; set `patterns_file` or `diffraction_key`")
        return {}
    patterns = tree.read(path, kinds="biuf", ndim=(2, 3, 4))
    conversion = ""
    if patterns.ndim == 2:
        patterns, conversion = patterns[None], "one pattern"
    elif patterns.ndim == 4:
        patterns, conversion = (
            patterns.reshape(math.prod(patterns.shape[:2]), *patterns.shape[2:]),
            "two scan axes joined, the second is fast",
        )
    report.add("patterns", path, "counts", conversion)
    return {"patterns": patterns}


def read_center(tree: Hdf5File, paths: Sequence[str], report: InputReport) -> tuple[float, float] | None:
    """Return the beam center (y, x) in pixels at two ``paths``; None: a path is missing, or both values are 0.

    Detectors whose control system has no beam center write zeros.
    """
    if not paths or not all(map(tree.has, paths)):
        return None
    y, x = map(tree.read_mean, paths)
    if not y and not x:
        return None
    report.add("center", ", ".join(paths), "pixel")
    return y, x


def read_length(
    tree: Hdf5File, paths: tuple[str, ...], label: str, report: InputReport, unit: str = "m"
) -> float | None:
    """Read a positive length in meters at the first of ``paths`` that exists; None if there is none.

    Raises:
        DataError: the dataset is damaged or no number.
    """
    path = tree.find(*paths)
    if path is None:
        return None
    quantity = tree.read_quantity(path, unit)
    if not quantity.value > 0:
        report.assumptions.append(f"{path} is {quantity.value}; the {label} is unknown")
        return None
    report.add(label, path, quantity.unit)
    return quantity.value


def read_wavelength(
    tree: Hdf5File,
    settings: InputSettings,
    wavelength_path: str,
    energy_paths: tuple[str, ...],
    report: InputReport,
    energy_unit: str = "J",
) -> float | None:
    """Read the wavelength in meters, from itself or from the first photon energy of ``energy_paths`` that exists.

    Raises:
        DataError: the energy gives no wavelength of photons.
    """
    if settings.wavelength or settings.energy_ev or settings.voltage_kv:
        return None
    wavelength = read_length(tree, (wavelength_path,), "wavelength", report) if wavelength_path else None
    if wavelength is not None:
        return wavelength
    path = tree.find(*energy_paths)
    if path is None:
        return None
    energy = tree.read_quantity(path, energy_unit)
    if energy.value == 0:
        report.assumptions.append(f"{path} is 0; the wavelength is unknown")
        return None
    wavelength = PLANCK_TIMES_LIGHT_SPEED_J_M / energy.value
    if not WAVELENGTH_RANGE_M[0] <= wavelength <= WAVELENGTH_RANGE_M[1]:
        raise DataError(
            f"{tree.path}: {path} is {energy.value / UNIT_FACTORS[energy.unit.lower()]:.6g} {energy.unit}, which is no "
            f"photon energy (wavelength {wavelength:.3g} m); expected {WAVELENGTH_RANGE_M[0]:g} m to "
            f"{WAVELENGTH_RANGE_M[1]:g} m; set `energy_ev`"
        )
    report.add("wavelength", path, energy.unit, "energy to wavelength")
    return wavelength


def _read_pixel(tree: Hdf5File, report: InputReport) -> tuple[tuple[float, float] | None, NDArray[np.float64]]:
    """Return the sides (y, x) of a detector pixel, and unit vectors (2, 3) of the row and column steps."""
    directions = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    sides = [read_length(tree, (f"{DETECTOR}/{axis}_pixel_size",), f"detector pixel {axis}", report) for axis in "yx"]
    path = f"{DETECTOR}/basis_vectors"
    if tree.has(path):
        basis = tree.read(path, kinds="iuf", ndim=(2, 3)).astype(np.float64)
        basis = basis.mean(0) if basis.ndim == 3 else basis
        basis = basis.T if basis.shape == (3, 2) else basis
        lengths = np.linalg.norm(basis, axis=-1)
        if basis.shape != (2, 3) or not np.isfinite(lengths).all() or not (lengths > 0).all():
            raise DataError(f"{tree.path}: {path} has shape {basis.shape}; expected two step vectors, (2, 3)")
        directions = basis / lengths[:, None]
        report.add("detector axes", path, "m", "steps of rows and columns in the laboratory")
        sides = [side or float(length) for side, length in zip(sides, lengths, strict=True)]
    else:
        report.assumptions.append(f"{path} is missing: rows step along -y, columns along -x of the laboratory")
    y, x = sides[0] or sides[1], sides[1] or sides[0]
    return (None if y is None or x is None else (y, x)), directions


def _read_positions(tree: Hdf5File, directions: NDArray[np.float64], report: InputReport) -> NDArray[np.float64] | None:
    """Return the positions of the probe in meters: the negative translation of the sample along the detector axes."""
    path = tree.find(*POSITION_PATHS)
    if path is None:
        report.missing.append(f"positions: expected at {' or '.join(POSITION_PATHS)}; set `positions_file`")
        return None
    translation = tree.read(path, kinds="iuf", ndim=2).astype(np.float64)
    if translation.shape[1] not in (2, 3):
        raise DataError(f"{tree.path}: {path} has shape {translation.shape}; expected (n, 3), x, y and z")
    unit = tree.get_unit(path, "m")
    report.add("positions", path, unit, "negative translation of the sample along rows and columns of the detector")
    positions: NDArray[np.float64] = -translation @ directions[:, : translation.shape[1]].T * UNIT_FACTORS[unit.lower()]
    return positions


def _read_detector(tree: Hdf5File, wavelength: float | None, report: InputReport) -> dict[str, Any]:
    """Read mask, dark, flat, center and photons per count."""
    found: dict[str, Any] = {}
    if tree.has(f"{DETECTOR}/mask"):
        bits = tree.read(f"{DETECTOR}/mask", kinds="biuf", ndim=(2, 3)).astype(np.int64)
        found["mask"] = (bits == 0) | (bits == SIGNAL_BIT)
        report.add("mask", f"{DETECTOR}/mask", "bits", f"0 and {SIGNAL_BIT:#x} count")
    dark = _read_frame(tree, f"{DETECTOR}/data_dark")
    if dark is not None:
        found["dark"] = dark
        report.add("dark", f"{DETECTOR}/data_dark", "counts", "mean of the frames")
    white, efficiency = _read_frame(tree, f"{DETECTOR}/data_white"), _read_frame(tree, f"{DETECTOR}/qe_mask")
    if white is not None:
        white = white if dark is None or dark.shape != white.shape else white - dark
        found["flat"] = white / white.mean()
        report.add("flat", f"{DETECTOR}/data_white", "counts", "divided by its mean")
    elif efficiency is not None:
        found["flat"] = efficiency
        report.add("flat", f"{DETECTOR}/qe_mask")
    center = read_center(tree, [f"{DETECTOR}/beam_center_{axis}" for axis in "yx"], report)
    if center is not None:
        found["center"] = center
    path = f"{DETECTOR}/counts_per_joule"
    if wavelength is not None and tree.has(path) and tree.read_mean(path) > 0:
        found["photons_per_unit"] = wavelength / (PLANCK_TIMES_LIGHT_SPEED_J_M * tree.read_mean(path))
        report.add("photons_per_unit", path, "counts per joule", "photons per count")
    return found


def _read_frame(tree: Hdf5File, path: str) -> NDArray[np.float64] | None:
    """Return the mean frame at ``path``; None if it is missing."""
    if not tree.has(path):
        return None
    frames = tree.read(path, kinds="biuf", ndim=(2, 3)).astype(np.float64)
    return frames if frames.ndim == 2 else np.asarray(frames.mean(0))


def _read_images(tree: Hdf5File, report: InputReport) -> dict[str, Any]:
    """Read the probe, and an object with a known place."""
    found: dict[str, Any] = {}
    path = tree.find(f"{SOURCE}/illumination", f"{ENTRY}/image_1/data")
    if path is not None and _is_complex(tree, path):
        probe = tree.read(path, kinds="c", ndim=(2, 3, 4))
        if probe.ndim == 4:
            if len(probe) > 1:
                report.assumptions.append(f"{path}: the first of {len(probe)} orthogonal relaxation modes is read")
            probe = probe[0]
        found["probe"] = probe if probe.ndim == 3 else probe[None]
        report.add("probe", path)
    path = f"{ENTRY}/image_2/data"
    center = [f"{ENTRY}/ptychodus/object_center_{axis}_m" for axis in "yx"]
    pixel = _read_object_pixel(tree, InputReport())
    if "probe" in found and tree.has(path) and _is_complex(tree, path) and pixel and all(map(tree.has, center)):
        found["object"] = flatten_layers(tree.read(path, kinds="c", ndim=(2, 3)), path, report)
        middle = (tree.read_number(center[0]), tree.read_number(center[1]))
        size = found["probe"].shape[-1]
        found["object_origin"] = compute_centered_origin(found["object"].shape, size, pixel, middle)
        report.add("object", path, "", "the middle of an array is (side - 1)/2")
    return found


def _is_complex(tree: Hdf5File, path: str) -> bool:
    dtype = tree.get_dtype(path)
    return dtype.kind == "c" or dtype.names is not None


def _read_object_pixel(tree: Hdf5File, report: InputReport) -> tuple[float, float] | None:
    paths = [f"{ENTRY}/ptychodus/object_pixel_{side}_m" for side in ("height", "width")]
    sides = [read_length(tree, (path,), "object pixel", report) for path in paths]
    return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])


def _find_propagation(tree: Hdf5File, report: InputReport) -> Propagation:
    """Return the propagation, which only descriptions in words give."""
    texts = {
        path: tree.read_text(path) for path in TITLE_PATHS if tree.has(path) and tree.get_dtype(path).kind in "OSU"
    }
    for place, text in texts.items():
        words = text.lower().replace("-", " ").replace("_", " ")
        if "near field" in words or "nearfield" in words:
            report.add("propagation", place, "", "near field")
            return "near_field"
    return "far_field"
