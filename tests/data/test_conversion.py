"""Reading of imperfect files: each value that is no measurement is masked or removed, and everything else is kept."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.io.scan import load_scan

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Write = Callable[..., Path]

COUNTS = {"metadata": np.array(json.dumps({"axis_order": "nhw", "measurement": "counts"}))}


@pytest.fixture
def arrays(canonical_arrays: Callable[..., Arrays]) -> Arrays:
    return canonical_arrays(n=12, size=16)


def make_counts(arrays: Arrays, dtype: str, factor: float = 1) -> Arrays:
    """Return the arrays with counts in place of amplitudes."""
    counts = np.rint(np.square(arrays["diffraction"].astype(np.float64)) * factor)
    return arrays | COUNTS | {"diffraction": counts.astype(dtype)}


@pytest.mark.parametrize("value", [np.nan, -1, np.inf])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("quantity", ["amplitude", "counts"])
def test_gap_with_any_value_is_masked(
    arrays: Arrays, write_npz: Write, value: float, masked: bool, quantity: str
) -> None:
    expected = load_scan(write_npz(arrays)).amplitudes
    changed = arrays if quantity == "amplitude" else make_counts(arrays, "float32")
    changed["diffraction"][:, 3] = value
    if masked:
        mask = np.ones((16, 16), bool)
        mask[3] = False
        changed = changed | {"mask": mask}
    scan = load_scan(write_npz(changed))
    assert scan.mask is not None
    assert np.flatnonzero(~scan.mask.all(1)).tolist() == [3]
    rest = np.arange(16) != 3
    np.testing.assert_allclose(scan.amplitudes[:, rest], expected[:, rest], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 65535), ("uint32", 4294967295), ("int32", -1)])
def test_markers_of_integer_counts_are_masked(
    arrays: Arrays, write_npz: Write, caplog: pytest.LogCaptureFixture, dtype: str, value: int
) -> None:
    changed = make_counts(arrays, dtype)
    changed["diffraction"][:, :, 5] = value
    with caplog.at_level(logging.WARNING):
        scan = load_scan(write_npz(changed))
    assert scan.mask is not None
    assert np.flatnonzero(~scan.mask.all(0)).tolist() == [5]
    assert "mask" in caplog.text


@pytest.mark.parametrize("quantity", ["amplitude", "counts"])
def test_saturated_values_are_masked(arrays: Arrays, write_npz: Write, quantity: str) -> None:
    counts = make_counts(arrays, "float64", 100)["diffraction"]
    limit = np.quantile(counts, 0.97)
    expected = counts < limit
    counts = np.minimum(counts, limit)
    changed = arrays | (
        {"diffraction": np.sqrt(counts).astype(np.float32)}
        if quantity == "amplitude"
        else COUNTS | {"diffraction": counts}
    )
    scan = load_scan(write_npz(changed))
    assert (scan.mask == expected).all()


def test_negative_remains_of_a_dark_are_clipped_and_counted(
    arrays: Arrays, write_npz: Write, caplog: pytest.LogCaptureFixture
) -> None:
    changed = make_counts(arrays, "float32")
    changed["diffraction"][2] -= 20.25
    number = int((changed["diffraction"] < 0).sum())
    with caplog.at_level(logging.WARNING):
        scan = load_scan(write_npz(changed))
    assert number
    assert f"{number} negative values" in caplog.text
    assert scan.mask is None
    np.testing.assert_array_equal(scan.amplitudes, np.sqrt(np.maximum(changed["diffraction"], 0)))


def test_rounding_errors_below_zero_are_clipped(arrays: Arrays, write_npz: Write) -> None:
    arrays["diffraction"][0, 0, 0] = -1e-12
    assert load_scan(write_npz(arrays)).amplitudes.min() == 0


def test_single_pattern_may_have_scalar_coordinates(arrays: Arrays, write_npz: Write) -> None:
    single = arrays | {key: arrays[key][:1] for key in ("diffraction",)}
    single |= {key: np.array(arrays[key][0]) for key in ("xcoords", "ycoords")}
    scan = load_scan(write_npz(single))
    assert scan.positions.tolist() == [[arrays["ycoords"][0], arrays["xcoords"][0]]]


def test_object_with_slices_is_left_out(arrays: Arrays, write_npz: Write, caplog: pytest.LogCaptureFixture) -> None:
    changed = arrays | {"objectGuess": np.repeat(arrays["objectGuess"][None], 4, 0)}
    with caplog.at_level(logging.WARNING):
        assert load_scan(write_npz(changed)).truth is None
    assert "4 slices" in caplog.text


def test_pickled_key_that_is_not_read_is_passed_over(
    arrays: Arrays, write_npz: Write, caplog: pytest.LogCaptureFixture
) -> None:
    changed = arrays | {"notes": np.array([{"a": 1}], dtype=object), "_metadata": np.array({"a": 1}, dtype=object)}
    with caplog.at_level(logging.WARNING):
        load_scan(write_npz(changed))
    assert "notes holds Python objects" in caplog.text
    assert "_metadata holds Python objects" in caplog.text


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16"])
def test_small_integer_coordinates_do_not_wrap(arrays: Arrays, write_npz: Write, dtype: str) -> None:
    small = {key: np.linspace(8, 120, 12).astype(dtype) for key in ("xcoords", "ycoords")}
    wide = {key: array.astype(np.float64) for key, array in small.items()}
    first, second = (load_scan(write_npz(arrays | part)) for part in (small, wide))
    np.testing.assert_array_equal(first.positions, second.positions)
