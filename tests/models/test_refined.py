"""Positions, a background and further probe modes that are learned with the network, kept for their scan and used."""

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
from ptycho_torch.io.npz import save_scan
from ptycho_torch.io.reconstruction import load_reconstruction
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


def trained(scan: Scan, light: Scan, tmp_path: Path, epochs: int = 60, **unknown: Any) -> PtychoModel:
    """Nothing but ``unknown`` is learned: the network knows the object, and the probe is that of ``light``."""
    model = PtychoModel(NetworkConfig(width=4), scale_probe_to_truth(light), **unknown)
    model.network = TruePatchNetwork(scan)
    patterns = PatternGroups(make_batch(scan, 1.0), np.arange(len(scan))[:, None], scan.positions)
    trainer = Trainer(model, [patterns], [patterns], TrainerSettings(epochs, 6, 3e-3, warm_up=0, position_bound=2.0))
    assert trainer.run(SilentObserver(), make_tracker("none", tmp_path), tmp_path / "state")
    with trainer.use_averaged_weights():
        return model


def test_a_learned_shift_is_a_moved_position(scan: Scan) -> None:
    """Of any length: the patch stays where it is, and the probe moves on it."""
    model = PtychoModel(NetworkConfig(width=4), torch.from_numpy(scan.probe), positions=[36])
    model.network = TruePatchNetwork(scan)
    batch = make_batch(scan, 1.0)
    shifts = torch.from_numpy(np.random.default_rng(0).uniform(-1.5, 1.5, (36, 2))).float()
    expected = model(batch._replace(fractions=batch.fractions + shifts)).intensity
    with torch.no_grad():
        model.get_position_offsets(0).copy_(shifts)
    some = torch.tensor([30, 2, 17])
    torch.testing.assert_close(model(batch).intensity, expected)
    torch.testing.assert_close(
        model.forward_details(batch.take(some)).probes, model.forward_details(batch).probes[some]
    )
    (gradient,) = torch.autograd.grad(model(batch).intensity.square().sum(), [model.get_position_offsets(0)])
    assert (gradient.abs().amax(1) > 0).all()


def test_positions_are_found_where_the_object_is_known(scan: Scan, tmp_path: Path) -> None:
    errors = np.random.default_rng(2).normal(0, 0.4, scan.positions.shape)
    errors -= errors.mean(0)
    jittered = replace(scan, positions=scan.positions + errors)
    model = trained(jittered, scan, tmp_path, positions=[len(scan)])
    left = errors + model.get_position_offsets(0).detach().numpy()
    assert np.sqrt(np.square(left).mean()) < 0.5 * np.sqrt(np.square(errors).mean())


def test_a_background_is_found_where_the_object_is_known(scan: Scan, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    background = np.zeros((24, 24))
    background[:8] = 3.0  # corner origin
    counts = np.square(scan.amplitudes.astype(np.float64)) + np.fft.fftshift(
        rng.poisson(background, (36, 24, 24)), (1, 2)
    )
    model = trained(replace(scan, amplitudes=np.sqrt(counts).astype(np.float32)), scan, tmp_path, backgrounds=[True])
    found = model.get_background(0).detach().numpy()
    assert (found >= 0).all()
    assert found[:8].mean() == pytest.approx(3, rel=0.2)
    assert found[8:].mean() < 0.3


def test_positions_keep_their_mean_and_their_bound_and_start_late(tmp_path: Path, train_model: Train) -> None:
    settings = {"update_positions": True, "position_bound": 0.02, "batch_size": 2, "learning_rate": 1e-2}
    epochs = POSITION_DELAY_STEPS // 17
    early, late = (
        load_model(train_model(tmp_path / str(count), max_epochs=count, **settings)) for count in (epochs, epochs + 3)
    )
    assert not early.model.get_position_offsets(0).any()
    shifts = late.model.get_position_offsets(0).detach()
    assert 0 < shifts.abs().max() <= 0.02 + 1e-6
    assert shifts.mean(0).abs().max() < 0.01
    assert not shifts[list(late.scans[0].held_out)].any(), "of these the training knows nothing"


def test_going_on_exactly_on_two_scans(
    tmp_path: Path, train_model: Train, scan_file: Path, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "other.npz", scan_factory(25, seed=3))
    settings = {**ALL, "train_data_file": (scan_file, tmp_path / "other.npz"), "batch_size": 1}
    straight = train_model(tmp_path / "straight", max_epochs=3, **settings)
    train_model(tmp_path / "resumed", max_epochs=2, **settings)
    resumed = train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    for name in ("model.safetensors", "history.csv"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    model = load_model(straight).model
    for source, count in ((0, 36), (1, 25)):
        assert model.get_position_offsets(source).shape == (count, 2)
        assert model.get_position_offsets(source).any()
        assert model.get_background(source).any()
        assert len(model.probes[source]) == 2
    for changed in ({"update_positions": False}, {"update_background": False}, {"probe_modes": 3}):
        with pytest.raises(ConfigError, match=r"cannot resume with a different"):
            train_model(tmp_path / "resumed", max_epochs=4, resume=True, **settings | changed)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_inference_uses_what_was_learned_on_this_scan(
    gridsize: int, tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    folder = train_model(tmp_path / "model", max_epochs=4, batch_size=1, gridsize=gridsize, **ALL)
    words = ("--model_path", folder, "--test_data", scan_file, "--output_dir", tmp_path / "r", "--no_report")
    assert run_main("inference", *words).code == 0
    found, model = load_reconstruction(tmp_path / "r" / "reconstruction.npz"), load_model(folder).model
    np.testing.assert_allclose(
        found.positions, scan.positions + model.get_position_offsets(0).detach().numpy(), atol=1e-6
    )
    np.testing.assert_array_equal(found.background, model.get_background(0).detach().numpy())
    assert found.metadata["positions"] == "refined"
    other = select_calibration(load_model(folder), replace(scan, amplitudes=scan.amplitudes[::-1]))
    assert (other.position_offsets, other.background) == (None, None)


@pytest.mark.parametrize("photons", [1.0, 4.0])
def test_a_chain_uses_what_was_learned_on_this_scan(
    photons: float, tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    """As inference does, whatever the unit of the chain; and goes on from there, with every window on the canvas."""
    folder = train_model(tmp_path / "model", max_epochs=0, **ALL)
    bundle = load_model(folder)
    with torch.no_grad():
        bundle.model.get_position_offsets(0).copy_(torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (36, 2))))
        bundle.model.get_background(0).fill_(0.5)
    save_model(folder, bundle)
    words = ("--model_path", folder, "--no_report", "--device", "cpu", "--output_dir")
    assert run_main("inference", "--test_data", scan_file, "--precision", "fp32", *words, tmp_path / "pass").code == 0
    chain = (scan_file, "--engine", "neural", "--photons_per_unit", photons, "--then", "pie:epochs=1")
    assert run_main("reconstruct", *chain, *words, tmp_path / "chain").code == 0
    alone = load_reconstruction(tmp_path / "pass" / "reconstruction.npz")
    first = load_reconstruction(tmp_path / "chain" / "stages" / "1-neural.npz")
    last = load_reconstruction(tmp_path / "chain" / "reconstruction.npz")
    np.testing.assert_array_equal(first.positions, alone.positions)
    np.testing.assert_allclose(first.probe, photons**0.5 * alone.probe, rtol=1e-6)
    np.testing.assert_allclose(first.background, photons * alone.background, rtol=1e-6)
    assert last.metadata["positions"] == "refined"
    top, left = alone.origin_yx - first.origin_yx
    rows, columns = alone.object.shape
    np.testing.assert_array_equal(first.object[top : top + rows, left : left + columns], alone.object)


def test_a_network_without_a_probe_sees_by_that_of_the_chain(
    tmp_path: Path, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    """That of the start, or of an earlier engine; and by the positions that one found."""
    (tmp_path / "bare").mkdir()
    save_model(tmp_path / "bare", Model(PtychoModel(NetworkConfig(width=4), [], size=24), (), 1))
    np.savez(tmp_path / "probe.npz", probeGuess=scan.probe[0, ::-1])
    np.savez(tmp_path / "positions.npz", positions=scan.positions + np.array([0.0, 1.5]))
    words = ("--engine", "neural", "--model_path", tmp_path / "bare", "--no_report", "--output_dir", tmp_path / "r")
    starts = ("--init_probe", tmp_path / "probe.npz", "--init_positions", tmp_path / "positions.npz")
    assert run_main("reconstruct", scan_file, *words, *starts, "--photons_per_unit", 4).code == 0
    found = load_reconstruction(tmp_path / "r" / "reconstruction.npz")
    expected = scale_probe_to_photons(replace(scan, probe=scan.probe[:, ::-1].copy()), 4.0)
    np.testing.assert_allclose(found.probe, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.positions, scan.positions + np.array([0.0, 1.5]))


@pytest.mark.parametrize("modes", [1, 3])
def test_probe_modes_share_the_power(modes: int, tmp_path: Path, train_model: Train) -> None:
    one, several = (
        load_model(train_model(tmp_path / str(count), max_epochs=0, probe_modes=count)).model.probe
        for count in (None, modes)
    )
    assert several.shape == (modes, 24, 24)
    assert float(several.abs().square().sum()) == pytest.approx(float(one.abs().square().sum()), rel=1e-5)
