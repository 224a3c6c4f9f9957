"""Positions, background and probe modes that are learned with a network, stored for their scan, and used for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TruePatchNetwork, scale_probe_to_truth

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import save_scan
from ptycho_torch.models.calibration import select_calibration
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, load_model, save_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.optimizer import POSITION_DELAY_STEPS
from ptycho_torch.training.tracking import make_tracker
from ptycho_torch.training.trainer import Trainer, TrainerSettings

Command = Callable[..., Any]
Train = Callable[..., Path]
ALL: dict[str, Any] = {"update_positions": True, "update_background": True, "update_probe": True, "probe_modes": 2}


def fit_quantities(scan: Scan, true_scan: Scan, tmp_path: Path, epochs: int = 60, **learned: Any) -> PtychoModel:
    """Train only the quantities ``learned``: the network returns the true object, with the probe of ``true_scan``."""
    model = PtychoModel(NetworkConfig(width=4), scale_probe_to_truth(true_scan), **learned)
    model.network = TruePatchNetwork(scan)
    patterns = PatternGroups(make_batch(scan, 1.0), np.arange(len(scan))[:, None], scan.positions)
    trainer = Trainer(model, [patterns], [patterns], TrainerSettings(epochs, 6, 3e-3, warm_up=0, position_bound=2.0))
    assert trainer.run(SilentObserver(), make_tracker("none", tmp_path), tmp_path / "state")
    with trainer.use_averaged_weights():
        return model


def test_position_offset_equals_a_shift_of_the_probe(scan: Scan) -> None:
    """Of any length: the patch keeps its corner, and the probe moves inside it."""
    model = PtychoModel(NetworkConfig(width=4), torch.from_numpy(scan.probe), positions=[36])
    model.network = TruePatchNetwork(scan)
    batch = make_batch(scan, 1.0)
    offsets = torch.from_numpy(np.random.default_rng(0).uniform(-1.5, 1.5, (36, 2))).float()
    expected = model(batch._replace(fractions=batch.fractions + offsets)).intensity
    with torch.no_grad():
        model.get_position_offsets(0).copy_(offsets)
    indices = torch.tensor([30, 2, 17])
    torch.testing.assert_close(model(batch).intensity, expected)
    torch.testing.assert_close(
        model.forward_details(batch.take(indices)).probes, model.forward_details(batch).probes[indices]
    )
    (gradient,) = torch.autograd.grad(model(batch).intensity.square().sum(), [model.get_position_offsets(0)])
    assert (gradient.abs().amax(1) > 0).all()


def test_positions_are_recovered_for_a_known_object(scan: Scan, tmp_path: Path) -> None:
    errors = np.random.default_rng(2).normal(0, 0.4, scan.positions.shape)
    errors -= errors.mean(0)
    jittered = replace(scan, positions=scan.positions + errors)
    model = fit_quantities(jittered, scan, tmp_path, positions=[len(scan)])
    remaining = errors + model.get_position_offsets(0).detach().numpy()
    assert np.sqrt(np.square(remaining).mean()) < 0.5 * np.sqrt(np.square(errors).mean())


def test_background_is_recovered_for_a_known_object(scan: Scan, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    background = np.zeros((24, 24))
    background[:8] = 3.0  # corner origin
    counts = np.square(scan.amplitudes.astype(np.float64)) + np.fft.fftshift(
        rng.poisson(background, (36, 24, 24)), (1, 2)
    )
    model = fit_quantities(
        replace(scan, amplitudes=np.sqrt(counts).astype(np.float32)), scan, tmp_path, backgrounds=[True]
    )
    estimate = model.get_background(0).detach().numpy()
    assert (estimate >= 0).all()
    assert estimate[:8].mean() == pytest.approx(3, rel=0.2)
    assert estimate[8:].mean() < 0.3


def test_position_offsets_have_zero_mean_a_bound_and_a_delay(tmp_path: Path, train_model: Train) -> None:
    settings = {"update_positions": True, "position_bound": 0.02, "batch_size": 2, "learning_rate": 1e-2}
    epochs = POSITION_DELAY_STEPS // 17
    early, late = (
        load_model(train_model(tmp_path / str(count), max_epochs=count, **settings)) for count in (epochs, epochs + 3)
    )
    assert not early.model.get_position_offsets(0).any()
    offsets = late.model.get_position_offsets(0).detach()
    assert 0 < offsets.abs().max() <= 0.02 + 1e-6
    assert offsets.mean(0).abs().max() < 0.01
    assert not offsets[list(late.scans[0].held_out)].any(), "training does not use the held-out patterns"


def test_resumed_training_on_two_scans_equals_an_uninterrupted_one(
    tmp_path: Path, train_model: Train, scan_file: Path, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "other.npz", scan_factory(25, seed=3))
    settings = {**ALL, "train_data_file": (scan_file, tmp_path / "other.npz"), "batch_size": 1}
    uninterrupted = train_model(tmp_path / "uninterrupted", max_epochs=3, **settings)
    train_model(tmp_path / "resumed", max_epochs=2, **settings)
    resumed = train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    for name in ("model.safetensors", "history.csv"):
        assert (resumed / name).read_bytes() == (uninterrupted / name).read_bytes()
    model = load_model(uninterrupted).model
    for source, count in ((0, 36), (1, 25)):
        assert model.get_position_offsets(source).shape == (count, 2)
        assert model.get_position_offsets(source).any()
        assert model.get_background(source).any()
        assert len(model.probes[source]) == 2
    for change in ({"update_positions": False}, {"update_background": False}, {"probe_modes": 3}):
        with pytest.raises(ConfigError, match=r"cannot resume with a different"):
            train_model(tmp_path / "resumed", max_epochs=4, resume=True, **settings | change)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_inference_uses_positions_and_background_learned_on_this_scan(
    gridsize: int, tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    folder = train_model(tmp_path / "model", max_epochs=4, batch_size=1, gridsize=gridsize, **ALL)
    arguments = ("--model_path", folder, "--test_data", scan_file, "--output_dir", tmp_path / "r", "--no_report")
    assert run_main("inference", *arguments).code == 0
    result, model = load_reconstruction(tmp_path / "r" / "reconstruction.npz"), load_model(folder).model
    np.testing.assert_allclose(
        result.positions, scan.positions + model.get_position_offsets(0).detach().numpy(), atol=1e-6
    )
    np.testing.assert_array_equal(result.background, model.get_background(0).detach().numpy())
    assert result.metadata["positions"] == "refined"
    other = select_calibration(load_model(folder), replace(scan, amplitudes=scan.amplitudes[::-1]))
    assert (other.position_offsets, other.background) == (None, None)


@pytest.mark.parametrize("photons", [1.0, 4.0])
def test_pipeline_uses_positions_and_background_learned_on_this_scan(
    photons: float, tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    """As inference does, for any photon scale; the next stage starts from them, with all patches on the canvas."""
    folder = train_model(tmp_path / "model", max_epochs=0, **ALL)
    bundle = load_model(folder)
    with torch.no_grad():
        bundle.model.get_position_offsets(0).copy_(torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (36, 2))))
        bundle.model.get_background(0).fill_(0.5)
    save_model(folder, bundle)
    arguments = ("--model_path", folder, "--no_report", "--device", "cpu", "--output_dir")
    assert (
        run_main("inference", "--test_data", scan_file, "--precision", "fp32", *arguments, tmp_path / "inference").code
        == 0
    )
    stages = (scan_file, "--engine", "neural", "--photons_per_unit", photons, "--then", "pie:epochs=1")
    assert run_main("reconstruct", *stages, *arguments, tmp_path / "pipeline").code == 0
    single = load_reconstruction(tmp_path / "inference" / "reconstruction.npz")
    first = load_reconstruction(tmp_path / "pipeline" / "stages" / "1-neural.npz")
    last = load_reconstruction(tmp_path / "pipeline" / "reconstruction.npz")
    np.testing.assert_array_equal(first.positions, single.positions)
    np.testing.assert_allclose(first.probe, photons**0.5 * single.probe, rtol=1e-6)
    np.testing.assert_allclose(first.background, photons * single.background, rtol=1e-6)
    assert last.metadata["positions"] == "refined"
    top, left = single.origin_yx - first.origin_yx
    rows, columns = single.object.shape
    np.testing.assert_array_equal(first.object[top : top + rows, left : left + columns], single.object)


def test_network_without_a_probe_uses_the_probe_of_the_pipeline(
    tmp_path: Path, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    """With the probe and the positions of the initial estimate."""
    (tmp_path / "bare").mkdir()
    save_model(tmp_path / "bare", Model(PtychoModel(NetworkConfig(width=4), [], size=24), (), 1))
    np.savez(tmp_path / "probe.npz", probeGuess=scan.probe[0, ::-1])
    np.savez(tmp_path / "positions.npz", positions=scan.positions + np.array([0.0, 1.5]))
    arguments = ("--engine", "neural", "--model_path", tmp_path / "bare", "--no_report", "--output_dir", tmp_path / "r")
    starts = ("--init_probe", tmp_path / "probe.npz", "--init_positions", tmp_path / "positions.npz")
    assert run_main("reconstruct", scan_file, *arguments, *starts, "--photons_per_unit", 4).code == 0
    result = load_reconstruction(tmp_path / "r" / "reconstruction.npz")
    expected = scale_probe_to_photons(replace(scan, probe=scan.probe[:, ::-1].copy()), 4.0)
    np.testing.assert_allclose(result.probe, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.positions, scan.positions + np.array([0.0, 1.5]))


@pytest.mark.parametrize("modes", [1, 3])
def test_probe_modes_have_the_total_power_of_one_mode(modes: int, tmp_path: Path, train_model: Train) -> None:
    single, several = (
        load_model(train_model(tmp_path / str(count), max_epochs=0, probe_modes=count)).model.probe
        for count in (None, modes)
    )
    assert several.shape == (modes, 24, 24)
    assert float(several.abs().square().sum()) == pytest.approx(float(single.abs().square().sum()), rel=1e-5)
