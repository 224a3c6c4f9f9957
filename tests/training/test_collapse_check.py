"""The collapse check: a collapsed network, a network without collapse, and a featureless sample."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.collapse_check import CollapseReport, check_collapse

Command = Callable[..., Any]
Train = Callable[..., Path]


def flat_scan(scan: Scan, photons: float, fluctuation: float = 0.0) -> Scan:
    """Return a scan of vacuum with the same positions and probe, Poisson counts, and a fluctuating flux."""
    rng = np.random.default_rng(3)
    expected = np.square(np.abs(np.fft.fft2(scan.probe, norm="ortho"))).sum(0)
    brightness = rng.uniform(1 - fluctuation, 1 + fluctuation, (len(scan), 1, 1))
    counts = rng.poisson(expected / expected.sum() * photons * brightness)
    return replace(scan, amplitudes=np.fft.fftshift(np.sqrt(counts), axes=(1, 2)).astype(np.float32), truth=None)


def with_mask(scan: Scan) -> Scan:
    """Return the scan with masked pixels of arbitrary values."""
    mask = np.random.default_rng(1).random((24, 24)) > 0.1
    return replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(77)))


def patterns_of(scan: Scan) -> PatternGroups:
    return PatternGroups(make_batch(scan, 1.0), np.arange(len(scan))[:, None], scan.positions)


class FixedPatches(torch.nn.Module):
    """A network that returns given patches."""

    def __init__(self, patches: torch.Tensor, scan: Scan) -> None:
        super().__init__()
        self.patches, self.amplitudes = patches, make_batch(scan, 1.0).amplitudes

    def forward(self, amplitudes: torch.Tensor, probe: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.patches[torch.cdist(amplitudes.flatten(1), self.amplitudes.flatten(1)).argmin(1)]

    def predict_untrained(
        self, amplitudes: torch.Tensor, probe: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.ones_like(amplitudes) + 0j


def make_untrained_model(scan: Scan, network: str = "lifted_unet") -> PtychoModel:
    """Make a model with zero weights in the last layer: vacuum before any data-consistency step."""
    return PtychoModel(NetworkConfig(network, width=4), scale_probe_to_photons(scan, 1.0))


@pytest.mark.parametrize("photons", [2e3, 2e4, 1e6])
@pytest.mark.parametrize("change", [lambda scan: scan, with_mask], ids=["bare", "masked"])
@pytest.mark.parametrize("network", ["lifted_unet", "stepped_unet", "refined_unet"])
def test_untrained_network_is_collapsed(
    network: str, photons: float, change: Callable[[Scan], Scan], scan_factory: Callable[..., Scan]
) -> None:
    """Also with data-consistency steps, which reconstruct structure without training."""
    scan = change(scan_factory(photons=photons))
    report = check_collapse(make_untrained_model(scan, network), patterns_of(scan))
    assert report.is_collapsed
    assert report.description().startswith(
        "collapsed: the object is constant" if network == "lifted_unet" else "collapsed"
    )
    assert report.r >= report.r_untrained * (1 - 1e-6)
    assert report.untrained_correlation == pytest.approx(1, abs=1e-3) or network == "lifted_unet"


@pytest.mark.parametrize("photons", [2e3, 2e4])
@pytest.mark.parametrize("modes", [1, 2])
def test_true_object_is_not_collapsed(photons: float, modes: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(photons=photons, modes=modes)
    model, batch = make_untrained_model(scan), make_batch(scan, 1.0)
    truth = extract_patches(torch.from_numpy(scan.truth), batch.corners, 24)
    power = torch.from_numpy(scan.probe).abs().square().sum(0)
    transmitted = float(
        (truth.abs().square() * power).sum() / power.sum() / len(scan)
    )  # the probe has the power of the patterns
    model.network = FixedPatches(truth / transmitted**0.5, scan)
    report = check_collapse(model, patterns_of(scan))
    assert not report.is_collapsed
    assert report.explained_share > 0.85
    assert report.r == pytest.approx(report.r_floor, rel=0.1)
    assert report.description().startswith("no collapse")


@pytest.mark.parametrize("photons", [500.0, 2e4, 1e6])
@pytest.mark.parametrize("fluctuation", [0.0, 0.3])
@pytest.mark.parametrize("wrong", [False, True], ids=["right probe", "wrong probe"])
def test_featureless_sample_is_not_reported_as_collapse(
    photons: float, fluctuation: float, wrong: bool, scan: Scan
) -> None:
    """A featureless sample gives the same pattern at all positions, whatever probe the file contains."""
    flat = flat_scan(scan, photons, fluctuation)
    if wrong:
        flat = replace(flat, probe=np.abs(flat.probe).astype(np.complex64))
    report = check_collapse(make_untrained_model(flat), patterns_of(flat))
    assert not report.is_collapsed
    assert report.texture == pytest.approx(1, abs=5 * report.texture_error + 0.01)
    assert report.description().startswith("featureless sample")


def test_noise_as_object_is_distinguished_from_a_constant_object(scan: Scan) -> None:
    model = make_untrained_model(scan)
    noise = torch.randn(36, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    model.network = FixedPatches(1 + 2 * noise, scan)
    report = check_collapse(model, patterns_of(scan))
    assert report.is_collapsed
    assert report.description().startswith("collapsed: the object explains the patterns no better")


@pytest.mark.parametrize(
    ("changed", "collapsed"),
    [
        ({}, False),
        ({"spread": 0.1}, True),  # constant
        ({"untrained_correlation": 0.95}, True),  # equal to the untrained network
        ({"r": 0.8}, True),  # far worse than the untrained network
        ({"r_floor": 0.1}, True),  # R is not mostly noise
        ({"r": 0.35}, False),
    ],
)
def test_report_is_undecided_at_low_dose(changed: dict[str, float], collapsed: bool) -> None:
    """A good object (here NRMSE 0.3) may have a larger R than data-consistency steps that fit the noise."""
    measured = CollapseReport(
        0.5904, 0.582, 0.3248, spread=1.7, lift_spread=1.0, untrained_correlation=0.5, texture=2.0, texture_error=0.01
    )
    report = measured._replace(**changed)
    assert report.is_collapsed is collapsed
    assert report.description().startswith("collapsed") is collapsed
    assert report.description().startswith("too few photons") is (not changed)


def test_single_pattern_is_not_reported_as_collapse(scan: Scan) -> None:
    alone = scan.select(np.array([5]))
    assert not check_collapse(make_untrained_model(alone), patterns_of(alone)).is_collapsed


def test_train_warns_of_a_collapse(tmp_path: Path, scan: Scan, scan_file: Path, run_main: Command) -> None:
    """In one warning, in the printed line and in the provenance; other trainings do not warn."""
    save_scan(tmp_path / "flat.npz", flat_scan(scan, 2e4))
    common = ("--width", 8, "--batch_size", 6, "--max_epochs", 12, "--disable_mlflow", "--device", "cpu")
    for name, file, words in (
        ("collapsed", scan_file, ("--learning_rate", "1e-9")),
        ("good", scan_file, ()),
        ("flat", tmp_path / "flat.npz", ()),
    ):
        outcome = run_main("train", "--train_data_file", file, "--output_dir", tmp_path / name, *common, *words)
        assert outcome.code == 0
        (report,) = load_model(tmp_path / name).provenance["seen"]
        assert report["collapsed"] is (name == "collapsed")
        assert outcome.err.count("collapsed: ") == (name == "collapsed")
        assert ("collapsed: " in outcome.out) is (name == "collapsed")
        assert ("featureless sample" in outcome.out) is (name == "flat")
    quiet = run_main("train", "--train_data_file", scan_file, "--output_dir", tmp_path / "q", *common, "--quiet")
    assert quiet == (0, "", "")


def test_train_does_not_warn_before_the_end_of_the_warm_up(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    words = ("--train_data_file", scan_file, "--output_dir", tmp_path / "m", "--width", 4, "--disable_mlflow")
    assert run_main("train", *words, "--max_epochs", 1, "--quiet") == (0, "", "")
    assert load_model(tmp_path / "m").provenance["seen"][0]["told"].startswith("collapsed")
