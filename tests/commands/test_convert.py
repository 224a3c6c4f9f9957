"""Command convert: from a file of another program to a canonical scan file."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import CommandOutcome

from ptycho_torch.commands.convert import convert as run_convert
from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.config.input import InputSettings
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.io.container import open_input
from ptycho_torch.io.scan import list_written_files, load_scan, read_parts, save_scan
from ptycho_torch.simulation.scan import simulate_scan

RunMain = Callable[..., CommandOutcome]


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
def test_bad_input_gives_one_line_and_no_file(
    foreign: Path, run_main: RunMain, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    before = (foreign / "foreign.npz").read_bytes()
    monkeypatch.chdir(foreign)
    result = run_main("convert", *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert [path.name for path in foreign.iterdir()] == ["foreign.npz"]
    assert (foreign / "foreign.npz").read_bytes() == before


def test_corrected_faults_are_printed_and_listed_in_the_metadata(tmp_path: Path) -> None:
    scan = simulate_scan("tiny", photons=1e6, seed=0)
    amplitudes = scan.amplitudes.copy()
    amplitudes[:, 3, 5] = 30
    save_scan(tmp_path / "damaged.npz", replace(scan, amplitudes=amplitudes))
    result = convert(tmp_path, "damaged.npz", "scan.npz", "--fix")
    fixes = load_scan(tmp_path / "scan.npz").metadata["fixes"]
    assert [text.partition(":")[0] for text in fixes] == ["masked pixels"]
    assert result.returncode == 0
    assert fixes[0] in " ".join(result.stderr.split())


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


@pytest.mark.parametrize(
    ("name", "format", "lost", "files"),
    [
        ("a.ptyd", None, "the probe, the object: left out", ["a.ptyd"]),
        ("a.h5", "ptylab", "the probe, the object, the mask (masked pixels are 0): left out", ["a.h5"]),
        (
            "a_dp.h5",
            "ptychovit",
            "the mask (masked pixels are 0), the wavelength, the distance, the detector pixel: left out",
            ["a_dp.h5", "a_para.h5"],
        ),
        ("a.h5", "ptychodus", "", ["a.h5", "a_diffraction.h5"]),
        ("a.cxi", None, "", ["a.cxi"]),
    ],
)
def test_lost_quantities_and_all_written_files_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, format: str | None, lost: str, files: list[str]
) -> None:
    geometry = Geometry(wavelength_m=1e-10, distance_m=1.0, detector_pixel_m=(1e-4, 1e-4)).complete(32)
    mask = np.arange(1024).reshape(32, 32) > 0
    scan = replace(simulate_scan("tiny", positions=16, seed=0), geometry=geometry, mask=mask)
    save_scan(tmp_path / name, scan, format=format)
    assert [each.message for each in caplog.records if "no place" in each.message] == (
        [f"{tmp_path / name}: the format {format or 'ptyd'} has no place for {lost}"] if lost else []
    )
    written = list_written_files(tmp_path / name, format)
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert [each.name for each in written] == files
    # The statement holds for the files: the quantities are absent after reading them again.
    with open_input(tmp_path / name) as file:
        parts = read_parts(file, InputSettings())
    assert (parts.probe is None) == ("probe" in lost)
    assert (parts.object is None) == ("object" in lost)
    assert (parts.geometry.distance_m is None) == ("distance" in lost)
