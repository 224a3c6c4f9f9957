"""Coordinates that are not in object pixels are suspected, and only those."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.coordinates import estimate_coordinate_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan, save_scan
from ptycho_torch.io.profile import profile_scan_file
from ptycho_torch.simulation.scan import make_simulation_settings, simulate_from_settings

Call = Callable[..., Any]


@pytest.fixture(scope="module", params=["raster", "spiral"])
def simulated(request: pytest.FixtureRequest) -> Scan:
    return simulate_from_settings(
        make_simulation_settings("run1084", positions=150, overlap=0.8, trajectory=request.param), 0
    )


def scaled(source: Path, target: Path, factor: float) -> Path:
    with np.load(source) as archive:
        arrays = dict(archive)
    for key in ("xcoords", "ycoords"):
        arrays[key] = arrays[key] * factor
    np.savez(target, **arrays)
    return target


@pytest.mark.parametrize("factor", [0.25, 0.5, 1, 2])
def test_scaled_coordinates_of_a_legacy_scan_are_flagged(
    simulated: Scan, tmp_path: Path, factor: float, run_main: Call
) -> None:
    save_scan(tmp_path / "legacy.npz", simulated, "legacy")
    path = scaled(tmp_path / "legacy.npz", tmp_path / "scaled.npz", factor)
    found = profile_scan_file(path)
    assert found.object is not None
    assert found.object["coordinate_factor"] == 1 / factor
    assert found.object["on_grid"] == (factor == 1)
    assert ("R27" in {violation["rule"] for violation in found.violations}) == (factor != 1)
    said = run_main("describe", path)
    assert (f"--position_scale {1 / factor:g}" in said.out) == (factor != 1)
    again = json.loads(run_main("describe", path, "--json").out)
    assert again["object"]["coordinate_factor"] == 1 / factor


def test_what_the_message_says_mends_the_file(simulated: Scan, tmp_path: Path, run_main: Call) -> None:
    save_scan(tmp_path / "legacy.npz", simulated, "legacy")
    halved = scaled(tmp_path / "legacy.npz", tmp_path / "halved.npz", 0.5)
    mended = tmp_path / "mended.npz"
    assert run_main("convert", halved, mended, "--measurement", "amplitude", "--position_scale", "2").code == 0
    np.testing.assert_array_equal(load_scan(mended).positions, simulated.positions)
    assert not [violation for violation in profile_scan_file(mended).violations if violation["rule"] == "R27"]


def test_loading_warns(simulated: Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_scan(tmp_path / "legacy.npz", simulated, "legacy")
    load_scan(tmp_path / "legacy.npz")
    assert "position_scale" not in caplog.text
    load_scan(scaled(tmp_path / "legacy.npz", tmp_path / "halved.npz", 0.5))
    assert "--position_scale 2" in caplog.text


def test_an_object_that_says_nothing_raises_no_suspicion() -> None:
    positions = np.random.default_rng(0).uniform(40, 110, (60, 2))
    for obj in (np.ones((300, 310), complex), np.ones((4, 5), complex)):
        assert estimate_coordinate_scale(positions, 32, obj).factor == 1


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
@pytest.mark.parametrize("factor", [0.5, 1])
def test_the_twin_of_run_1084(tmp_path: Path, factor: float) -> None:
    twin = Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz"
    found = profile_scan_file(scaled(twin, tmp_path / "scaled.npz", factor))
    assert found.object is not None
    assert found.object["coordinate_factor"] == 1 / factor
