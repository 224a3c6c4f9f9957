"""Targets of a training: the object of an engine, and the labels of a scan file."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.io.scan import save_scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.train import train
from ptycho_torch.training.targets import ObjectTarget, align_phases, make_object_target, prepare_labels

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def teacher(scan: Scan) -> ObjectTarget:
    assert scan.truth is not None
    return ObjectTarget(torch.from_numpy(scan.truth), torch.zeros(2, dtype=torch.int64))


def test_distance_equals_a_sum_in_numpy(scan: Scan, teacher: ObjectTarget) -> None:
    batch = make_batch(scan, 1.0).take(torch.arange(5))
    probes = shift_probe(torch.from_numpy(scan.probe), batch.fractions)
    patches = torch.randn(5, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    expected = []
    for patch, probe, (row, column) in zip(patches.numpy(), probes.numpy(), batch.corners.tolist(), strict=True):
        weight = np.square(np.abs(probe), dtype=np.float64).sum(0)
        target = teacher.object.numpy()[row : row + 24, column : column + 24]
        expected.append((weight * np.abs(patch - target) ** 2).sum() / weight.sum())
    assert teacher.compute_distance(patches, probes, batch.corners).tolist() == pytest.approx(expected, rel=1e-5)


def test_distance_of_the_target_patches_is_zero(scan: Scan, teacher: ObjectTarget) -> None:
    batch = make_batch(scan, 1.0)
    patches = extract_patches(teacher.object, batch.corners, 24)
    probes = shift_probe(torch.from_numpy(scan.probe), batch.fractions)
    assert not teacher.compute_distance(patches, probes, batch.corners).any()
    shifted = batch.corners + torch.tensor([1, 0])
    assert float(teacher.compute_distance(patches, probes, shifted).mean()) > 1e-3


def test_mean_of_the_target_is_real() -> None:
    generator = torch.Generator().manual_seed(0)
    obj = torch.polar(torch.ones(9, 11), torch.rand(9, 11, generator=generator) + 2.5)
    mean = make_object_target(obj, torch.ones(9, 11), (3, 4)).object.mean()
    assert float(mean.imag) == pytest.approx(0, abs=1e-6)
    assert float(mean.real) > 0.9


def test_target_object_reduces_the_error(train_model: Train, scan: Scan, tmp_path: Path) -> None:
    errors = []
    for name, teacher in (("alone", None), ("with target", "pie:epochs=30,batch_size=8")):
        bundle = load_model(train_model(tmp_path / name, teacher=teacher, max_epochs=40, width=8), torch.device("cpu"))
        result = predict_scan(bundle.model, scan, bundle.photons_per_unit)
        assert scan.truth is not None
        errors.append(compare_with_truth(result, scan.truth).to_metrics()["nrmse"])
    assert errors[1] < 0.8 * errors[0]


def test_training_with_a_teacher_is_reproducible_and_resumes_exactly(train_model: Train, tmp_path: Path) -> None:
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


def test_teacher_can_be_a_network(train_model: Train, model_folder: Path, tmp_path: Path) -> None:
    folder = train_model(tmp_path / "model", teacher=f"neural:model_path={model_folder}")
    assert load_model(folder).provenance["epochs"] == 1


@pytest.mark.parametrize("teacher", ["pye", "pie:epochs", "pie:colour=1", "neural"])
def test_invalid_teacher_is_refused(scan_file: Path, tmp_path: Path, teacher: str) -> None:
    with pytest.raises(ConfigError, match=r"pie|epochs|colour|model_path"):
        train(TrainConfig(train_data_file=scan_file, output_dir=tmp_path / "out", teacher=teacher, logger="none"))
    assert not (tmp_path / "out").exists()


def extract_true_patches(scan: Scan) -> NDArray[np.complex64]:
    return extract_patches(torch.from_numpy(scan.truth), make_batch(scan, 1.0).corners, scan.size).numpy()


def make_exit_waves(scan: Scan) -> NDArray[np.complex64]:
    fractions = make_batch(scan, 1.0).fractions
    return extract_true_patches(scan) * shift_probe(torch.from_numpy(scan.probe), fractions)[:, 0].numpy()


def add_labels(scan: Scan, labels: NDArray[np.complex64]) -> Scan:
    return replace(scan, labels=labels.astype(np.complex64))


def check_labels(scan: Scan) -> torch.Tensor:
    return prepare_labels(scan, make_batch(scan, 1.0), scale_probe_to_photons(scan, 1.0))


def save_labeled(tmp_path: Path, scan: Scan) -> Path:
    save_scan(tmp_path / "labeled.npz", scan)
    return tmp_path / "labeled.npz"


def read_losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("photons", [2e3, 2e4, 1e6])
def test_object_labels_pass_and_exit_waves_are_refused(
    modes: int, photons: float, scan_factory: Callable[..., Scan]
) -> None:
    scan = scan_factory(modes=modes, photons=photons)
    labels = check_labels(add_labels(scan, extract_true_patches(scan)))
    ratio = labels.numpy() / extract_true_patches(scan)
    assert np.ptp(ratio.real) < 1e-5
    assert 1 < ratio.real.mean() < 1.5, "the probe has the power of the patterns, and the scaled object absorbs less"
    if modes == 1:
        with pytest.raises(DataError, match="Y are exit waves, probe times object"):
            check_labels(add_labels(scan, make_exit_waves(scan)))


@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_scale_of_the_labels_is_free(factor: float, scan: Scan) -> None:
    truth = extract_true_patches(scan)
    torch.testing.assert_close(check_labels(add_labels(scan, factor * truth)), check_labels(add_labels(scan, truth)))
    with pytest.raises(DataError, match="Y are exit waves, probe times object"):
        check_labels(add_labels(scan, factor * make_exit_waves(scan)))


@pytest.mark.parametrize("change", [lambda y: y[::-1], lambda y: y[:, ::-1], lambda y: y.conj()])
def test_labels_of_other_patterns_are_refused(change: Callable[..., NDArray[np.complex64]], scan: Scan) -> None:
    with pytest.raises(DataError, match="Y match the patterns neither as object nor as exit wave"):
        check_labels(add_labels(scan, change(extract_true_patches(scan))))


def test_masked_pixels_are_ignored_in_the_label_check(scan: Scan) -> None:
    mask = np.random.default_rng(0).random((24, 24)) > 0.1
    corrupted = replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(77)))
    check_labels(add_labels(corrupted, extract_true_patches(scan)))


def test_label_takes_the_phase_of_its_patch() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 8, 8, dtype=torch.complex64, generator=generator)
    phases = torch.polar(torch.ones(3), torch.tensor([0.5, 3.0, -2.0]))[:, None, None]
    torch.testing.assert_close(
        align_phases(patches * phases, patches, torch.rand(3, 8, 8, generator=generator)), patches
    )


def test_labels_reduce_the_error(train_model: Train, scan: Scan, tmp_path: Path) -> None:
    file, errors = save_labeled(tmp_path, add_labels(scan, extract_true_patches(scan))), []
    for supervised in (False, True):
        folder = train_model(
            tmp_path / str(supervised), train_data_file=file, supervised=supervised, max_epochs=20, width=8
        )
        bundle = load_model(folder)
        result = predict_scan(bundle.model, scan, bundle.photons_per_unit)
        assert scan.truth is not None
        errors.append(compare_with_truth(result, scan.truth).to_metrics()["nrmse"])
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_phases_of_the_labels_are_free(gridsize: int, train_model: Train, scan: Scan, tmp_path: Path) -> None:
    truth = extract_true_patches(scan)
    phases = np.exp(1j * np.random.default_rng(0).uniform(-np.pi, np.pi, (36, 1, 1)))
    losses = []
    for name, labels in (("unchanged", truth), ("rotated", truth * phases)):
        (tmp_path / name).mkdir()
        file = save_labeled(tmp_path / name, add_labels(scan, labels))
        folder = train_model(tmp_path / name / "model", train_data_file=file, supervised=True, gridsize=gridsize)
        losses.append(read_losses(folder))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_training_resumes_exactly_and_only_with_equal_labels(train_model: Train, scan: Scan, tmp_path: Path) -> None:
    truth = extract_true_patches(scan)
    settings: dict[str, Any] = {"train_data_file": save_labeled(tmp_path, add_labels(scan, truth)), "supervised": True}
    uninterrupted = train_model(tmp_path / "uninterrupted", max_epochs=3, **settings)
    train_model(tmp_path / "resumed", max_epochs=1, **settings)
    resumed = train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    for name in ("model.safetensors", "history.csv"):
        assert (resumed / name).read_bytes() == (uninterrupted / name).read_bytes()
    save_labeled(tmp_path, add_labels(scan, 2 * truth))
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*labels"):
        train_model(tmp_path / "resumed", max_epochs=4, resume=True, **settings)


def test_invalid_labels_are_refused(train_model: Train, scan: Scan, scan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scan\.npz: there are no labels Y"):
        train_model(tmp_path / "model", supervised=True)
    with pytest.raises(DataError, match=r"labeled\.npz: the labels Y are exit waves"):
        train_model(
            tmp_path / "model",
            train_data_file=save_labeled(tmp_path, add_labels(scan, make_exit_waves(scan))),
            supervised=True,
        )
    with pytest.raises(ConfigError, match="`supervised` and `teacher`"):
        train_model(tmp_path / "model", supervised=True, teacher="pie")
    assert not (tmp_path / "model").exists()
