"""Rules of specs/data_contracts.md: each broken rule is reported by its number."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import ContractError
from ptycho_torch.data.contract import find_violations
from ptycho_torch.data.scan import Scan, check_scan
from ptycho_torch.io.npz import read_headers
from ptycho_torch.io.scan import load_scan

ROOT = Path(__file__).parents[2]
Arrays = dict[str, np.ndarray[Any, Any]]
Change = Callable[[Arrays], Arrays]


def with_value(key: str, value: complex) -> Change:
    """Return a change that puts one bad value into a copy of an array."""

    def change(arrays: Arrays) -> Arrays:
        array = arrays[key].copy()
        array.reshape(-1)[3] = value
        return arrays | {key: array}

    return change


def with_array(key: str, array: Any) -> Change:
    return lambda arrays: arrays | {key: np.asarray(array)}


def without(key: str) -> Change:
    return lambda arrays: {name: array for name, array in arrays.items() if name != key}


def reshaped(key: str, change: Callable[[Any], Any]) -> Change:
    return lambda arrays: arrays | {key: change(arrays[key])}


def metadata(text: str) -> Change:
    return with_array("metadata", text)


REQUIRED: list[tuple[str, Change, str]] = [
    ("R1", with_array("objectGuess", np.array([None, 1], dtype=object)), "pickle"),
    ("R1", with_array("metadata", np.array({"a": 1}, dtype=object)), "pickle"),
    ("R2", without("diffraction"), "missing: diffraction"),
    ("R2", without("ycoords"), "missing: ycoords"),
    ("R3", lambda arrays: arrays | {"diff3d": arrays["diffraction"] + 1}, "differ"),
    ("R3", lambda arrays: arrays | {"diff3d": arrays["diffraction"][:4]}, "differ"),
    ("R4", reshaped("diffraction", lambda a: a.astype(np.complex64)), "real"),
    ("R4", reshaped("diffraction", lambda a: a > 3), "bool"),
    ("R4", reshaped("diffraction", lambda a: a[0]), "three axes"),
    ("R4", reshaped("diffraction", lambda a: a[None, :, :, :]), "three axes"),
    ("R5", reshaped("diffraction", lambda a: np.ones((4, 6, 9), np.float32)), "ambiguous"),
    ("R6", reshaped("diffraction", lambda a: a[:, :, :6]), "8 × 6"),
    ("R7", reshaped("diffraction", lambda a: a[:0]), "empty"),
    ("R8", reshaped("diffraction", lambda a: np.square(a).astype(np.uint16)), "set `measurement`"),
    ("R9", with_value("diffraction", np.nan), "at [0, 0, 3]"),
    ("R9", with_value("diffraction", np.inf), "1 value"),
    ("R9", with_value("diffraction", 1e20), "overflow"),
    ("R10", with_value("diffraction", -0.5), "negative, down to -0.5"),
    ("R10", reshaped("diffraction", np.zeros_like), "zero everywhere"),
    ("R11", reshaped("xcoords", lambda a: np.append(a, 9.0)), "extra coordinates: 6 for 5"),
    ("R11", reshaped("ycoords", lambda a: a[:4]), "too few coordinates: 4 for 5"),
    ("R11", reshaped("xcoords", lambda a: a[:, None]), "(5, 1)"),
    ("R11", reshaped("xcoords", lambda a: a.astype(complex)), "complex128"),
    ("R12", with_value("ycoords", np.nan), "ycoords"),
    ("R12", with_value("ycoords", -1e300), "ycoords"),
    ("R13", reshaped("probeGuess", np.abs), "complex"),
    ("R13", reshaped("probeGuess", lambda a: a[0]), "(8,)"),
    ("R13", reshaped("probeGuess", lambda a: a[None, None]), "(1, 1, 8, 8)"),
    ("R14", reshaped("probeGuess", lambda a: np.pad(a, 4)), "16 × 16"),
    ("R15", with_value("probeGuess", complex(0, np.inf)), "not finite"),
    ("R15", reshaped("probeGuess", np.zeros_like), "zero everywhere"),
    ("R15", reshaped("probeGuess", lambda a: a.astype(complex) * 1e300), "overflow"),
    ("R16", reshaped("objectGuess", np.abs), "complex"),
    ("R16", reshaped("objectGuess", lambda a: a[None, None]), "rows, columns"),
    ("R16", reshaped("objectGuess", lambda a: a.astype(complex) * 1e39), "overflow"),
    ("R16", with_value("objectGuess", np.nan), "not finite"),
    ("R17", with_array("Y", np.ones((5, 8, 7), np.complex64)), "(5, 8, 8)"),
    ("R17", with_array("Y", np.ones((5, 8, 8), np.float32)), "complex"),
    ("R17", with_array("Y", np.full((5, 8, 8), np.nan, np.complex64)), "not finite"),
    ("R18", with_array("mask", np.ones((4, 8, 8), bool)), "(5, 8, 8)"),
    ("R18", with_array("mask", np.full((8, 8), 2)), "0 and 1"),
    ("R18", with_array("mask", np.zeros((8, 8), bool)), "every pixel"),
    ("R19", with_array("scan_index", np.zeros(4, int)), "(5,)"),
    ("R19", with_array("scan_index", np.zeros(5)), "integers"),
    ("R20", with_array("xcoords_start", np.zeros(5)), "partner"),
    ("R20", lambda a: a | {"xcoords_start": np.zeros(5), "ycoords_start": np.zeros(6)}, "extra"),
    ("R20", lambda a: a | {"xcoords_start": np.zeros(5), "ycoords_start": np.full(5, np.nan)}, "not finite"),
    ("R21", metadata("{"), "not JSON"),
    ("R21", metadata("[1]"), "list"),
    ("R21", metadata('{"axis_order": "xyz"}'), "nhw or hwn"),
    ("R21", metadata('{"measurement": "intensity"}'), "amplitude or counts"),
    ("R21", metadata('{"photons_per_unit": -1}'), "positive"),
    ("R21", with_array("metadata", np.zeros(3)), "JSON text"),
    ("R28", with_array("source_index", np.arange(4)), "(5,)"),
    ("R28", with_array("source_index", np.arange(5.0)), "integers"),
    ("R28", with_array("source_index", np.arange(5) - 1), "at [0]"),
]

RECOMMENDED: list[tuple[str, Change, str]] = [
    ("R22", reshaped("diffraction", lambda a: a.astype(np.float64)), "float64"),
    (
        "R22",
        lambda a: a | {"diffraction": np.moveaxis(a["diffraction"], 0, 2), "metadata": np.array("{}")},
        "(H, W, n)",
    ),
    ("R1", with_array("_metadata", np.array({"a": 1}, dtype=object)), "passed over"),
    ("R1", with_array("notes", np.array({"a": 1}, dtype=object)), "passed over"),
    ("R22", reshaped("diffraction", lambda a: a[..., None]), "trailing"),
    ("R22", reshaped("objectGuess", lambda a: a[None]), "1 slices"),
    ("R29", reshaped("diffraction", lambda a: np.where(np.arange(8) == 2, np.float32(-1), a)), "8 pixels"),
    ("R22", metadata('{"axis_order": "nhw", "measurement": "counts"}'), "square root"),
    ("R23", metadata('{"axis_order": "nhw"}'), "measurement"),
    ("R24", lambda a: {**a, "diffraction": np.square(a["diffraction"]).round(), "metadata": np.array("{}")}, "whole"),
    ("R25", reshaped("xcoords", lambda a: a - 40), "columns"),
    ("R25", reshaped("objectGuess", lambda a: a[:20]), "rows"),
    ("R26", reshaped("diffraction", lambda a: np.fft.ifftshift(a, axes=(1, 2))), "corner"),
    (
        "R27",
        lambda a: a | {"ycoords": np.linspace(4, 24, 5) / 2, "xcoords": np.linspace(27, 4, 5) / 2},
        "`position_scale` 2",
    ),
]


def ids(cases: list[tuple[str, Change, str]]) -> list[str]:
    return [f"{rule}-{text}" for rule, _, text in cases]


@pytest.fixture
def declared(canonical_arrays: Callable[..., Arrays]) -> Arrays:
    """Arrays of a file that keeps every rule."""
    text = json.dumps({"axis_order": "nhw", "measurement": "amplitude"})
    return canonical_arrays() | {"metadata": np.array(text)}


def test_canonical_file_breaks_no_rule(declared: Arrays) -> None:
    assert find_violations(declared) == []


@pytest.mark.parametrize(("rule", "change", "words"), REQUIRED, ids=ids(REQUIRED))
def test_loading_raises_for_broken_must(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path], rule: str, change: Change, words: str
) -> None:
    path = write_npz(change(canonical_arrays()))
    with pytest.raises(ContractError) as caught:
        load_scan(path)
    message = str(caught.value)
    assert caught.value.rule == rule, message
    assert words in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(("rule", "change", "words"), REQUIRED, ids=ids(REQUIRED))
def test_find_violations_reports_broken_must(
    canonical_arrays: Callable[..., Arrays], rule: str, change: Change, words: str
) -> None:
    broken = [violation for violation in find_violations(change(canonical_arrays())) if violation.level == "MUST"]
    assert rule in {violation.rule for violation in broken}


@pytest.mark.parametrize(("rule", "change", "words"), RECOMMENDED, ids=ids(RECOMMENDED))
def test_broken_should_is_reported_and_file_loads(
    declared: Arrays, write_npz: Callable[..., Path], rule: str, change: Change, words: str
) -> None:
    arrays = change(declared)
    assert {violation.level for violation in find_violations(arrays)} == {"SHOULD"}
    assert any(violation.rule == rule and words in violation.message for violation in find_violations(arrays))
    assert len(load_scan(write_npz(arrays))) == 5


def test_all_broken_rules_are_listed(canonical_arrays: Callable[..., Arrays]) -> None:
    arrays = canonical_arrays()
    arrays |= {"xcoords": arrays["xcoords"][:3], "probeGuess": np.zeros((8, 8), np.complex64)}
    arrays["diffraction"] = -arrays["diffraction"]
    assert [v.rule for v in find_violations(arrays) if v.level == "MUST"] == ["R10", "R11", "R15"]


@pytest.mark.parametrize("rule", ["R2", "R4", "R6", "R7", "R8", "R11", "R13", "R14", "R16", "R17", "R19", "R20", "R28"])
def test_headers_suffice_for_rules_on_shapes_and_dtypes(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path], rule: str
) -> None:
    change = next(change for name, change, _ in REQUIRED if name == rule)
    assert rule in {
        violation.rule for violation in find_violations(read_headers(write_npz(change(canonical_arrays()))))
    }


def make_valid_scan(**changes: Any) -> Scan:
    rng = np.random.default_rng(1)
    scan = Scan(
        amplitudes=rng.uniform(1, 2, (4, 6, 6)).astype(np.float32),
        positions=rng.uniform(0, 9, (4, 2)),
        probe=np.ones((2, 6, 6), np.complex64),
    )
    return replace(scan, **changes)


def test_check_scan_accepts_valid_scan() -> None:
    check_scan(
        make_valid_scan(
            mask=np.ones((6, 6), bool),
            scan_index=np.zeros(4, np.int64),
            source_index=np.arange(4),
            labels=np.ones((4, 6, 6), "c8"),
        )
    )


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("R7", {"amplitudes": np.ones((0, 6, 6), np.float32), "positions": np.ones((0, 2))}),
        ("R10", {"amplitudes": -np.ones((4, 6, 6), np.float32)}),
        ("R11", {"positions": np.ones((5, 2))}),
        ("R11", {"positions": np.ones((4, 3))}),
        ("R12", {"positions": np.full((4, 2), np.inf)}),
        ("R13", {"probe": np.ones((2, 6, 6), np.float32)}),
        ("R14", {"probe": np.ones((1, 8, 8), np.complex64)}),
        ("R20", {"nominal_positions": np.ones((4, 3))}),
        ("R21", {"photons_per_unit": 0.0}),
    ],
)
def test_check_scan_raises_for_broken_rule(rule: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as caught:
        check_scan(make_valid_scan(**changes))
    assert caught.value.rule == rule


def test_spec_code_and_tests_cite_the_same_rules() -> None:
    spec = (ROOT / "specs" / "data_contracts.md").read_text(encoding="utf-8")
    rules = re.findall(r"^- \*\*(R\d+)\*\*", spec, flags=re.MULTILINE)

    def cited(*folders: str) -> set[str]:
        texts = [path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).glob("*.py")]
        return {rule for text in texts for rule in re.findall(r'"(R\d+)"', text)}

    assert rules == [f"R{number}" for number in range(1, len(rules) + 1)]
    assert cited("tests/data", "tests/commands") == set(rules)
    assert cited("ptycho_torch/data") == set(rules)
    for rule in rules:
        assert re.search(rf"\*\*{rule}\*\*[^*]*\b(MUST|SHOULD)\b", spec), rule
