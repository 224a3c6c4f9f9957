"""Rules that a scan file SHOULD keep: the reader converts or assumes, and ``describe`` reports it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.coordinates import estimate_coordinate_scale, is_inside
from ptycho_torch.data.detector import find_gap_pixels
from ptycho_torch.data.layout import (
    REASON_FLOATING_POINT,
    ArrayHeader,
    Arrays,
    DiffractionLayout,
    compute_stack_size,
    move_pattern_axis_first,
    normalize_stack_shape,
)
from ptycho_torch.data.measured_quantity import REASON_DECIDED
from ptycho_torch.data.required_rules import is_read_key

Broken = Iterator[tuple[str, str]]
"""Rule number and message."""

CANONICAL_DTYPES = {
    "diffraction": np.float32,
    "diff3d": np.float32,
    "probeGuess": np.complex64,
    "objectGuess": np.complex64,
    "Y": np.complex64,
    "xcoords": np.float64,
    "ycoords": np.float64,
    "xcoords_start": np.float64,
    "ycoords_start": np.float64,
}


def check_unread_object_arrays(arrays: Arrays) -> Broken:
    """Check R1 for arrays that are never read."""
    for key, array in arrays.items():
        if array.dtype.hasobject and not is_read_key(key):
            yield "R1", f"{key} holds Python objects (pickle) and is passed over without being loaded"


def check_recommendations(key: str, arrays: Arrays, layout: DiffractionLayout, size: int | None) -> Broken:
    """Check all recommendations.

    Args:
        key: key of the diffraction patterns.
        arrays: arrays or headers by key.
        layout: axis order and measurement of the patterns.
        size: N, side of a pattern in pixels; None if unknown.
    """
    yield from _check_conversions(key, arrays, layout)
    undeclared = [name for name in ("axis_order", "measurement") if name not in layout.metadata]
    if undeclared:
        yield "R23", f"the metadata do not give {' and '.join(undeclared)}"
    yield from _check_gaps(key, arrays, layout)
    yield from _check_undeclared_counts(key, arrays[key], layout)
    yield from _check_corner_origin(key, arrays[key], layout, size)
    yield from _check_object_extent(arrays, size)
    yield from _check_coordinate_scale(arrays, size)


def _check_conversions(key: str, arrays: Arrays, layout: DiffractionLayout) -> Broken:
    for name, dtype in CANONICAL_DTYPES.items():
        if name in arrays and arrays[name].dtype != dtype:
            yield "R22", f"{name} is {arrays[name].dtype}; the reader casts it to {np.dtype(dtype)}"
    obj = arrays.get("objectGuess")
    if obj is not None and len(obj.shape) == 3:
        yield "R22", f"objectGuess has {obj.shape[0]} slices; the reader leaves it out, because a scan has one slice"
    for name in ("xcoords", "ycoords"):
        if name in arrays and arrays[name].shape == ():
            yield "R22", f"{name} is a single number; the reader makes it an array of one value"
    if layout.axis_order == "hwn":
        yield "R22", f"{key} is (H, W, n); the reader moves its axes to (n, H, W)"
    for name in ("diffraction", "diff3d", "Y"):
        if name in arrays and len(arrays[name].shape) == 4:
            yield "R22", f"{name} has a trailing axis of length one; the reader drops it"
    if layout.measurement == "counts":
        yield "R22", f"{key} holds counts; the reader takes the square root"


def _check_gaps(key: str, arrays: Arrays, layout: DiffractionLayout) -> Broken:
    """Report gaps that the mask does not exclude; a quick test of the extrema decides for nearly every file."""
    array, mask = arrays[key], arrays.get("mask")
    _, count = compute_stack_size(array, layout)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fi" or not array.size or not count:
        return
    if array.min() >= 0 and np.isfinite(array.max()):
        return
    gap = find_gap_pixels(move_pattern_axis_first(array, layout, count))
    if isinstance(mask, np.ndarray) and mask.shape == gap.shape:
        gap &= mask != 0
    if gap.any():
        row, column = np.argwhere(gap)[0].tolist()
        yield (
            "R29",
            f"{key} has {int(gap.sum())} pixels (the first at [{row}, {column}]) with a marker instead of a measured "
            "value (not finite, or negative in every pattern); the reader masks them",
        )


def _check_undeclared_counts(key: str, array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout) -> Broken:
    undeclared = layout.measurement is not None and layout.measurement_reason.startswith(REASON_FLOATING_POINT)
    if not undeclared or not isinstance(array, np.ndarray) or array.size == 0:
        return
    sample = array.reshape(-1)[:1000]  # decides nearly every file without a pass over the whole array
    if (sample == np.rint(sample)).all() and array.max() > 1 and (array == np.rint(array)).all():
        yield (
            "R24",
            f"{key} holds only whole numbers up to {array.max():g}, as counts do, and is read as {layout.measurement}; "
            "set `measurement` to choose",
        )
    elif layout.measurement == "counts":
        reason = layout.measurement_reason.removeprefix(REASON_DECIDED)
        yield "R24", f"{key} is read as intensities, because {reason}; set `measurement` to choose"


def _check_corner_origin(
    key: str, array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout, size: int | None
) -> Broken:
    """Compare the middle half (along each axis) of a mean pattern with the middle half after an fft-shift."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or size is None or size < 4 or not array.size:
        return
    stack = array.reshape(normalize_stack_shape(array.shape))
    stack = stack if layout.axis_order == "nhw" else np.moveaxis(stack, 2, 0)
    mean = stack[:: max(1, len(stack) // 32)].mean(0, dtype=np.float64)  # a few dozen patterns suffice
    middle = slice(size // 4, size // 4 + size // 2)
    if np.fft.fftshift(mean)[middle, middle].sum() > 2 * mean[middle, middle].sum():
        yield (
            "R26",
            f"{key} is brighter in its corners than in the middle, where zero frequency belongs (at index N//2); "
            "if the patterns are fft-shifted, convert the file with `origin` corner",
        )


def _check_object_extent(arrays: Arrays, size: int | None) -> Broken:
    obj, x, y = (arrays.get(key) for key in ("objectGuess", "xcoords", "ycoords"))
    if obj is None or size is None or len(obj.shape) != 2:
        return
    for name, coordinates, extent in (("rows", y, obj.shape[0]), ("columns", x, obj.shape[1])):
        if not isinstance(coordinates, np.ndarray) or coordinates.dtype.kind not in "fiu" or coordinates.size == 0:
            continue
        low = float(coordinates.min()) - size // 2  # cast first: small integers wrap
        high = float(coordinates.max()) - size // 2 + size - 1
        if not is_inside(low, high, extent):
            yield (
                "R25",
                f"the patterns cover {name} {low:.1f} to {high:.1f} and objectGuess has {name} 0 to {extent - 1}: "
                "it is not on the coordinate grid and cannot serve as ground truth",
            )


def _check_coordinate_scale(arrays: Arrays, size: int | None) -> Broken:
    obj, x, y = (arrays.get(key) for key in ("objectGuess", "xcoords", "ycoords"))
    if not (isinstance(obj, np.ndarray) and isinstance(x, np.ndarray) and isinstance(y, np.ndarray)) or size is None:
        return
    valid = all(axis.ndim == 1 and axis.dtype.kind in "fiu" and np.isfinite(axis).all() for axis in (x, y))
    if not valid or x.shape != y.shape or obj.ndim != 2 or not obj.size or not x.size:
        return
    scale = estimate_coordinate_scale(np.stack([y, x], axis=1).astype(np.float64), size, obj)
    if scale.factor != 1:
        top, bottom, left, right = scale.illuminated_box
        yield (
            "R27",
            f"the coordinates seem to be object pixels divided by {scale.factor:g}: multiplied by it, the patterns "
            f"cover rows {top:.1f} to {bottom:.1f}, columns {left:.1f} to {right:.1f}, and match the object to "
            f"{scale.misfit[scale.factor]:.1f} pixels instead of {scale.misfit[1.0]:.1f}; "
            f"convert the file with `position_scale` {scale.factor:g}",
        )
