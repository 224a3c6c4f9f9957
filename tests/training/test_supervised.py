"""``train --supervised``: labels are the object and not the illuminated object, and their phases are free."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.io.npz import save_scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.training.targets import align_phases, prepare_labels

Train = Callable[..., Path]


def true_patches(scan: Scan) -> NDArray[np.complex64]:
    return extract_patches(torch.from_numpy(scan.truth), make_batch(scan, 1.0).corners, scan.size).numpy()


def illuminated(scan: Scan) -> NDArray[np.complex64]:
    fractions = make_batch(scan, 1.0).fractions
    return true_patches(scan) * shift_probe(torch.from_numpy(scan.probe), fractions)[:, 0].numpy()


def labelled(scan: Scan, labels: NDArray[np.complex64]) -> Scan:
    return replace(scan, labels=labels.astype(np.complex64))


def check(scan: Scan) -> torch.Tensor:
    return prepare_labels(scan, make_batch(scan, 1.0), scale_probe_to_photons(scan, 1.0))


def save(tmp_path: Path, scan: Scan) -> Path:
    save_scan(tmp_path / "labelled.npz", scan)
    return tmp_path / "labelled.npz"


def losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("photons", [2e3, 2e4, 1e6])
def test_the_object_passes_and_the_illuminated_object_does_not(
    modes: int, photons: float, scan_factory: Callable[..., Scan]
) -> None:
    scan = scan_factory(modes=modes, photons=photons)
    found = check(labelled(scan, true_patches(scan)))
    ratio = found.numpy() / true_patches(scan)
    assert np.ptp(ratio.real) < 1e-5
    assert 1 < ratio.real.mean() < 1.5, "the probe has the power of the patterns, so that the object absorbs less"
    if modes == 1:
        with pytest.raises(DataError, match="Y are exit waves, probe times object"):
            check(labelled(scan, illuminated(scan)))


@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_the_unit_of_the_labels_does_not_matter(factor: float, scan: Scan) -> None:
    truth = true_patches(scan)
    torch.testing.assert_close(check(labelled(scan, factor * truth)), check(labelled(scan, truth)))
    with pytest.raises(DataError, match="Y are exit waves, probe times object"):
        check(labelled(scan, factor * illuminated(scan)))


@pytest.mark.parametrize("change", [lambda y: y[::-1], lambda y: y[:, ::-1], lambda y: y.conj()])
def test_labels_of_other_patterns_are_refused(change: Callable[..., NDArray[np.complex64]], scan: Scan) -> None:
    with pytest.raises(DataError, match="Y match the patterns neither as object nor as exit wave"):
        check(labelled(scan, change(true_patches(scan))))


def test_masked_pixels_say_nothing_about_labels(scan: Scan) -> None:
    mask = np.random.default_rng(0).random((24, 24)) > 0.1
    spoilt = replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(77)))
    check(labelled(spoilt, true_patches(scan)))


def test_a_label_is_turned_to_its_patch() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 8, 8, dtype=torch.complex64, generator=generator)
    phases = torch.polar(torch.ones(3), torch.tensor([0.5, 3.0, -2.0]))[:, None, None]
    torch.testing.assert_close(
        align_phases(patches * phases, patches, torch.rand(3, 8, 8, generator=generator)), patches
    )


def test_labels_bring_the_network_nearer_to_the_truth(train_model: Train, scan: Scan, tmp_path: Path) -> None:
    file, errors = save(tmp_path, labelled(scan, true_patches(scan))), []
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
def test_the_phases_of_the_labels_are_free(gridsize: int, train_model: Train, scan: Scan, tmp_path: Path) -> None:
    truth = true_patches(scan)
    phases = np.exp(1j * np.random.default_rng(0).uniform(-np.pi, np.pi, (36, 1, 1)))
    found = []
    for name, labels in (("as they are", truth), ("turned", truth * phases)):
        (tmp_path / name).mkdir()
        file = save(tmp_path / name, labelled(scan, labels))
        folder = train_model(tmp_path / name / "model", train_data_file=file, supervised=True, gridsize=gridsize)
        found.append(losses(folder))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_going_on_exactly_and_only_with_the_same_labels(train_model: Train, scan: Scan, tmp_path: Path) -> None:
    truth = true_patches(scan)
    settings: dict[str, Any] = {"train_data_file": save(tmp_path, labelled(scan, truth)), "supervised": True}
    straight = train_model(tmp_path / "straight", max_epochs=3, **settings)
    train_model(tmp_path / "resumed", max_epochs=1, **settings)
    resumed = train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    for name in ("model.safetensors", "history.csv"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    save(tmp_path, labelled(scan, 2 * truth))
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*labels"):
        train_model(tmp_path / "resumed", max_epochs=4, resume=True, **settings)


def test_what_cannot_be_is_refused(train_model: Train, scan: Scan, scan_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scan\.npz: there are no labels Y"):
        train_model(tmp_path / "model", supervised=True)
    with pytest.raises(DataError, match=r"labelled\.npz: the labels Y are exit waves"):
        train_model(
            tmp_path / "model", train_data_file=save(tmp_path, labelled(scan, illuminated(scan))), supervised=True
        )
    with pytest.raises(ConfigError, match="--supervised and --teacher"):
        train_model(tmp_path / "model", supervised=True, teacher="pie")
    assert not (tmp_path / "model").exists()
