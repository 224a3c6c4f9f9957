"""Unit of the coordinates: scaled coordinates are detected, coordinates in object pixels are not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.coordinates import compute_structure_box, estimate_coordinate_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.profile import profile_scan_file
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.simulation.scan import simulate_scan

Call = Callable[..., Any]


@pytest.fixture(scope="module", params=["raster", "spiral"])
def simulated(request: pytest.FixtureRequest) -> Scan:
    return simulate_scan("run1084", positions=150, overlap=0.8, trajectory=request.param)


def scaled(source: Path, target: Path, factor: float) -> Path:
    with np.load(source) as archive:
        arrays = dict(archive)
    for key in ("xcoords", "ycoords"):
        arrays[key] = arrays[key] * factor
    np.savez(target, **arrays)
    return target


@pytest.mark.parametrize("factor", [0.25, 0.5, 1, 2])
def test_scaled_coordinates_are_reported(simulated: Scan, tmp_path: Path, factor: float, run_main: Call) -> None:
    save_scan(tmp_path / "legacy.npz", simulated, "legacy")
    path = scaled(tmp_path / "legacy.npz", tmp_path / "scaled.npz", factor)
    profile = profile_scan_file(path)
    assert profile.object is not None
    assert profile.object["coordinate_factor"] == 1 / factor
    assert profile.object["on_grid"] == (factor == 1)
    assert ("R27" in {violation["rule"] for violation in profile.violations}) == (factor != 1)
    result = run_main("describe", path)
    assert (f"`position_scale` {1 / factor:g}" in result.out) == (factor != 1)
    content = json.loads(run_main("describe", path, "--json").out)
    assert content["object"]["coordinate_factor"] == 1 / factor


def test_suggested_scale_repairs_the_file(simulated: Scan, tmp_path: Path, run_main: Call) -> None:
    save_scan(tmp_path / "legacy.npz", simulated, "legacy")
    halved = scaled(tmp_path / "legacy.npz", tmp_path / "halved.npz", 0.5)
    repaired = tmp_path / "repaired.npz"
    assert run_main("convert", halved, repaired, "--measurement", "amplitude", "--position_scale", "2").code == 0
    np.testing.assert_array_equal(load_scan(repaired).positions, simulated.positions)
    assert not [violation for violation in profile_scan_file(repaired).violations if violation["rule"] == "R27"]


def test_load_scan_warns_about_scaled_coordinates(
    simulated: Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_scan(tmp_path / "legacy.npz", simulated, "legacy")
    load_scan(tmp_path / "legacy.npz")
    assert "position_scale" not in caplog.text
    load_scan(scaled(tmp_path / "legacy.npz", tmp_path / "halved.npz", 0.5))
    assert "`position_scale` 2" in caplog.text


def test_structure_box_holds_the_pixels_that_differ_from_the_corner() -> None:
    obj = np.ones((20, 30), np.complex64)
    assert compute_structure_box(obj) is None
    obj[3:9, 12:25] = 0.5j
    assert compute_structure_box(obj) == [3, 8, 12, 24]


def test_featureless_object_gives_factor_one() -> None:
    positions = np.random.default_rng(0).uniform(40, 110, (60, 2))
    for obj in (np.ones((300, 310), complex), np.ones((4, 5), complex)):
        assert estimate_coordinate_scale(positions, 32, obj).factor == 1


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
@pytest.mark.parametrize("factor", [0.5, 1])
def test_scaled_run1084_coordinates_are_reported(tmp_path: Path, factor: float) -> None:
    source = Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz"
    profile = profile_scan_file(scaled(source, tmp_path / "scaled.npz", factor))
    assert profile.object is not None
    assert profile.object["coordinate_factor"] == 1 / factor
