"""Scan files of other programs, brought to the contract: key names, axes, origin, orientation, units."""

import bz2
import io
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data import contract
from ptycho_torch.data.layout import (
    compute_stack_size,
    find_layout,
    move_pattern_axis_first,
    normalize_probe_shape,
    normalize_stack_shape,
)
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import make_scan_from_arrays, read_arrays, read_arrays_from_stream, save_scan


def read_compressed_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an NPZ file, also of one compressed as ``.bz2``, by key.

    Raises:
        DataError: the file is missing, not what its name says, or damaged.
        ContractError: it holds an object array (R1).
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


def convert_file(config: ConvertConfig) -> Scan:
    """Read ``config.source`` as the other settings say and write the canonical ``config.destination``.

    Raises:
        ConfigError: the destination is the source, or a setting is missing or names a key that is not there.
        DataError: the source cannot be read or the destination cannot be written.
        ContractError: what comes out breaks the contract.
    """
    source, destination = config.source, config.destination
    if destination.exists() and source.exists() and destination.samefile(source):
        raise ConfigError(f"{destination}: the destination is the source itself; choose another name")
    if not destination.parent.is_dir():
        raise DataError(f"{destination}: there is no folder {destination.parent}; make it first")
    scan = convert_arrays(read_compressed_arrays(source), config)
    save_scan(destination, scan)
    return scan


def convert_arrays(arrays: dict[str, NDArray[Any]], config: ConvertConfig) -> Scan:
    """The scan in the arrays of another program's file. Raises as :func:`convert_file`."""
    name = str(config.source)
    renamed = _rename_arrays(arrays, config) | {key: arrays[key] for key in ("metadata", "_metadata") if key in arrays}
    layout = find_layout(renamed, config.axis_order, config.measurement)
    if layout.measurement_reason not in ("given", "the metadata say so"):
        dtype = renamed["diffraction"].dtype
        raise ConfigError(
            f"{name}: nothing says whether the {dtype} patterns are counts or amplitudes; "
            "set --measurement counts or --measurement amplitude"
        )
    contract.raise_for_violations(contract.find_violations(renamed, config.axis_order, config.measurement), name)
    count = int(compute_stack_size(renamed["diffraction"], layout)[1] or 0)
    stacks = {
        key: move_pattern_axis_first(renamed[key], layout, count)
        for key in ("diffraction", "mask", "Y")
        if key in renamed
    }
    for key in ("diffraction", "mask"):
        if key in stacks:
            stacks[key] = orient_patterns(stacks[key], config)
    coordinates: dict[str, NDArray[Any]] = {}
    for y, x in (("ycoords", "xcoords"), ("ycoords_start", "xcoords_start")):
        if x in renamed:
            coordinates[y], coordinates[x] = convert_positions_to_pixels(renamed[y], renamed[x], config)
    scan = make_scan_from_arrays(
        renamed | stacks | coordinates,
        name=name,
        axis_order="nhw",
        measurement=layout.measurement,
        photons_per_unit=config.photons_per_unit,
    )
    return replace(scan, metadata=layout.metadata | {"converted": _collect_settings(config)})


def _collect_settings(config: ConvertConfig) -> dict[str, Any]:
    """What was asked for, beside the defaults: recorded in the file written."""
    values = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in ("destination", "quiet", "debug") and getattr(config, field.name) != field.default
    }
    return values | {"source": config.source.name}


def orient_patterns(patterns: NDArray[Any], config: ConvertConfig) -> NDArray[Any]:
    """Patterns (*, N, N) with zero frequency brought to N//2, then turned round and exchanged as the settings say.

    Turning the rows round keeps zero frequency where it is: row N//2 + k and row N//2 - k change places.
    """
    size = patterns.shape[-1]
    if config.origin == "corner":
        patterns = np.fft.fftshift(patterns, axes=(-2, -1))
    reverse = (2 * (size // 2) - np.arange(size)) % size
    if config.flip_y:
        patterns = patterns[..., reverse, :]
    if config.flip_x:
        patterns = patterns[..., reverse]
    return np.swapaxes(patterns, -2, -1) if config.transpose else patterns


def convert_positions_to_pixels(
    y: NDArray[Any], x: NDArray[Any], config: ConvertConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column coordinates in object pixels: exchanged, negated, then scaled."""
    if config.swap_xy:
        y, x = x, y
    scale = config.position_scale / (config.pixel_size if config.pixel_size and config.position_unit == "metre" else 1)
    return (
        y.astype(np.float64) * (-scale if config.negate_y else scale),
        x.astype(np.float64) * (-scale if config.negate_x else scale),
    )


def _rename_arrays(arrays: dict[str, NDArray[Any]], config: ConvertConfig) -> dict[str, NDArray[Any]]:
    """The arrays that a scan is made of, by the key names of the contract, without leading axes of one."""
    name = str(config.source)

    def find(setting: str, candidates: Sequence[str], *, needed: bool = True) -> NDArray[Any] | None:
        return _find_array(arrays, name, setting, getattr(config, setting), candidates, needed)

    patterns = find("diffraction_key", ("diffraction", "diff3d", "data"))
    probe = find("probe_key", ("probeGuess", "probe"))
    obj = find("object_key", ("objectGuess", "object"), needed=False)
    mask = find("mask_key", ("mask",), needed=False)
    separate = config.x_key or config.y_key or ("xcoords" in arrays and "ycoords" in arrays)
    pair = find("positions_key", ("scan", "positions")) if config.positions_key or not separate else None
    if pair is None:
        y, x = find("y_key", ("ycoords",)), find("x_key", ("xcoords",))
    else:
        y, x = _split_columns(squeeze_leading_axes(pair, 2), name)
    found = {
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
    return {key: array for key, array in found.items() if array is not None} | optional


def _split_columns(pair: NDArray[Any], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if pair.ndim != 2 or pair.shape[1] != 2:
        raise DataError(f"{name}: the positions have shape {pair.shape}; expected (n, 2): set --positions_key")
    return pair[:, 0], pair[:, 1]


def _find_array(
    arrays: dict[str, NDArray[Any]], name: str, setting: str, key: str | None, candidates: Sequence[str], needed: bool
) -> NDArray[Any] | None:
    there = ", ".join(sorted(arrays)) or "nothing"
    if key is not None:
        if key not in arrays:
            raise ConfigError(f"{name}: --{setting} {key} is not in the file (found {there})")
        return arrays[key]
    chosen = next((candidate for candidate in candidates if candidate in arrays), None)
    if chosen is None and needed:
        raise ConfigError(f"{name}: none of {', '.join(candidates)} is in the file (found {there}); set --{setting}")
    return None if chosen is None else arrays[chosen]


def squeeze_leading_axes(array: NDArray[Any], rank: int) -> NDArray[Any]:
    """``array`` without leading axes of one, down to ``rank`` axes."""
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array.reshape(normalize_stack_shape(array.shape)) if rank == 3 else array
