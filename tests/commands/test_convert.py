"""Command convert: from a file of another program to a canonical scan file."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.commands.convert import convert as run_convert
from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.simulation.scan import simulate_scan


def convert(folder: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ptycho_torch.convert", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "foreign.npz",
        data=rng.poisson(50, (1, 6, 8, 8)).astype(np.uint16),
        probe=np.ones((1, 1, 1, 2, 8, 8), np.complex64),
        scan=rng.uniform(-20, 20, (1, 6, 2)),
    )
    return tmp_path


def test_foreign_file_is_converted(foreign: Path) -> None:
    result = convert(foreign, "foreign.npz", "scan.npz", "--measurement", "counts", "--negate-y")
    assert (result.returncode, result.stderr) == (0, "")
    scan = load_scan(foreign / "scan.npz")
    assert scan.amplitudes.shape == (6, 8, 8)
    assert scan.probe.shape == (2, 8, 8)
    with np.load(foreign / "foreign.npz") as arrays:
        np.testing.assert_array_equal(scan.positions, arrays["scan"][0] * [-1, 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("foreign.npz", "scan.npz"), "--measurement"),
        (("foreign.npz", "foreign.npz", "--measurement", "counts"), "source itself"),
        (("none.npz", "scan.npz", "--measurement", "counts"), "no such file"),
        (("foreign.npz", "none/scan.npz", "--measurement", "counts"), "no folder"),
        (("foreign.npz", "scan.npz", "--measurement", "counts", "--probe_key", "P"), "--probe_key is P"),
        (("foreign.npz", "scan.npz", "--measurement", "counts", "--position_unit", "metre"), "--pixel_size"),
        (("foreign.npz", "scan.npz", "--measurement", "counts", "--position_scale", "0"), "--position_scale"),
        (("foreign.npz",), "DESTINATION missing"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(foreign: Path, words: tuple[str, ...], message: str) -> None:
    before = (foreign / "foreign.npz").read_bytes()
    result = convert(foreign, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert [path.name for path in foreign.iterdir()] == ["foreign.npz"]
    assert (foreign / "foreign.npz").read_bytes() == before


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
def test_measured_siemens_star_is_converted(tmp_path: Path) -> None:
    source = Path(os.environ["PTYCHO_TORCH_DATA"]) / "siemens_star" / "siemens-star-small.npz.bz2"
    result = convert(source.parent, source.name, tmp_path / "star.npz", "--measurement", "counts", "--origin", "corner")
    assert (result.returncode, result.stderr) == (0, "")
    scan = load_scan(tmp_path / "star.npz")
    assert scan.amplitudes.shape == (516, 128, 128)
    assert scan.photons_per_unit == 1
    total = np.square(scan.amplitudes, dtype=np.float64).sum((1, 2)).mean()
    assert total == pytest.approx(461_000, rel=0.01)


@pytest.mark.slow
def test_the_orientation_is_found_and_applied(tmp_path: Path) -> None:
    scan = simulate_scan("tiny", seed=3, size=33, probe="zernike", object="texture")
    stored = replace(
        scan, amplitudes=np.ascontiguousarray(Orientation(True, False, True).inverse.apply(scan.amplitudes))
    )
    save_scan(tmp_path / "stored.npz", stored)
    run_convert(ConvertConfig(source=tmp_path / "stored.npz", destination=tmp_path / "scan.npz", orientation="auto"))
    np.testing.assert_array_equal(load_scan(tmp_path / "scan.npz").amplitudes, scan.amplitudes)
