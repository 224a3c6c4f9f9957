"""Profile of a scan file: ranges, geometry, the object's grid, and broken rules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.io.profile import profile_scan_file
from ptycho_torch.simulation.scan import simulate_scan

Arrays = dict[str, np.ndarray[Any, Any]]


def test_profile_of_a_known_file(canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path]) -> None:
    arrays = canonical_arrays()
    arrays |= {"xcoords": 10.0 + 2 * np.arange(5), "ycoords": np.full(5, 9.5)}
    profile = profile_scan_file(write_npz(arrays, "known.npz"))
    assert profile.valid
    assert profile.file == "known.npz"
    assert profile.axis_order["order"] == "nhw"
    assert profile.measurement["kind"] == "amplitude"
    assert profile.arrays["xcoords"] == {
        "shape": [5],
        "dtype": "float64",
        "min": 10.0,
        "max": 18.0,
        "mean": 14.0,
        "not_finite": 0,
    }
    assert profile.arrays["probeGuess"]["max"] == pytest.approx(np.abs(arrays["probeGuess"]).max())
    assert profile.photons is not None
    assert profile.photons["origin"] == "lattice"
    assert profile.photons["per_pattern"] == pytest.approx(np.square(arrays["diffraction"]).sum() / 5)
    assert profile.geometry is not None
    assert (profile.geometry["step"], profile.geometry["x"], profile.geometry["y"]) == (2.0, [10.0, 18.0], [9.5, 9.5])
    assert profile.geometry["overlap"] == pytest.approx(1 - 2 / profile.geometry["probe_diameter"])
    assert profile.object is not None
    assert profile.object["seen"] == [5.5, 12.5, 6.0, 21.0]
    assert profile.object["on_grid"]


@pytest.mark.parametrize("shift", [{"xcoords": -30}, {"ycoords": 30}])
def test_object_on_another_grid_is_reported(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path], shift: dict[str, float]
) -> None:
    arrays = canonical_arrays()
    profile = profile_scan_file(write_npz(arrays | {key: arrays[key] + by for key, by in shift.items()}))
    assert profile.object is not None
    assert not profile.object["on_grid"]
    assert "R25" in {violation["rule"] for violation in profile.violations}


def test_broken_file_is_profiled_as_far_as_possible(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path]
) -> None:
    arrays = canonical_arrays()
    arrays["diffraction"] = arrays["diffraction"].copy()
    arrays["diffraction"][0, 0, 0] = np.nan
    arrays["pickled"] = np.array([{}], dtype=object)
    profile = profile_scan_file(write_npz(arrays))
    assert not profile.valid
    assert profile.photons is None
    assert profile.geometry is not None
    assert profile.arrays["diffraction"]["not_finite"] == 1
    assert profile.arrays["pickled"] == {"shape": [1], "dtype": "object"}
    json.dumps(profile.as_dict(), allow_nan=False)


def test_profile_without_statistics_uses_headers(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path]
) -> None:
    metadata = np.array('{"axis_order": "nhw", "measurement": "amplitude"}')
    profile = profile_scan_file(write_npz(canonical_arrays(8, 8) | {"metadata": metadata}), stats=False)
    assert profile.valid
    assert profile.axis_order == {"order": "nhw", "reason": "from the metadata"}
    assert profile.arrays["diffraction"] == {"shape": [8, 8, 8], "dtype": "float32"}
    assert (profile.photons, profile.geometry, profile.object) == (None, None, None)


def test_positions_of_one_pattern_may_be_single_numbers(tmp_path: Path) -> None:
    scan = simulate_scan("tiny").select(np.arange(1))
    row, column = scan.positions[0]
    assert scan.probe is not None
    np.savez(tmp_path / "one.npz", diffraction=scan.amplitudes, probeGuess=scan.probe, xcoords=column, ycoords=row)
    profile = profile_scan_file(tmp_path / "one.npz")
    assert profile.geometry is not None
    assert profile.geometry["patterns"] == 1
