"""A training repeats to the byte, goes on where it stopped, and learns."""

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan, save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch
from ptycho_torch.train import train
from ptycho_torch.training import batches
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.trainer import (
    Trainer,
    TrainerSettings,
    compute_default_batch_size,
    compute_default_epochs,
)

Train = Callable[..., Path]
REPEATED = ("model.safetensors", "history.csv")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in REPEATED]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, train_model: Train) -> None:
    runs = [contents(train_model(tmp_path / str(run), seed=seed)) for run, seed in enumerate((3, 3, 4))]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    assert runs[0][1] != runs[2][1]


def test_random_numbers_of_the_process_neither_matter_nor_change(tmp_path: Path, train_model: Train) -> None:
    first = contents(train_model(tmp_path / "first"))
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert contents(train_model(tmp_path / "second")) == first
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_workers_change_no_byte(tmp_path: Path, train_model: Train) -> None:
    alone, helped = (train_model(tmp_path / str(workers), num_workers=workers) for workers in (0, 2))
    assert contents(alone) == contents(helped)


@pytest.mark.parametrize(
    "settings",
    [{}, {"update_probe": True}, {"gridsize": 2}, {"n_images": 10, "loss": "poisson"}, {"precision": "bf16"}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_going_on_equals_never_having_stopped(tmp_path: Path, train_model: Train, settings: dict[str, Any]) -> None:
    straight = train_model(tmp_path / "straight", max_epochs=3, **settings)
    train_model(tmp_path / "resumed", max_epochs=1, **settings)
    resumed = train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    assert contents(resumed) == contents(straight)


def test_going_on_from_the_untrained_model(tmp_path: Path, train_model: Train) -> None:
    straight = train_model(tmp_path / "straight", max_epochs=2)
    train_model(tmp_path / "resumed", max_epochs=0)
    assert contents(train_model(tmp_path / "resumed", max_epochs=2, resume=True)) == contents(straight)


def test_going_on_when_there_is_nothing_left_to_do(tmp_path: Path, train_model: Train) -> None:
    folder = train_model(tmp_path, max_epochs=2)
    before = contents(folder)
    assert contents(train_model(folder, max_epochs=2, resume=True)) == before
    assert contents(train_model(folder, max_epochs=1, resume=True)) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 7}, "batch_size"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"loss": "poisson"}, "loss"),
        ({"update_probe": True}, "update_probe"),
        ({"gridsize": 2}, "group"),
        ({"n_images": 10}, "group"),
        ({"width": 8}, "network"),
        ({"network": "unet"}, "network"),
        ({"precision": "bf16"}, "precision"),
        ({"photons_per_unit": 2.0}, "photon"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_going_on_with_other_settings_is_refused(
    tmp_path: Path, train_model: Train, changed: dict[str, Any], said: str
) -> None:
    folder = train_model(tmp_path, max_epochs=1)
    before = contents(folder)
    with pytest.raises(ConfigError, match=rf"cannot resume with a different .*{said}"):
        train_model(folder, max_epochs=2, resume=True, **changed)
    assert contents(folder) == before


def test_going_on_with_another_scan_is_refused(tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path) -> None:
    save_scan(tmp_path / "other.npz", dataclasses.replace(scan, amplitudes=scan.amplitudes[::-1]))
    folder = train_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*scan"):
        train_model(folder, resume=True, train_data_file=tmp_path / "other.npz", max_epochs=2)
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*validation"):
        train_model(folder, resume=True, test_data_file=tmp_path / "other.npz", n_images=None, max_epochs=2)


def test_going_on_without_a_beginning_is_refused(tmp_path: Path, train_model: Train) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train_model(tmp_path / "model", resume=True)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_going_on_from_a_damaged_checkpoint(tmp_path: Path, train_model: Train, damage: str) -> None:
    state = train_model(tmp_path) / "checkpoints" / "last" / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(
        {"truncated": data[:-9], "empty": b"", "other": (tmp_path / "model.safetensors").read_bytes()}[damage]
    )
    with pytest.raises(PtychoError, match=r"state\.safetensors"):
        train_model(tmp_path, max_epochs=2, resume=True)


class StopsAt(SilentObserver):
    """Someone who presses ctrl-C after some batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= steps
        if self.left == 0:
            raise KeyboardInterrupt


def config_of(scan_file: Path, folder: Path, **settings: Any) -> TrainConfig:
    chosen: dict[str, Any] = {"max_epochs": 5, "batch_size": 6, "width": 4}
    chosen |= {"device": "cpu", "precision": "fp32", "logger": "none"}
    return TrainConfig(train_data_file=scan_file, output_dir=folder, **(chosen | settings))


@pytest.mark.parametrize("stop_batch", [7, 13])
def test_ctrl_c_leaves_the_last_complete_epoch(
    tmp_path: Path, train_model: Train, scan_file: Path, stop_batch: int
) -> None:
    """Of about six batches an epoch: 7 is within the second, 13 within the third."""
    result = train(config_of(scan_file, tmp_path / "stopped"), StopsAt(stop_batch))
    done = len(result.history)
    assert not result.completed
    assert done == stop_batch // 6
    assert contents(tmp_path / "stopped") == contents(train_model(tmp_path / "straight", max_epochs=done))
    resumed = train_model(tmp_path / "stopped", max_epochs=4, resume=True)
    assert contents(resumed) == contents(train_model(tmp_path / "four", max_epochs=4))


def test_ctrl_c_in_the_first_epoch_leaves_the_untrained_model(
    tmp_path: Path, train_model: Train, scan_file: Path
) -> None:
    result = train(config_of(scan_file, tmp_path / "stopped"), StopsAt(2))
    assert (result.completed, result.history) == (False, [])
    assert contents(tmp_path / "stopped") == contents(train_model(tmp_path / "untrained", max_epochs=0))


def test_ctrl_c_does_not_bring_back_an_older_training(tmp_path: Path, train_model: Train, scan_file: Path) -> None:
    folder = train_model(tmp_path / "model", max_epochs=4)
    train(config_of(scan_file, folder), StopsAt(2))
    assert history(folder) == []
    assert contents(folder) == contents(train_model(tmp_path / "untrained", max_epochs=0))


def test_the_untrained_model(tmp_path: Path, train_model: Train, scan_file: Path) -> None:
    folder = train_model(tmp_path, max_epochs=0, network="lifted_unet")  # no step of physics behind it
    assert history(folder) == []
    bundle = load_model(folder)
    from ptycho_torch.physics.batch import make_batch

    patches = bundle.model.predict(make_batch(load_scan(scan_file), bundle.photons_per_unit))
    assert torch.equal(patches, torch.ones_like(patches))


@pytest.mark.parametrize("gridsize", [1, 2])
def test_exactly_that_many_groups_an_epoch(tmp_path: Path, train_model: Train, gridsize: int) -> None:
    folder = train_model(tmp_path, n_images=11, gridsize=gridsize, max_epochs=2, batch_size=4)
    assert [row["groups"] for row in history(folder)] == ["11", "11"]


def test_all_groups_by_default(tmp_path: Path, train_model: Train, scan_file: Path) -> None:
    folder = train_model(tmp_path, test_data_file=scan_file)
    assert history(folder)[0]["groups"] == "36"
    held_out = load_model(train_model(tmp_path)).scans[0].held_out
    assert history(tmp_path)[0]["groups"] == str(36 - len(held_out))
    assert len(held_out) >= 1


def test_the_photon_scale_is_that_of_the_whole_file(tmp_path: Path, train_model: Train, legacy_file: Path) -> None:
    scales = []
    for number in (3, None):
        folder = train_model(tmp_path / str(number), train_data_file=legacy_file, n_images=number)
        scales.append(load_model(folder).photons_per_unit)
    assert scales[0] == scales[1]


def test_what_is_validated_on_is_told(tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path) -> None:
    other = tmp_path / "other.npz"
    save_scan(other, dataclasses.replace(scan, amplitudes=scan.amplitudes[::-1]))
    same = tmp_path / "copy.npz"
    same.write_bytes(scan_file.read_bytes())
    told = [
        load_model(train_model(tmp_path / str(index), test_data_file=file)).provenance["validation"]
        for index, file in enumerate((None, other, scan_file, same))
    ]
    assert told[0].startswith("region held out of the training scan, y >= ")
    assert told[1] == "the scan other.npz"
    assert "itself" in told[2]
    assert told[2] == told[3], "a copy is the same scan"


def test_validation_of_another_size_is_refused(
    tmp_path: Path, train_model: Train, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(PtychoError, match=r"patterns of 32 × 32 pixels, and .* has 24 × 24"):
        train_model(tmp_path / "model", test_data_file=tmp_path / "large.npz")
    assert not (tmp_path / "model").exists()


def test_figures_are_finite_and_fall(model_folder: Path) -> None:
    rows = history(model_folder)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 11)]
    for name in ("loss", "val_loss"):
        figures = [float(row[name]) for row in rows]
        assert all(math.isfinite(figure) for figure in figures)
        assert figures[-1] < figures[0]


@pytest.mark.parametrize("loss", ["poisson", "amplitude"])
@pytest.mark.parametrize("head", ["residual", "polar"])
def test_every_loss_and_head_trains(tmp_path: Path, train_model: Train, loss: str, head: str) -> None:
    rows = history(train_model(tmp_path, loss=loss, head=head, max_epochs=8))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


@pytest.mark.parametrize("update_probe", [False, True])
def test_the_probe_moves_only_when_it_may(tmp_path: Path, train_model: Train, update_probe: bool) -> None:
    probes = [
        load_model(train_model(tmp_path / str(epochs), max_epochs=epochs, update_probe=update_probe)).model.probe
        for epochs in (0, 2)
    ]
    assert torch.equal(*probes) is not update_probe


def test_incoherent_modes_and_masks(tmp_path: Path, train_model: Train, scan_factory: Callable[..., Scan]) -> None:
    mask = np.ones((24, 24), dtype=bool)
    mask[:3] = False
    save_scan(tmp_path / "modes.npz", dataclasses.replace(scan_factory(25, 24, modes=2), mask=mask))
    folder = train_model(
        tmp_path / "model", train_data_file=tmp_path / "modes.npz", max_epochs=8, update_probe=True, gridsize=2
    )
    assert load_model(folder).model.probe.shape == (2, 24, 24)
    losses = [float(row["loss"]) for row in history(folder)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_runs_away_is_ended_by_a_sentence(tmp_path: Path, train_model: Train, epochs: int) -> None:
    with pytest.raises(ConfigError, match="choose a smaller `learning_rate`"):
        train_model(tmp_path / "model", learning_rate=1e30, max_epochs=epochs, batch_size=100, head="residual")
    assert not (tmp_path / "model" / "bundle.json").exists()
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_no_file_is_a_pickle(model_folder: Path) -> None:
    files = [path for path in model_folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".csv", ".yaml"}
    assert not any(path.name.startswith(".") for path in files), "nothing written aside is left"
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_seconds_of_each_stage(model_folder: Path) -> None:
    seconds = json.loads((model_folder / "timing.json").read_text())
    assert {"load", "train", "save"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())


@pytest.mark.parametrize("size", [8, 32, 64, 128, 512])
def test_the_recipe_fits_any_scan(size: int) -> None:
    batch_size = compute_default_batch_size(size)
    assert batch_size >= 1
    for groups in (1, 50, 1087, 10**6):
        assert compute_default_epochs(size, groups, batch_size) >= 1


def test_memory_for_what_the_network_is_shown_changes_nothing(
    tmp_path: Path, train_model: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train_model(tmp_path / "kept")
    monkeypatch.setattr(batches, "MAX_CACHED_INPUT_BYTES", 0)
    again = train_model(tmp_path / "again")
    losses = ([float(row["loss"]) for row in history(folder)] for folder in (kept, again))
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_what_learns_is_not_kept(scan: Scan) -> None:
    batch, given = make_batch(scan, 1.0), torch.from_numpy(scan.probe)
    patterns = PatternGroups(batch, np.arange(len(scan))[:, None], scan.positions)

    def kept(update_probe: bool = False, **unknown: Any) -> bool:
        model = PtychoModel(NetworkConfig(width=4), given, update_probe, **unknown)
        return (
            Trainer(model, [patterns], [patterns], TrainerSettings(1, 4, 1e-3)).scans[0].scan.cached_inputs is not None
        )

    assert kept()
    assert kept(backgrounds=[True])
    assert not kept(update_probe=True)
    assert not kept(positions=[len(scan)])
