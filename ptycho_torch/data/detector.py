"""Corrections of raw detector frames: dark, flat, markers, negative values, binning, and the window about the center.

Every function takes and returns frames as arrays (n, rows, columns) in counts, of any size. A mask is True where a
pixel counts. The center of the beam is in :mod:`~ptycho_torch.data.beam_center`, defective pixels are in
:mod:`~ptycho_torch.data.bad_pixels`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError, DataError

MARKER_VALUES = tuple(2.0**bits - offset for bits in (15, 16, 20, 24, 31, 32) for offset in (1, 2))
"""Values that detectors store for gaps and defective pixels: the largest of each counter depth and the one below it."""

MIN_PLATEAU_VALUES = 8
"""Smallest number of equal largest values that make a plateau."""

MIN_PLATEAU_LEVEL = 12
"""Smallest plateau in units of the smallest positive value; smaller counts coincide by chance."""

PLATEAU_EXCESS = 1.5
"""Smallest ratio of the number of values on a plateau to the number of values slightly below it."""

NEAR_FRACTION, NEAR_LEVELS = 0.005, 3
"""Extent of "slightly below" a largest value: a fraction of it, or a number of counts, whichever is larger. Where a
distribution falls toward its maximum, three counts hold at least three times as many values as the maximum."""

MAX_ROUNDING_SHARE = 1e-9
"""Magnitude of a negative value, as a fraction of the largest value, that rounding leaves; it is no marker."""

Frames = NDArray[Any]
Mask = NDArray[np.bool_]


def subtract_dark(frames: Frames, dark: NDArray[Any]) -> NDArray[np.float32]:
    """Subtract a dark frame; values may become negative, see :func:`clip_negative`.

    Args:
        frames: (n, rows, columns) of any real dtype; integers are cast before the difference.
        dark: (rows, columns) counts per frame without beam, or a scalar offset; not finite counts as 0.

    Raises:
        DataError: the shapes differ.
    """
    offset = np.nan_to_num(_require_frame(dark, frames, "dark"), nan=0.0, posinf=0.0, neginf=0.0)
    corrected: NDArray[np.float32] = frames.astype(np.float32)
    corrected -= offset
    return corrected


def apply_flat(frames: Frames, flat: NDArray[Any]) -> tuple[NDArray[np.float32], Mask]:
    """Divide by the sensitivity of each pixel relative to the mean sensitivity, so that the values remain counts.

    Args:
        frames: (n, rows, columns).
        flat: (rows, columns) response to uniform illumination, in any unit.

    Returns:
        The frames, and the mask (rows, columns) of the pixels with a finite positive sensitivity; other pixels are 0.

    Raises:
        DataError: the shapes differ, or no pixel has a positive sensitivity.
    """
    response = _require_frame(flat, frames, "flat")
    usable = np.isfinite(response) & (response > 0)
    if not usable.any():
        raise DataError("`flat` has no positive value; expected the response of each pixel to uniform illumination")
    relative = np.where(usable, response / response[usable].mean(), np.inf)
    return (frames / relative).astype(np.float32), usable


def find_marker_pixels(frames: Frames) -> Mask:
    """Return where (n, rows, columns) a value is a marker instead of a count.

    Markers are values that are not finite; a negative value that a pixel has in every frame, and in whole-numbered
    frames -1, -2 or a single negative value without others (several come from the subtraction of a dark frame); the
    values which detectors store for gaps, the largest of a counter depth and the one below it, where they are the
    largest; and a plateau of many equal largest values, as saturated counters give. Negative values as small as
    rounding errors are no markers.
    """
    values = frames.reshape(-1) if frames.flags.c_contiguous else np.ravel(frames)
    markers = np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        markers |= ~np.isfinite(values)
    whole = values.dtype.kind in "iu" or _is_whole_numbered(values)
    if values.dtype.kind != "u":
        markers |= _find_negative_markers(frames, whole).reshape(-1)
    # The markers of gaps are above the plateau of saturated pixels: each round removes one largest value.
    for _ in range(3):
        top = _find_top_marker(values, markers, whole)
        if top is None:
            break
        markers |= values == top
    return markers.reshape(frames.shape)


def may_hold_markers(frames: Frames, *, squared: bool = False) -> bool:
    """Return False if :func:`find_marker_pixels` would find none, by a test of a few passes.

    Args:
        frames: (n, rows, columns), finite.
        squared: the counts are the squares of ``frames``.
    """
    top = frames.max()
    counts = float(top) ** 2 if squared else float(top)
    if frames.min() < 0 or np.count_nonzero(frames == top) >= MIN_PLATEAU_VALUES:
        return True
    is_largest_of_dtype = frames.dtype.kind in "iu" and top == np.iinfo(frames.dtype).max
    return bool(is_largest_of_dtype or np.isclose(counts, MARKER_VALUES, rtol=2e-7, atol=0).any())


def combine_masks(first: Mask | None, second: Mask | None) -> Mask | None:
    """Return the pixels that count in both masks; None counts every pixel."""
    if first is None or second is None:
        return second if first is None else first
    combined: Mask = (first if second.ndim <= first.ndim else first[None]) & second
    return combined


def _find_negative_markers(frames: Frames, whole: bool) -> Mask:
    with np.errstate(invalid="ignore"):
        negative = frames < 0
    if not negative.any():
        return negative
    if frames.dtype.kind == "f":
        negative &= frames < -(0.5 if whole else _compute_rounding(frames))
        if not negative.any():
            return negative
    distinct = np.unique(frames[negative])
    if whole and (len(distinct) == 1 or (distinct >= -2).all()):
        return negative
    constant = (frames == frames[0]).all(0) if len(frames) > 1 else np.zeros(frames.shape[1:], bool)
    return negative & constant


def _compute_rounding(frames: Frames) -> float:
    """Return the largest rounding error that a subtraction from ``frames`` leaves."""
    if frames.dtype.kind != "f":
        return 0.0
    return MAX_ROUNDING_SHARE * float(np.max(frames, initial=0, where=np.isfinite(frames)))


def _is_whole_numbered(values: NDArray[Any]) -> bool:
    """Return True if all finite values are whole numbers, to the rounding of a square root in float32."""
    sample = values[:: max(1, values.size // 200_000)]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    return bool((np.abs(sample - np.rint(sample)) <= 1e-6 * np.abs(sample) + 1e-9).all())


def _find_top_marker(values: NDArray[Any], markers: Mask, whole: bool) -> Any:
    """Return the largest value that is not yet a marker if it is one, otherwise None."""
    counted = values[~markers] if markers.any() else values
    if not counted.size:
        return None
    top = counted.max()
    is_largest_of_dtype = values.dtype.kind in "iu" and top == np.iinfo(values.dtype).max
    if is_largest_of_dtype or (whole and np.isclose(float(top), MARKER_VALUES, rtol=2e-7, atol=0).any()):
        return top
    return top if _is_plateau(counted, top) else None


def _is_plateau(values: NDArray[Any], top: Any) -> bool:
    number = int(np.count_nonzero(values == top))
    level = float(top)
    if number < MIN_PLATEAU_VALUES or not level > 0:
        return False
    unit = float(values[values > 0].min())
    below = int(np.count_nonzero(values >= compute_near_limit(level, unit))) - number
    return number >= PLATEAU_EXCESS * max(below, 1) and level >= MIN_PLATEAU_LEVEL * unit


def compute_near_limit(level: Any, unit: float) -> Any:
    """Return the smallest value that counts as slightly below ``level``, for values in steps of ``unit``."""
    return level - np.maximum(NEAR_FRACTION * level, (NEAR_LEVELS + 0.5) * unit)


def find_gap_pixels(frames: Frames) -> Mask:
    """Return the pixels (rows, columns) that hold a marker of a gap in at least half of the frames.

    A marker is a value that is not finite, or the only negative value of the pixel, unless it is as small as a rounding
    error. In contrast to :func:`find_marker_pixels`, single bad values are not reported.

    Args:
        frames: (n, rows, columns) of any real dtype.
    """
    bad = np.zeros(frames.shape[1:], np.intp)
    if frames.dtype.kind == "f":
        bad += np.count_nonzero(~np.isfinite(frames), axis=0)
    if frames.dtype.kind != "u":
        with np.errstate(invalid="ignore"):
            lowest, highest = frames.min(0), frames.max(0)
            bad += np.where((lowest < -_compute_rounding(frames)) & (lowest == highest), len(frames), 0)
    gap: Mask = 2 * bad >= max(len(frames), 1)
    return gap


def clip_negative(frames: Frames) -> tuple[Frames, int]:
    """Set negative values to zero, and return the frames and the number of negative values."""
    number = int(np.count_nonzero(frames < 0))
    return (np.maximum(frames, 0) if number else frames), number


def bin_frames(
    frames: Frames, factor: int, mask: Mask | None = None, center: tuple[float, float] | None = None
) -> tuple[Frames, Mask | None, tuple[float, float] | None]:
    """Sum blocks of ``factor`` × ``factor`` pixels; incomplete blocks at the far edges are dropped.

    Args:
        frames: (n, rows, columns); small integers are summed in 64 bits.
        factor: pixels per block and axis.
        mask: (rows, columns) or (n, rows, columns); a block counts if all of its pixels count.
        center: zero frequency (row, column).

    Returns:
        Frames, mask and center in the larger pixels. Where a fixed center has to lie on the middle of a block, use
        :func:`fit_window` before.

    Raises:
        ConfigError: the factor is below 1 or exceeds the frame.
    """
    rows, columns = frames.shape[1:]
    if factor < 1 or factor > min(rows, columns):
        raise ConfigError(f"`bin` is {factor}; expected a number from 1 to {min(rows, columns)}, the side of a frame")
    if factor == 1:
        return frames, mask, center
    dtype = np.int64 if frames.dtype.kind in "iu" else np.float32
    summed = _split_into_blocks(frames, factor).sum((-3, -1), dtype=dtype)
    counting = None if mask is None else np.asarray(_split_into_blocks(mask, factor).all((-3, -1)))
    moved = None if center is None else ((center[0] + 0.5) / factor - 0.5, (center[1] + 0.5) / factor - 0.5)
    return summed, counting, moved


def _split_into_blocks(array: NDArray[Any], factor: int) -> NDArray[Any]:
    rows, columns = (side // factor for side in array.shape[-2:])
    trimmed = array[..., : rows * factor, : columns * factor]
    return trimmed.reshape(*array.shape[:-2], rows, factor, columns, factor)


def fit_window(frames: Frames, mask: Mask | None, center: tuple[float, float], size: int) -> tuple[Frames, Mask | None]:
    """Cut a square window about the center out of each frame; the window is padded where it exceeds the frame.

    Zero frequency, rounded to a whole pixel, moves to index ``size // 2``; no value is interpolated. Padded pixels are
    0 and masked.

    Args:
        frames: (n, rows, columns) of any dtype.
        mask: (rows, columns) or (n, rows, columns); None: all pixels count.
        center: zero frequency (row, column) in pixels of the frame, see
            :func:`~ptycho_torch.data.beam_center.estimate_center`.
        size: side of the window in pixels.

    Returns:
        Frames (n, size, size), and the mask; None if all pixels of the window count.

    Raises:
        ConfigError: the size is not positive, or no pixel of the frame is in the window.
    """
    if size < 1:
        raise ConfigError(f"`crop` is {size}; expected the side of the window in pixels, above 0")
    first = [int(np.floor(position + 0.5)) - size // 2 for position in center]
    source, target = [], []
    for start, side in zip(first, frames.shape[-2:], strict=True):
        low, high = max(start, 0), min(start + size, side)
        if low >= high:
            raise ConfigError(
                f"`center` is {center[0]:g},{center[1]:g} and the window of {size} pixels about it contains no pixel "
                f"of the {frames.shape[-2]} × {frames.shape[-1]} frame; change `center` or `crop`"
            )
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    complete = all(part.stop - part.start == size for part in source)
    if complete:
        window = frames[:, source[0], source[1]]
        return window, None if mask is None else mask[..., source[0], source[1]]
    window = np.zeros((len(frames), size, size), frames.dtype)
    window[:, target[0], target[1]] = frames[:, source[0], source[1]]
    counting = np.zeros((*(() if mask is None else mask.shape[:-2]), size, size), bool)
    counting[..., target[0], target[1]] = True if mask is None else mask[..., source[0], source[1]]
    return window, counting


def _require_frame(array: NDArray[Any], frames: Frames, setting: str) -> NDArray[np.float32]:
    """Return a correction frame as float32.

    Raises:
        DataError: its shape is not the one of a frame.
    """
    frame = np.asarray(array)
    if frame.ndim == 3 and frame.shape[0] == 1:
        frame = frame[0]
    if frame.dtype.kind not in "fiu" or frame.shape not in ((), frames.shape[1:]):
        raise DataError(
            f"`{setting}` is {frame.dtype} of shape {frame.shape}; expected real numbers, one per pixel of a frame, "
            f"{frames.shape[1:]}"
        )
    single: NDArray[np.float32] = frame.astype(np.float32)
    return single
