"""The command train with ``--init_model`` and ``--probe``: fine-tuning, and the initial probe."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, load_model, save_model
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.training.trainer import FINE_TUNE, FROM_SCRATCH

Train = Callable[..., Path]
REPEATED = ("model.safetensors", "history.csv")


@pytest.fixture(scope="module")
def initial_folder(
    tmp_path_factory: pytest.TempPathFactory, train_model: Train, scan_factory: Callable[..., Scan]
) -> Path:
    """Train a network with settings other than the defaults on another scan with another photon scale."""
    folder = tmp_path_factory.mktemp("initial")
    other = scan_factory(36, seed=5)
    save_scan(
        folder / "other.npz",
        replace(other, probe=2 * other.probe, amplitudes=other.amplitudes / 3, photons_per_unit=9.0),
    )
    return train_model(folder / "model", train_data_file=folder / "other.npz", max_epochs=10, width=8, head="residual")


def fine_tune(train_model: Train, folder: Path, **settings: Any) -> Path:
    return train_model(folder, **({"width": None} | settings))


def test_fine_tuning_starts_from_the_network_and_the_probe_of_the_scan(
    tmp_path: Path, train_model: Train, initial_folder: Path, scan: Scan
) -> None:
    tuned, initial = (
        load_model(fine_tune(train_model, tmp_path, init_model=initial_folder, max_epochs=0)),
        load_model(initial_folder),
    )
    assert tuned.model.config == initial.model.config == NetworkConfig("stepped_unet", "residual", 8)
    for name, weight in initial.model.network.state_dict().items():
        assert torch.equal(tuned.model.network.state_dict()[name], weight)
    torch.testing.assert_close(tuned.model.probe.detach(), scale_probe_to_photons(scan, 1.0))
    assert [record.digest for record in tuned.scans] == [scan.digest()]
    assert tuned.photons_per_unit == 1.0


def test_fine_tuning_has_a_smaller_loss_after_one_epoch(
    tmp_path: Path, train_model: Train, initial_folder: Path
) -> None:
    """Its default number of steps is smaller."""
    after = load_model(fine_tune(train_model, tmp_path / "tuned", init_model=initial_folder, max_epochs=1)).provenance
    fresh = load_model(train_model(tmp_path / "fresh", max_epochs=1, width=8, head="residual")).provenance
    assert after["history"]["val_loss"][-1] < fresh["history"]["val_loss"][-1]
    assert after["settings"]["learning_rate"] == FINE_TUNE.learning_rate
    assert fresh["settings"]["learning_rate"] == FROM_SCRATCH.learning_rate
    default = load_model(
        fine_tune(train_model, tmp_path / "default", init_model=initial_folder, max_epochs=None)
    ).provenance
    assert default["epochs"] == pytest.approx(FINE_TUNE.steps * 6 / 34, abs=1)


@pytest.mark.parametrize("update_probe", [False, True])
def test_resumed_fine_tuning_equals_an_uninterrupted_one(
    tmp_path: Path, train_model: Train, initial_folder: Path, update_probe: bool
) -> None:
    settings = {"init_model": initial_folder, "update_probe": update_probe}
    uninterrupted = fine_tune(train_model, tmp_path / "uninterrupted", max_epochs=3, **settings)
    fine_tune(train_model, tmp_path / "resumed", max_epochs=1, **settings)
    resumed = fine_tune(train_model, tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    assert [(resumed / name).read_bytes() for name in REPEATED] == [
        (uninterrupted / name).read_bytes() for name in REPEATED
    ]
    start, end = (
        load_model(fine_tune(train_model, tmp_path / "start", max_epochs=0, **settings)).model.probe,
        load_model(uninterrupted).model.probe,
    )
    assert torch.equal(start, end) is not update_probe
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*start"):
        train_model(
            tmp_path / "resumed",
            max_epochs=4,
            resume=True,
            width=8,
            head="residual",
            learning_rate=FINE_TUNE.learning_rate,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 4}, "`width` is 4, and the initial network has 8"),
        ({"head": "polar"}, "`head` is polar, and .* has residual"),
        ({"network": "unet"}, "`network` is unet, and .* has stepped_unet"),
    ],
)
def test_settings_that_differ_from_the_initial_network_are_refused(
    tmp_path: Path, train_model: Train, initial_folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fine_tune(train_model, tmp_path / "model", init_model=initial_folder, **settings)
    assert not (tmp_path / "model").exists()
    fine_tune(
        train_model,
        tmp_path / "same",
        init_model=initial_folder,
        width=8,
        head="residual",
        network="stepped_unet",
        max_epochs=0,
    )


def test_initial_model_that_does_not_fit_is_refused(
    tmp_path: Path, train_model: Train, initial_folder: Path, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(ConfigError, match=r"initial network has patterns of 24 × 24 pixels, and the scan has 32 × 32"):
        fine_tune(train_model, tmp_path / "model", init_model=initial_folder, train_data_file=tmp_path / "large.npz")
    with pytest.raises(BundleError, match="no model bundle"):
        fine_tune(train_model, tmp_path / "model", init_model=tmp_path / "none")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_initial_model_without_a_probe(tmp_path: Path, train_model: Train, scan: Scan, gridsize: int) -> None:
    """As pretraining makes it."""
    (tmp_path / "bare").mkdir()
    save_model(tmp_path / "bare", Model(PtychoModel(NetworkConfig(width=4), [], size=24), (), 1))
    folder = fine_tune(
        train_model, tmp_path / "model", init_model=tmp_path / "bare", gridsize=gridsize, update_probe=True
    )
    loaded = load_model(folder)
    assert len(loaded.model.probes) == 1
    assert loaded.gridsize == gridsize


def test_initial_probe_is_read_from_a_file(
    tmp_path: Path, train_model: Train, scan: Scan, scan_factory: Callable[..., Scan]
) -> None:
    """One file for all scans, or one file per scan."""
    other = scan_factory(25, seed=4)
    save_scan(tmp_path / "other.npz", other)
    save_scan(tmp_path / "scan.npz", scan)
    probes = [scan.probe[:, ::-1].copy(), np.concatenate([scan.probe, 0.1 * scan.probe.conj()])]
    files = (tmp_path / "one.npz", tmp_path / "two.npz")
    for file, probe in zip(files, probes, strict=True):
        save_scan(file, replace(scan, probe=probe))
    both = (tmp_path / "scan.npz", tmp_path / "other.npz")
    for name, given, expected_indices in (("each", files, (0, 1)), ("all", files[:1], (0, 0))):
        loaded = load_model(train_model(tmp_path / name, train_data_file=both, probe=given, max_epochs=0)).model.probes
        for scan_index, (target, probe_index) in enumerate(zip((scan, other), expected_indices, strict=True)):
            expected = scale_probe_to_photons(replace(target, probe=probes[probe_index]), 1.0)
            torch.testing.assert_close(loaded[scan_index].detach(), expected)
    train_model(tmp_path / "own", max_epochs=1)
    with pytest.raises(ConfigError, match=r"cannot resume with a different scan .* probe "):
        train_model(tmp_path / "own", max_epochs=2, resume=True, probe=files[:1])
    with pytest.raises(ConfigError, match="`probe` names 2 files for 1 scans"):
        train_model(tmp_path / "model", probe=files)
