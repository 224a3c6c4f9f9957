"""Every command takes a scan file of another program, which has no probe, and writes a result of that program."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import load_scan, save_scan


def test_every_command_takes_a_file_of_another_program_without_a_probe(
    scan_factory: Callable[..., Scan], tmp_path: Path, run_main: Callable[..., Any]
) -> None:
    geometry = Geometry(wavelength_m=1e-10, distance_m=1.0, detector_pixel_m=(5e-5, 5e-5)).complete(24)
    file, result = tmp_path / "scan.ptyd", tmp_path / "result.ptyr"
    save_scan(file, replace(scan_factory(49, 24, photons=1e5), geometry=geometry))
    assert load_scan(file).probe is None
    quick = ("--device", "cpu", "--no_report", "--quiet")

    def run(command: str, name: str, *words: str | Path) -> dict[str, Any]:
        outcome = run_main(command, *words, "--output_dir", tmp_path / name)
        assert outcome.code == 0, outcome.err
        path = tmp_path / name / "metrics.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    model = ("--max_epochs", "1", "--logger", "none", "--width", "4", "--device", "cpu")
    run("train", "model", "--train_data_file", file, *model)
    run("inference", "network", "--model_path", tmp_path / "model", "--test_data", file, *quick)
    first = run("reconstruct", "first", file, "--epochs", "20", "--save_as", result, *quick)
    assert first["verdict"] == "at the noise floor"
    assert first["object_pixel_nm"] == pytest.approx([1e-10 / (24 * 5e-5) * 1e9] * 2)
    assert run("evaluate", "scores", result, "--scan", file, *quick[2:])["r"] == pytest.approx(first["r"], rel=1e-3)
    starts = (("--init", result), ("--init_object", result, "--init_probe", result, "--update_probe"))
    for number, words in enumerate(starts):
        again = run("reconstruct", f"again{number}", file, "--epochs", "1", *words, *quick)
        assert again["r"] < 1.2 * first["r"]
