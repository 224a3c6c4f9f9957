"""The check at training's end: a network that sees nothing, one that sees, and a sample with nothing to see."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.training.collapse_check import CollapseReport, check_collapse
from ptycho_torch.training.trainer import PatternGroups

Command = Callable[..., Any]
Train = Callable[..., Path]


def flat_scan(scan: Scan, photons: float, fluctuation: float = 0.0) -> Scan:
    """The same positions and probe over nothing, counted; the source may fluctuate."""
    rng = np.random.default_rng(3)
    expected = np.square(np.abs(np.fft.fft2(scan.probe, norm="ortho"))).sum(0)
    brightness = rng.uniform(1 - fluctuation, 1 + fluctuation, (len(scan), 1, 1))
    counts = rng.poisson(expected / expected.sum() * photons * brightness)
    return replace(scan, amplitudes=np.fft.fftshift(np.sqrt(counts), axes=(1, 2)).astype(np.float32), truth=None)


def with_mask(scan: Scan) -> Scan:
    """Dead pixels that hold nonsense."""
    mask = np.random.default_rng(1).random((24, 24)) > 0.1
    return replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(77)))


def patterns_of(scan: Scan) -> PatternGroups:
    return PatternGroups(make_batch(scan, 1.0), np.arange(len(scan))[:, None], scan.positions)


class Answers(torch.nn.Module):
    """A network that answers with given patches, in order."""

    def __init__(self, patches: torch.Tensor, scan: Scan) -> None:
        super().__init__()
        self.patches, self.amplitudes = patches, make_batch(scan, 1.0).amplitudes

    def forward(self, amplitudes: torch.Tensor, probe: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.patches[torch.cdist(amplitudes.flatten(1), self.amplitudes.flatten(1)).argmin(1)]

    def predict_untrained(
        self, amplitudes: torch.Tensor, probe: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.ones_like(amplitudes) + 0j


def untrained(scan: Scan, network: str = "lifted_unet") -> PtychoModel:
    """Weights of zero in the last layer: vacuum everywhere, before any step of physics."""
    return PtychoModel(NetworkConfig(network, width=4), scale_probe_to_photons(scan, 1.0))


@pytest.mark.parametrize("photons", [2e3, 2e4, 1e6])
@pytest.mark.parametrize("change", [lambda scan: scan, with_mask], ids=["bare", "masked"])
@pytest.mark.parametrize("network", ["lifted_unet", "stepped_unet", "refined_unet"])
def test_a_network_of_zero_weights_has_collapsed(
    network: str, photons: float, change: Callable[[Scan], Scan], scan_factory: Callable[..., Scan]
) -> None:
    """Also where steps of physics make a picture, for which nothing had to be learned."""
    scan = change(scan_factory(photons=photons))
    found = check_collapse(untrained(scan, network), patterns_of(scan))
    assert found.is_collapsed
    assert found.description().startswith("the picture is flat" if network == "lifted_unet" else "the picture ")
    assert found.r >= found.r_untaught * (1 - 1e-6), "no constant is better than the best"
    assert found.likeness == pytest.approx(1, abs=1e-3) or network == "lifted_unet"


@pytest.mark.parametrize("photons", [2e3, 2e4])
@pytest.mark.parametrize("modes", [1, 2])
def test_the_truth_has_not(photons: float, modes: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(photons=photons, modes=modes)
    model, batch = untrained(scan), make_batch(scan, 1.0)
    truth = extract_patches(torch.from_numpy(scan.truth), batch.corners, 24)
    lit = torch.from_numpy(scan.probe).abs().square().sum(0)
    absorbed = float((truth.abs().square() * lit).sum() / lit.sum() / len(scan))  # the probe has the patterns' power
    model.network = Answers(truth / absorbed**0.5, scan)
    found = check_collapse(model, patterns_of(scan))
    assert not found.is_collapsed
    assert found.explained_share > 0.85
    assert found.r == pytest.approx(found.r_floor, rel=0.1)
    assert "sees the sample" in found.description()


@pytest.mark.parametrize("photons", [500.0, 2e4, 1e6])
@pytest.mark.parametrize("fluctuation", [0.0, 0.3])
@pytest.mark.parametrize("wrong", [False, True], ids=["right probe", "wrong probe"])
def test_a_flat_sample_is_no_collapse(photons: float, fluctuation: float, wrong: bool, scan: Scan) -> None:
    """Whatever the probe in the file: a flat sample gives the same pattern everywhere."""
    flat = flat_scan(scan, photons, fluctuation)
    if wrong:
        flat = replace(flat, probe=np.abs(flat.probe).astype(np.complex64))
    found = check_collapse(untrained(flat), patterns_of(flat))
    assert not found.is_collapsed
    assert found.texture == pytest.approx(1, abs=5 * found.texture_error + 0.01)
    assert found.description().startswith("the sample is flat")


def test_noise_for_a_picture_is_told_apart_from_a_flat_one(scan: Scan) -> None:
    model = untrained(scan)
    noise = torch.randn(36, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    model.network = Answers(1 + 2 * noise, scan)
    found = check_collapse(model, patterns_of(scan))
    assert found.is_collapsed
    assert found.description().startswith("the picture explains the patterns no better")


@pytest.mark.parametrize(
    ("changed", "collapsed"),
    [
        ({}, False),
        ({"spread": 0.1}, True),  # flat at any dose
        ({"likeness": 0.95}, True),  # what an untaught one says
        ({"r": 0.8}, True),  # far worse than an untaught one
        ({"r_floor": 0.1}, True),  # at a dose that tells
        ({"r": 0.35}, False),
    ],
)
def test_few_photons_do_not_tell(changed: dict[str, float], collapsed: bool) -> None:
    """A good picture may explain them worse than steps of physics that draw their noise, as here: NRMSE 0.3."""
    measured = CollapseReport(
        0.5904, 0.582, 0.3248, spread=1.7, lift_spread=1.0, likeness=0.5, texture=2.0, texture_error=0.01
    )
    found = measured._replace(**changed)
    assert found.is_collapsed is collapsed
    assert ("the picture " in found.description()) is collapsed
    assert ("do not tell" in found.description()) is (not changed)


def test_one_pattern_says_nothing(scan: Scan) -> None:
    alone = scan.select(np.array([5]))
    assert not check_collapse(untrained(alone), patterns_of(alone)).is_collapsed


def test_a_training_says_so(tmp_path: Path, scan: Scan, scan_file: Path, run_main: Command) -> None:
    """In one warning, in the printed line and in the bundle; a good one and one on nothing do not warn."""
    save_scan(tmp_path / "flat.npz", flat_scan(scan, 2e4))
    common = ("--width", 8, "--batch_size", 6, "--max_epochs", 12, "--disable_mlflow", "--device", "cpu")
    for name, file, words in (
        ("collapsed", scan_file, ("--learning_rate", "1e-9")),
        ("good", scan_file, ()),
        ("flat", tmp_path / "flat.npz", ()),
    ):
        outcome = run_main("train", "--train_data_file", file, "--output_dir", tmp_path / name, *common, *words)
        assert outcome.code == 0
        (kept,) = load_model(tmp_path / name).provenance["seen"]
        assert kept["collapsed"] is (name == "collapsed")
        assert outcome.err.count("the picture ") == (name == "collapsed")
        assert ("the picture " in outcome.out) is (name == "collapsed")
        assert ("the sample is flat" in outcome.out) is (name == "flat")
    quiet = run_main("train", "--train_data_file", scan_file, "--output_dir", tmp_path / "q", *common, "--quiet")
    assert quiet == (0, "", "")


def test_a_training_that_hardly_began_does_not_warn(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    words = ("--train_data_file", scan_file, "--output_dir", tmp_path / "m", "--width", 4, "--disable_mlflow")
    assert run_main("train", *words, "--max_epochs", 1, "--quiet") == (0, "", "")
    assert load_model(tmp_path / "m").provenance["seen"][0]["told"].startswith("the picture ")
