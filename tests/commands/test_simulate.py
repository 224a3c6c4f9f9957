"""Command simulate: seeds, layouts, presets and errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.io.scan import load_scan
from ptycho_torch.simulate import main
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.probes import PROBES


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptycho_torch.simulate", *words], capture_output=True, text=True, check=False
    )


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        done = run(str(tmp_path / name), "--preset", "tiny", "--photons", "1e5", "--seed", "4")
        assert done.returncode == 0, done.stderr
    assert main([str(tmp_path / "c.npz"), "--preset", "tiny", "--photons", "1e5", "--seed", "5", "--quiet"]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "c.npz").read_bytes()


def test_both_layouts_hold_the_same_scan(tmp_path: Path) -> None:
    for layout in ("canonical", "legacy"):
        assert main([str(tmp_path / f"{layout}.npz"), "--preset=tiny", f"--layout={layout}", "--quiet"]) == 0
    canonical, legacy = (load_scan(tmp_path / f"{name}.npz") for name in ("canonical", "legacy"))
    ratio = canonical.amplitudes.max() / legacy.amplitudes.max()
    assert np.allclose(legacy.amplitudes * ratio, canonical.amplitudes, rtol=1e-5)
    assert np.array_equal(canonical.positions, legacy.positions)


def test_flags_override_the_preset(tmp_path: Path) -> None:
    words = "--preset tiny --size 24 --positions 10 --modes 2 --trajectory spiral --object star --probe gaussian"
    assert main([str(tmp_path / "s.npz"), *words.split(), "--overlap", "0.7", "--quiet"]) == 0
    scan = load_scan(tmp_path / "s.npz")
    assert scan.amplitudes.shape == (10, 24, 24)
    assert scan.probe.shape == (2, 24, 24)
    assert scan.metadata["simulation"]["object"] == "star"


@pytest.mark.parametrize(("kind", "probe"), [("photographs", "speckle"), ("dead_leaves", "zone_plate")])
def test_random_objects_and_probes_give_valid_scans(tmp_path: Path, kind: str, probe: str) -> None:
    words = ["--preset=tiny", f"--object={kind}", f"--probe={probe}", "--trajectory=scattered", "--quiet"]
    assert main([str(tmp_path / "s.npz"), *words]) == 0
    scan = load_scan(tmp_path / "s.npz")
    assert scan.truth is not None
    assert np.abs(scan.truth).max() < 1.001
    assert np.square(scan.amplitudes.astype(float)).sum((1, 2)).mean() == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--object", "unicorn"], "unicorn"),
        (["--probe", "unicorn"], "unicorn"),
        (["--overlap", "1"], "overlap"),
        (["--photons", "-3"], "photons"),
        (["--size", "4"], "size"),
        (["--modes", "40"], "modes"),
        (["--preset", "unicorn"], "unicorn"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_settings_give_one_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([str(tmp_path / "s.npz"), *(["--preset", "tiny"] if "--preset" not in words else []), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_folder_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no" / "s.npz"), "--preset", "tiny"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_lists_every_object_and_probe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in [*OBJECTS, *PROBES])
