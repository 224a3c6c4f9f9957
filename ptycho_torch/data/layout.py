"""Layout of the arrays of a scan file: axis order, amplitude or counts, metadata, and the reason for each.

All that a file leaves open is decided here and nowhere else; :mod:`ptycho_torch.data.contract` has the rules that
apply to the result.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement

REASON_GIVEN = "given"
REASON_METADATA = "from the metadata"
REASON_FLOATING_POINT = "floating point without metadata"


SCAN_KEYS = (
    "diffraction", "diff3d", "probeGuess", "objectGuess", "xcoords", "ycoords", "xcoords_start", "ycoords_start", "Y",
    "mask", "scan_index", "source_index", "metadata", "_metadata",
)  # fmt: skip
"""Keys of the arrays that a scan file is read from; other keys are never loaded."""


class ArrayHeader(NamedTuple):
    """Header of an array in an NPZ file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @classmethod
    def from_numpy(cls, header: tuple[tuple[int, ...], bool, np.dtype[Any]]) -> Self:
        """Make a header from the result of NumPy's header readers: shape, memory order, dtype."""
        shape, fortran_order, dtype = header
        return cls(shape, dtype, fortran_order)


Arrays = Mapping[str, NDArray[Any] | ArrayHeader]
"""Content of a file by key."""


class DiffractionLayout(NamedTuple):
    """Axis order and measured quantity of the diffraction patterns, each with the reason."""

    axis_order: AxisOrder | None
    axis_reason: str
    measurement: Measurement | None
    measurement_reason: str
    metadata: dict[str, Any]


def find_diffraction_key(arrays: Arrays) -> str | None:
    """Return the key of the patterns: ``diffraction`` or its alias ``diff3d``; None if both are missing."""
    return next((key for key in ("diffraction", "diff3d") if key in arrays), None)


def find_layout(
    arrays: Arrays, axis_order: AxisOrder | None = None, measurement: Measurement | None = None
) -> DiffractionLayout:
    """Decide axis order and measurement: from the arguments, then from the metadata, then from shapes and dtypes.

    Args:
        arrays: arrays or headers by key.
        axis_order: axis order of the patterns, if the caller fixes it.
        measurement: measured quantity, if the caller fixes it.

    Returns:
        The layout; axis order or measurement is None if ambiguous.
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
        return requested, REASON_GIVEN
    if metadata.get("axis_order") in ("nhw", "hwn"):
        return metadata["axis_order"], REASON_METADATA
    shape = normalize_stack_shape(arrays[key].shape)
    if len(shape) != 3:
        return None, f"{len(shape)} axes"
    first, middle, last = shape
    if first == middle == last:
        complex_dtypes = [arrays[name].dtype for name in ("probeGuess", "objectGuess") if name in arrays]
        if arrays[key].dtype == np.float32 and complex_dtypes and all(d == np.complex64 for d in complex_dtypes):
            return "nhw", "a cube, float32 with complex64 arrays as in the canonical layout"
        return None, "a cube: all three axes have the same length"
    if middle == last:
        return "nhw", "the last two axes are equal"
    if first == middle:
        return "hwn", "the first two axes are equal"
    count = arrays["xcoords"].shape[0] if "xcoords" in arrays and arrays["xcoords"].shape else None
    if count in (first, last) and first != last:
        return ("nhw" if count == first else "hwn"), f"its length is the number of coordinates, {count}"
    return None, "no two adjacent axes are equal"


def _find_measurement(
    dtype: np.dtype[Any], requested: Measurement | None, metadata: dict[str, Any]
) -> tuple[Measurement | None, str]:
    if requested is not None:
        return requested, REASON_GIVEN
    if metadata.get("measurement") in ("amplitude", "counts"):
        return metadata["measurement"], REASON_METADATA
    if dtype.kind == "f":
        return "amplitude", REASON_FLOATING_POINT
    return None, f"{dtype} without metadata"


def normalize_stack_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a stack of patterns without the trailing axis of length one that some files have."""
    return shape[:3] if len(shape) == 4 and shape[3] == 1 else shape


def read_metadata(arrays: Arrays) -> tuple[dict[str, Any], str | None]:
    """Return the metadata of a file and an error message; on an error the metadata are empty.

    The key ``_metadata`` is read in place of ``metadata`` if it holds text.
    """
    for key in ("metadata", "_metadata"):
        array = arrays.get(key)
        if not isinstance(array, np.ndarray) or (key == "_metadata" and array.dtype.kind not in "US"):
            continue
        if array.dtype.kind not in "US" or array.size != 1:
            return {}, f"{key} is {array.dtype} of shape {array.shape}; expected one JSON text"
        return _parse_metadata(key, array.reshape(())[()])
    return {}, None


def _parse_metadata(key: str, text: Any) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else str(text))
    except ValueError as error:
        return {}, f"{key} is not JSON ({error})"
    if not isinstance(value, dict):
        return {}, f"{key} holds a JSON {type(value).__name__}; expected an object of names and values"
    choices_by_name = (("axis_order", ("nhw", "hwn")), ("measurement", ("amplitude", "counts")))
    for name, choices in choices_by_name:
        if value.get(name) not in (None, *choices):
            return {}, f"{name} in {key} is {value[name]!r}; expected {' or '.join(choices)}"
    photons = value.get("photons_per_unit")
    if photons is not None and not is_positive_number(photons):
        return {}, f"photons_per_unit in {key} is {photons!r}; expected a positive number"
    return value, None


def is_positive_number(value: Any) -> bool:
    """Return True if ``value`` is a finite number above zero; a bool does not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def compute_stack_size(array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout) -> tuple[int | None, int | None]:
    """Return N and n of a stack of patterns, each None if it is ambiguous."""
    shape = normalize_stack_shape(array.shape)
    if len(shape) != 3 or layout.axis_order is None:
        return None, None
    count, sides = (shape[0], shape[1:]) if layout.axis_order == "nhw" else (shape[2], shape[:2])
    return (sides[0] if sides[0] == sides[1] else None), count


def is_matching_stack(shape: tuple[int, ...], count: int, size: int, layout: DiffractionLayout) -> bool:
    """Return True if a stack has one N × N plane per pattern: (n, N, N), or (N, N, n) if the diffraction has it too."""
    shape = normalize_stack_shape(shape)
    return shape == (count, size, size) or (layout.axis_order == "hwn" and shape == (size, size, count))


def normalize_probe_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a probe without a trailing axis of length one: (N, N, 1) is (N, N)."""
    return shape[:-1] if len(shape) in (3, 4) and shape[-1] == 1 and shape[-2] != 1 else shape


def move_pattern_axis_first(array: NDArray[Any], layout: DiffractionLayout, count: int) -> NDArray[Any]:
    """Return a stack of planes as (n, N, N) for any layout in the file; (N, N) is returned unchanged."""
    array = array.reshape(normalize_stack_shape(array.shape))
    if array.ndim == 3 and layout.axis_order == "hwn" and (array.shape[2] == count):
        return np.ascontiguousarray(np.moveaxis(array, 2, 0))
    return array
