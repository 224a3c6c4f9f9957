"""A scan made by hand is cast to one layout, obeys the contract, and describes itself in a few lines."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ContractError, DataError
from ptycho_torch.data.scan import FIELD_DTYPES, Scan, require_scan


def make_arrays(n: int = 4, size: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "amplitudes": rng.uniform(1, 2, (n, size, size)),
        "positions": rng.uniform(0, 9, (n, 2)),
        "probe": np.ones((2, size, size), np.complex128),
        "mask": rng.integers(0, 2, (size, size)),
        "truth": np.ones((20, 21), np.complex128),
        "scan_index": np.zeros(n, np.int32),
        "labels": np.ones((n, size, size), np.complex128),
    }


def test_arrays_are_cast_to_the_dtypes_of_the_fields() -> None:
    scan = Scan(**make_arrays())
    for name, dtype in FIELD_DTYPES.items():
        array = getattr(scan, name)
        assert array is None or array.dtype == dtype
    counts: dict[str, Any] = make_arrays() | {"amplitudes": np.ones((4, 6, 6), np.uint16)}
    assert Scan(**counts, metadata={"measurement": "amplitude"}).amplitudes.dtype == np.float32
    with pytest.raises(ContractError, match=r"pass np\.sqrt\(counts\).*R8"):
        Scan(**counts)


def test_tensors_and_lists_give_the_same_scan_as_arrays() -> None:
    arrays = make_arrays()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors["amplitudes"].requires_grad_()
    tensors["truth"] = tensors["truth"].conj()
    lists = {name: array.tolist() for name, array in arrays.items()}
    assert Scan(**tensors).digest() == Scan(**lists).digest() == Scan(**arrays).digest()


def test_arrays_of_the_right_layout_are_not_copied() -> None:
    arrays = {name: array.astype(FIELD_DTYPES[name]) for name, array in make_arrays().items()}
    scan = Scan(**arrays)
    assert all(getattr(scan, name) is array for name, array in arrays.items())


def test_a_probe_of_one_mode_needs_no_axis_of_modes() -> None:
    scan = Scan(**(make_arrays() | {"probe": np.ones((6, 6), np.complex64)}))
    assert scan.probe.shape == (1, 6, 6)


def test_reversed_arrays_are_brought_to_memory_order() -> None:
    arrays = make_arrays()
    scan = Scan(**(arrays | {"amplitudes": arrays["amplitudes"][::-1].astype(np.float32)[:, ::-1]}))
    torch.from_numpy(scan.amplitudes)


@pytest.mark.parametrize(
    ("rule", "field", "value"),
    [
        ("R4", "amplitudes", np.ones((4, 36))),
        ("R4", "amplitudes", np.ones((4, 6, 6), complex)),
        ("R6", "amplitudes", np.ones((4, 6, 5))),
        ("R7", "amplitudes", np.ones((0, 6, 6))),
        ("R9", "amplitudes", np.full((4, 6, 6), np.nan)),
        ("R10", "amplitudes", -np.ones((4, 6, 6))),
        ("R10", "amplitudes", np.zeros((4, 6, 6))),
        ("R11", "positions", np.ones((5, 2))),
        ("R11", "positions", np.ones((2, 4))),
        ("R12", "positions", np.full((4, 2), np.inf)),
        ("R13", "probe", np.ones((6, 6))),
        ("R13", "probe", np.ones((1, 1, 6, 6), complex)),
        ("R14", "probe", np.ones((8, 8), complex)),
        ("R15", "probe", np.zeros((6, 6), complex)),
        ("R16", "truth", np.ones((4, 6, 6), complex)),
        ("R17", "labels", np.ones((3, 6, 6), complex)),
        ("R18", "mask", np.full((6, 6), 0.5)),
        ("R18", "mask", np.ones((4, 6))),
        ("R19", "scan_index", np.zeros(4)),
        ("R20", "nominal_positions", np.ones((4, 3))),
    ],
)
def test_a_broken_rule_is_named_with_its_field(rule: str, field: str, value: Any) -> None:
    arrays = make_arrays() | ({"mask": None} if field == "amplitudes" else {})
    with pytest.raises(ContractError, match=rf"`?{field}`? .*\[contract {rule}\]$"):
        Scan(**(arrays | {field: value}))


def test_missing_and_ragged_arrays_are_named() -> None:
    with pytest.raises(ContractError, match="`positions` is None; expected"):
        Scan(**(make_arrays() | {"positions": None}))
    with pytest.raises(DataError, match="`positions` is no array"):
        Scan(**(make_arrays() | {"positions": [[0.0, 1.0], [2.0]]}))
    with pytest.raises(DataError, match="`scan` is a str; expected a Scan"):
        require_scan("scan.npz")


def test_a_scan_without_a_probe_is_valid_and_names_the_settings_that_give_one() -> None:
    scan = Scan(**(make_arrays() | {"probe": None}))
    assert "unknown" in repr(scan)
    with pytest.raises(DataError, match=r"has no probe; .*`init_probe`"):
        scan.require_probe()


def test_a_photon_scale_is_positive() -> None:
    with pytest.raises(ContractError, match=r"`photons_per_unit` is 0\.0; .*\[contract R21\]"):
        Scan(**make_arrays(), photons_per_unit=0.0)


def test_masked_pixels_may_hold_any_amplitude() -> None:
    scan = Scan(**make_arrays())
    mask = np.ones((6, 6), bool)
    mask[2, 3] = False
    amplitudes = scan.amplitudes.copy()
    amplitudes[1, 2, 3] = np.nan
    replace(scan, amplitudes=amplitudes, mask=mask)
    amplitudes[0, 0, 0] = np.nan
    with pytest.raises(ContractError, match=r"R9"):
        replace(scan, amplitudes=amplitudes, mask=mask)


def test_a_selection_cuts_every_array_per_pattern() -> None:
    scan = Scan(**(make_arrays() | {"mask": np.ones((4, 6, 6))}), source_index=np.arange(4))
    part = scan.select(np.array([3, 1]))
    assert part.source_index is not None
    assert part.source_index.tolist() == [3, 1]
    for name in ("amplitudes", "positions", "mask", "labels", "scan_index"):
        np.testing.assert_array_equal(getattr(part, name), getattr(scan, name)[[3, 1]])
    assert part.probe is scan.probe
    assert len(scan) == 4


def test_the_representation_is_a_few_lines() -> None:
    scan = Scan(**(make_arrays() | {"mask": None}))
    text = repr(scan)
    assert text.startswith("Scan of 4 patterns of 6 × 6 pixels\n")
    assert len(text.splitlines()) < 8
    for part in ("2 modes", "unknown (no `photons_per_unit`)", "pixels (y, x)", "20 × 21 pixels"):
        assert part in text
    photons = float((scan.amplitudes.astype(float) ** 2).sum() / 4)
    assert f"{2 * photons:.4g} per pattern" in repr(replace(scan, photons_per_unit=2.0))
    assert "<table>" in scan._repr_html_()
    assert "4 patterns" in scan._repr_html_()
