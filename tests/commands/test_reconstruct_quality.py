"""The command reconstruct: held-out pixels and half scans, which assess a result without the truth."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_torch.data.holdout import draw_holdout_pixels
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, save_scan

Call = Callable[..., Any]
QUICK = ("--epochs", "4", "--batch_size", "8", "--device", "cpu")


def read_metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def test_held_out_pixels_end_the_stages_of_a_pipeline(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    settings = {
        "engine": "gradient",
        "optimizer": "lbfgs",
        "epochs": 40,
        "holdout": 0.05,
        "patience": 2,
        "then": ["pie:epochs=3,patience=3"],
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    folder = tmp_path / "result"
    done = run_main("reconstruct", scan_file, "--output_dir", folder, "--config", tmp_path / "settings.yaml")
    assert done.code == 0, done.err
    assert "held_out 0." in done.err
    assert "restored epoch" in done.err
    history = load_reconstruction(folder / "reconstruction.npz").history
    stages = np.array(history["stage"])
    assert 3 < (stages == 1).sum() < 40
    metrics = read_metrics(folder)
    assert metrics["held_out_deviance"] == min(np.array(history["held_out_deviance"])[stages == 2])
    assert metrics["held_out_deviance"] > metrics["held_out_deviance_floor"] == pytest.approx(0.3, abs=0.2)
    assert metrics["held_out_pixels"] == pytest.approx(0.05 * 36 * 24 * 24, rel=0.2)
    assert "Convergence" in (folder / "report.html").read_text()


def test_values_of_held_out_pixels_have_no_effect_on_the_object(
    run_main: Call, scan_file: Path, tmp_path: Path
) -> None:
    scan = load_scan(scan_file)
    held = draw_holdout_pixels(scan, 0.1, np.random.default_rng([7, 0, 1]))  # as the command draws them for seed 7
    others = np.random.default_rng(3).uniform(0, scan.amplitudes.max(), scan.amplitudes.shape).astype(np.float32)
    save_scan(tmp_path / "changed.npz", replace(scan, amplitudes=np.where(held, others, scan.amplitudes)))
    results = []
    for name, path in (("clean", scan_file), ("changed", tmp_path / "changed.npz")):
        words = ("--output_dir", tmp_path / name, *QUICK, "--holdout", "0.1", "--seed", "7", "--no_report")
        assert run_main("reconstruct", path, *words).code == 0
        results.append(load_reconstruction(tmp_path / name / "reconstruction.npz").object.tobytes())
    assert results[0] == results[1]
    assert (
        read_metrics(tmp_path / "changed")["held_out_deviance"] > read_metrics(tmp_path / "clean")["held_out_deviance"]
    )


def test_half_scans_do_not_change_the_result(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    scan = load_scan(scan_file)
    save_scan(tmp_path / "scan.npz", replace(scan, metadata={"pixel_size": 1e-8}))
    words = (tmp_path / "scan.npz", *QUICK, "--update_probe", "--then", "lsqml:epochs=2", "--output_dir")
    assert run_main("reconstruct", *words, tmp_path / "plain").code == 0
    done = run_main("reconstruct", *words, tmp_path / "halved", "--half_scan_frc")
    assert done.code == 0, done.err
    assert "resolution by half scans" in done.out
    plain, halved = ((tmp_path / name / "reconstruction.npz").read_bytes() for name in ("plain", "halved"))
    assert plain == halved
    metrics, without = read_metrics(tmp_path / "halved"), read_metrics(tmp_path / "plain")
    assert without.items() <= metrics.items()
    further = set(metrics) - set(without)
    assert len(further) == 5
    assert all(name.startswith("half_scan_") for name in further)
    pixels, nm = metrics["half_scan_resolution_pixels"], metrics["half_scan_resolution_nm"]
    assert nm == (None if pixels is None else pytest.approx(10 * pixels))
    assert "Half-scan Fourier ring correlation" in (tmp_path / "halved" / "report.html").read_text()
    again = run_main("reconstruct", *words, tmp_path / "halved", "--half_scan_frc", "--resume", "--no_report")
    assert again.code == 0, again.err
    assert read_metrics(tmp_path / "halved") == metrics


def test_common_initial_object_of_both_halves_gives_a_warning(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    words = (scan_file, "--output_dir", tmp_path / "result", *QUICK, "--no_report")
    done = run_main("reconstruct", *words, "--half_scan_frc", "--init_object", scan_file)
    assert done.code == 0
    assert "both halves start from --init_object" in done.err


def test_pipeline_with_a_network_has_held_out_pixels_and_half_scans(
    run_main: Call, scan_file: Path, model_folder: Path, tmp_path: Path
) -> None:
    words = ("--engine", "neural", "--model_path", model_folder, "--then", "pie:epochs=3,patience=2")
    further = ("--holdout", "0.05", "--half_scan_frc")
    done = run_main("reconstruct", scan_file, "--output_dir", tmp_path / "result", *words, *further, "--no_report")
    assert done.code == 0, done.err
    assert "both halves start from the trained network" in done.err
    assert len(load_reconstruction(tmp_path / "result" / "reconstruction.npz").history["held_out_deviance"]) == 3
    assert {"held_out_deviance", "half_scan_crossing_cycles_per_pixel"} < set(read_metrics(tmp_path / "result"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--patience", "3"), "set --holdout, for example to 0.02"),
        (("--then", "pie:patience=3"), "set --holdout, for example to 0.02"),
        (("--patience", "0", "--holdout", "0.1"), "--patience"),
        (("--holdout", "1"), "--holdout is 1.0"),
        (("--holdout", "-0.1"), "--holdout"),
        (("--holdout", "nan"), "--holdout"),
        (("--holdout", "1e-12"), "draws none"),
        (("--then", "pie:holdout=0.1"), "unknown setting holdout"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    run_main: Call, scan_file: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = run_main("reconstruct", scan_file, "--output_dir", tmp_path / "result", *words)
    assert done.code == 2
    assert message in done.err
    assert done.err.strip().count("\n") == 0
    assert not (tmp_path / "result").exists()
