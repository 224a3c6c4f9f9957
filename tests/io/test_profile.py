"""What describe finds: lengths, ranges, the object's grid, and the same findings for the same file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.coordinates import compute_structure_box
from ptycho_torch.io.profile import compute_median_step, compute_probe_diameter, profile_scan_file

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.mark.parametrize("diameter", [9.0, 20.5])
@pytest.mark.parametrize("size", [48, 49])
def test_the_diameter_of_an_evenly_lit_disc_is_its_own(diameter: float, size: int) -> None:
    rows, columns = np.indices((size, size))
    disc = (rows - 21.3) ** 2 + (columns - 25.8) ** 2 < (diameter / 2) ** 2
    assert compute_probe_diameter(disc * np.exp(0.3j * rows)) == pytest.approx(diameter, rel=0.03)
    assert compute_probe_diameter(np.stack([disc + 0j, 2 * disc])) == pytest.approx(diameter, rel=0.03)


def test_the_step_is_the_distance_to_the_nearest_neighbour() -> None:
    rows, columns = np.mgrid[0:30:3, 0:40:4]
    assert compute_median_step(np.stack([rows.ravel(), columns.ravel()], 1).astype(float)) == 3
    assert compute_median_step(np.zeros((1, 2))) is None


def test_the_structure_of_an_object_is_what_differs_from_its_corner() -> None:
    obj = np.ones((20, 30), np.complex64)
    assert compute_structure_box(obj) is None
    obj[3:9, 12:25] = 0.5j
    assert compute_structure_box(obj) == [3, 8, 12, 24]


def test_the_findings_on_a_known_file(canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path]) -> None:
    arrays = canonical_arrays()
    arrays |= {"xcoords": 10.0 + 2 * np.arange(5), "ycoords": np.full(5, 9.5)}
    found = profile_scan_file(write_npz(arrays, "known.npz"))
    assert found.valid
    assert found.file == "known.npz"
    assert found.axis_order["order"] == "nhw"
    assert found.measurement["kind"] == "amplitude"
    assert found.arrays["xcoords"] == {
        "shape": [5],
        "dtype": "float64",
        "min": 10.0,
        "max": 18.0,
        "mean": 14.0,
        "not_finite": 0,
    }
    assert found.arrays["probeGuess"]["max"] == pytest.approx(np.abs(arrays["probeGuess"]).max())
    assert found.photons is not None
    assert found.photons["origin"] == "lattice"
    assert found.photons["per_pattern"] == pytest.approx(np.square(arrays["diffraction"]).sum() / 5)
    assert found.geometry is not None
    assert (found.geometry["step"], found.geometry["x"], found.geometry["y"]) == (2.0, [10.0, 18.0], [9.5, 9.5])
    assert found.geometry["overlap"] == pytest.approx(1 - 2 / found.geometry["probe_diameter"])
    assert found.object is not None
    assert found.object["seen"] == [5.5, 12.5, 6.0, 21.0]
    assert found.object["on_grid"]


@pytest.mark.parametrize("shift", [{"xcoords": -30}, {"ycoords": 30}])
def test_an_object_on_another_grid_is_told(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path], shift: dict[str, float]
) -> None:
    arrays = canonical_arrays()
    found = profile_scan_file(write_npz(arrays | {key: arrays[key] + by for key, by in shift.items()}))
    assert found.object is not None
    assert not found.object["on_grid"]
    assert "R25" in {violation["rule"] for violation in found.violations}


def test_a_broken_file_is_described_as_far_as_it_goes(
    canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path]
) -> None:
    arrays = canonical_arrays()
    arrays["diffraction"] = arrays["diffraction"].copy()
    arrays["diffraction"][0, 0, 0] = np.nan
    arrays["secret"] = np.array([{}], dtype=object)
    found = profile_scan_file(write_npz(arrays))
    assert not found.valid
    assert found.photons is None
    assert found.geometry is not None
    assert found.arrays["diffraction"]["not_finite"] == 1
    assert found.arrays["secret"] == {"shape": [1], "dtype": "object"}
    json.dumps(found.as_dict(), allow_nan=False)


def test_headers_alone_give_no_figures(canonical_arrays: Callable[..., Arrays], write_npz: Callable[..., Path]) -> None:
    metadata = np.array('{"axis_order": "nhw", "measurement": "amplitude"}')
    found = profile_scan_file(write_npz(canonical_arrays(8, 8) | {"metadata": metadata}), stats=False)
    assert found.valid
    assert found.axis_order == {"order": "nhw", "reason": "the metadata say so"}
    assert found.arrays["diffraction"] == {"shape": [8, 8, 8], "dtype": "float32"}
    assert (found.photons, found.geometry, found.object) == (None, None, None)
