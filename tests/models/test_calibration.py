"""The probe belongs to the scan, not to the network: which one is taken, and with what power."""

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
from ptycho_torch.io.npz import load_scan, save_scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.models.calibration import select_calibration
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, ScanRecord, load_model, save_model
from ptycho_torch.physics.batch import scale_probe_to_photons

Command = Callable[..., Any]
Train = Callable[..., Path]


def bundle_of(*scans: ScanRecord) -> Model:
    """A network with a probe for each of ``scans``, all of them others."""
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randn(1 + place, 24, 24, dtype=torch.complex64, generator=generator) for place in range(len(scans))]
    return Model(PtychoModel(NetworkConfig(width=4), probes, size=24), scans, 1)


def known(scan: Scan, photons_per_unit: float = 3.0) -> ScanRecord:
    return ScanRecord("known.npz", scan.digest(), photons_per_unit)


OTHER, THIRD = ScanRecord("other.npz", "other", 5.0), ScanRecord("third.npz", "third", 7.0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_scan_of_the_training_has_the_probe_that_was_learned_on_it(place: int, scan: Scan) -> None:
    scans = [OTHER, THIRD]
    scans.insert(place, known(scan))
    bundle = bundle_of(*scans)
    light = select_calibration(bundle, scan)
    assert torch.equal(light.probe, bundle.model.probes[place])
    assert light.photons_per_unit == 3.0
    assert "this very scan" in light.probe_source


def test_the_only_probe_lights_a_scan_that_is_not_known(scan: Scan) -> None:
    bundle = bundle_of(OTHER)
    light = select_calibration(bundle, scan)
    assert torch.equal(light.probe, bundle.model.probe)
    assert light.photons_per_unit == 5.0
    assert "other.npz" in light.probe_source


@pytest.mark.parametrize("scans", [(), (OTHER, THIRD)], ids=["none", "several"])
def test_a_scan_that_is_not_known_has_its_own_probe(scans: tuple[ScanRecord, ...], scan: Scan) -> None:
    light = select_calibration(bundle_of(*scans), replace(scan, photons_per_unit=2.0))
    torch.testing.assert_close(light.probe, scale_probe_to_photons(scan, 2.0))
    assert light.photons_per_unit == 2.0
    assert light.probe_source == "the scan's own"


@pytest.mark.parametrize("scans", [(), (OTHER,), (OTHER, THIRD)], ids=["none", "one", "several"])
@pytest.mark.parametrize("factor", [1.0, 40.0])
def test_a_probe_from_a_file_has_the_power_of_the_patterns(
    scans: tuple[ScanRecord, ...], factor: float, scan: Scan, tmp_path: Path
) -> None:
    other = replace(scan, probe=factor * scan.probe[:, ::-1].copy())
    save_scan(tmp_path / "probe.npz", other)
    light = select_calibration(bundle_of(*scans), scan, tmp_path / "probe.npz")
    torch.testing.assert_close(light.probe, scale_probe_to_photons(other, 1.0))
    assert float(light.probe.abs().square().sum()) == pytest.approx(float(np.square(scan.amplitudes).sum() / len(scan)))
    assert light.photons_per_unit == 1.0
    assert "probe.npz" in light.probe_source


@pytest.mark.parametrize("photons", [1.0, 4.0])
def test_a_probe_that_was_found_from_this_scan_keeps_its_power(
    photons: float, model_folder: Path, scan: Scan, scan_file: Path, tmp_path: Path, run_main: Command
) -> None:
    words = ("--model_path", model_folder, "--test_data", scan_file, "--output_dir", tmp_path, "--no_report", "--quiet")
    assert run_main("inference", *words).code == 0
    found = load_reconstruction(tmp_path / "reconstruction.npz")
    found = replace(found, probe=np.float32(1.3) * found.probe)  # as one that was learned may be
    found.save(tmp_path / "reconstruction.npz")
    own = select_calibration(bundle_of(known(scan)), load_scan(scan_file), tmp_path / "reconstruction.npz", photons)
    np.testing.assert_allclose(own.probe.numpy(), photons**0.5 * found.probe, rtol=1e-6)
    darker = replace(scan, amplitudes=scan.amplitudes / 2)
    other = select_calibration(bundle_of(known(scan)), darker, tmp_path / "reconstruction.npz", photons)
    assert float(other.probe.abs().square().sum()) == pytest.approx(photons * np.square(darker.amplitudes).sum() / 36)


def test_a_probe_of_another_size_is_refused(
    scan: Scan,
    scan_factory: Callable[..., Scan],
    model_folder: Path,
    scan_file: Path,
    tmp_path: Path,
    run_main: Command,
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(DataError, match=r"large\.npz: probeGuess has shape .* 24 × 24 pixels, .* change `probe`"):
        select_calibration(bundle_of(), scan, tmp_path / "large.npz")
    np.savez(tmp_path / "none.npz", a=np.zeros(3))
    words = ("--model_path", model_folder, "--test_data", scan_file, "--output_dir", tmp_path / "out", "--quiet")
    code, _, err = run_main("inference", *words, "--probe", tmp_path / "none.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "no probe (found a); expected probe or probeGuess; change --probe" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_inference_says_which_probe_it_used(
    gridsize: int, scan: Scan, scan_file: Path, tmp_path: Path, run_main: Command
) -> None:
    """A network without a probe of its own, as training on simulation leaves it, lit by the scan's or a file's."""
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", bundle_of())
    save_scan(tmp_path / "probe.npz", replace(scan, probe=scan.probe[:, ::-1].copy()))
    words = ("--model_path", tmp_path / "model", "--test_data", scan_file, "--gridsize", gridsize, "--no_report")
    probes = []
    for name, extra, told in (
        ("own", (), "the scan's own"),
        ("file", ("--probe", tmp_path / "probe.npz"), "of probe.npz"),
    ):
        outcome = run_main("inference", *words, "--output_dir", tmp_path / name, *extra)
        assert outcome.code == 0, outcome.err
        assert f"probe: {told}" in outcome.err
        found = load_reconstruction(tmp_path / name / "reconstruction.npz")
        assert found.metadata["probe"] == told
        probes.append(found.probe)
    np.testing.assert_allclose(probes[0], scale_probe_to_photons(scan, 1.0), rtol=1e-6)
    assert np.abs(probes[1] - probes[0]).max() > 1


def test_a_better_probe_gives_a_better_picture(
    tmp_path: Path, model_folder: Path, scan: Scan, run_main: Command
) -> None:
    """A network trained with the true probe, on a scan whose file has a wrong one."""
    save_scan(tmp_path / "wrong.npz", replace(scan, probe=np.abs(scan.probe).astype(np.complex64)))
    save_scan(tmp_path / "right.npz", scan)
    r = {}
    for name in ("wrong", "right"):
        words = ("--model_path", model_folder, "--test_data", tmp_path / "wrong.npz", "--output_dir", tmp_path / name)
        assert run_main("inference", *words, "--probe", tmp_path / f"{name}.npz", "--no_report").code == 0

        r[name] = json.loads((tmp_path / name / "metrics.json").read_text())["r"]
    assert r["right"] < 0.8 * r["wrong"]
    assert load_model(model_folder).find_scan(scan.digest()) == 0
