"""The rules of ``specs/data_contracts.md``: one implementation for loading, describing, converting and checking.

Rules look at a mapping from key to array. An array may be replaced by its :class:`ArrayHeader`; rules about values are then
left out. What a file leaves open (axis order, amplitude or counts) is settled in :mod:`ptycho_torch.data.layout`.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.core.errors import ContractError
from ptycho_torch.data.coordinates import estimate_coordinate_scale
from ptycho_torch.data.layout import (
    ArrayHeader,
    Arrays,
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    find_layout,
    is_matching_stack,
    normalize_probe_shape,
    normalize_stack_shape,
    read_metadata,
)

MAX_LISTED_INDICES = 3
"""How many offending indices a message names."""


class Violation(NamedTuple):
    """A rule that is not kept. A file that breaks a MUST is not loaded; a SHOULD is told by ``describe``."""

    rule: str
    level: Literal["MUST", "SHOULD"]
    message: str


def _make_must_violation(rule: str, message: str) -> Violation:
    return Violation(rule, "MUST", message)


def _make_should_violation(rule: str, message: str) -> Violation:
    return Violation(rule, "SHOULD", message)


def find_violations(
    arrays: Arrays,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
    *,
    recommendations: bool = True,
) -> list[Violation]:
    """Return every rule that ``arrays`` break, MUST before SHOULD, in the order of the rules.

    Args:
        arrays: the content of a file by key.
        axis_order: axis order of the diffraction; None: found.
        measurement: what the diffraction holds; None: found.
        recommendations: check the SHOULDs too.
    """
    plain = {key: array for key, array in arrays.items() if not array.dtype.hasobject}
    layout = find_layout(plain, axis_order, measurement)
    found = [*_check_object_arrays(arrays), *_check_missing_keys(arrays)]
    key = find_diffraction_key(plain)
    if key is not None:
        found += [
            *_check_diffraction_alias(plain),
            *_check_diffraction(key, plain[key], layout),
            *_check_values(key, plain[key], layout),
        ]
        size, count = compute_stack_size(plain[key], layout)
        found += [
            *_check_coordinates(plain, count),
            *_check_probe(plain, size),
            *_check_truth(plain, count, size, layout),
        ]
        found += _check_optional_arrays(plain, count, size, layout)
        if recommendations:
            found += _check_recommendations(key, plain, layout, size)
    message = read_metadata(plain)[1]
    if message:
        found.append(_make_must_violation("R21", message))
    return sorted(found, key=lambda violation: (violation.level, int(violation.rule[1:])))


def raise_for_violations(found: list[Violation], name: str) -> None:
    """Raise :class:`ContractError` for the first broken MUST, after ``name``, the file."""
    for violation in found:
        if violation.level == "MUST":
            raise ContractError(violation.rule, f"{name}: {violation.message}")


def _check_object_arrays(arrays: Arrays) -> Iterator[Violation]:
    for key, array in arrays.items():
        if array.dtype.hasobject:
            yield _make_must_violation("R1", format_pickle_message(key))


def format_pickle_message(key: str) -> str:
    """The sentence about an object array."""
    return f"{key} holds Python objects (pickle), which are never read; save it as a plain array or as JSON text"


def _check_missing_keys(arrays: Arrays) -> Iterator[Violation]:
    found = f"found {', '.join(sorted(arrays)) or 'nothing'}"
    required = {"diffraction": find_diffraction_key(arrays)} | {
        key: key if key in arrays else None for key in ("probeGuess", "xcoords", "ycoords")
    }
    missing = [key for key, there in required.items() if there is None]
    if missing:
        plural = "keys are" if len(missing) > 1 else "key is"
        hint = "write the file with these key names, or bring a foreign file over with the convert command"
        yield _make_must_violation("R2", f"the {plural} missing: {', '.join(missing)} ({found}); {hint}")


def _check_diffraction_alias(arrays: Arrays) -> Iterator[Violation]:
    first, second = arrays.get("diffraction"), arrays.get("diff3d")
    if first is None or second is None:
        return
    same = normalize_stack_shape(first.shape) == normalize_stack_shape(second.shape)
    if same and isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same = np.array_equal(first.reshape(second.shape), second, equal_nan=first.dtype.kind in "fc")
    if not same:
        yield _make_must_violation("R3", "diffraction and diff3d are both there and differ; leave one out")


def _check_diffraction(key: str, array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout) -> Iterator[Violation]:
    shape = normalize_stack_shape(array.shape)
    if array.dtype.kind == "c":
        yield _make_must_violation("R4", f"{key} is {array.dtype}; expected measured amplitudes, which are real")
    elif array.dtype.kind not in "fiu":
        yield _make_must_violation("R4", f"{key} is {array.dtype}; expected real numbers")
    if len(shape) != 3:
        yield _make_must_violation("R4", f"{key} has shape {array.shape}; expected three axes, (n, N, N)")
        return
    if layout.axis_order is None:
        reason = layout.axis_reason
        yield _make_must_violation(
            "R5", f"{key} of shape {shape}: which axis counts the patterns is open ({reason}); set --axis_order"
        )
        if "cube" not in reason:
            yield _make_must_violation("R6", f"{key} of shape {shape} holds no square patterns; crop or pad them")
        return
    size, _ = compute_stack_size(array, layout)
    if size is None:
        side = shape[1:] if layout.axis_order == "nhw" else shape[:2]
        yield _make_must_violation(
            "R6",
            f"{key} has patterns of {side[0]} × {side[1]} pixels (axis order {layout.axis_order}, "
            f"{layout.axis_reason}); expected square ones: crop or pad them, or set --axis_order",
        )
    if 0 in shape:
        yield _make_must_violation("R7", f"{key} of shape {shape} is empty; expected at least one pattern")


def _check_values(key: str, array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout) -> Iterator[Violation]:
    if layout.measurement is None and array.dtype.kind in "iu":
        yield _make_must_violation(
            "R8",
            f"{key} is {array.dtype} and nothing says whether it holds counts or amplitudes; "
            "set --measurement counts or --measurement amplitude",
        )
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.size == 0:
        return
    low, high = array.min(), array.max()  # either is NaN where any value is: one pass instead of a mask
    if not np.isfinite(low) or not np.isfinite(high):
        yield _make_must_violation(
            "R9",
            f"{key} has {_format_count_and_indices(~np.isfinite(array))} not finite; set such pixels to 0 and mask them",
        )
        return
    if low < 0:
        yield _make_must_violation(
            "R10",
            f"{key} has {_format_count_and_indices(array < 0)} negative, down to {low:g}; measured values are not",
        )
    elif high <= 0:
        yield _make_must_violation("R10", f"{key} is zero everywhere; expected at least one photon")


def _format_count_and_indices(bad: NDArray[np.bool_]) -> str:
    """How many values are bad and where the first ones are."""
    places = [tuple(map(int, place)) for place in np.argwhere(bad)[:MAX_LISTED_INDICES]]
    number = int(bad.sum())
    text = ", ".join(f"[{', '.join(map(str, place))}]" for place in places)
    return f"{number} value{'s' if number > 1 else ''} (at {text}{', …' if number > len(places) else ''})"


def _check_coordinates(arrays: Arrays, count: int | None) -> Iterator[Violation]:
    yield from _check_coordinate_pair(arrays, ("xcoords", "ycoords"), count, "R11", "R12")


def _check_coordinate_pair(
    arrays: Arrays, keys: tuple[str, str], count: int | None, shape_rule: str, value_rule: str
) -> Iterator[Violation]:
    for key in keys:
        array = arrays.get(key)
        if array is None:
            continue
        if len(array.shape) != 1 or array.dtype.kind not in "fiu":
            yield _make_must_violation(
                shape_rule, f"{key} is {array.dtype} of shape {array.shape}; expected (n,) real, in pixels"
            )
        elif count is not None and array.shape[0] != count:
            what = "extra coordinates" if array.shape[0] > count else "too few coordinates"
            yield _make_must_violation(
                shape_rule,
                f"{key} has {what}: {array.shape[0]} for {count} patterns; expected one each",
            )
        elif isinstance(array, np.ndarray) and not np.isfinite(array).all():
            yield _make_must_violation(
                value_rule, f"{key} has {_format_count_and_indices(~np.isfinite(array))} not finite"
            )


def _check_probe(arrays: Arrays, size: int | None) -> Iterator[Violation]:
    probe = arrays.get("probeGuess")
    if probe is None:
        return
    shape = normalize_probe_shape(probe.shape)
    if probe.dtype.kind != "c" or len(shape) not in (2, 3) or 0 in shape:
        yield _make_must_violation(
            "R13",
            f"probeGuess is {probe.dtype} of shape {probe.shape}; expected complex, (N, N) or (modes, N, N)",
        )
    elif size is not None and shape[-2:] != (size, size):
        yield _make_must_violation(
            "R14",
            f"probeGuess has {shape[-2]} × {shape[-1]} pixels, the patterns {size} × {size}; expected the same",
        )
    if isinstance(probe, np.ndarray) and probe.dtype.kind == "c":
        if not np.isfinite(probe).all():
            yield _make_must_violation(
                "R15", f"probeGuess has {_format_count_and_indices(~np.isfinite(probe))} not finite"
            )
        elif probe.size and not probe.any():
            yield _make_must_violation(
                "R15", "probeGuess is zero everywhere; expected a first guess of the illumination"
            )


def _check_truth(arrays: Arrays, count: int | None, size: int | None, layout: DiffractionLayout) -> Iterator[Violation]:
    obj, labels = arrays.get("objectGuess"), arrays.get("Y")
    if obj is not None:
        if obj.dtype.kind != "c" or len(obj.shape) != 2 or 0 in obj.shape:
            yield _make_must_violation(
                "R16", f"objectGuess is {obj.dtype} of shape {obj.shape}; expected complex, (rows, columns)"
            )
        elif isinstance(obj, np.ndarray) and not np.isfinite(obj).all():
            yield _make_must_violation(
                "R16", f"objectGuess has {_format_count_and_indices(~np.isfinite(obj))} not finite"
            )
    if labels is not None:
        wrong = count is not None and size is not None and not is_matching_stack(labels.shape, count, size, layout)
        if labels.dtype.kind != "c" or len(normalize_stack_shape(labels.shape)) != 3 or wrong:
            expected = f"({count}, {size}, {size})" if count is not None and size is not None else "(n, N, N)"
            yield _make_must_violation(
                "R17",
                f"Y is {labels.dtype} of shape {labels.shape}; expected complex object patches, {expected}",
            )
        elif isinstance(labels, np.ndarray) and not np.isfinite(labels).all():
            yield _make_must_violation("R17", f"Y has {_format_count_and_indices(~np.isfinite(labels))} not finite")


def _check_optional_arrays(
    arrays: Arrays, count: int | None, size: int | None, layout: DiffractionLayout
) -> Iterator[Violation]:
    yield from _check_mask(arrays.get("mask"), count, size, layout)
    index = arrays.get("scan_index")
    if index is not None and (
        index.dtype.kind not in "iu" or len(index.shape) != 1 or count not in (None, *index.shape)
    ):
        expected = f"({count},)" if count is not None else "(n,)"
        yield _make_must_violation(
            "R19", f"scan_index is {index.dtype} of shape {index.shape}; expected integers, {expected}"
        )
    yield from _check_source_index(arrays.get("source_index"), count)
    starts = ("xcoords_start", "ycoords_start")
    present = [key for key in starts if key in arrays]
    if len(present) == 1:
        yield _make_must_violation(
            "R20", f"{present[0]} is there without its partner; give both of {' and '.join(starts)}"
        )
    yield from _check_coordinate_pair(arrays, starts, count, "R20", "R20")


def _check_source_index(index: NDArray[Any] | ArrayHeader | None, count: int | None) -> Iterator[Violation]:
    if index is None:
        return
    if index.dtype.kind not in "iu" or len(index.shape) != 1 or count not in (None, *index.shape):
        expected = f"({count},)" if count is not None else "(n,)"
        yield _make_must_violation(
            "R28", f"source_index is {index.dtype} of shape {index.shape}; expected integers, {expected}"
        )
    elif isinstance(index, np.ndarray) and (index < 0).any():
        yield _make_must_violation(
            "R28", f"source_index has {_format_count_and_indices(index < 0)} negative; expected indices from 0"
        )


def _check_mask(
    mask: NDArray[Any] | ArrayHeader | None, count: int | None, size: int | None, layout: DiffractionLayout
) -> Iterator[Violation]:
    if mask is None:
        return
    rank = len(normalize_stack_shape(mask.shape))
    wrong = rank not in (2, 3) or mask.dtype.kind not in "biuf"
    if size is not None and count is not None and not wrong:
        wrong = not (mask.shape == (size, size) or is_matching_stack(mask.shape, count, size, layout))
    if wrong:
        n, side = (count, size) if size is not None else ("n", "N")
        yield _make_must_violation(
            "R18",
            f"mask is {mask.dtype} of shape {mask.shape}; expected bool, ({side}, {side}) or ({n}, {side}, {side})",
        )
    elif isinstance(mask, np.ndarray):
        if not ((mask == 0) | (mask == 1)).all():
            yield _make_must_violation(
                "R18", "mask has values beside 0 and 1; expected bool, True where a pixel counts"
            )
        elif not mask.any():
            yield _make_must_violation("R18", "mask leaves out every pixel; True is where a pixel counts")


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


def _check_recommendations(
    key: str, arrays: Arrays, layout: DiffractionLayout, size: int | None
) -> Iterator[Violation]:
    """What a file SHOULD do: the reader converts or assumes, and ``describe`` says so."""
    for name, dtype in CANONICAL_DTYPES.items():
        if name in arrays and arrays[name].dtype != dtype:
            found = arrays[name].dtype
            yield _make_should_violation("R22", f"{name} is {found}; the reader casts it to {np.dtype(dtype)}")
    if layout.axis_order == "hwn":
        yield _make_should_violation("R22", f"{key} is (H, W, n); the reader brings it to (n, H, W)")
    for name in ("diffraction", "diff3d", "Y"):
        if name in arrays and len(arrays[name].shape) == 4:
            yield _make_should_violation("R22", f"{name} has a trailing axis of one; the reader drops it")
    if layout.measurement == "counts":
        yield _make_should_violation("R22", f"{key} holds counts; the reader takes the square root")
    undeclared_settings = [name for name in ("axis_order", "measurement") if name not in layout.metadata]
    if undeclared_settings:
        yield _make_should_violation("R23", f"the metadata do not say {' and '.join(undeclared_settings)}")
    yield from _check_undeclared_counts(key, arrays[key], layout)
    yield from _check_corner_origin(key, arrays[key], layout, size)
    yield from _check_object_extent(arrays, size)
    yield from _check_coordinate_scale(arrays, size)


def _check_undeclared_counts(
    key: str, array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout
) -> Iterator[Violation]:
    undeclared = layout.measurement == "amplitude" and layout.measurement_reason.startswith("floating")
    if not undeclared or not isinstance(array, np.ndarray) or array.size == 0:
        return
    sample = array.reshape(-1)[:1000]  # settles nearly every file without a pass over all of it
    if (sample == np.rint(sample)).all() and array.max() > 1 and (array == np.rint(array)).all():
        yield _make_should_violation(
            "R24",
            f"{key} holds only whole numbers up to {array.max():g}, as counts do, "
            "and is read as amplitude; set --measurement to settle it",
        )


def _check_corner_origin(
    key: str, array: NDArray[Any] | ArrayHeader, layout: DiffractionLayout, size: int | None
) -> Iterator[Violation]:
    """Compare the middle half (of each axis) of a mean pattern with what would be the middle if it were fft-shifted."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or size is None or size < 4 or not array.size:
        return
    stack = array.reshape(normalize_stack_shape(array.shape))
    stack = stack if layout.axis_order == "nhw" else np.moveaxis(stack, 2, 0)
    mean = stack[:: max(1, len(stack) // 32)].mean(0, dtype=np.float64)  # a few dozen patterns show where the light is
    middle = slice(size // 4, size // 4 + size // 2)
    if np.fft.fftshift(mean)[middle, middle].sum() > 2 * mean[middle, middle].sum():
        yield _make_should_violation(
            "R26",
            f"{key} is brighter in its corners than in the middle, where zero frequency belongs (at index N//2); "
            "if the patterns are fft-shifted, run the convert command with --origin corner",
        )


def _check_object_extent(arrays: Arrays, size: int | None) -> Iterator[Violation]:
    obj, x, y = (arrays.get(key) for key in ("objectGuess", "xcoords", "ycoords"))
    if obj is None or size is None or len(obj.shape) != 2:
        return
    for name, coordinates, extent in (("rows", y, obj.shape[0]), ("columns", x, obj.shape[1])):
        if not isinstance(coordinates, np.ndarray) or coordinates.dtype.kind not in "fiu" or coordinates.size == 0:
            continue
        low, high = coordinates.min() - size // 2, coordinates.max() - size // 2 + size - 1
        if not is_inside(low, high, extent):
            yield _make_should_violation(
                "R25",
                f"the patterns see {name} {low:.1f} to {high:.1f} and objectGuess has {name} "
                f"0 to {extent - 1}: it is not on the coordinate grid and cannot serve as truth",
            )


def _check_coordinate_scale(arrays: Arrays, size: int | None) -> Iterator[Violation]:
    obj, x, y = (arrays.get(key) for key in ("objectGuess", "xcoords", "ycoords"))
    if not (isinstance(obj, np.ndarray) and isinstance(x, np.ndarray) and isinstance(y, np.ndarray)) or size is None:
        return
    broken = any(_check_coordinates(arrays, len(x) if x.shape else None))
    if broken or obj.ndim != 2 or not obj.size or not x.size:
        return
    scale = estimate_coordinate_scale(np.stack([y, x], axis=1).astype(np.float64), size, obj)
    if scale.factor != 1:
        top, bottom, left, right = scale.illuminated_box
        yield _make_should_violation(
            "R27",
            f"the coordinates seem to be object pixels divided by {scale.factor:g}: multiplied by it the patterns see "
            f"rows {top:.1f} to {bottom:.1f}, columns {left:.1f} to {right:.1f}, which is where the object is "
            f"(to {scale.misfit[scale.factor]:.1f} pixels, and to {scale.misfit[1.0]:.1f} as they are); "
            f"run the convert command with --position_scale {scale.factor:g}",
        )


def is_inside(low: float, high: float, extent: int) -> bool:
    """Whether pixel centres from ``low`` to ``high`` round to pixels of an axis of ``extent``."""
    return low >= -0.5 and high <= extent - 0.5
