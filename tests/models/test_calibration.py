"""Selection of the probe for a scan, and its power."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.models.calibration import select_calibration
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, ScanRecord, load_model, save_model
from ptycho_torch.physics.batch import scale_probe_to_photons

Command = Callable[..., Any]
Train = Callable[..., Path]


def make_model(*scans: ScanRecord) -> Model:
    """Make a model with a different probe for each of ``scans``."""
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randn(1 + index, 24, 24, dtype=torch.complex64, generator=generator) for index in range(len(scans))]
    return Model(PtychoModel(NetworkConfig(width=4), probes, size=24), scans, 1)


def make_record(scan: Scan, photons_per_unit: float = 3.0) -> ScanRecord:
    return ScanRecord("trained.npz", scan.digest(), photons_per_unit)


OTHER, THIRD = ScanRecord("other.npz", "other", 5.0), ScanRecord("third.npz", "third", 7.0)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_scan_of_the_training_gets_its_learned_probe(index: int, scan: Scan) -> None:
    scans = [OTHER, THIRD]
    scans.insert(index, make_record(scan))
    model = make_model(*scans)
    calibration = select_calibration(model, scan)
    assert torch.equal(calibration.probe, model.model.probes[index])
    assert calibration.photons_per_unit == 3.0
    assert "this very scan" in calibration.probe_source


def make_model_of_dose(photons: float) -> Model:
    """Make a model of one scan whose probe has a power of ``photons``."""
    model = make_model(OTHER)
    with torch.no_grad():
        model.model.probe_parameters[0].mul_((photons / float(model.model.probe.abs().square().sum())) ** 0.5)
    return model


def test_other_scan_gets_the_only_probe_of_the_model_and_its_own_scale(scan: Scan) -> None:
    photons = float(np.square(scan.amplitudes).sum() / len(scan))
    model = make_model_of_dose(photons)
    calibration = select_calibration(model, scan)
    assert torch.equal(calibration.probe, model.model.probe)
    assert calibration.photons_per_unit == 1.0
    assert "other.npz" in calibration.probe_source
    whole = replace(scan, amplitudes=scan.amplitudes / 7, photons_per_unit=None)
    assert select_calibration(model, whole).photons_per_unit == pytest.approx(49, rel=1e-4), "from the lattice"
    rng = np.random.default_rng(0)
    noisy = np.sqrt(np.square(scan.amplitudes) + rng.uniform(0, 0.5, scan.amplitudes.shape)).astype(np.float32) / 30
    unknown = replace(scan, amplitudes=noisy, photons_per_unit=None)
    expected = photons / (np.square(noisy, dtype=np.float64).sum() / len(scan))
    assert select_calibration(model, unknown).photons_per_unit == pytest.approx(expected), "from the mean pattern"


@pytest.mark.parametrize("ratio", [0.01, 0.8, 30])
def test_only_probe_of_the_model_gets_the_power_of_another_exposure(scan: Scan, ratio: float) -> None:
    photons = float(np.square(scan.amplitudes).sum() / len(scan))
    model = make_model_of_dose(photons / ratio)
    calibration = select_calibration(model, scan)
    expected = photons / ratio if ratio == 0.8 else photons
    assert float(calibration.probe.abs().square().sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scans", [(), (OTHER, THIRD)], ids=["none", "several"])
def test_other_scan_gets_its_own_probe_unless_the_model_has_exactly_one(
    scans: tuple[ScanRecord, ...], scan: Scan
) -> None:
    calibration = select_calibration(make_model(*scans), replace(scan, photons_per_unit=2.0))
    torch.testing.assert_close(calibration.probe, scale_probe_to_photons(scan, 2.0))
    assert calibration.photons_per_unit == 2.0
    assert calibration.probe_source == "the scan's own"


@pytest.mark.parametrize("scans", [(), (OTHER,), (OTHER, THIRD)], ids=["none", "one", "several"])
@pytest.mark.parametrize("factor", [1.0, 40.0])
def test_probe_from_a_file_gets_the_power_of_the_patterns(
    scans: tuple[ScanRecord, ...], factor: float, scan: Scan, tmp_path: Path
) -> None:
    other = replace(scan, probe=factor * scan.probe[:, ::-1].copy())
    save_scan(tmp_path / "probe.npz", other)
    calibration = select_calibration(make_model(*scans), scan, tmp_path / "probe.npz")
    torch.testing.assert_close(calibration.probe, scale_probe_to_photons(other, 1.0))
    assert float(calibration.probe.abs().square().sum()) == pytest.approx(
        float(np.square(scan.amplitudes).sum() / len(scan))
    )
    assert calibration.photons_per_unit == 1.0
    assert "probe.npz" in calibration.probe_source


@pytest.mark.parametrize("photons", [1.0, 4.0])
def test_probe_reconstructed_from_this_scan_keeps_its_power(
    photons: float, model_folder: Path, scan: Scan, scan_file: Path, tmp_path: Path, run_main: Command
) -> None:
    arguments = (
        "--model_path",
        model_folder,
        "--test_data",
        scan_file,
        "--output_dir",
        tmp_path,
        "--no_report",
        "--quiet",
    )
    assert run_main("inference", *arguments).code == 0
    result = load_reconstruction(tmp_path / "reconstruction.npz")
    result = replace(result, probe=np.float32(1.3) * result.probe)  # a learned probe may have another power
    result.save(tmp_path / "reconstruction.npz")
    own = select_calibration(
        make_model(make_record(scan)), load_scan(scan_file), tmp_path / "reconstruction.npz", photons
    )
    np.testing.assert_allclose(own.probe.numpy(), photons**0.5 * result.probe, rtol=1e-6)
    darker = replace(scan, amplitudes=scan.amplitudes / 2)
    other = select_calibration(make_model(make_record(scan)), darker, tmp_path / "reconstruction.npz", photons)
    assert float(other.probe.abs().square().sum()) == pytest.approx(photons * np.square(darker.amplitudes).sum() / 36)


def test_probe_of_another_size_is_refused(
    scan: Scan,
    scan_factory: Callable[..., Scan],
    model_folder: Path,
    scan_file: Path,
    tmp_path: Path,
    run_main: Command,
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(DataError, match=r"large\.npz: probeGuess has shape .* 24 × 24 pixels, .* change `probe`"):
        select_calibration(make_model(), scan, tmp_path / "large.npz")
    np.savez(tmp_path / "none.npz", a=np.zeros(3))
    arguments = ("--model_path", model_folder, "--test_data", scan_file, "--output_dir", tmp_path / "out", "--quiet")
    code, _, err = run_main("inference", *arguments, "--probe", tmp_path / "none.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "no probe (found a); expected probe or probeGuess; change --probe" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_inference_reports_the_origin_of_the_probe(
    gridsize: int, scan: Scan, scan_file: Path, tmp_path: Path, run_main: Command
) -> None:
    """For a model without a probe, as pretraining makes it, with the probe of the scan or of a file."""
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", make_model())
    save_scan(tmp_path / "probe.npz", replace(scan, probe=scan.probe[:, ::-1].copy()))
    arguments = ("--model_path", tmp_path / "model", "--test_data", scan_file, "--gridsize", gridsize, "--no_report")
    probes = []
    for name, extra, source in (
        ("own", (), "the scan's own"),
        ("file", ("--probe", tmp_path / "probe.npz"), "of probe.npz"),
    ):
        outcome = run_main("inference", *arguments, "--output_dir", tmp_path / name, *extra)
        assert outcome.code == 0, outcome.err
        assert f"probe: {source}" in outcome.err
        result = load_reconstruction(tmp_path / name / "reconstruction.npz")
        assert result.metadata["probe"] == source
        probes.append(result.probe)
    np.testing.assert_allclose(probes[0], scale_probe_to_photons(scan, 1.0), rtol=1e-6)
    assert np.abs(probes[1] - probes[0]).max() > 1


def test_better_probe_gives_a_smaller_fourier_error(
    tmp_path: Path, model_folder: Path, scan: Scan, run_main: Command
) -> None:
    """For a model trained with the true probe, on a scan whose file has a wrong probe."""
    save_scan(tmp_path / "wrong.npz", replace(scan, probe=np.abs(scan.probe).astype(np.complex64)))
    save_scan(tmp_path / "right.npz", scan)
    r = {}
    for name in ("wrong", "right"):
        arguments = (
            "--model_path",
            model_folder,
            "--test_data",
            tmp_path / "wrong.npz",
            "--output_dir",
            tmp_path / name,
        )
        assert run_main("inference", *arguments, "--probe", tmp_path / f"{name}.npz", "--no_report").code == 0

        r[name] = json.loads((tmp_path / name / "metrics.json").read_text())["r"]
    assert r["right"] < 0.8 * r["wrong"]
    assert load_model(model_folder).find_scan(scan.digest()) == 0
