"""Pretraining: reproducible, resumed exactly, and effective on objects that it was not trained on."""

from pathlib import Path

import pytest
import torch

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.simulation.dataset import SimulatedDataset, SimulatedDatasetSettings
from ptycho_torch.training.optimizer import LearningRateSchedule
from ptycho_torch.training.pretraining import Pretrainer, PretrainerSettings
from ptycho_torch.training.tracking import NullTracker

SCHEDULE = LearningRateSchedule(3e-3, 10)


def make_pretrainer(batches: int | None, seed: int = 0, seconds: float | None = None) -> Pretrainer:
    settings = SimulatedDatasetSettings(size=32, patterns=4, seed=seed, photons=(1e5, 1e6), overlap=(0.6, 0.8))
    config = NetworkConfig("unrolled_unet", "residual", 6, probe_channel=True)
    model = PtychoModel(config, [], generator=torch.Generator().manual_seed(seed), size=32)
    return Pretrainer(model, SimulatedDataset(settings), PretrainerSettings(SCHEDULE, batches, seconds))


def run(trainer: Pretrainer, checkpoint: Path) -> dict[str, torch.Tensor]:
    assert trainer.run(SilentObserver(), NullTracker(), checkpoint)
    return trainer.optimizer.state_dict()


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_resumed_pretraining_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = run(make_pretrainer(9), tmp_path / "uninterrupted")
    run(make_pretrainer(5), tmp_path / "part")
    resumed = make_pretrainer(9)
    resumed.load(tmp_path / "part")
    assert are_equal(run(resumed, tmp_path / "part"), uninterrupted)
    assert [row.groups for row in resumed.history] == [20, 16]
    assert not are_equal(run(make_pretrainer(9, seed=1), tmp_path / "other"), uninterrupted)


def test_resume_with_another_seed_is_refused(tmp_path: Path) -> None:
    run(make_pretrainer(1), tmp_path / "one")
    with pytest.raises(ConfigError, match="seed"):
        make_pretrainer(1, seed=1).load(tmp_path / "one")


def test_validation_loss_on_new_objects_decreases(tmp_path: Path) -> None:
    trainer = make_pretrainer(80)
    before = trainer.validate()
    run(trainer, tmp_path / "state")
    assert trainer.history[-1].val_loss == trainer.validate() < 0.85 * before
    assert trainer.history[-1].groups == 320


def test_pretraining_ends_at_the_time_limit(tmp_path: Path) -> None:
    trainer = make_pretrainer(None, seconds=0.5)
    run(trainer, tmp_path / "state")
    assert trainer.optimizer.steps >= 1
    with pytest.raises(ConfigError, match="`time_limit`"):
        make_pretrainer(None)
