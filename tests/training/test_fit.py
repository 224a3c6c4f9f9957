"""Training in memory, without a folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ConfigError, DataError, DeviceError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, load_model, save_model
from ptycho_torch.training.fit import fit

NARROW = NetworkConfig(width=4)


class InterruptingObserver(SilentObserver):
    """An observer that raises KeyboardInterrupt after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.batches -= steps
        if self.batches == 0:
            raise KeyboardInterrupt


def fit_narrow(scan: Scan, **settings: object) -> Model:
    defaults: dict[str, object] = {
        "epochs": 1,
        "network": NARROW,
        "batch_size": 6,
        "device": "cpu",
        "precision": "fp32",
    }
    return fit(scan, **(defaults | settings))  # type: ignore[arg-type]


def make_target(scan: Scan) -> Reconstruction:
    assert scan.truth is not None
    return Reconstruction(
        object=scan.truth,
        coverage=np.ones(scan.truth.shape, dtype=np.float32),
        origin_yx=np.zeros(2, dtype=np.int64),
        probe=scan.probe,
        positions=scan.positions,
        photons_per_unit=1.0,
    )


def test_fit_equals_the_command_train(scan: Scan, model_folder: Path) -> None:
    fitted, trained = fit_narrow(scan, epochs=10), load_model(model_folder)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(fitted.model.state_dict()[name], tensor), name
    assert fitted.provenance["history"] == trained.provenance["history"]
    assert fitted.scans[0].digest == trained.scans[0].digest


def test_fitted_model_can_be_saved_and_loaded(scan: Scan, tmp_path: Path) -> None:
    model = fit_narrow(scan)
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.provenance["epochs"] == 1
    assert all(torch.equal(loaded.model.state_dict()[name], value) for name, value in model.model.state_dict().items())


def test_ctrl_c_returns_the_last_complete_epoch(scan: Scan) -> None:
    interrupted, complete = fit_narrow(scan, epochs=5, observer=InterruptingObserver(8)), fit_narrow(scan)
    assert interrupted.provenance["epochs"] == 1
    for name, tensor in complete.model.state_dict().items():
        assert torch.equal(interrupted.model.state_dict()[name], tensor), name


def test_reconstruction_as_target_gives_the_probe(scan: Scan) -> None:
    target = make_target(scan)
    model = fit_narrow(scan, targets=target)
    np.testing.assert_allclose(model.model.probe.detach().numpy(), target.probe, rtol=1e-6)
    assert model.provenance["history"]["val_loss"] != fit_narrow(scan).provenance["history"]["val_loss"]


def test_fine_tuning_starts_from_the_initial_network(scan: Scan) -> None:
    initial = fit_narrow(scan)
    tuned = fit_narrow(scan, initial=initial, network=None, epochs=0)
    for name, tensor in initial.model.network.state_dict().items():
        assert torch.equal(tuned.model.network.state_dict()[name], tensor), name
    with pytest.raises(ConfigError, match="initial network has"):
        fit_narrow(scan, initial=initial, network=NetworkConfig(width=8))


def test_unsuitable_targets_are_refused(scan: Scan) -> None:
    with pytest.raises(ConfigError, match="2 targets for 1 scans"):
        fit_narrow(scan, targets=[make_target(scan)] * 2)
    with pytest.raises(ConfigError, match="expected a reconstruction"):
        fit_narrow(scan, targets="patches")
    with pytest.raises(DataError, match="no labels"):
        fit_narrow(scan, targets="labels")
    target = make_target(scan)
    small = replace(target, object=target.object[:30, :30], coverage=target.coverage[:30, :30])
    with pytest.raises(DataError, match="outside the object"):
        fit_narrow(scan, targets=small)


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": -1},
        {"batch_size": 0},
        {"gridsize": 0},
        {"learning_rate": -1.0},
        {"position_bound": 0.0},
        {"seed": -1},
        {"precision": "fp64"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_invalid_settings_are_named(scan: Scan, setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(setting))}` is"):
        fit_narrow(scan, **setting)


@pytest.mark.parametrize("device", ["nonsense", "mps"])
def test_a_model_is_not_loaded_on_a_missing_device(
    model_folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=f"`device` (is )?{device}"):
        load_model(model_folder, device)


def test_scan_without_a_probe_is_trained_with_an_estimated_probe_that_is_updated(
    scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    without = replace(scan, probe=None)
    with caplog.at_level("WARNING"):
        model = fit(without, epochs=2, batch_size=8)
    assert "no probe" in caplog.text
    assert model.model.probe_parameters[0].requires_grad
    assert model.predict(without).metadata["probe"] == "the model's, of this very scan"
