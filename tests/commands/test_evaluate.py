"""The command evaluate: scores of a reconstruction, computed from files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.config.inference import EvaluateConfig
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluate import evaluate
from ptycho_torch.evaluation.fourier_error import predict_photons
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.physics.forward import from_object

SIZE, PHOTONS_PER_UNIT = 16, 4.0


def make_truth() -> NDArray[np.complex128]:
    y, x = np.mgrid[:44, :38]
    amplitude, phase = 0.8 + 0.15 * np.cos(0.5 * y + 0.2 * x), np.sin(0.4 * x - 0.1 * y) + 0.01 * y
    return np.asarray(amplitude * np.exp(1j * phase), np.complex128)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a noisy scan, its true object as ``rec.npz``, and files with one error each."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    truth = make_truth()
    positions = np.mgrid[12:31:6j, 12:25:5j].reshape(2, -1).T + rng.uniform(-1, 1, (30, 2))
    axis = np.arange(SIZE) - SIZE // 2
    probe = 30 * np.exp(-(axis[:, None] ** 2 + 1.4 * axis**2) / 18 + 0.03j * axis[:, None] ** 2)[None]
    rates = from_object(*map(torch.from_numpy, (truth, probe, positions))).intensity.numpy()
    amplitudes = np.fft.fftshift(np.sqrt(rng.poisson(rates) / PHOTONS_PER_UNIT), axes=(-2, -1)).astype(np.float32)
    scan = Scan(
        amplitudes,
        positions,
        probe.astype(np.complex64),
        truth=truth.astype(np.complex64),
        photons_per_unit=PHOTONS_PER_UNIT,
    )
    save_scan(folder / "scan.npz", scan)
    save_scan(folder / "no_truth.npz", Scan(amplitudes, positions, scan.probe))
    save_scan(folder / "other_size.npz", Scan(amplitudes[:, 1:-1, 1:-1], positions, scan.probe[:, 1:-1, 1:-1]))
    y, x = np.mgrid[:44, :38]
    coverage = sum(np.exp(-((y - row) ** 2 + (x - column) ** 2) / 18) for row, column in positions)
    save_reconstruction(folder / "rec.npz", truth, coverage, scan)
    save_reconstruction(folder / "flat.npz", np.ones_like(truth), coverage, scan)
    save_reconstruction(folder / "nan.npz", np.full_like(truth, np.nan), coverage, scan)
    (folder / "text.npz").write_text("not a zip")
    (folder / "cut.npz").write_bytes((folder / "rec.npz").read_bytes()[:3000])
    np.savez(folder / "pickle.npz", object=np.array([{}], dtype=object))
    return folder


def save_reconstruction(path: Path, obj: NDArray[np.complex128], coverage: object, scan: Scan) -> None:
    Reconstruction(
        object=obj.astype(np.complex64),
        coverage=np.asarray(coverage, np.float32),
        origin_yx=np.zeros(2, np.int64),
        probe=scan.probe,
        positions=scan.positions,
        photons_per_unit=PHOTONS_PER_UNIT,
        history={"epoch": [1.0, 2.0], "loss": [2.0, 1.0], "val_loss": [2.5, 1.5]},
    ).save(path)


def test_true_object_has_zero_nrmse_and_r_at_the_noise_floor(
    files: Path, tmp_path: Path, run_process: Callable[..., Any]
) -> None:
    words = ("rec.npz", "--truth", "scan.npz", "--scan", "scan.npz", "--output-dir", tmp_path / "out")
    code, out, err = run_process("-m", "ptycho_torch.evaluate", *words, cwd=files)
    assert (code, err) == (0, "")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["nrmse"] < 1e-6
    assert metrics["r"] == pytest.approx(metrics["r_floor"], rel=0.05)
    assert "NRMSE" in out
    assert "noise floor" in out
    assert str(tmp_path / "out" / "report.html") in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "reconstructed_amplitude.png",
        "reconstructed_phase.png",
        "report.html",
    ]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "python -m ptycho_torch.evaluate rec.npz --truth scan.npz --scan scan.npz --output-dir" in report


def test_function_returns_the_metrics_that_the_command_writes(files: Path, tmp_path: Path) -> None:
    def evaluate_file(name: str, **settings: Any) -> dict[str, Any]:
        return evaluate(EvaluateConfig(reconstruction=files / name, output_dir=tmp_path / name, **settings))

    flat = evaluate_file("flat.npz", truth=files / "scan.npz", scan=files / "scan.npz")
    assert flat == json.loads((tmp_path / "flat.npz" / "metrics.json").read_text())
    assert flat["nrmse"] > 0.3
    assert flat["r"] > 5 * flat["r_floor"]
    assert flat["frc_crossing_cycles_per_pixel"] == 0
    by_scan = evaluate_file("rec.npz", scan=files / "scan.npz")
    assert "r" in by_scan
    assert "nrmse" not in by_scan, "the truth in the scan file is used only with --truth"
    by_truth = evaluate_file("rec.npz", truth=files / "scan.npz")
    assert "r" not in by_truth
    assert "nrmse" in by_truth


def test_different_photon_scale_gives_a_warning(files: Path, tmp_path: Path, run_main: Callable[..., Any]) -> None:
    with np.load(files / "rec.npz") as arrays:
        changed = dict(arrays) | {"metadata": np.array(json.dumps({"photons_per_unit": 1.0}))}
    np.savez(tmp_path / "rec.npz", **changed)
    words = ("--scan", files / "scan.npz", "--output_dir", tmp_path / "out", "--quiet")
    code, out, err = run_main("evaluate", tmp_path / "rec.npz", *words)
    assert (code, out, err.count("\n")) == (0, "", 1)
    assert "--photons_per_unit" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rec.npz", "--output_dir", "OUT"), "set --truth to a scan"),
        (("rec.npz", "--scan", "scan.npz"), "--output_dir missing"),
        (("--scan", "scan.npz", "--output_dir", "OUT"), "RECONSTRUCTION missing"),
        (("none.npz", "--scan", "scan.npz", "--output_dir", "OUT"), "none.npz: there is no such file"),
        (("text.npz", "--scan", "scan.npz", "--output_dir", "OUT"), "text.npz"),
        (("cut.npz", "--scan", "scan.npz", "--output_dir", "OUT"), "cut.npz"),
        (("pickle.npz", "--scan", "scan.npz", "--output_dir", "OUT"), "pickle.npz"),
        (("scan.npz", "--scan", "scan.npz", "--output_dir", "OUT"), "give a reconstruction.npz"),
        (("rec.npz", "--scan", "rec.npz", "--output_dir", "OUT"), "diffraction"),
        (("rec.npz", "--scan", "none.npz", "--output_dir", "OUT"), "none.npz"),
        (("rec.npz", "--truth", "no_truth.npz", "--output_dir", "OUT"), "no objectGuess"),
        (("rec.npz", "--scan", "other_size.npz", "--output_dir", "OUT"), "14 × 14"),
        (("nan.npz", "--scan", "scan.npz", "--output_dir", "OUT"), "NaN or infinity"),
        (("rec.npz", "--scan", "scan.npz", "--output_dir", "scan.npz"), "output folder cannot be created"),
        (("rec.npz", "--scan", "scan.npz", "--output_dir", "OUT", "--photons_per_unit", "0"), "--photons_per_unit"),
        (("rec.npz", "--nonsense", "red"), "--nonsense"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    files: Path, words: tuple[str, ...], message: str, run_main: Callable[..., Any]
) -> None:
    before = sorted(files.iterdir())
    arguments = [files / word if word.endswith("npz") or word == "OUT" else word for word in words]
    code, out, err = run_main("evaluate", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(files.iterdir()) == before


def test_failed_command_prints_no_traceback(files: Path, tmp_path: Path, run_main: Callable[..., Any]) -> None:
    words = (files / "cut.npz", "--scan", files / "scan.npz", "--output_dir", tmp_path / "out")
    code, out, err = run_main("evaluate", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
def test_run1084_file_has_zero_nrmse_and_r_near_the_noise_floor(tmp_path: Path) -> None:
    """The object and probe of the file explain its patterns, read from the legacy layout, with R near the noise floor.

    The simulation of this file shifts the object by fractions of a pixel, where the package shifts the probe. The
    product of object and probe exceeds the band of the detector, and its aliasing differs: R is 0.0011 without noise.
    """
    path = Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz"
    scan = load_scan(path)
    assert scan.truth is not None
    unit = photon_scale(scan, None).photons_per_unit
    y, x = (np.arange(n) for n in scan.truth.shape)
    coverage = np.zeros(scan.truth.shape)
    for row, column in scan.positions:
        coverage += np.outer(np.exp(-((y - row) ** 2) / 450), np.exp(-((x - column) ** 2) / 450))
    # The probe of the file has no unit: scale it such that the modeled and the measured photons are equal.
    trial = Reconstruction(
        scan.truth, coverage.astype(np.float32), np.zeros(2, np.int64), scan.probe, scan.positions, unit
    )
    photons = float(np.sum(scan.amplitudes[:64] ** 2, dtype=np.float64)) * unit
    power = photons / float(predict_photons(trial, scan.positions[:64]).sum())
    trial.probe[:] *= np.float32(np.sqrt(power))
    trial.save(tmp_path / "rec.npz")
    metrics = evaluate(
        EvaluateConfig(reconstruction=tmp_path / "rec.npz", output_dir=tmp_path / "out", truth=path, scan=path)
    )
    assert metrics["nrmse"] < 1e-6
    assert metrics["photons_per_pattern"] == pytest.approx(1e6, rel=1e-3)
    assert metrics["r_floor"] == pytest.approx(0.0011, rel=0.05)
    assert metrics["r"] < metrics["r_floor"] + 0.0013


def test_without_the_report_only_the_metrics_are_written(
    run_main: Callable[..., Any], model_folder: Path, scan_file: Path, tmp_path: Path
) -> None:
    result, scores = tmp_path / "result", tmp_path / "scores"
    words = ("--model_path", model_folder, "--test_data", scan_file, "--output_dir", result, "--no_report")
    assert run_main("inference", *words).code == 0
    assert {path.name for path in result.iterdir()} == {"reconstruction.npz", "metrics.json", "timing.json"}
    words = (result / "reconstruction.npz", "--scan", scan_file, "--output_dir", scores, "--no-report")
    assert run_main("evaluate", *words).code == 0
    assert {path.name for path in scores.iterdir()} == {"metrics.json"}
