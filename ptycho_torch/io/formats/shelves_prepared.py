"""Prepared data of PtychoShelves (cSAXS): HDF5 files that its Python or MATLAB preparation wrote, old and new."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.lengths import parse_number
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.size_limits import check_array_size

OLD_ROOT = "/measurements"


class ShelvesPreparedFormat(Format):
    """Patterns, masks and window corners in pixels; probe and geometry are elsewhere."""

    name = "ptychoshelves_data"
    title = "prepared data of PtychoShelves (HDF5), LibDetXR and older"

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        return tree is not None and (tree.has("/measurement/n0/data") or tree.is_group(f"{OLD_ROOT}/measurement_0"))

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        report = InputReport(self.name)
        if file.tree.is_group(f"{OLD_ROOT}/measurement_0"):
            return _read_old(file.tree, report)
        return _read_new(file.tree, report)


def _list_numbered(tree: Hdf5File, group: str, prefix: str) -> list[str]:
    """Return the paths of the members ``<prefix><number>`` of a group, by number."""
    pattern = re.compile(rf"{prefix}(\d{{1,9}})")
    numbers = sorted(int(found[1]) for name in tree.list_members(group) if (found := pattern.fullmatch(name)))
    return [f"{group}/{prefix}{number}" for number in numbers]


def _read_new(tree: Hdf5File, report: InputReport) -> ScanParts:
    """Read ``/measurement/n<k>``: one group per scan."""
    stacks: list[NDArray[Any]] = []
    corners, masks, numbers = [], [], []
    groups = _list_numbered(tree, "/measurement", "n")
    if not groups:
        raise DataError(f"{tree.path}: there is no /measurement/n0; expected prepared data of PtychoShelves")
    for group in groups:
        data = tree.read(f"{group}/data", kinds="biuf", ndim=3)
        places = tree.read(f"{group}/positions", kinds="iuf", ndim=2)
        if stacks and data.shape[1:] != stacks[0].shape[1:]:
            raise DataError(
                f"{tree.path}: {group}/data has shape {data.shape}; expected patterns of {stacks[0].shape[1:]} pixels"
            )
        if places.shape != (len(data), 2):
            raise DataError(
                f"{tree.path}: {group}/positions has shape {places.shape}; expected ({len(data)}, 2), one per pattern"
            )
        number = int(group.rpartition("n")[2])
        detector = parse_number(tree.get_attributes(group).get("detector"))
        place = f"/detector/n{number if detector is None else int(detector)}"
        stacks.append(data)
        corners.append(places)
        masks.append(_read_mask(tree, group, place, data.shape))
        numbers.append(np.full(len(data), number))
    patterns = np.concatenate(stacks)
    report.add("patterns", ", ".join(f"{group}/data" for group in groups), "counts")
    return ScanParts(
        patterns=patterns,
        positions=_make_positions(np.concatenate(corners), patterns.shape[1:], "/measurement/n*/positions", report),
        position_unit="pixel",
        mask=_join_masks(masks, [len(data) for data in stacks]),
        scan_index=np.concatenate(numbers).astype(np.int64) if len(groups) > 1 else None,
        report=report,
    )


def _read_old(tree: Hdf5File, report: InputReport) -> ScanParts:
    """Read ``/measurements/measurement_<k>``: one group per pattern, amplitudes."""
    frames: list[NDArray[Any]] = []
    corners, masks, numbers = [], [], []
    detectors: dict[int, NDArray[np.bool_]] = {}
    groups = _list_numbered(tree, OLD_ROOT, "measurement_")
    for group in groups:
        frame = tree.read(f"{group}/diff_pat", kinds="biuf", ndim=2)
        if not frames:
            check_array_size(f"{tree.path}: {group}/diff_pat", (len(groups), *frame.shape), frame.dtype)
        elif frame.shape != frames[0].shape:
            raise DataError(
                f"{tree.path}: {group}/diff_pat has shape {frame.shape}; expected {frames[0].shape}, as the first"
            )
        attributes = tree.get_attributes(f"{group}/diff_pat") | tree.get_attributes(group)
        corners.append(_check_corner(attributes.get("position"), tree, group))
        number = int(parse_number(attributes.get("detector")) or 0)
        if number not in detectors:
            detectors[number] = _read_modules(tree, f"/detectors/detector_{number}", frame.shape)
        mask = detectors[number].copy()
        _clear_pixels(mask, tree, f"{group}/bad_pixels")
        frames.append(frame)
        masks.append(mask)
        numbers.append(number)
    patterns, mask = np.stack(frames), np.stack(masks)
    report.add("patterns", f"{OLD_ROOT}/measurement_*/diff_pat", "amplitude")
    power = parse_number(tree.get_attributes(OLD_ROOT).get("max_power"))
    if power is not None and power > 0:
        report.add("photons per squared amplitude", f"{OLD_ROOT} max_power")
    return ScanParts(
        patterns=patterns,
        measurement="amplitude",
        photons_per_unit=power if power and power > 0 else None,
        positions=_make_positions(np.stack(corners), patterns.shape[1:], f"{OLD_ROOT}/measurement_* position", report),
        position_unit="pixel",
        mask=mask[0] if (mask == mask[0]).all() else mask,
        scan_index=np.array(numbers, np.int64) if len(detectors) > 1 else None,
        report=report,
    )


def _make_positions(
    corners: NDArray[Any], shape: tuple[int, ...], path: str, report: InputReport
) -> NDArray[np.float64]:
    """Return the centers of windows of ``shape`` from their first pixels, (n, 2)."""
    offset = (shape[0] // 2, shape[1] // 2)
    report.add("positions", path, "pixel", f"(row, column) of the first pixel + {offset}")
    positions: NDArray[np.float64] = corners.astype(np.float64) + offset
    return positions


def _check_corner(value: Any, tree: Hdf5File, group: str) -> NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.size != 2 or value.dtype.kind not in "iuf":
        raise DataError(f"{tree.path}: the attribute position of {group} is {value}; expected (row, column)")
    return value.reshape(2)


def _read_mask(tree: Hdf5File, group: str, detector: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the mask (rows, columns) or (n, rows, columns) of the patterns of a scan."""
    mask = _read_modules(tree, detector, shape[1:])
    _clear_pixels(mask, tree, f"{detector}/bad_pixels")
    if not tree.has(f"{group}/bad_pixels_index"):
        _clear_pixels(mask, tree, f"{group}/bad_pixels")
        return mask
    pixels = _read_pixels(tree, f"{group}/bad_pixels")
    ends = tree.read(f"{group}/bad_pixels_index", kinds="iu").astype(np.int64).reshape(-1)
    if len(ends) != shape[0] or (np.diff(ends, prepend=0) < 0).any() or (len(ends) and ends[-1] > len(pixels)):
        raise DataError(
            f"{tree.path}: {group}/bad_pixels_index has {len(ends)} values up to {ends.max(initial=0)}; expected for "
            f"each of {shape[0]} patterns the end of its part of {len(pixels)} pixels"
        )
    masks: NDArray[np.bool_] = np.repeat(mask[None], shape[0], 0)
    frames = np.searchsorted(ends, np.arange(int(ends[-1]) if len(ends) else 0), side="right")
    _set_pixels(masks, (frames, *pixels[: len(frames)].T), tree, f"{group}/bad_pixels")
    return masks


def _read_modules(tree: Hdf5File, detector: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the mask (rows, columns) that is True inside the modules of a detector."""
    path = f"{detector}/modules"
    if not tree.has(path):
        return np.ones(shape, bool)
    modules = tree.read(path, kinds="iu", ndim=2).astype(np.int64)
    if modules.shape[1] != 4:
        raise DataError(f"{tree.path}: {path} has shape {modules.shape}; expected (modules, 4)")
    mask = np.zeros(shape, bool)
    for rows, columns, top, left in modules:
        if top < 0 or left < 0 or rows <= 0 or columns <= 0 or top + rows > shape[0] or left + columns > shape[1]:
            raise DataError(
                f"{tree.path}: {path} holds a module of {rows} × {columns} pixels at ({top}, {left}); expected it "
                f"inside the patterns of {shape[0]} × {shape[1]} pixels"
            )
        mask[top : top + rows, left : left + columns] = True
    return mask


def _read_pixels(tree: Hdf5File, path: str) -> NDArray[np.int64]:
    """Return the (row, column) of listed pixels, (n, 2)."""
    pixels = tree.read(path, kinds="iuf").astype(np.int64)
    if not pixels.size:
        return np.zeros((0, 2), np.int64)
    if pixels.ndim != 2 or pixels.shape[1] != 2:
        raise DataError(f"{tree.path}: {path} has shape {pixels.shape}; expected (n, 2)")
    return pixels


def _clear_pixels(mask: NDArray[np.bool_], tree: Hdf5File, path: str) -> None:
    """Set the listed pixels of a mask to False, if ``path`` exists."""
    if tree.has(path):
        _set_pixels(mask, tuple(_read_pixels(tree, path).T), tree, path)


def _set_pixels(mask: NDArray[np.bool_], index: tuple[NDArray[Any], ...], tree: Hdf5File, path: str) -> None:
    limits = mask.shape[-len(index) :]
    if any(((axis < 0) | (axis >= side)).any() for axis, side in zip(index, limits, strict=True)):
        raise DataError(f"{tree.path}: {path} holds pixels outside the patterns; expected rows and columns from 0")
    mask[index] = False


def _join_masks(masks: list[NDArray[np.bool_]], counts: list[int]) -> NDArray[np.bool_]:
    """Return the mask of all patterns, (rows, columns) if it is the same for each."""
    if all(mask.ndim == 2 and (mask == masks[0]).all() for mask in masks):
        return masks[0]
    stacks = [
        mask if mask.ndim == 3 else np.repeat(mask[None], count, 0) for mask, count in zip(masks, counts, strict=True)
    ]
    return np.concatenate(stacks)
