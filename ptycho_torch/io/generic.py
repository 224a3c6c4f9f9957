"""Scan files of other programs: conversion of keys, axes, origin, orientation and units to the contract."""

import bz2
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.contract import find_violations, raise_for_violations
from ptycho_torch.data.conversion import make_scan_from_arrays
from ptycho_torch.data.layout import (
    REASON_GIVEN,
    REASON_METADATA,
    compute_stack_size,
    find_layout,
    move_pattern_axis_first,
    normalize_probe_shape,
    normalize_stack_shape,
)
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import read_arrays, read_arrays_from_stream, save_scan


@dataclass(frozen=True, kw_only=True)
class GenericLayout:
    """Keys and conventions of a scan file of another program.

    Patterns are shifted, then flipped, then transposed. Coordinates are swapped, then negated, then scaled.
    """

    diffraction_key: str | None = None
    """Key of the patterns; None: diffraction, diff3d or data."""

    probe_key: str | None = None
    """Key of the probe; None: probeGuess or probe."""

    object_key: str | None = None
    """Key of the object; None: objectGuess or object, if present."""

    positions_key: str | None = None
    """Key of an (n, 2) array of (y, x); None: scan or positions, if present."""

    x_key: str | None = None
    """Key of the column coordinates; None: xcoords."""

    y_key: str | None = None
    """Key of the row coordinates; None: ycoords."""

    mask_key: str | None = None
    """Key of the mask, True where a pixel counts; None: mask, if present."""

    axis_order: AxisOrder | None = None
    """Axis order of the patterns; None: from the metadata or the shape."""

    measurement: Measurement | None = None
    """Measured quantity; required unless the metadata of the file give it."""

    photons_per_unit: float | None = None
    """Photons per count, or per squared unit of amplitude; None: 1 for counts, unknown for amplitudes."""

    origin: Literal["centered", "corner"] = "centered"
    """Position of zero frequency in the patterns."""

    flip_y: bool = False
    """Reverse the rows of each pattern about zero frequency."""

    flip_x: bool = False
    """Reverse the columns of each pattern about zero frequency."""

    transpose: bool = False
    """Exchange rows and columns of each pattern."""

    swap_xy: bool = False
    """Exchange the two coordinates."""

    negate_y: bool = False
    """Change the sign of the row coordinate."""

    negate_x: bool = False
    """Change the sign of the column coordinate."""

    position_unit: Literal["pixel", "meter"] = "pixel"
    """Unit of the coordinates in the file."""

    pixel_size: float | None = None
    """Side of an object pixel in meters; required for coordinates in meters."""

    position_scale: float = 1.0
    """Factor on both coordinates, applied after the unit."""


CHOICES: dict[str, tuple[str, ...]] = {
    "axis_order": ("nhw", "hwn"),
    "measurement": ("amplitude", "counts"),
    "origin": ("centered", "corner"),
    "position_unit": ("pixel", "meter"),
}
"""Values of the settings of a generic file that are words."""


def read_compressed_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an NPZ file, which may be compressed as ``.bz2``.

    Returns:
        Arrays by key.

    Raises:
        DataError: the file is missing, not in the format of its suffix, or damaged.
        ContractError: the file holds an object array (R1).
    """
    if path.suffix != ".bz2":
        return read_arrays(path)
    try:
        content = bz2.decompress(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a bzip2 file ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: the bzip2 file is truncated ({error}); copy it again") from error
    return read_arrays_from_stream(io.BytesIO(content), str(path))


def load_generic_scan(path: str | Path, **settings: Any) -> Scan:
    """Read a scan file of another program (NPZ, also compressed as ``.npz.bz2``).

    Args:
        path: file to read.
        **settings: keys and conventions of the file, the fields of :class:`GenericLayout`.

    Raises:
        ConfigError: a setting is unknown, missing, or names a key that the file does not hold.
        DataError: the file cannot be read.
        ContractError: the converted arrays break the contract.
    """
    path = Path(path)
    return convert_arrays(read_compressed_arrays(path), _make_layout(settings), path.name, str(path))


def convert_file(source: str | Path, destination: str | Path, **settings: Any) -> Scan:
    """Convert a scan file of another program to a canonical scan file.

    Args:
        source: NPZ file, also compressed as ``.npz.bz2``.
        destination: scan file to write.
        **settings: keys and conventions of ``source``, the fields of :class:`GenericLayout`.

    Returns:
        The converted scan.

    Raises:
        ConfigError: the destination is the source, or a setting is unknown, missing, or names a key that the file does
            not hold.
        DataError: the source cannot be read or the destination cannot be written.
        ContractError: the converted arrays break the contract.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise ConfigError(f"{destination}: the destination is the source itself; choose another `destination`")
    if not destination.parent.is_dir():
        raise DataError(
            f"{destination}: there is no folder {destination.parent}; create it or choose another `destination`"
        )
    scan = load_generic_scan(source, **settings)
    save_scan(destination, scan)
    return scan


def _make_layout(settings: dict[str, Any]) -> GenericLayout:
    names = [field.name for field in fields(GenericLayout)]
    for name in settings:
        if name not in names:
            raise ConfigError(f"`{name}` is not a setting of a generic file; expected {', '.join(names)}")
    for name, choices in CHOICES.items():
        if settings.get(name) is not None and settings[name] not in choices:
            raise ConfigError(f"`{name}` is {settings[name]}; expected {' or '.join(choices)}")
    layout = GenericLayout(**settings)
    if layout.position_unit == "meter" and layout.pixel_size is None:
        raise ConfigError("`position_unit` is meter and `pixel_size` is not set; set `pixel_size` to the object pixel")
    return layout


def convert_arrays(arrays: dict[str, NDArray[Any]], generic: GenericLayout, file_name: str, name: str) -> Scan:
    """Convert the arrays of a file of another program to a scan.

    Args:
        arrays: arrays by key.
        generic: keys and conventions of the file.
        file_name: name without folders, recorded in the metadata.
        name: name for errors.

    Raises:
        ConfigError: a setting is missing, or names a key that the file does not hold.
        ContractError: the converted arrays break the contract.
    """
    renamed = _rename_arrays(arrays, generic, name)
    renamed |= {key: arrays[key] for key in ("metadata", "_metadata") if key in arrays}
    layout = find_layout(renamed, generic.axis_order, generic.measurement)
    if layout.measurement_reason not in (REASON_GIVEN, REASON_METADATA):
        dtype = renamed["diffraction"].dtype
        raise ConfigError(
            f"{name}: the patterns are {dtype} and may be counts or amplitudes; set `measurement` to counts or "
            "amplitude"
        )
    raise_for_violations(find_violations(renamed, generic.axis_order, generic.measurement), name)
    count = int(compute_stack_size(renamed["diffraction"], layout)[1] or 0)
    stacks = {
        key: move_pattern_axis_first(renamed[key], layout, count)
        for key in ("diffraction", "mask", "Y")
        if key in renamed
    }
    for key in ("diffraction", "mask"):
        if key in stacks:
            stacks[key] = orient_patterns(stacks[key], generic)
    coordinates: dict[str, NDArray[Any]] = {}
    for y, x in (("ycoords", "xcoords"), ("ycoords_start", "xcoords_start")):
        if x in renamed:
            coordinates[y], coordinates[x] = convert_positions_to_pixels(renamed[y], renamed[x], generic)
    scan = make_scan_from_arrays(
        renamed | stacks | coordinates,
        name=name,
        axis_order="nhw",
        measurement=layout.measurement,
        photons_per_unit=generic.photons_per_unit,
    )
    return replace(scan, metadata=layout.metadata | {"converted": _collect_changes(generic) | {"source": file_name}})


def _collect_changes(generic: GenericLayout) -> dict[str, Any]:
    """Return the settings that differ from the defaults, for the metadata."""
    defaults = asdict(GenericLayout())
    return {name: value for name, value in asdict(generic).items() if value != defaults[name]}


def orient_patterns(patterns: NDArray[Any], generic: GenericLayout) -> NDArray[Any]:
    """Return patterns (*, N, N) with zero frequency at N//2, flipped and transposed as ``generic`` gives.

    A flip keeps zero frequency in place: rows N//2 + k and N//2 - k are exchanged.
    """
    if generic.origin == "corner":
        patterns = np.fft.fftshift(patterns, axes=(-2, -1))
    return Orientation(generic.flip_y, generic.flip_x, generic.transpose).apply(patterns)


def convert_positions_to_pixels(
    y: NDArray[Any], x: NDArray[Any], generic: GenericLayout
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return row and column coordinates in object pixels: swapped, negated, then scaled as ``generic`` gives."""
    if generic.swap_xy:
        y, x = x, y
    pixel_size = generic.pixel_size if generic.pixel_size and generic.position_unit == "meter" else 1
    scale = generic.position_scale / pixel_size
    return (
        y.astype(np.float64) * (-scale if generic.negate_y else scale),
        x.astype(np.float64) * (-scale if generic.negate_x else scale),
    )


def _rename_arrays(arrays: dict[str, NDArray[Any]], generic: GenericLayout, name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a scan by the keys of the contract, without leading axes of length one."""

    def find(setting: str, candidates: Sequence[str], *, required: bool = True) -> NDArray[Any] | None:
        return _find_array(arrays, name, setting, getattr(generic, setting), candidates, required)

    patterns = find("diffraction_key", ("diffraction", "diff3d", "data"))
    probe = find("probe_key", ("probeGuess", "probe"))
    obj = find("object_key", ("objectGuess", "object"), required=False)
    mask = find("mask_key", ("mask",), required=False)
    separate = generic.x_key or generic.y_key or ("xcoords" in arrays and "ycoords" in arrays)
    pair = find("positions_key", ("scan", "positions")) if generic.positions_key or not separate else None
    if pair is None:
        y, x = find("y_key", ("ycoords",)), find("x_key", ("xcoords",))
    else:
        y, x = _split_columns(squeeze_leading_axes(pair, 2), name)
    renamed = {
        "diffraction": None if patterns is None else squeeze_leading_axes(patterns, 3),
        "probeGuess": None
        if probe is None
        else squeeze_leading_axes(probe.reshape(normalize_probe_shape(probe.shape)), 2),
        "ycoords": y if y is None else np.atleast_1d(np.squeeze(y)),
        "xcoords": x if x is None else np.atleast_1d(np.squeeze(x)),
        "objectGuess": None if obj is None else squeeze_leading_axes(obj, 2),
        "mask": None if mask is None else squeeze_leading_axes(mask, 2),
    }
    per_pattern = ("Y", "scan_index", "source_index", "xcoords_start", "ycoords_start")
    optional = {key: arrays[key] for key in per_pattern if key in arrays}
    return {key: array for key, array in renamed.items() if array is not None} | optional


def _split_columns(pair: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if pair.ndim != 2 or pair.shape[1] != 2:
        raise DataError(f"{name}: the positions have shape {pair.shape}; expected (n, 2); set `positions_key`")
    return pair[:, 0], pair[:, 1]


def _find_array(
    arrays: dict[str, NDArray[Any]], name: str, setting: str, key: str | None, candidates: Sequence[str], required: bool
) -> NDArray[Any] | None:
    keys = ", ".join(sorted(arrays)) or "nothing"
    if key is not None:
        if key not in arrays:
            raise ConfigError(f"{name}: `{setting}` is {key}, which is not in the file; expected one of {keys}")
        return arrays[key]
    chosen = next((candidate for candidate in candidates if candidate in arrays), None)
    if chosen is None and required:
        raise ConfigError(f"{name}: the file holds none of {', '.join(candidates)} (found {keys}); set `{setting}`")
    return None if chosen is None else arrays[chosen]


def squeeze_leading_axes(array: NDArray[Any], rank: int) -> NDArray[Any]:
    """Return ``array`` without leading axes of length one, with at least ``rank`` axes."""
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array.reshape(normalize_stack_shape(array.shape)) if rank == 3 else array
