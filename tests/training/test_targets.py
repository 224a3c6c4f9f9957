"""An engine's object as a target of the network: distance, phase, what it costs, and who may see what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.train import train
from ptycho_torch.training.targets import ObjectTarget, make_object_target

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def teacher(scan: Scan) -> ObjectTarget:
    assert scan.truth is not None
    return ObjectTarget(torch.from_numpy(scan.truth), torch.zeros(2, dtype=torch.int64))


def test_the_distance_is_that_of_a_slow_sum_in_numpy(scan: Scan, teacher: ObjectTarget) -> None:
    batch = make_batch(scan, 1.0).take(torch.arange(5))
    probes = shift_probe(torch.from_numpy(scan.probe), batch.fractions)
    patches = torch.randn(5, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    expected = []
    for patch, probe, (row, column) in zip(patches.numpy(), probes.numpy(), batch.corners.tolist(), strict=True):
        weight = np.square(np.abs(probe), dtype=np.float64).sum(0)
        target = teacher.object.numpy()[row : row + 24, column : column + 24]
        expected.append((weight * np.abs(patch - target) ** 2).sum() / weight.sum())
    assert teacher.compute_distance(patches, probes, batch.corners).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_teachers_own_patches_are_at_no_distance(scan: Scan, teacher: ObjectTarget) -> None:
    batch = make_batch(scan, 1.0)
    patches = extract_patches(teacher.object, batch.corners, 24)
    probes = shift_probe(torch.from_numpy(scan.probe), batch.fractions)
    assert not teacher.compute_distance(patches, probes, batch.corners).any()
    shifted = batch.corners + torch.tensor([1, 0])
    assert float(teacher.compute_distance(patches, probes, shifted).mean()) > 1e-3


def test_a_teacher_is_turned_to_where_a_network_starts() -> None:
    generator = torch.Generator().manual_seed(0)
    obj = torch.polar(torch.ones(9, 11), torch.rand(9, 11, generator=generator) + 2.5)
    turned = make_object_target(obj, torch.ones(9, 11), (3, 4)).object.mean()
    assert float(turned.imag) == pytest.approx(0, abs=1e-6)
    assert float(turned.real) > 0.9


def test_a_taught_network_is_nearer_to_the_truth(train_model: Train, scan: Scan, tmp_path: Path) -> None:
    from ptycho_torch.evaluation.metrics import compare_with_truth
    from ptycho_torch.prediction.predict import predict_scan

    errors = []
    for name, teacher in (("alone", None), ("taught", "pie:epochs=30,batch_size=8")):
        bundle = load_model(train_model(tmp_path / name, teacher=teacher, max_epochs=40, width=8), torch.device("cpu"))
        result = predict_scan(bundle.model, scan, bundle.photons_per_unit)
        assert scan.truth is not None
        errors.append(compare_with_truth(result, scan.truth).to_metrics()["nrmse"])
    assert errors[1] < 0.8 * errors[0]


def test_teaching_repeats_to_the_byte_and_goes_on_exactly(train_model: Train, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"teacher": "pie:epochs=2", "update_probe": True}
    whole, again = (train_model(tmp_path / name, max_epochs=3, **settings) for name in ("whole", "again"))
    train_model(tmp_path / "parts", max_epochs=1, **settings)
    parts = train_model(tmp_path / "parts", max_epochs=3, resume=True, **settings)
    contents = [(folder / "model.safetensors").read_bytes() for folder in (whole, again, parts)]
    assert contents[0] == contents[1] == contents[2]
    assert "teach" in json.loads((whole / "timing.json").read_text())
    with pytest.raises(ConfigError, match="teacher"):
        train_model(tmp_path / "parts", max_epochs=4, resume=True, teacher="pie:epochs=3", update_probe=True)
    train_model(tmp_path / "alone", max_epochs=1)
    with pytest.raises(ConfigError, match="teacher"):
        train_model(tmp_path / "alone", max_epochs=2, resume=True, teacher="pie:epochs=1")


@pytest.mark.parametrize("teacher", ["pye", "pie:epochs", "pie:colour=1", "neural"])
def test_a_teacher_that_is_none_is_refused(scan_file: Path, tmp_path: Path, teacher: str) -> None:
    with pytest.raises(ConfigError, match=r"pie|epochs|colour|model_path"):
        train(TrainConfig(train_data_file=scan_file, output_dir=tmp_path / "out", teacher=teacher, logger="none"))
    assert not (tmp_path / "out").exists()
