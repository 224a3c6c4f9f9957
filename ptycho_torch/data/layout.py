"""How the arrays of a scan file are to be read: axis order, amplitude or counts, metadata, and why.

What a file leaves open is settled here and nowhere else; :mod:`ptycho_torch.data.contract` says what is not allowed.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement


class ArrayHeader(NamedTuple):
    """What an NPZ file says about an array before its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @classmethod
    def from_numpy(cls, header: tuple[tuple[int, ...], bool, np.dtype[Any]]) -> Self:
        """From what numpy's header readers return: shape, memory order, dtype."""
        shape, fortran_order, dtype = header
        return cls(shape, dtype, fortran_order)


Arrays = Mapping[str, NDArray[Any] | ArrayHeader]
"""The content of a file by key."""


class DiffractionLayout(NamedTuple):
    """How the diffraction of a file is to be read, and why."""

    axis_order: AxisOrder | None
    axis_reason: str
    measurement: Measurement | None
    measurement_reason: str
    metadata: dict[str, Any]


def find_diffraction_key(arrays: Arrays) -> str | None:
    """The key of the patterns: ``diffraction``, else its alias ``diff3d``."""
    return next((key for key in ("diffraction", "diff3d") if key in arrays), None)


def find_layout(
    arrays: Arrays, axis_order: AxisOrder | None = None, measurement: Measurement | None = None
) -> DiffractionLayout:
    """Settle axis order and measurement: what the caller says, else the metadata, else what the arrays show.

    Either stays None where that leaves it open.
    """
    metadata, _ = read_metadata(arrays)
    key = find_diffraction_key(arrays)
    if key is None:
        return DiffractionLayout(axis_order, "no diffraction", measurement, "no diffraction", metadata)
    order = _find_axis_order(arrays, key, axis_order, metadata)
    kind = _find_measurement(arrays[key].dtype, measurement, metadata)
    return DiffractionLayout(*order, *kind, metadata)


def _find_axis_order(
    arrays: Arrays, key: str, requested: AxisOrder | None, metadata: dict[str, Any]
) -> tuple[AxisOrder | None, str]:
    if requested is not None:
        return requested, "given"
    if metadata.get("axis_order") in ("nhw", "hwn"):
        return metadata["axis_order"], "the metadata say so"
    shape = normalize_stack_shape(arrays[key].shape)
    if len(shape) != 3:
        return None, f"{len(shape)} axes"
    first, middle, last = shape
    if first == middle == last:
        arrays_64 = [arrays[name].dtype for name in ("probeGuess", "objectGuess") if name in arrays]
        if arrays[key].dtype == np.float32 and arrays_64 and all(dtype == np.complex64 for dtype in arrays_64):
            return "nhw", "a cube, float32 beside complex64 arrays as in the canonical layout"
        return None, "a cube: all three axes are equal and the dtypes do not tell"
    if middle == last:
        return "nhw", "the last two axes are equal"
    if first == middle:
        return "hwn", "the first two axes are equal"
    count = arrays["xcoords"].shape[0] if "xcoords" in arrays and arrays["xcoords"].shape else None
    if count in (first, last) and first != last:
        return ("nhw" if count == first else "hwn"), f"its length is the number of coordinates, {count}"
    return None, "no two neighbouring axes are equal"


def _find_measurement(
    dtype: np.dtype[Any], requested: Measurement | None, metadata: dict[str, Any]
) -> tuple[Measurement | None, str]:
    if requested is not None:
        return requested, "given"
    if metadata.get("measurement") in ("amplitude", "counts"):
        return metadata["measurement"], "the metadata say so"
    if dtype.kind == "f":
        return "amplitude", "floating point, nothing else is said"
    return None, f"{dtype} and nothing is said"


def normalize_stack_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a stack of patterns without the trailing singleton that some files carry."""
    return shape[:3] if len(shape) == 4 and shape[3] == 1 else shape


def read_metadata(arrays: Arrays) -> tuple[dict[str, Any], str | None]:
    """The metadata of a file, and what is wrong with them (then empty). ``_metadata`` counts where it is text."""
    for key in ("metadata", "_metadata"):
        array = arrays.get(key)
        if not isinstance(array, np.ndarray) or (key == "_metadata" and array.dtype.kind not in "US"):
            continue
        if array.dtype.kind not in "US" or array.size != 1:
            return {}, f"{key} is {array.dtype} of shape {array.shape}, expected one JSON text"
        return _parse_metadata(key, array.reshape(())[()])
    return {}, None


def _parse_metadata(key: str, text: Any) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else str(text))
    except ValueError as error:
        return {}, f"{key} is not JSON ({error})"
    if not isinstance(value, dict):
        return {}, f"{key} holds a JSON {type(value).__name__}, expected an object of names and values"
    known = (("axis_order", ("nhw", "hwn")), ("measurement", ("amplitude", "counts")))
    for name, choices in known:
        if value.get(name) not in (None, *choices):
            return {}, f"{name} in {key} is {value[name]!r}, expected {' or '.join(choices)}"
    photons = value.get("photons_per_unit")
    if photons is not None and not is_positive_number(photons):
        return {}, f"photons_per_unit in {key} is {photons!r}, expected a positive number"
    return value, None


def is_positive_number(value: Any) -> bool:
    """Whether ``value`` is a finite number above zero (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def compute_stack_size(array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout) -> tuple[int | None, int | None]:
    """N and n of a stack of patterns, each None where it cannot be told."""
    shape = normalize_stack_shape(array.shape)
    if len(shape) != 3 or layout.axis_order is None:
        return None, None
    count, side = (shape[0], shape[1:]) if layout.axis_order == "nhw" else (shape[2], shape[:2])
    return (side[0] if side[0] == side[1] else None), count


def is_matching_stack(shape: tuple[int, ...], count: int, size: int, layout: DiffractionLayout) -> bool:
    """Whether a stack has one N × N plane for each pattern: (n, N, N), or (N, N, n) beside such diffraction."""
    shape = normalize_stack_shape(shape)
    return shape == (count, size, size) or (layout.axis_order == "hwn" and shape == (size, size, count))


def normalize_probe_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a probe without a trailing singleton: (N, N, 1) is (N, N), (M, N, N, 1) is (M, N, N)."""
    return shape[:-1] if len(shape) in (3, 4) and shape[-1] == 1 and shape[-2] != 1 else shape


def move_pattern_axis_first(array: NDArray[Any], layout: DiffractionLayout, count: int) -> NDArray[Any]:
    """A stack of planes as (n, N, N), whatever its layout in the file; (N, N) stays as it is."""
    array = array.reshape(normalize_stack_shape(array.shape))
    if array.ndim == 3 and layout.axis_order == "hwn" and (array.shape[2] == count):
        return np.ascontiguousarray(np.moveaxis(array, 2, 0))
    return array
