"""Scan files in NPZ format: read, check against ``specs/data_contracts.md``, convert, and write."""

import json
import logging
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.core.errors import ContractError, DataError
from ptycho_torch.core.files import atomic_write
from ptycho_torch.data.conversion import make_scan_from_arrays
from ptycho_torch.data.layout import SCAN_KEYS, ArrayHeader
from ptycho_torch.data.required_rules import format_pickle_message, is_read_key
from ptycho_torch.data.scan import Scan, check_scan, require_scan, scan_to_arrays
from ptycho_torch.io.size_limits import check_array_size

logger = logging.getLogger(__name__)

SCHEMA = "ptycho_torch scan"
SCHEMA_VERSION = 1
LEGACY_MAX_AMPLITUDE = 1.7036
"""Largest amplitude of a file in the legacy layout, as in the published Run1084 files."""


def read_arrays(path: Path, keys: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of an NPZ file.

    Args:
        path: NPZ file.
        keys: keys to read, if present; None reads all.

    Returns:
        Arrays by key.

    Raises:
        DataError: the file is missing, a folder, not an NPZ file, or damaged.
        ContractError: the file holds an object array (R1).
    """
    with _open_archive(path) as archive:
        return _read_members(archive, str(path), keys)


def read_arrays_from_stream(stream: IO[bytes], name: str) -> dict[str, NDArray[Any]]:
    """Read all arrays of the NPZ file in ``stream``, named ``name`` in errors; raises as :func:`read_arrays`."""
    with _open_archive_stream(stream, name) as archive:
        return _read_members(archive, name, None)


def _read_members(archive: zipfile.ZipFile, name: str, keys: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    arrays = {}
    for key, member_name in _list_members(archive).items():
        if keys is not None and key not in keys:
            continue
        with archive.open(member_name) as member:
            header = _read_header(member)
        if header.dtype.hasobject:
            raise ContractError("R1", f"{name}: {format_pickle_message(key)}")
        size, present = math.prod(header.shape) * header.dtype.itemsize, archive.getinfo(member_name).file_size
        if size > present:
            raise DataError(
                f"{name}: {key} has the declared shape {header.shape} ({header.dtype}), {size} bytes, in a member of "
                f"{present} bytes; expected all of them; copy or write the file again"
            )
        check_array_size(f"{name}: {key}", header.shape, header.dtype)
        with archive.open(member_name) as member:
            arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Read shape, dtype and memory order of every array of an NPZ file, without loading the arrays.

    Args:
        path: NPZ file.

    Returns:
        Headers by key.

    Raises:
        DataError: the file is missing, a folder, not an NPZ file, or damaged.
    """
    with _open_archive(path) as archive:
        return _read_headers(archive)


def _read_headers(archive: zipfile.ZipFile) -> dict[str, ArrayHeader]:
    headers = {}
    for key, name in _list_members(archive).items():
        with archive.open(name) as member:
            headers[key] = _read_header(member)
    return headers


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive at ``path``; every failure becomes a :class:`DataError`."""
    try:
        with open(path, "rb") as stream, _open_archive_stream(stream, str(path)) as archive:
            yield archive
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; give the path of a scan file (NPZ)") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: this is a folder; give the path of a scan file (NPZ)") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def _open_archive_stream(stream: IO[bytes], name: str) -> Iterator[zipfile.ZipFile]:
    """Open the NPZ archive in ``stream``, named ``name`` in errors; every failure becomes a :class:`DataError`."""
    magic = stream.read(4)
    stream.seek(0)
    if not magic.startswith(b"PK"):
        raise DataError(f"{name}: not an NPZ file (a zip archive of arrays), or an empty one; give a scan file (NPZ)")
    try:
        with zipfile.ZipFile(stream) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, tokenize.TokenError) as error:
        # TokenError: numpy parses a damaged header, from Python 3.12 onward
        raise DataError(f"{name}: the NPZ file is truncated or damaged ({error}); copy or write it again") from error


def _list_members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return member names by key; members that are not arrays are skipped."""
    return {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}


def _read_header(member: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return ArrayHeader.from_numpy(np.lib.format.read_array_header_1_0(member))
    return ArrayHeader.from_numpy(np.lib.format.read_array_header_2_0(member))


def read_npz_scan(
    path: str | Path,
    *,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
    photons_per_unit: float | None = None,
) -> Scan:
    """Read a scan file in the canonical or a legacy layout.

    Args:
        path: NPZ file.
        axis_order: axis order of the patterns, "nhw" or "hwn"; overrides the metadata and the shape.
        measurement: measured quantity, "amplitude" or "counts"; overrides the metadata, and is required for integers
            without metadata.
        photons_per_unit: photons per squared unit of amplitude (for counts: photons per count); overrides the metadata.

    Raises:
        DataError: the file cannot be read.
        ContractError: the file breaks a MUST of ``specs/data_contracts.md``, whose number the error carries.
    """
    path = Path(path)
    with _open_archive(path) as archive:
        headers = _read_headers(archive)
        objects = [key for key, header in headers.items() if header.dtype.hasobject and not is_read_key(key)]
        arrays = _read_members(archive, str(path), [key for key in SCAN_KEYS if key not in objects])
    for key in objects:
        logger.warning("%s: %s holds Python objects (pickle) and is passed over without being loaded", path, key)
    return make_scan_from_arrays(
        arrays,
        name=str(path),
        axis_order=axis_order,
        measurement=measurement,
        photons_per_unit=photons_per_unit,
        source=path,
    )


def write_npz_scan(path: str | Path, scan: Scan, layout: Literal["canonical", "legacy"] = "canonical") -> None:
    """Write ``scan`` to ``path`` (compressed NPZ). The file appears whole or not at all; equal scans give equal bytes.

    Args:
        path: file to write; an existing file is replaced.
        scan: the scan.
        layout: ``canonical`` keeps the amplitudes to the bit and records axis order and measurement. ``legacy`` is the
            layout of the published Run1084 files: (N, N, n) float64 amplitudes scaled to a maximum of 1.7036,
            complex128, no metadata.

    Raises:
        ContractError: the scan breaks the contract.
        DataError: the file cannot be written.
    """
    check_scan(require_scan(scan))
    arrays = scan_to_arrays(scan)
    arrays = (
        _convert_to_legacy(arrays) if layout == "legacy" else arrays | {"metadata": np.array(_format_metadata(scan))}
    )
    with atomic_write(Path(path)) as temp_path, open(temp_path, "wb") as stream:
        # A stream, because NumPy appends ".npz" to other file names.
        np.savez_compressed(stream, allow_pickle=False, **cast("dict[str, Any]", arrays))


def _format_metadata(scan: Scan) -> str:
    metadata = scan.metadata | {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "axis_order": "nhw",
        "measurement": "amplitude",
    }
    metadata.pop("photons_per_unit", None)
    if scan.photons_per_unit is not None:
        metadata["photons_per_unit"] = float(scan.photons_per_unit)
    if scan.geometry is not None:
        metadata["geometry"] = scan.geometry.to_dict()
        if scan.geometry.mean_object_pixel_m is not None:  # the key that earlier versions read
            metadata["pixel_size"] = scan.geometry.mean_object_pixel_m
    try:
        return json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(
            "R21", f"metadata of the scan cannot be written as JSON ({error}); expected JSON values"
        ) from error


def _convert_to_legacy(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    amplitudes = arrays["diffraction"].astype(np.float64)
    legacy = arrays | {
        "diffraction": np.ascontiguousarray(np.moveaxis(amplitudes * (LEGACY_MAX_AMPLITUDE / amplitudes.max()), 0, 2)),
        "probeGuess": arrays["probeGuess"].astype(np.complex128),
    }
    if "objectGuess" in arrays:
        legacy["objectGuess"] = arrays["objectGuess"].astype(np.complex128)
    starts = {"xcoords_start": arrays["xcoords"], "ycoords_start": arrays["ycoords"]}
    return starts | legacy
