"""Arrays of any file by key: NPZ, NPY, HDF5 and others, with the conventions that settings give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import ConfigError, ContractError, DataError
from ptycho_torch.data.geometry import Geometry, read_geometry
from ptycho_torch.data.layout import (
    REASON_GIVEN,
    REASON_METADATA,
    ArrayHeader,
    find_layout,
    normalize_probe_shape,
    normalize_stack_shape,
    read_metadata,
)
from ptycho_torch.data.required_rules import format_pickle_message
from ptycho_torch.io.arrays import make_store
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.store import ArrayStore
from ptycho_torch.io.tiff_store import list_series

PATTERN_KEYS = ("diffraction", "diff3d", "data")
PROBE_KEYS = ("probeGuess", "probe")
OBJECT_KEYS = ("objectGuess", "object")
POSITION_KEYS = ("scan", "positions")
PER_PATTERN_KEYS = ("scan_index", "source_index")

MIN_PATTERN_SIDE_PX = 8
"""Smallest side of a pattern in an array that no key names."""

MAX_LISTED_ARRAYS = 12
"""Largest number of arrays that a message lists."""


@dataclass(frozen=True)
class _Keys:
    """The keys of the arrays of a file; None where the file has none."""

    patterns: str | None
    probe: str | None
    object: str | None
    mask: str | None
    pair: str | None
    y: str | None
    x: str | None


class GenericFormat(Format):
    """Arrays by key, in a file of any program."""

    name = "generic"
    title = "arrays by key in NPZ, NPY, HDF5, MAT, Zarr or TIFF, with settings"

    def matches(self, file: InputFile) -> bool:
        return make_store(file) is not None

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        store = make_store(file)
        if store is None:
            raise DataError(
                f"{file.path}: this is a file of the kind {file.kind}; expected a file of arrays; set `format`"
            )
        parts = read_store(store, str(file.path), settings)
        series = list_series(file.path.parent) if file.kind == "tiff" and parts.patterns is None else []
        if len(series) > 1:
            hint = (
                f"patterns: this is one of {len(series)} TIFF files in the folder {file.path.parent}; give the folder"
            )
            parts.report.missing.insert(0, hint)
        return parts


def read_store(store: ArrayStore, name: str, settings: InputSettings) -> ScanParts:
    """Return the parts of the arrays in ``store``.

    Args:
        store: arrays by key.
        name: name of the file, for errors.
        settings: keys and conventions.

    Raises:
        ConfigError: a setting is missing, or names a key that the file does not hold.
        ContractError: a chosen array is unusable.
    """
    headers = store.list_headers()
    report = InputReport("generic")
    keys = _find_keys(headers, name, settings)
    metadata = _read_metadata(store, headers, name)
    parts: dict[str, Any] = {}
    if keys.patterns is not None:
        parts |= _read_patterns(store, headers, keys, metadata, name, settings, report)
    if keys.pair is not None or keys.x is not None:
        parts["positions"] = _read_positions(store, keys, name, report)
        if parts.get("patterns") is not None:
            _check_coordinate_count(parts["positions"], len(parts["patterns"]), name)
    count = None if parts.get("patterns") is None else len(parts["patterns"])
    for key in PER_PATTERN_KEYS:
        if key in headers:
            parts[key] = store.read(key)
    if "xcoords_start" in headers and "ycoords_start" in headers:
        start = [np.atleast_1d(np.squeeze(store.read(key))) for key in ("ycoords_start", "xcoords_start")]
        parts["nominal_positions"] = np.stack(start, 1).astype(np.float64)
    if keys.probe is not None:
        parts["probe"] = _read_probe(store, keys.probe, report)
    if keys.object is not None:
        parts["object"] = _squeeze(store.read(keys.object), 2)
        report.add("object", keys.object)
    if "Y" in headers and count is not None:
        labels = store.read("Y")
        parts["labels"] = _move_patterns_first(labels, "hwn" if labels.shape[0] != count else "nhw")
    found = _list_arrays(headers)
    sources = (
        ("patterns", keys.patterns, f"{found}; set `diffraction_key` or `patterns_file`"),
        ("positions", keys.pair or keys.x, f"{found}; set `positions_file`, `positions_key`, or `y_key` and `x_key`"),
        ("probe", keys.probe, "set `probe_key`"),
    )
    for label, source, setting in sources:
        if source is None:
            report.missing.append(f"{label}: {setting}")
    return ScanParts(
        **parts,
        position_unit=settings.position_unit or "pixel",
        geometry=read_geometry(metadata) or Geometry(),
        metadata={key: value for key, value in metadata.items() if key not in ("geometry", "pixel_size")},
        report=report,
    )


def _list_arrays(headers: dict[str, ArrayHeader]) -> str:
    """Return the keys, shapes and types of the arrays, the largest first."""
    ordered = sorted(headers, key=lambda key: -math.prod(headers[key].shape))
    texts = [f"{key} {headers[key].shape} {headers[key].dtype}" for key in ordered[:MAX_LISTED_ARRAYS]]
    more = len(ordered) - len(texts)
    return f"found {', '.join(texts) or 'no array'}" + (f" and {more} more" if more else "")


def _find_keys(headers: dict[str, ArrayHeader], name: str, settings: InputSettings) -> _Keys:
    def find(setting: str, candidates: Sequence[str]) -> str | None:
        key = getattr(settings, setting)
        if key is None:
            return next((candidate for candidate in candidates if candidate in headers), None)
        key = key.lstrip("/")
        if key not in headers:
            keys = ", ".join(sorted(headers)) or "nothing"
            raise ConfigError(f"{name}: `{setting}` is {key}, which is not in the file; expected one of {keys}")
        if headers[key].dtype.hasobject and headers[key].dtype.kind == "O":
            raise ContractError("R1", f"{name}: {format_pickle_message(key)}")
        return key

    patterns = find("diffraction_key", PATTERN_KEYS) or _find_only_stack(headers)
    separate = settings.x_key or settings.y_key or ("xcoords" in headers and "ycoords" in headers)
    pair = find("positions_key", POSITION_KEYS) if settings.positions_key or not separate else None
    return _Keys(
        patterns,
        find("probe_key", PROBE_KEYS),
        find("object_key", OBJECT_KEYS),
        find("mask_key", ("mask",)),
        pair,
        None if pair else find("y_key", ("ycoords",)),
        None if pair else find("x_key", ("xcoords",)),
    )


def _find_only_stack(headers: dict[str, ArrayHeader]) -> str | None:
    """Return the key of the only real array of three or four axes whose last two are sides of a pattern."""
    stacks = [
        key
        for key, header in headers.items()
        if header.dtype.kind in "iuf"
        and len(header.shape) in (3, 4)
        and min(sorted(header.shape)[-2:]) >= MIN_PATTERN_SIDE_PX
        and key != "mask"
    ]
    return stacks[0] if len(stacks) == 1 else None


def _read_metadata(store: ArrayStore, headers: dict[str, ArrayHeader], name: str) -> dict[str, Any]:
    texts: dict[str, NDArray[Any]] = {
        key: store.read(key) for key in ("metadata", "_metadata") if key in headers and headers[key].dtype.kind in "US"
    }
    metadata, message = read_metadata(texts)
    if message:
        raise ContractError("R21", f"{name}: {message}")
    return metadata


def _read_patterns(
    store: ArrayStore,
    headers: dict[str, ArrayHeader],
    keys: _Keys,
    metadata: dict[str, Any],
    name: str,
    settings: InputSettings,
    report: InputReport,
) -> dict[str, Any]:
    key = str(keys.patterns)
    patterns = _squeeze(store.read(key), 3)
    if patterns.dtype.kind not in "biuf":
        raise ContractError("R4", f"{name}: {key} is {patterns.dtype}; expected real numbers; set `diffraction_key`")
    if patterns.ndim == 4:
        report.assumptions.append(f"{key}: the first two axes are rows and columns of the scan")
        patterns = patterns.reshape(math.prod(patterns.shape[:2]), *patterns.shape[2:])
    if patterns.ndim != 3:
        raise ContractError("R4", f"{name}: {key} has shape {patterns.shape}; expected three axes, (n, N, N)")
    known = {each: headers[each] for each in headers if headers[each].dtype.kind != "O"}
    known |= {"diffraction": ArrayHeader(patterns.shape, patterns.dtype, False)}
    for label, source in (("probeGuess", keys.probe), ("xcoords", keys.x)):
        if source is not None:
            known[label] = headers[source]
    known.pop("diff3d", None)
    layout = find_layout(known, settings.axis_order or metadata.get("axis_order"), settings.measurement)
    order = layout.axis_order
    if order is None and patterns.shape[1] != patterns.shape[2]:
        order = "nhw"
        report.assumptions.append(f"{key}: the first axis counts the patterns, which are not square")
    if order is None:
        raise ContractError(
            "R5",
            f"{name}: {key} of shape {patterns.shape}: the axis that counts the patterns is ambiguous "
            f"({layout.axis_reason}); set `axis_order`",
        )
    measurement = layout.measurement
    if layout.measurement_reason not in (REASON_GIVEN, REASON_METADATA):
        measurement = metadata.get("measurement")
    report.add(
        "patterns",
        key,
        measurement or "counts or amplitude",
        "axes (H, W, n) moved to (n, H, W)" if order == "hwn" else "",
    )
    parts: dict[str, Any] = {
        "patterns": _move_patterns_first(patterns, order),
        "measurement": measurement,
        "photons_per_unit": metadata.get("photons_per_unit"),
    }
    if keys.mask is not None:
        mask = _squeeze(store.read(keys.mask), 2)
        if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
            raise ContractError(
                "R18",
                f"{name}: {keys.mask} is {mask.dtype} with values other than 0 and 1; expected bool, True "
                "where a pixel counts",
            )
        parts["mask"] = _move_patterns_first(mask, order) if mask.ndim == 3 else mask.astype(bool)
        parts["mask"] = parts["mask"].astype(bool)
        report.add("mask", keys.mask, "True where a pixel counts")
    return parts


def _move_patterns_first(array: NDArray[Any], order: str) -> NDArray[Any]:
    array = array.reshape(normalize_stack_shape(array.shape))
    return np.ascontiguousarray(np.moveaxis(array, 2, 0)) if order == "hwn" and array.ndim == 3 else array


def _read_probe(store: ArrayStore, key: str, report: InputReport) -> NDArray[Any]:
    probe = store.read(key)
    report.add("probe", key)
    return _squeeze(probe.reshape(normalize_probe_shape(probe.shape)), 2)


def _read_positions(store: ArrayStore, keys: _Keys, name: str, report: InputReport) -> NDArray[np.float64]:
    if keys.pair is not None:
        pair = _squeeze(store.read(keys.pair), 2)
        if pair.ndim != 2 or pair.shape[1] != 2 or pair.dtype.kind not in "biuf":
            raise DataError(
                f"{name}: the positions ({keys.pair}) are {pair.dtype} of shape {pair.shape}; expected (n, 2); set "
                "`positions_key`"
            )
        report.add("positions", keys.pair, conversion="columns (y, x)")
        return pair.astype(np.float64)
    if keys.x is None or keys.y is None:
        setting = "y_key" if keys.y is None else "x_key"
        raise ConfigError(f"{name}: the file holds one coordinate of the positions only; set `{setting}`")
    columns = [np.atleast_1d(np.squeeze(store.read(key))) for key in (keys.y, keys.x)]
    for key, column in zip((keys.y, keys.x), columns, strict=True):
        if column.ndim != 1 or column.dtype.kind not in "biuf":
            raise ContractError(
                "R11", f"{name}: {key} is {column.dtype} of shape {column.shape}; expected (n,) real numbers"
            )
    if len(columns[0]) != len(columns[1]):
        raise ContractError(
            "R11",
            f"{name}: {keys.y} has {len(columns[0])} values and {keys.x} {len(columns[1])}; expected equal numbers",
        )
    report.add("positions", f"{keys.y}, {keys.x}")
    return np.stack(columns, 1).astype(np.float64)


def _check_coordinate_count(positions: NDArray[Any], count: int, name: str) -> None:
    if len(positions) != count:
        problem = "extra coordinates" if len(positions) > count else "too few coordinates"
        raise ContractError(
            "R11", f"{name}: {problem}: {len(positions)} for {count} patterns; expected one per pattern"
        )


def _squeeze(array: NDArray[Any], rank: int) -> NDArray[Any]:
    """Return ``array`` without leading axes of length one, with at least ``rank`` axes."""
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array.reshape(normalize_stack_shape(array.shape)) if rank == 3 else array
