"""Sixteen patterns are enough to exercise every path of the training: what the smallest fixture is good for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.data.grouping import find_nearest_groups
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan, save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.noise import NOISE_MODELS, make_noise_model, masked_mean
from ptycho_torch.train import train


@pytest.fixture(scope="module")
def sixteen(scan_factory: Callable[..., Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sixteen") / "sixteen.npz"
    save_scan(path, scan_factory(n=16, size=24, seed=5))
    return path


def bundle_of(folder: Path, scan_file: Path, epochs: int) -> PtychoModel:
    train(
        TrainConfig(
            train_data_file=scan_file,
            test_data_file=scan_file,
            output_dir=folder,
            max_epochs=epochs,
            n_images=16,
            batch_size=4,
            width=8,
            update_probe=True,
            device="cpu",
            logger="none",
        )
    )
    return load_model(folder, torch.device("cpu")).model


def test_a_run_of_sixteen_images_changes_the_object_and_the_probe(sixteen: Path, tmp_path: Path) -> None:
    before, after = (bundle_of(tmp_path / str(epochs), sixteen, epochs) for epochs in (0, 2))
    batch = make_batch(load_scan(sixteen), 1.0)
    with torch.no_grad():
        objects = [model.eval().predict(batch) for model in (before, after)]
        probes = [model.probe for model in (before, after)]
    for first, second in (objects, probes):
        changed = (second - first).abs().square().sum().sqrt() / first.abs().square().sum().sqrt()
        assert 1e-3 < changed < 1


@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
def test_gradients_reach_the_object_and_every_probe_mode(sixteen: Path, loss: str) -> None:
    scan = load_scan(sixteen)
    probe = scale_probe_to_photons(scan, 1.0)
    probe = torch.cat([probe, 0.3 * probe.roll(2, -1)])
    model = PtychoModel(NetworkConfig(width=8), probe, update_probe=True)
    batch = make_batch(scan, 1.0)
    fields = model(batch)
    fields.patches.retain_grad()
    masked_mean(make_noise_model(loss).deviance(fields.intensity, batch.counts), batch.mask).backward()
    assert fields.patches.grad is not None
    assert (fields.patches.grad.abs().amax((1, 2)) > 0).all()
    assert model.probe_parameters[0].grad is not None
    assert (model.probe_parameters[0].grad.abs().amax((1, 2, 3)) > 0).all()
    for name, weight in model.network.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


def test_sixteen_images_hold_two_groups_of_four(sixteen: Path) -> None:
    groups = find_nearest_groups(load_scan(sixteen).positions, 2, np.arange(16))
    assert len({frozenset(group) for group in groups.tolist()}) >= 2
