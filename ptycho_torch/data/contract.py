"""The rules of ``specs/data_contracts.md``: one implementation for loading, describing, converting and checking.

Rules look at a mapping from key to array. An array may be replaced by its :class:`Header`; rules about values are then
left out. What a file leaves open (axis order, amplitude or counts) is settled in :mod:`ptycho_torch.data.layout`.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.core.errors import ContractError
from ptycho_torch.data.coordinates import coordinate_scale
from ptycho_torch.data.layout import (
    Arrays,
    Header,
    Layout,
    diffraction_key,
    find_layout,
    is_positive_number,
    pattern_stack_shape,
    probe_shape,
    read_metadata,
    stack_fits,
    stack_size,
)
from ptycho_torch.data.scan import Scan

MAX_INDEX_TEXT = 3
"""How many offending indices a message names."""


class Violation(NamedTuple):
    """A rule that is not kept. A file that breaks a MUST is not loaded; a SHOULD is told by ``describe``."""

    rule: str
    level: Literal["MUST", "SHOULD"]
    message: str


def _must(rule: str, message: str) -> Violation:
    return Violation(rule, "MUST", message)


def _should(rule: str, message: str) -> Violation:
    return Violation(rule, "SHOULD", message)


def violations(
    arrays: Arrays, axis_order: AxisOrder | None = None, measurement: Measurement | None = None
) -> list[Violation]:
    """Every rule that ``arrays`` break, MUST before SHOULD, in the order of the rules."""
    plain = {key: array for key, array in arrays.items() if not array.dtype.hasobject}
    layout = find_layout(plain, axis_order, measurement)
    found = [*_pickled(arrays), *_missing(arrays)]
    key = diffraction_key(plain)
    if key is not None:
        found += [*_alias(plain), *_diffraction(key, plain[key], layout), *_values(key, plain[key], layout)]
        size, count = stack_size(plain[key], layout)
        found += [*_coordinates(plain, count), *_probe(plain, size), *_truth(plain, count, size, layout)]
        found += [*_extras(plain, count, size, layout), *_advice(key, plain, layout, size)]
    message = read_metadata(plain)[1]
    if message:
        found.append(_must("R21", message))
    return sorted(found, key=lambda violation: (violation.level, int(violation.rule[1:])))


def require(found: list[Violation], name: str) -> None:
    """Raise :class:`ContractError` for the first broken MUST, after ``name``, the file."""
    for violation in found:
        if violation.level == "MUST":
            raise ContractError(violation.rule, f"{name}: {violation.message}")


def _pickled(arrays: Arrays) -> Iterator[Violation]:
    for key, array in arrays.items():
        if array.dtype.hasobject:
            yield _must("R1", pickled_message(key))


def pickled_message(key: str) -> str:
    """The sentence about an object array."""
    return f"{key} holds Python objects (pickle), which are never read; save it as a plain array or as JSON text"


def _missing(arrays: Arrays) -> Iterator[Violation]:
    found = f"found {', '.join(sorted(arrays)) or 'nothing'}"
    wanted = {"diffraction": diffraction_key(arrays)} | {
        key: key if key in arrays else None for key in ("probeGuess", "xcoords", "ycoords")
    }
    missing = [key for key, there in wanted.items() if there is None]
    if missing:
        plural = "keys are" if len(missing) > 1 else "key is"
        hint = "write the file with these key names, or bring a foreign file over with the convert command"
        yield _must("R2", f"the {plural} missing: {', '.join(missing)} ({found}); {hint}")


def _alias(arrays: Arrays) -> Iterator[Violation]:
    first, second = arrays.get("diffraction"), arrays.get("diff3d")
    if first is None or second is None:
        return
    same = pattern_stack_shape(first.shape) == pattern_stack_shape(second.shape)
    if same and isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same = np.array_equal(first.reshape(second.shape), second, equal_nan=first.dtype.kind in "fc")
    if not same:
        yield _must("R3", "diffraction and diff3d are both there and differ; leave one out")


def _diffraction(key: str, array: "NDArray[Any] | Header", layout: Layout) -> Iterator[Violation]:
    shape = pattern_stack_shape(array.shape)
    if array.dtype.kind == "c":
        yield _must("R4", f"{key} is {array.dtype}; expected measured amplitudes, which are real")
    elif array.dtype.kind not in "fiu":
        yield _must("R4", f"{key} is {array.dtype}; expected real numbers")
    if len(shape) != 3:
        yield _must("R4", f"{key} has shape {array.shape}; expected three axes, (n, N, N)")
        return
    if layout.axis_order is None:
        reason = layout.axis_reason
        yield _must(
            "R5", f"{key} of shape {shape}: which axis counts the patterns is open ({reason}); set --axis_order"
        )
        if "cube" not in reason:
            yield _must("R6", f"{key} of shape {shape} holds no square patterns; crop or pad them")
        return
    size, _ = stack_size(array, layout)
    if size is None:
        side = shape[1:] if layout.axis_order == "nhw" else shape[:2]
        yield _must(
            "R6",
            f"{key} has patterns of {side[0]} × {side[1]} pixels (axis order {layout.axis_order}, "
            f"{layout.axis_reason}); expected square ones: crop or pad them, or set --axis_order",
        )
    if 0 in shape:
        yield _must("R7", f"{key} of shape {shape} is empty; expected at least one pattern")


def _values(key: str, array: "NDArray[Any] | Header", layout: Layout) -> Iterator[Violation]:
    if layout.measurement is None and array.dtype.kind in "iu":
        yield _must(
            "R8",
            f"{key} is {array.dtype} and nothing says whether it holds counts or amplitudes; "
            "set --measurement counts or --measurement amplitude",
        )
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.size == 0:
        return
    low, high = array.min(), array.max()  # either is NaN where any value is: one pass instead of a mask
    if not np.isfinite(low) or not np.isfinite(high):
        yield _must(
            "R9",
            f"{key} has {_count_and_place(~np.isfinite(array))} not finite; set such pixels to 0 and mask them",
        )
        return
    if low < 0:
        yield _must(
            "R10", f"{key} has {_count_and_place(array < 0)} negative, down to {low:g}; measured values are not"
        )
    elif high <= 0:
        yield _must("R10", f"{key} is zero everywhere; expected at least one photon")


def _count_and_place(bad: NDArray[np.bool_]) -> str:
    """How many values are bad and where the first ones are."""
    places = [tuple(map(int, place)) for place in np.argwhere(bad)[:MAX_INDEX_TEXT]]
    number = int(bad.sum())
    text = ", ".join(f"[{', '.join(map(str, place))}]" for place in places)
    return f"{number} value{'s' if number > 1 else ''} (at {text}{', …' if number > len(places) else ''})"


def _coordinates(arrays: Arrays, count: int | None) -> Iterator[Violation]:
    yield from _pair(arrays, ("xcoords", "ycoords"), count, "R11", "R12")


def _pair(
    arrays: Arrays, keys: tuple[str, str], count: int | None, shape_rule: str, value_rule: str
) -> Iterator[Violation]:
    for key in keys:
        array = arrays.get(key)
        if array is None:
            continue
        if len(array.shape) != 1 or array.dtype.kind not in "fiu":
            yield _must(shape_rule, f"{key} is {array.dtype} of shape {array.shape}; expected (n,) real, in pixels")
        elif count is not None and array.shape[0] != count:
            what = "extra coordinates" if array.shape[0] > count else "too few coordinates"
            yield _must(
                shape_rule,
                f"{key} has {what}: {array.shape[0]} for {count} patterns; expected one each",
            )
        elif isinstance(array, np.ndarray) and not np.isfinite(array).all():
            yield _must(value_rule, f"{key} has {_count_and_place(~np.isfinite(array))} not finite")


def _probe(arrays: Arrays, size: int | None) -> Iterator[Violation]:
    probe = arrays.get("probeGuess")
    if probe is None:
        return
    shape = probe_shape(probe.shape)
    if probe.dtype.kind != "c" or len(shape) not in (2, 3) or 0 in shape:
        yield _must(
            "R13",
            f"probeGuess is {probe.dtype} of shape {probe.shape}; expected complex, (N, N) or (modes, N, N)",
        )
    elif size is not None and shape[-2:] != (size, size):
        yield _must(
            "R14",
            f"probeGuess has {shape[-2]} × {shape[-1]} pixels, the patterns {size} × {size}; expected the same",
        )
    if isinstance(probe, np.ndarray) and probe.dtype.kind == "c":
        if not np.isfinite(probe).all():
            yield _must("R15", f"probeGuess has {_count_and_place(~np.isfinite(probe))} not finite")
        elif probe.size and not probe.any():
            yield _must("R15", "probeGuess is zero everywhere; expected a first guess of the illumination")


def _truth(arrays: Arrays, count: int | None, size: int | None, layout: Layout) -> Iterator[Violation]:
    obj, labels = arrays.get("objectGuess"), arrays.get("Y")
    if obj is not None:
        if obj.dtype.kind != "c" or len(obj.shape) != 2 or 0 in obj.shape:
            yield _must("R16", f"objectGuess is {obj.dtype} of shape {obj.shape}; expected complex, (rows, columns)")
        elif isinstance(obj, np.ndarray) and not np.isfinite(obj).all():
            yield _must("R16", f"objectGuess has {_count_and_place(~np.isfinite(obj))} not finite")
    if labels is not None:
        wrong = count is not None and size is not None and not stack_fits(labels.shape, count, size, layout)
        if labels.dtype.kind != "c" or len(pattern_stack_shape(labels.shape)) != 3 or wrong:
            expected = f"({count}, {size}, {size})" if count is not None and size is not None else "(n, N, N)"
            yield _must(
                "R17",
                f"Y is {labels.dtype} of shape {labels.shape}; expected complex object patches, {expected}",
            )
        elif isinstance(labels, np.ndarray) and not np.isfinite(labels).all():
            yield _must("R17", f"Y has {_count_and_place(~np.isfinite(labels))} not finite")


def _extras(arrays: Arrays, count: int | None, size: int | None, layout: Layout) -> Iterator[Violation]:
    yield from _mask(arrays.get("mask"), count, size, layout)
    index = arrays.get("scan_index")
    if index is not None and (
        index.dtype.kind not in "iu" or len(index.shape) != 1 or count not in (None, *index.shape)
    ):
        expected = f"({count},)" if count is not None else "(n,)"
        yield _must("R19", f"scan_index is {index.dtype} of shape {index.shape}; expected integers, {expected}")
    yield from _source_index(arrays.get("source_index"), count)
    starts = ("xcoords_start", "ycoords_start")
    present = [key for key in starts if key in arrays]
    if len(present) == 1:
        yield _must("R20", f"{present[0]} is there without its partner; give both of {' and '.join(starts)}")
    yield from _pair(arrays, starts, count, "R20", "R20")


def _source_index(index: "NDArray[Any] | Header | None", count: int | None) -> Iterator[Violation]:
    if index is None:
        return
    if index.dtype.kind not in "iu" or len(index.shape) != 1 or count not in (None, *index.shape):
        expected = f"({count},)" if count is not None else "(n,)"
        yield _must("R28", f"source_index is {index.dtype} of shape {index.shape}; expected integers, {expected}")
    elif isinstance(index, np.ndarray) and (index < 0).any():
        yield _must("R28", f"source_index has {_count_and_place(index < 0)} negative; expected indices from 0")


def _mask(
    mask: "NDArray[Any] | Header | None", count: int | None, size: int | None, layout: Layout
) -> Iterator[Violation]:
    if mask is None:
        return
    rank = len(pattern_stack_shape(mask.shape))
    wrong = rank not in (2, 3) or mask.dtype.kind not in "biuf"
    if size is not None and count is not None and not wrong:
        wrong = not (mask.shape == (size, size) or stack_fits(mask.shape, count, size, layout))
    if wrong:
        n, side = (count, size) if size is not None else ("n", "N")
        yield _must(
            "R18",
            f"mask is {mask.dtype} of shape {mask.shape}; expected bool, ({side}, {side}) or ({n}, {side}, {side})",
        )
    elif isinstance(mask, np.ndarray):
        if not ((mask == 0) | (mask == 1)).all():
            yield _must("R18", "mask has values beside 0 and 1; expected bool, True where a pixel counts")
        elif not mask.any():
            yield _must("R18", "mask leaves out every pixel; True is where a pixel counts")


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


def _advice(key: str, arrays: Arrays, layout: Layout, size: int | None) -> Iterator[Violation]:
    """What a file SHOULD do: the reader converts or assumes, and ``describe`` says so."""
    for name, dtype in CANONICAL_DTYPES.items():
        if name in arrays and arrays[name].dtype != dtype:
            found = arrays[name].dtype
            yield _should("R22", f"{name} is {found}; the reader casts it to {np.dtype(dtype)}")
    if layout.axis_order == "hwn":
        yield _should("R22", f"{key} is (H, W, n); the reader brings it to (n, H, W)")
    for name in ("diffraction", "diff3d", "Y"):
        if name in arrays and len(arrays[name].shape) == 4:
            yield _should("R22", f"{name} has a trailing axis of one; the reader drops it")
    if layout.measurement == "counts":
        yield _should("R22", f"{key} holds counts; the reader takes the square root")
    unsaid = [name for name in ("axis_order", "measurement") if name not in layout.metadata]
    if unsaid:
        yield _should("R23", f"the metadata do not say {' and '.join(unsaid)}")
    yield from _looks_like_counts(key, arrays[key], layout)
    yield from _looks_corner_origin(key, arrays[key], layout, size)
    yield from _off_the_object(arrays, size)
    yield from _coordinate_scale(arrays, size)


def _looks_like_counts(key: str, array: "NDArray[Any] | Header", layout: Layout) -> Iterator[Violation]:
    undeclared = layout.measurement == "amplitude" and layout.measurement_reason.startswith("floating")
    if not undeclared or not isinstance(array, np.ndarray) or array.size == 0:
        return
    sample = array.reshape(-1)[:1000]  # settles nearly every file without a pass over all of it
    if (sample == np.rint(sample)).all() and array.max() > 1 and (array == np.rint(array)).all():
        yield _should(
            "R24",
            f"{key} holds only whole numbers up to {array.max():g}, as counts do, "
            "and is read as amplitude; set --measurement to settle it",
        )


def _looks_corner_origin(
    key: str, array: "NDArray[Any] | Header", layout: Layout, size: int | None
) -> Iterator[Violation]:
    """Compare the middle half (of each axis) of a mean pattern with what would be the middle if it were fft-shifted."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or size is None or size < 4 or not array.size:
        return
    stack = array.reshape(pattern_stack_shape(array.shape))
    stack = stack if layout.axis_order == "nhw" else np.moveaxis(stack, 2, 0)
    mean = stack[:: max(1, len(stack) // 32)].mean(0, dtype=np.float64)  # a few dozen patterns show where the light is
    middle = slice(size // 4, size // 4 + size // 2)
    if np.fft.fftshift(mean)[middle, middle].sum() > 2 * mean[middle, middle].sum():
        yield _should(
            "R26",
            f"{key} is brighter in its corners than in the middle, where zero frequency belongs (at index N//2); "
            "if the patterns are fft-shifted, run the convert command with --origin corner",
        )


def _off_the_object(arrays: Arrays, size: int | None) -> Iterator[Violation]:
    obj, x, y = (arrays.get(key) for key in ("objectGuess", "xcoords", "ycoords"))
    if obj is None or size is None or len(obj.shape) != 2:
        return
    for name, coordinates, extent in (("rows", y, obj.shape[0]), ("columns", x, obj.shape[1])):
        if not isinstance(coordinates, np.ndarray) or coordinates.dtype.kind not in "fiu" or coordinates.size == 0:
            continue
        low, high = coordinates.min() - size // 2, coordinates.max() - size // 2 + size - 1
        if not inside(low, high, extent):
            yield _should(
                "R25",
                f"the patterns see {name} {low:.1f} to {high:.1f} and objectGuess has {name} "
                f"0 to {extent - 1}: it is not on the coordinate grid and cannot serve as truth",
            )


def _coordinate_scale(arrays: Arrays, size: int | None) -> Iterator[Violation]:
    obj, x, y = (arrays.get(key) for key in ("objectGuess", "xcoords", "ycoords"))
    if not (isinstance(obj, np.ndarray) and isinstance(x, np.ndarray) and isinstance(y, np.ndarray)) or size is None:
        return
    broken = any(_coordinates(arrays, len(x) if x.shape else None))
    if broken or obj.ndim != 2 or not obj.size or not x.size:
        return
    scale = coordinate_scale(np.stack([y, x], axis=1).astype(np.float64), size, obj)
    if scale.factor != 1:
        top, bottom, left, right = scale.seen
        yield _should(
            "R27",
            f"the coordinates seem to be object pixels divided by {scale.factor:g}: multiplied by it the patterns see "
            f"rows {top:.1f} to {bottom:.1f}, columns {left:.1f} to {right:.1f}, which is where the object is "
            f"(to {scale.misfit[scale.factor]:.1f} pixels, and to {scale.misfit[1.0]:.1f} as they are); "
            f"run the convert command with --position_scale {scale.factor:g}",
        )


def inside(low: float, high: float, extent: int) -> bool:
    """Whether pixel centres from ``low`` to ``high`` round to pixels of an axis of ``extent``."""
    return low >= -0.5 and high <= extent - 0.5


def arrays_of(scan: Scan) -> dict[str, NDArray[Any]]:
    """The arrays of a scan by the key names of the canonical layout, without metadata."""
    arrays: dict[str, NDArray[Any] | None] = {
        "diffraction": scan.amplitudes,
        "probeGuess": scan.probe[0] if len(scan.probe) == 1 else scan.probe,
        "xcoords": scan.positions[:, 1],
        "ycoords": scan.positions[:, 0],
        "mask": scan.mask,
        "objectGuess": scan.truth,
        "scan_index": scan.scan_index,
        "source_index": scan.source_index,
        "Y": scan.labels,
    }
    if scan.nominal_positions is not None:
        arrays |= {"xcoords_start": scan.nominal_positions[:, 1], "ycoords_start": scan.nominal_positions[:, 0]}
    return {key: array for key, array in arrays.items() if array is not None}


def check_scan(scan: Scan) -> None:
    """Check a scan made by hand against every MUST, and its dtypes.

    Raises:
        ContractError: the first rule broken.
    """
    name = str(scan.source) if scan.source else "scan"
    for field, positions in (("positions", scan.positions), ("nominal_positions", scan.nominal_positions)):
        if positions is not None and (positions.ndim != 2 or positions.shape[1] != 2):
            rule = "R11" if field == "positions" else "R20"
            raise ContractError(rule, f"{name}: {field} has shape {positions.shape}; expected (n, 2), columns (y, x)")
    if scan.probe.ndim != 3:
        raise ContractError("R13", f"{name}: the probe of a scan has shape {scan.probe.shape}; expected (modes, N, N)")
    if scan.photons_per_unit is not None and not is_positive_number(scan.photons_per_unit):
        raise ContractError("R21", f"{name}: photons_per_unit is {scan.photons_per_unit!r}; expected a positive number")
    arrays = arrays_of(scan)
    require(violations(arrays, "nhw", "amplitude"), name)
    for key, dtype in CANONICAL_DTYPES.items():
        if key in arrays and arrays[key].dtype != dtype:
            raise ContractError("R22", f"{name}: {key} of a scan is {arrays[key].dtype}; expected {np.dtype(dtype)}")
