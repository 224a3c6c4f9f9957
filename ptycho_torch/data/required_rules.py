"""Rules that a scan file MUST keep. Each check yields the number and the message of every broken rule."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.detector import find_gap_pixels
from ptycho_torch.data.layout import (
    SCAN_KEYS,
    ArrayHeader,
    Arrays,
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    is_matching_stack,
    move_pattern_axis_first,
    normalize_probe_shape,
    normalize_stack_shape,
    read_metadata,
)

AnyArray = NDArray[Any] | ArrayHeader
Broken = Iterator[tuple[str, str]]
"""Rule number and message."""

MAX_LISTED_INDICES = 3
"""Largest number of offending indices in a message."""

MAX_MODULUS = 1.8e19
"""Largest modulus of an amplitude, a probe or an object: its square is finite in float32."""

MAX_COUNTS = 3.4e38
"""Largest counts that are finite in float32."""

MAX_COORDINATE_PX = 2.0**31
"""Largest coordinate whose pixel has a 32-bit index."""

MAX_NEGATIVE_FRACTION = 0.05
"""Largest share of the counts that values below zero may have; smaller shares remain of the subtraction of a dark."""

MAX_NEGATIVE_AMPLITUDE = 1e-6
"""Largest negative amplitude as a fraction of the largest amplitude; rounding errors are smaller."""


def check_object_arrays(arrays: Arrays) -> Broken:
    """Check R1: plain arrays only, among those that are read."""
    for key, array in arrays.items():
        if array.dtype.hasobject and is_read_key(key):
            yield "R1", format_pickle_message(key)


def is_read_key(key: str) -> bool:
    """Return True if the reader loads the array ``key`` whatever its dtype; ``_metadata`` is read if it holds text."""
    return key in SCAN_KEYS and key != "_metadata"


def format_pickle_message(key: str) -> str:
    """Return the message about an object array."""
    return f"{key} holds Python objects (pickle), which are never read; save it as a plain array or as JSON text"


def check_missing_keys(arrays: Arrays) -> Broken:
    """Check R2: required keys."""
    required = {"diffraction": find_diffraction_key(arrays)} | {
        key: key if key in arrays else None for key in ("xcoords", "ycoords")
    }
    missing = [key for key, present in required.items() if present is None]
    if missing:
        plural = "keys are" if len(missing) > 1 else "key is"
        present_keys = f"found {', '.join(sorted(arrays)) or 'nothing'}"
        hint = "write the file with these keys, or use the convert command for a file of another program"
        yield "R2", f"the {plural} missing: {', '.join(missing)} ({present_keys}); {hint}"


def check_metadata(arrays: Arrays) -> Broken:
    """Check R21: metadata are one JSON object."""
    message = read_metadata(arrays)[1]
    if message:
        yield "R21", message


def check_arrays(
    key: str,
    arrays: Arrays,
    layout: DiffractionLayout,
    count: int | None,
    size: int | None,
    *,
    in_memory: bool = False,
) -> Broken:
    """Check all rules about single arrays.

    Args:
        key: key of the diffraction patterns.
        arrays: arrays or headers by key.
        layout: axis order and measurement of the patterns.
        count: number of patterns; None if unknown.
        size: N, side of a pattern in pixels; None if unknown.
        in_memory: the arrays are those of a scan, without the gaps, slices and rounding errors that the reader of a
            file removes.
    """
    yield from _check_diffraction_alias(arrays)
    yield from _check_diffraction(key, arrays[key], layout)
    yield from _check_values(key, arrays[key], layout, arrays.get("mask"), in_memory)
    yield from _check_coordinate_pair(arrays, ("xcoords", "ycoords"), count, "R11", "R12")
    yield from _check_probe(arrays.get("probeGuess"), size)
    yield from _check_object(arrays.get("objectGuess"), (2,) if in_memory else (2, 3))
    yield from _check_labels(arrays.get("Y"), count, size, layout)
    yield from _check_mask(arrays.get("mask"), count, size, layout)
    yield from _check_scan_index(arrays.get("scan_index"), count)
    yield from _check_source_index(arrays.get("source_index"), count)
    yield from _check_nominal_positions(arrays, count)


def _check_diffraction_alias(arrays: Arrays) -> Broken:
    first, second = arrays.get("diffraction"), arrays.get("diff3d")
    if first is None or second is None:
        return
    equal = normalize_stack_shape(first.shape) == normalize_stack_shape(second.shape)
    if equal and isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        equal = np.array_equal(first.reshape(second.shape), second, equal_nan=first.dtype.kind in "fc")
    if not equal:
        yield "R3", "diffraction and diff3d are both present and differ; leave one out"


def _check_diffraction(key: str, array: AnyArray, layout: DiffractionLayout) -> Broken:
    shape = normalize_stack_shape(array.shape)
    if array.dtype.kind == "c":
        yield "R4", f"{key} is {array.dtype}; expected measured amplitudes, which are real"
    elif array.dtype.kind not in "fiu":
        yield "R4", f"{key} is {array.dtype}; expected real numbers"
    if len(shape) != 3:
        yield "R4", f"{key} has shape {array.shape}; expected three axes, (n, N, N)"
        return
    if layout.axis_order is None:
        reason = layout.axis_reason
        yield (
            "R5",
            f"{key} of shape {shape}: the axis that counts the patterns is ambiguous ({reason}); set `axis_order`",
        )
        if "cube" not in reason:
            yield "R6", f"{key} of shape {shape} holds no square patterns; crop or pad the patterns"
        return
    size, _ = compute_stack_size(array, layout)
    if size is None:
        rows, columns = shape[1:] if layout.axis_order == "nhw" else shape[:2]
        yield (
            "R6",
            f"{key} has patterns of {rows} × {columns} pixels (axis order {layout.axis_order}, "
            f"{layout.axis_reason}); expected square patterns; crop or pad the patterns, or set `axis_order`",
        )
    if 0 in shape:
        yield "R7", f"{key} of shape {shape} is empty; expected at least one pattern"


def _check_values(
    key: str, array: AnyArray, layout: DiffractionLayout, mask: AnyArray | None, in_memory: bool
) -> Broken:
    if layout.measurement is None and array.dtype.kind in "iu":
        yield (
            "R8",
            f"{key} is {array.dtype}, which may be counts or amplitudes; set `measurement` to counts or amplitude",
        )
    if layout.measurement is None and array.dtype.kind == "f":
        yield "R8", f"{key} is {array.dtype}: {layout.measurement_reason}; set `measurement` to counts or amplitude"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.size == 0:
        return
    is_amplitude = layout.measurement != "counts"
    largest = MAX_MODULUS if is_amplitude else MAX_COUNTS
    # Either is NaN where any value is: one pass instead of a mask. The limits overflow float16.
    low, high = float(array.min()), float(array.max())
    if low >= 0 and 0 < high <= largest:
        return
    array = _set_uncounted_to_zero(array, layout, mask, gaps=not in_memory)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low) or not np.isfinite(high):
        places = _format_count_and_indices(~np.isfinite(array))
        yield "R9", f"{key} has {places} not finite; set such pixels to 0 and mask them"
    elif high > largest:
        yield "R9", f"{key} has values up to {high:g}, which overflow float32; expected at most {largest:g}"
    elif low < 0 and (in_memory or _has_negative_signal(array, float(low), float(high), is_amplitude)):
        places = _format_count_and_indices(array < 0)
        yield "R10", f"{key} has {places} negative, down to {low:g}; expected measured values, which are not negative"
    elif high <= 0:
        yield "R10", f"{key} is zero everywhere; expected at least one photon"


def _set_uncounted_to_zero(
    array: NDArray[Any], layout: DiffractionLayout, mask: AnyArray | None, *, gaps: bool
) -> NDArray[Any]:
    """Return the patterns with 0 on masked pixels and (optionally) on gaps, whose values are not read."""
    size, count = compute_stack_size(array, layout)
    if size is None or not count:
        return array
    frames = move_pattern_axis_first(array, layout, count)
    counting = ~find_gap_pixels(frames) if gaps else np.ones(frames.shape[1:], bool)
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf":
        known = move_pattern_axis_first(mask, layout, count)
        if known.shape in (frames.shape, frames.shape[1:]):
            counting = counting & (known != 0)
    return np.where(counting, frames, frames.dtype.type(0))


def _has_negative_signal(array: NDArray[Any], low: float, high: float, is_amplitude: bool) -> bool:
    """Return True if values below zero are more than rounding errors of amplitudes, or noise of a subtracted dark."""
    if is_amplitude:
        return -low > MAX_NEGATIVE_AMPLITUDE * high
    negative = -float(np.minimum(array, 0).sum(dtype=np.float64))
    return negative > MAX_NEGATIVE_FRACTION * float(np.maximum(array, 0).sum(dtype=np.float64))


def _format_count_and_indices(bad: NDArray[np.bool_]) -> str:
    """Return the number of bad values and the indices of the first of them."""
    places = [tuple(map(int, place)) for place in np.argwhere(bad)[:MAX_LISTED_INDICES]]
    number = int(bad.sum())
    text = ", ".join(f"[{', '.join(map(str, place))}]" for place in places)
    return f"{number} value{'s' if number > 1 else ''} (at {text}{', …' if number > len(places) else ''})"


def _check_coordinate_pair(
    arrays: Arrays, keys: tuple[str, str], count: int | None, shape_rule: str, value_rule: str
) -> Broken:
    for key in keys:
        array = arrays.get(key)
        if array is None:
            continue
        if array.shape == () and count == 1 and array.dtype.kind in "fiu":
            array = array.reshape(1) if isinstance(array, np.ndarray) else array._replace(shape=(1,))
        if len(array.shape) != 1 or array.dtype.kind not in "fiu":
            yield shape_rule, f"{key} is {array.dtype} of shape {array.shape}; expected (n,) real, in pixels"
        elif count is not None and array.shape[0] != count:
            problem = "extra coordinates" if array.shape[0] > count else "too few coordinates"
            yield shape_rule, f"{key} has {problem}: {array.shape[0]} for {count} patterns; expected one per pattern"
        elif isinstance(array, np.ndarray) and not np.isfinite(array).all():
            yield value_rule, f"{key} has {_format_count_and_indices(~np.isfinite(array))} not finite"
        elif isinstance(array, np.ndarray) and array.size and _compute_max_modulus(array) > MAX_COORDINATE_PX:
            yield (
                value_rule,
                f"{key} has coordinates up to {_compute_max_modulus(array):g}; expected object pixels, at most "
                f"{MAX_COORDINATE_PX:g}; set `position_unit`",
            )


def _compute_max_modulus(array: NDArray[Any]) -> float:
    """Return the largest modulus; of complex arrays the largest real or imaginary part."""
    parts = (array.real, array.imag) if array.dtype.kind == "c" else (array,)
    return max(float(np.abs(part.astype(np.float64)).max()) for part in parts)


def _check_overflow(key: str, rule: str, array: NDArray[Any]) -> Broken:
    largest = _compute_max_modulus(array) if array.size else 0.0
    if largest > MAX_MODULUS:
        yield (
            rule,
            f"{key} has values up to {largest:g}, whose squares overflow float32; expected {MAX_MODULUS:g} or less",
        )


def _check_probe(probe: AnyArray | None, size: int | None) -> Broken:
    if probe is None:
        return
    shape = normalize_probe_shape(probe.shape)
    if probe.dtype.kind != "c" or len(shape) not in (2, 3) or 0 in shape:
        expected = "expected complex, (N, N) or (modes, N, N)"
        yield "R13", f"probeGuess is {probe.dtype} of shape {probe.shape}; {expected}"
    elif size is not None and shape[-2:] != (size, size):
        yield (
            "R14",
            f"probeGuess has {shape[-2]} × {shape[-1]} pixels, the patterns {size} × {size}; expected equal sizes",
        )
    if isinstance(probe, np.ndarray) and probe.dtype.kind == "c":
        if not np.isfinite(probe).all():
            yield "R15", f"probeGuess has {_format_count_and_indices(~np.isfinite(probe))} not finite"
        elif probe.size and not probe.any():
            yield "R15", "probeGuess is zero everywhere; expected an initial guess of the illumination"
        else:
            yield from _check_overflow("probeGuess", "R15", probe)


def _check_object(obj: AnyArray | None, ranks: tuple[int, ...]) -> Broken:
    if obj is None:
        return
    if obj.dtype.kind != "c" or len(obj.shape) not in ranks or 0 in obj.shape:
        yield "R16", f"objectGuess is {obj.dtype} of shape {obj.shape}; expected complex, (rows, columns)"
    elif isinstance(obj, np.ndarray) and not np.isfinite(obj).all():
        yield "R16", f"objectGuess has {_format_count_and_indices(~np.isfinite(obj))} not finite"
    elif isinstance(obj, np.ndarray):
        yield from _check_overflow("objectGuess", "R16", obj)


def _check_labels(labels: AnyArray | None, count: int | None, size: int | None, layout: DiffractionLayout) -> Broken:
    if labels is None:
        return
    wrong = count is not None and size is not None and not is_matching_stack(labels.shape, count, size, layout)
    if labels.dtype.kind != "c" or len(normalize_stack_shape(labels.shape)) != 3 or wrong:
        expected = f"({count}, {size}, {size})" if count is not None and size is not None else "(n, N, N)"
        yield "R17", f"Y is {labels.dtype} of shape {labels.shape}; expected complex object patches, {expected}"
    elif isinstance(labels, np.ndarray) and not np.isfinite(labels).all():
        yield "R17", f"Y has {_format_count_and_indices(~np.isfinite(labels))} not finite"
    elif isinstance(labels, np.ndarray):
        yield from _check_overflow("Y", "R17", labels)


def _check_mask(mask: AnyArray | None, count: int | None, size: int | None, layout: DiffractionLayout) -> Broken:
    if mask is None:
        return
    rank = len(normalize_stack_shape(mask.shape))
    wrong = rank not in (2, 3) or mask.dtype.kind not in "biuf"
    if size is not None and count is not None and not wrong:
        wrong = not (mask.shape == (size, size) or is_matching_stack(mask.shape, count, size, layout))
    if wrong:
        n, side = (count, size) if size is not None else ("n", "N")
        expected = f"expected bool, ({side}, {side}) or ({n}, {side}, {side})"
        yield "R18", f"mask is {mask.dtype} of shape {mask.shape}; {expected}"
    elif isinstance(mask, np.ndarray):
        if not ((mask == 0) | (mask == 1)).all():
            yield "R18", "mask has values other than 0 and 1; expected bool, True where a pixel counts"
        elif not mask.any():
            yield (
                "R18",
                "mask excludes every pixel; expected True where a pixel counts; set `invert_mask` if it is inverted",
            )


def _check_scan_index(index: AnyArray | None, count: int | None) -> Broken:
    if index is not None and not _is_integer_per_pattern(index, count):
        yield "R19", f"scan_index is {index.dtype} of shape {index.shape}; expected integers, {_format_vector(count)}"


def _check_source_index(index: AnyArray | None, count: int | None) -> Broken:
    if index is None:
        return
    if not _is_integer_per_pattern(index, count):
        yield "R28", f"source_index is {index.dtype} of shape {index.shape}; expected integers, {_format_vector(count)}"
    elif isinstance(index, np.ndarray) and (index < 0).any():
        yield "R28", f"source_index has {_format_count_and_indices(index < 0)} negative; expected indices from 0"


def _is_integer_per_pattern(index: AnyArray, count: int | None) -> bool:
    return index.dtype.kind in "iu" and len(index.shape) == 1 and count in (None, *index.shape)


def _format_vector(count: int | None) -> str:
    return f"({count},)" if count is not None else "(n,)"


def _check_nominal_positions(arrays: Arrays, count: int | None) -> Broken:
    keys = ("xcoords_start", "ycoords_start")
    present = [key for key in keys if key in arrays]
    if len(present) == 1:
        yield "R20", f"{present[0]} is present without its partner; give both of {' and '.join(keys)}"
    yield from _check_coordinate_pair(arrays, keys, count, "R20", "R20")
