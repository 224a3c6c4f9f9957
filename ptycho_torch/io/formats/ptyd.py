"""Prepared data of ptypy (``.ptyd``): counts in chunks, positions in meters, geometry."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry, compute_photon_wavelength
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.export import (
    Hdf5Writer,
    compute_photons,
    require_photon_energy,
    solve_geometry,
    write_hdf5,
)
from ptycho_torch.io.formats.base import ScanWriter
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

ABSENT_KINDS = ("None", "pickle", "record_array")
"""Values of the attribute ``type`` of a node without a value, or with one that must not be read."""

EV_PER_KEV = 1e3


def has_value(tree: Hdf5File, path: str) -> bool:
    """Return True if ``path`` exists and holds a value: ptypy stores None as an array of one zero."""
    return tree.has(path) and tree.get_text_attribute(path, "type") not in ABSENT_KINDS


class PtydFormat(ScanWriter):
    """Prepared data of ptypy."""

    name = "ptyd"
    title = "ptypy prepared data (.ptyd)"
    scan_suffixes = (".ptyd",)
    omitted_parts = ("probe", "object", "scan_index")

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and file.hdf5.is_group("/chunks") and file.hdf5.is_group("/meta")

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree = file.tree
        report = InputReport(self.name)
        chunks = _list_chunks(tree)
        data = [tree.read(f"{chunk}/data", kinds="biuf", ndim=3) for chunk in chunks]
        shapes = {each.shape[1:] for each in data}
        if len(shapes) > 1:
            raise DataError(f"{file.path}: patterns of the chunks have the shapes {sorted(shapes)}; expected one shape")
        numbers = [_read_numbers(tree, chunk, len(each)) for chunk, each in zip(chunks, data, strict=True)]
        if any(number is None for number in numbers):
            report.assumptions.append("a chunk has no indices: patterns are in the order of the chunks")
            numbers = list(np.split(np.arange(sum(map(len, data))), np.cumsum([len(each) for each in data])[:-1]))
        joined = np.concatenate([number for number in numbers if number is not None])
        order = np.argsort(joined, kind="stable")
        report.add("patterns", "/chunks/*/data", "counts", "sorted by /chunks/*/indices")
        positions = _read_positions(tree, chunks, data, report)
        mask = _read_mask(tree, chunks, data, report)
        if mask is not None and mask.ndim == 3:
            mask = mask[order]
            mask = mask[0] if (mask == mask[0]).all() else mask
        return ScanParts(
            patterns=np.concatenate(data)[order],
            pattern_numbers=joined[order],
            positions=None if positions is None else positions[order],
            position_numbers=None if positions is None else joined[order],
            mask=None if mask is None or mask.all() else mask,
            center=_read_center(tree, data[0].shape[1:], report),
            geometry=_read_geometry(tree, report),
            report=report,
        )

    def write_scan(self, path: Path, scan: Scan) -> None:
        geometry = solve_geometry(scan.geometry, scan.size, str(path))
        pixel = np.asarray(geometry.compute_far_field_pixel(scan.size))
        count = len(scan)
        weights = np.ones((count, scan.size, scan.size), np.float32) if scan.mask is None else scan.mask
        meta = {
            "version": "0.1",
            "label": "scan",
            "num_frames": count,
            "shape": np.array([scan.size, scan.size]),
            "psize": np.array(geometry.detector_pixel_m),
            "energy": require_photon_energy(geometry, str(path)) / EV_PER_KEV,
            "center": np.full(2, float(scan.size // 2)),
            "distance": geometry.distance_m,
            "propagation": "farfield",
        }
        with write_hdf5(path) as writer:
            writer.set_attributes("/chunks", type="dict")
            writer.set_attributes("/chunks/0", type="dict")
            put_typed(writer, "/chunks/0/data", compute_photons(scan))
            put_typed(writer, "/chunks/0/indices", np.arange(count), "arraylist")
            put_typed(writer, "/chunks/0/positions", scan.positions * pixel)
            weights = np.broadcast_to(weights, scan.amplitudes.shape).astype(np.float32)
            put_typed(writer, "/chunks/0/weights", weights)
            for group in ("/info", "/meta"):
                writer.set_attributes(group, type="dict")
                for key, value in meta.items():
                    put_typed(writer, f"{group}/{key}", value)


def put_typed(writer: Hdf5Writer, path: str, value: Any, kind: str | None = None) -> None:
    """Write a dataset with the attribute ``type`` that ptypy requires.

    Args:
        writer: the file.
        path: path of the dataset.
        value: number, text or array.
        kind: value of the attribute; None: from the type of ``value``.
    """
    if kind is None:
        kind = "string" if isinstance(value, str) else "scalar" if np.ndim(value) == 0 else "array"
    writer.put(path, value, {"type": kind})


def _list_chunks(tree: Hdf5File) -> list[str]:
    """Return the paths of the chunks in numeric order."""
    names = tree.list_members("/chunks")
    for name in names:
        if not name.isdecimal():
            raise DataError(f"{tree.path}: /chunks holds {name!r}; expected chunks named by integers")
    if not names:
        raise DataError(f"{tree.path}: /chunks is empty; expected at least one chunk of patterns")
    return [f"/chunks/{name}" for name in sorted(names, key=int)]


def _read_numbers(tree: Hdf5File, chunk: str, count: int) -> NDArray[np.int64] | None:
    path = f"{chunk}/indices"
    if not has_value(tree, path):
        return None
    numbers = tree.read(path, kinds="iu").reshape(-1).astype(np.int64)
    if len(numbers) != count:
        raise DataError(f"{tree.path}: {path} has {len(numbers)} values for {count} patterns; expected one per pattern")
    return numbers


def _read_positions(
    tree: Hdf5File, chunks: list[str], data: list[NDArray[Any]], report: InputReport
) -> NDArray[np.float64] | None:
    """Return the positions (n, 2) in meters, in the order of the chunks; None if the file has none."""
    found = []
    for chunk, patterns in zip(chunks, data, strict=True):
        path = f"{chunk}/positions"
        if not has_value(tree, path) or 0 in tree.get_shape(path):
            report.missing.append("positions: set `positions_file`")
            return None
        positions = tree.read(path, kinds="iuf", ndim=2)
        if positions.shape != (len(patterns), 2):
            raise DataError(
                f"{tree.path}: {path} has shape {positions.shape}; expected ({len(patterns)}, 2), one per pattern"
            )
        found.append(positions.astype(np.float64))
    report.add("positions", "/chunks/*/positions", "m", "columns (row, column) divided by the object pixel")
    return np.concatenate(found)


def _read_mask(
    tree: Hdf5File, chunks: list[str], data: list[NDArray[Any]], report: InputReport
) -> NDArray[np.bool_] | None:
    """Return the pixels with a positive weight; weights per chunk have priority over the common weight."""
    common = next(
        (path for path in ("/meta/weight2d", "/info/weight2d") if _has_shape(tree, path, data[0].shape[1:])), None
    )
    fallback = None if common is None else tree.read(common, kinds="biuf", ndim=2) > 0
    masks, used = [], set()
    for chunk, patterns in zip(chunks, data, strict=True):
        path = f"{chunk}/weights"
        if _has_shape(tree, path, patterns.shape) or _has_shape(tree, path, patterns.shape[1:]):
            masks.append(np.broadcast_to(tree.read(path, kinds="biuf") > 0, patterns.shape))
            used.add("/chunks/*/weights")
        elif has_value(tree, path) and 0 not in tree.get_shape(path):
            raise DataError(f"{tree.path}: {path} has shape {tree.get_shape(path)}; expected {patterns.shape}")
        else:
            masks.append(np.broadcast_to(True if fallback is None else fallback, patterns.shape))
            used |= set() if common is None else {common}
    if not used:
        return None
    report.add("mask", ", ".join(sorted(used)), "weight", "True where the weight is positive")
    return np.concatenate(masks)


def _has_shape(tree: Hdf5File, path: str, shape: tuple[int, ...]) -> bool:
    return has_value(tree, path) and tree.is_dataset(path) and tree.get_shape(path) == shape


def _read_center(tree: Hdf5File, shape: tuple[int, ...], report: InputReport) -> tuple[float, float] | None:
    """Return the pixel of zero frequency in the stored patterns; None if the file records none."""
    path = "/meta/center"
    if not has_value(tree, path) or tree.get_dtype(path).kind not in "iuf" or tree.get_shape(path) != (2,):
        report.assumptions.append("the file records no center: zero frequency is at [rows//2, columns//2]")
        return None
    center = tree.read(path, kinds="iuf").astype(np.float64)
    if not np.isfinite(center).all():
        raise DataError(f"{tree.path}: {path} is {center}; expected two finite numbers")
    report.add("center", path, "pixel")
    # Half the side is the record of a pattern that is centered on rows//2.
    row, column = (side // 2 if value == side / 2 else value for value, side in zip(center, shape, strict=True))
    return float(row), float(column)


def _read_geometry(tree: Hdf5File, report: InputReport) -> Geometry:
    found: dict[str, Any] = {}
    path = _find_fact(tree, "energy")
    if path is not None:
        found["wavelength_m"] = compute_photon_wavelength(tree.read_positive(path) * EV_PER_KEV)
        report.add("wavelength", path, "keV", "energy to wavelength")
    path = _find_fact(tree, "distance")
    if path is not None:
        found["distance_m"] = tree.read_positive(path)
        report.add("distance", path, "m")
    path = _find_fact(tree, "psize")
    if path is not None:
        sides = tree.read(path, kinds="iuf").reshape(-1).astype(np.float64)
        if sides.size not in (1, 2):
            raise DataError(f"{tree.path}: {path} has {sides.size} values; expected the sides of a detector pixel")
        found["detector_pixel_m"] = (float(sides[0]), float(sides[-1]))
        report.add("detector pixel", path, "m", "(row, column)")
    path = _find_fact(tree, "propagation")
    if path is not None and tree.read_text(path).replace("_", "").lower().startswith("near"):
        found["propagation"] = "near_field"
    return Geometry(**found)


def _find_fact(tree: Hdf5File, key: str) -> str | None:
    """Return the path of a fact of the preparation.

    The group ``info`` describes raw frames: its detector pixel is that before binning.
    """
    names = ("/meta",) if key == "psize" else ("/meta", "/info")
    return next((f"{name}/{key}" for name in names if has_value(tree, f"{name}/{key}")), None)
