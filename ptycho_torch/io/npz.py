"""The NPZ scan file: read, checked against ``specs/data_contracts.md``, brought to the layout inside, and written."""

import json
import logging
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
from ptycho_torch.data import contract
from ptycho_torch.data.layout import (
    ArrayHeader,
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    find_layout,
    move_pattern_axis_first,
    normalize_probe_shape,
)
from ptycho_torch.data.scan import Scan, check_scan, scan_to_arrays

SCHEMA = "ptycho_torch scan"
SCHEMA_VERSION = 1
LEGACY_MAX_AMPLITUDE = 1.7036
"""Largest amplitude of a file in the legacy layout, as in the published Run1084 files."""

logger = logging.getLogger(__name__)


def read_arrays(path: Path, keys: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Every array of an NPZ file by key, or those of ``keys`` that are there.

    Raises:
        DataError: the file is missing, a folder, no NPZ, or damaged.
        ContractError: it holds an object array (R1).
    """
    with _open_archive(path) as archive:
        return _read_members(archive, str(path), keys)


def read_arrays_from_stream(stream: IO[bytes], name: str) -> dict[str, NDArray[Any]]:
    """Every array of the NPZ file in ``stream``, called ``name`` in errors. Raises as :func:`read_arrays`."""
    with _open_archive_stream(stream, name) as archive:
        return _read_members(archive, name, None)


def _read_members(archive: zipfile.ZipFile, name: str, keys: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    arrays = {}
    for key, member_name in _list_members(archive).items():
        if keys is not None and key not in keys:
            continue
        with archive.open(member_name) as member:
            if _read_header(member).dtype.hasobject:
                raise ContractError("R1", f"{name}: {contract.format_pickle_message(key)}")
        with archive.open(member_name) as member:
            arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Shape, dtype and memory order of every array of an NPZ file, without loading the arrays.

    Raises:
        DataError: the file is missing, a folder, no NPZ, or damaged.
    """
    headers = {}
    with _open_archive(path) as archive:
        for key, name in _list_members(archive).items():
            with archive.open(name) as member:
                headers[key] = _read_header(member)
    return headers


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at ``path``; whatever is wrong with it becomes one sentence."""
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
    """The NPZ archive in ``stream``, called ``name`` in errors; what is wrong inside becomes one sentence."""
    magic = stream.read(4)
    stream.seek(0)
    if not magic.startswith(b"PK"):
        raise DataError(f"{name}: not an NPZ file (a zip archive of arrays), or an empty one; give a scan file (NPZ)")
    try:
        with zipfile.ZipFile(stream) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: the NPZ file is truncated or damaged ({error}); copy or write it again") from error


def _list_members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Member names by key; what is no array is passed over."""
    return {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}


def _read_header(member: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return ArrayHeader.from_numpy(np.lib.format.read_array_header_1_0(member))
    return ArrayHeader.from_numpy(np.lib.format.read_array_header_2_0(member))


def load_scan(
    path: str | Path,
    *,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
    photons_per_unit: float | None = None,
) -> Scan:
    """Read a scan file in the canonical or a legacy layout.

    Args:
        path: NPZ file.
        axis_order: wins over what the file says or shows.
        measurement: wins over what the file says; needed for integers without metadata.
        photons_per_unit: photons for one squared unit of amplitude (for counts: photons a count); wins over the file's.

    Raises:
        DataError: the file cannot be read.
        ContractError: it breaks a MUST of the contract, whose number the error carries.
    """
    path = Path(path)
    return make_scan_from_arrays(
        read_arrays(path),
        name=str(path),
        axis_order=axis_order,
        measurement=measurement,
        photons_per_unit=photons_per_unit,
        source=path,
    )


def make_scan_from_arrays(
    arrays: dict[str, NDArray[Any]],
    *,
    name: str,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
    photons_per_unit: float | None = None,
    source: Path | None = None,
) -> Scan:
    """Check ``arrays`` (by the key names of the contract) and bring them to the layout inside; as :func:`load_scan`."""
    broken_rules = contract.find_violations(arrays, axis_order, measurement)
    contract.raise_for_violations(broken_rules, name)
    layout = find_layout(arrays, axis_order, measurement)
    for violation in broken_rules:
        if violation.rule in ("R24", "R26", "R27"):
            logger.warning("%s: %s", name, violation.message)
    patterns = arrays[str(find_diffraction_key(arrays))]
    count = int(compute_stack_size(patterns, layout)[1] or 0)
    probe = arrays["probeGuess"].reshape(normalize_probe_shape(arrays["probeGuess"].shape)).astype(np.complex64)
    declared = layout.metadata.get("photons_per_unit")
    if photons_per_unit is None and declared is None and layout.measurement == "counts":
        declared = 1.0
    mask, labels, truth = (arrays.get(key) for key in ("mask", "Y", "objectGuess"))
    return Scan(
        amplitudes=_make_amplitudes(patterns, layout, count),
        positions=_stack_positions(arrays, "ycoords", "xcoords"),
        probe=np.ascontiguousarray(probe if probe.ndim == 3 else probe[None]),
        mask=None if mask is None else move_pattern_axis_first(mask.astype(bool), layout, count),
        truth=None if truth is None else np.ascontiguousarray(truth, dtype=np.complex64),
        scan_index=arrays["scan_index"].astype(np.int64) if "scan_index" in arrays else None,
        source_index=arrays["source_index"].astype(np.int64) if "source_index" in arrays else None,
        nominal_positions=_stack_positions(arrays, "ycoords_start", "xcoords_start")
        if "xcoords_start" in arrays
        else None,
        labels=None if labels is None else move_pattern_axis_first(labels.astype(np.complex64), layout, count),
        photons_per_unit=declared if photons_per_unit is None else photons_per_unit,
        metadata=layout.metadata,
        source=source,
    )


def _make_amplitudes(patterns: NDArray[Any], layout: DiffractionLayout, count: int) -> NDArray[np.float32]:
    """Amplitudes as (n, N, N) float32: cast before arithmetic, because small integers wrap."""
    patterns = move_pattern_axis_first(patterns, layout, count)
    if layout.measurement == "counts":
        patterns = np.sqrt(patterns.astype(np.float64))
    return np.ascontiguousarray(patterns, dtype=np.float32)


def _stack_positions(arrays: dict[str, NDArray[Any]], y: str, x: str) -> NDArray[np.float64]:
    return np.stack([arrays[y], arrays[x]], axis=1).astype(np.float64)


def save_scan(path: str | Path, scan: Scan, layout: Literal["canonical", "legacy"] = "canonical") -> None:
    """Write ``scan`` to ``path`` (compressed NPZ), whole or not at all; the same scan gives the same bytes.

    ``canonical`` keeps the amplitudes to the bit and records how to read them. ``legacy`` is the layout of the
    published Run1084 files: (N, N, n) float64 amplitudes scaled to a maximum of 1.7036, complex128, no metadata.

    Raises:
        ContractError: the scan breaks the contract.
        DataError: the file cannot be written.
    """
    check_scan(scan)
    arrays = scan_to_arrays(scan)
    arrays = (
        _convert_to_legacy(arrays) if layout == "legacy" else arrays | {"metadata": np.array(_format_metadata(scan))}
    )
    with atomic_write(Path(path)) as temp_path, open(temp_path, "wb") as stream:
        # A stream, because numpy appends ".npz" to other file names.
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
    try:
        return json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError("R21", f"the scan's metadata cannot be written as JSON ({error})") from error


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
