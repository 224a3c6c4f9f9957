"""The training on scans: equal bytes for equal seeds, exact resume, and decreasing loss."""

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
import yaml

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.noise import NOISE_MODELS, make_noise_model, masked_mean
from ptycho_torch.train import train
from ptycho_torch.training import batches
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.trainer import (
    FROM_SCRATCH,
    Trainer,
    TrainerSettings,
    compute_default_batch_size,
    compute_default_epochs,
)

Train = Callable[..., Path]
REPEATED = ("model.safetensors", "history.csv")
FIRST = {"seed": 1, "width": 4, "head": "polar", "loss": "poisson", "batch_size": 6}
SECOND = {"seed": 2, "width": 8, "head": "residual", "loss": "amplitude", "batch_size": 9, "update_probe": True}


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in REPEATED]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_equal_seeds_give_equal_bytes(tmp_path: Path, train_model: Train) -> None:
    runs = [contents(train_model(tmp_path / str(run), seed=seed)) for run, seed in enumerate((3, 3, 4))]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    assert runs[0][1] != runs[2][1]


def test_global_random_state_is_neither_used_nor_changed(tmp_path: Path, train_model: Train) -> None:
    first = contents(train_model(tmp_path / "first"))
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert contents(train_model(tmp_path / "second")) == first
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_workers_do_not_change_the_bytes(tmp_path: Path, train_model: Train) -> None:
    without, with_workers = (train_model(tmp_path / str(workers), num_workers=workers) for workers in (0, 2))
    assert contents(without) == contents(with_workers)


@pytest.mark.parametrize(
    "settings",
    [{}, {"update_probe": True}, {"gridsize": 2}, {"n_images": 10, "loss": "poisson"}, {"precision": "bf16"}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_resumed_training_equals_uninterrupted(tmp_path: Path, train_model: Train, settings: dict[str, Any]) -> None:
    uninterrupted = train_model(tmp_path / "uninterrupted", max_epochs=3, **settings)
    train_model(tmp_path / "resumed", max_epochs=1, **settings)
    resumed = train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    assert contents(resumed) == contents(uninterrupted)


def test_training_resumes_from_the_untrained_model(tmp_path: Path, train_model: Train) -> None:
    uninterrupted = train_model(tmp_path / "uninterrupted", max_epochs=2)
    train_model(tmp_path / "resumed", max_epochs=0)
    assert contents(train_model(tmp_path / "resumed", max_epochs=2, resume=True)) == contents(uninterrupted)


def test_resume_of_a_complete_training_changes_nothing(tmp_path: Path, train_model: Train) -> None:
    folder = train_model(tmp_path, max_epochs=2)
    before = contents(folder)
    assert contents(train_model(folder, max_epochs=2, resume=True)) == before
    assert contents(train_model(folder, max_epochs=1, resume=True)) == before


@pytest.mark.parametrize(
    ("changed", "name"),
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
def test_resume_with_different_settings_is_refused(
    tmp_path: Path, train_model: Train, changed: dict[str, Any], name: str
) -> None:
    folder = train_model(tmp_path, max_epochs=1)
    before = contents(folder)
    with pytest.raises(ConfigError, match=rf"cannot resume with a different .*{name}"):
        train_model(folder, max_epochs=2, resume=True, **changed)
    assert contents(folder) == before


def test_resume_with_another_scan_is_refused(tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path) -> None:
    save_scan(tmp_path / "other.npz", dataclasses.replace(scan, amplitudes=scan.amplitudes[::-1]))
    folder = train_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*scan"):
        train_model(folder, resume=True, train_data_file=tmp_path / "other.npz", max_epochs=2)
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*validation"):
        train_model(folder, resume=True, test_data_file=tmp_path / "other.npz", n_images=None, max_epochs=2)


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path, train_model: Train) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train_model(tmp_path / "model", resume=True)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_resume_from_a_damaged_checkpoint_is_refused(tmp_path: Path, train_model: Train, damage: str) -> None:
    state = train_model(tmp_path) / "checkpoints" / "last" / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(
        {"truncated": data[:-9], "empty": b"", "other": (tmp_path / "model.safetensors").read_bytes()}[damage]
    )
    with pytest.raises(PtychoError, match=r"state\.safetensors"):
        train_model(tmp_path, max_epochs=2, resume=True)


class InterruptingObserver(SilentObserver):
    """An observer that raises KeyboardInterrupt after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= steps
        if self.left == 0:
            raise KeyboardInterrupt


def make_config(scan_file: Path, folder: Path, **settings: Any) -> TrainConfig:
    chosen: dict[str, Any] = {"max_epochs": 5, "batch_size": 6, "width": 4}
    chosen |= {"device": "cpu", "precision": "fp32", "logger": "none"}
    return TrainConfig(train_data_file=scan_file, output_dir=folder, **(chosen | settings))


@pytest.mark.parametrize("stop_batch", [7, 13])
def test_ctrl_c_leaves_the_last_complete_epoch(
    tmp_path: Path, train_model: Train, scan_file: Path, stop_batch: int
) -> None:
    """With six batches per epoch, batch 7 is in the second epoch and batch 13 in the third."""
    result = train(make_config(scan_file, tmp_path / "stopped"), InterruptingObserver(stop_batch))
    done = len(result.history)
    assert not result.completed
    assert done == stop_batch // 6
    assert contents(tmp_path / "stopped") == contents(train_model(tmp_path / "uninterrupted", max_epochs=done))
    resumed = train_model(tmp_path / "stopped", max_epochs=4, resume=True)
    assert contents(resumed) == contents(train_model(tmp_path / "four", max_epochs=4))


def test_ctrl_c_in_the_first_epoch_leaves_the_untrained_model(
    tmp_path: Path, train_model: Train, scan_file: Path
) -> None:
    result = train(make_config(scan_file, tmp_path / "stopped"), InterruptingObserver(2))
    assert (result.completed, result.history) == (False, [])
    assert contents(tmp_path / "stopped") == contents(train_model(tmp_path / "untrained", max_epochs=0))


def test_ctrl_c_does_not_restore_an_earlier_training(tmp_path: Path, train_model: Train, scan_file: Path) -> None:
    folder = train_model(tmp_path / "model", max_epochs=4)
    train(make_config(scan_file, folder), InterruptingObserver(2))
    assert history(folder) == []
    assert contents(folder) == contents(train_model(tmp_path / "untrained", max_epochs=0))


def test_untrained_model_predicts_vacuum(tmp_path: Path, train_model: Train, scan_file: Path) -> None:
    folder = train_model(tmp_path, max_epochs=0, network="lifted_unet")  # without data-consistency steps
    assert history(folder) == []
    bundle = load_model(folder)
    patches = bundle.model.predict(make_batch(load_scan(scan_file), bundle.photons_per_unit))
    assert torch.equal(patches, torch.ones_like(patches))


@pytest.mark.parametrize("gridsize", [1, 2])
def test_epoch_has_the_given_number_of_groups(tmp_path: Path, train_model: Train, gridsize: int) -> None:
    folder = train_model(tmp_path, n_images=11, gridsize=gridsize, max_epochs=2, batch_size=4)
    assert [row["groups"] for row in history(folder)] == ["11", "11"]


def test_epoch_has_all_groups_by_default(tmp_path: Path, train_model: Train, scan_file: Path) -> None:
    folder = train_model(tmp_path, test_data_file=scan_file)
    assert history(folder)[0]["groups"] == "36"
    held_out = load_model(train_model(tmp_path)).scans[0].held_out
    assert history(tmp_path)[0]["groups"] == str(36 - len(held_out))
    assert len(held_out) >= 1


def test_photon_scale_is_estimated_from_the_whole_file(tmp_path: Path, train_model: Train, legacy_file: Path) -> None:
    scales = []
    for number in (3, None):
        folder = train_model(tmp_path / str(number), train_data_file=legacy_file, n_images=number)
        scales.append(load_model(folder).photons_per_unit)
    assert scales[0] == scales[1]


def test_provenance_describes_the_validation(tmp_path: Path, train_model: Train, scan: Scan, scan_file: Path) -> None:
    other = tmp_path / "other.npz"
    save_scan(other, dataclasses.replace(scan, amplitudes=scan.amplitudes[::-1]))
    same = tmp_path / "copy.npz"
    same.write_bytes(scan_file.read_bytes())
    descriptions = [
        load_model(train_model(tmp_path / str(index), test_data_file=file)).provenance["validation"]
        for index, file in enumerate((None, other, scan_file, same))
    ]
    assert descriptions[0].startswith("region held out of the training scan, y >= ")
    assert descriptions[1] == "the scan other.npz"
    assert "itself" in descriptions[2]
    assert descriptions[2] == descriptions[3], "a copy is the same scan"


def test_validation_of_another_size_is_refused(
    tmp_path: Path, train_model: Train, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(PtychoError, match=r"patterns of 32 × 32 pixels, and .* has 24 × 24"):
        train_model(tmp_path / "model", test_data_file=tmp_path / "large.npz")
    assert not (tmp_path / "model").exists()


def test_losses_are_finite_and_decrease(model_folder: Path) -> None:
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
def test_probe_changes_only_with_update_probe(tmp_path: Path, train_model: Train, update_probe: bool) -> None:
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
def test_diverging_training_is_an_error(tmp_path: Path, train_model: Train, epochs: int) -> None:
    with pytest.raises(ConfigError, match="choose a smaller `learning_rate`"):
        train_model(tmp_path / "model", learning_rate=1e30, max_epochs=epochs, batch_size=100, head="residual")
    assert not (tmp_path / "model" / "bundle.json").exists()
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_no_file_is_a_pickle(model_folder: Path) -> None:
    files = [path for path in model_folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".csv", ".yaml"}
    assert not any(path.name.startswith(".") for path in files), "no temporary file is left"
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_timing_has_every_stage(model_folder: Path) -> None:
    seconds = json.loads((model_folder / "timing.json").read_text())
    assert set(seconds) == {"load", "prepare", "train", "save"}


@pytest.mark.parametrize("size", [8, 32, 64, 128, 512])
def test_default_epochs_make_the_default_number_of_steps(size: int) -> None:
    batch_size = compute_default_batch_size(size)
    for groups in (1, 50, 1087):
        steps = compute_default_epochs(size, groups, batch_size) * groups / batch_size
        expected = FROM_SCRATCH.steps * max(1, size / 64) ** 0.5
        assert steps == pytest.approx(expected, abs=groups / batch_size)
    assert compute_default_epochs(size, 10**6, batch_size) == 1


def test_input_cache_does_not_change_the_losses(
    tmp_path: Path, train_model: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = train_model(tmp_path / "cached")
    monkeypatch.setattr(batches, "MAX_CACHED_INPUT_BYTES", 0)
    again = train_model(tmp_path / "again")
    losses = ([float(row["loss"]) for row in history(folder)] for folder in (cached, again))
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_inputs_are_cached_only_if_constant(scan: Scan) -> None:
    batch, given = make_batch(scan, 1.0), torch.from_numpy(scan.probe)
    patterns = PatternGroups(batch, np.arange(len(scan))[:, None], scan.positions)

    def is_cached(update_probe: bool = False, **unknown: Any) -> bool:
        model = PtychoModel(NetworkConfig(width=4), given, update_probe, **unknown)
        return (
            Trainer(model, [patterns], [patterns], TrainerSettings(1, 4, 1e-3)).scans[0].scan.cached_inputs is not None
        )

    assert is_cached()
    assert is_cached(backgrounds=[True])
    assert not is_cached(update_probe=True)
    assert not is_cached(positions=[len(scan)])


@pytest.fixture(scope="module")
def small_scan_file(scan_factory: Callable[..., Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sixteen") / "sixteen.npz"
    save_scan(path, scan_factory(n=16, size=24, seed=5))
    return path


def train_and_load(folder: Path, scan_file: Path, epochs: int) -> PtychoModel:
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


def test_two_epochs_change_the_object_and_the_probe(small_scan_file: Path, tmp_path: Path) -> None:
    before, after = (train_and_load(tmp_path / str(epochs), small_scan_file, epochs) for epochs in (0, 2))
    batch = make_batch(load_scan(small_scan_file), 1.0)
    with torch.no_grad():
        objects = [model.eval().predict(batch) for model in (before, after)]
        probes = [model.probe for model in (before, after)]
    for first, second in (objects, probes):
        changed = (second - first).abs().square().sum().sqrt() / first.abs().square().sum().sqrt()
        assert 1e-3 < changed < 1


@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
def test_gradients_reach_the_object_and_every_probe_mode(small_scan_file: Path, loss: str) -> None:
    scan = load_scan(small_scan_file)
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


def read_weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_result_does_not_depend_on_earlier_trainings(train_model: Callable[..., Path], tmp_path: Path) -> None:
    alone = read_weights(train_model(tmp_path / "alone", **FIRST))
    generator = torch.get_rng_state()
    between = read_weights(train_model(tmp_path / "between", **SECOND))
    again = read_weights(train_model(tmp_path / "again", **FIRST))
    assert again == alone != between
    assert torch.equal(torch.get_rng_state(), generator)
    for name, settings in (("alone", FIRST), ("between", SECOND)):
        stored = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert {key: stored[key] for key in settings} == settings


def test_parallel_trainings_are_independent(scan_file: Path, train_model: Callable[..., Path], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = {
        name: read_weights(train_model(tmp_path / f"alone {name}", seed=seed)) for name, seed in (("a", 1), ("b", 2))
    }
    assert alone["a"] != alone["b"]
    with ThreadPoolExecutor(1) as other:
        # Only the main thread handles ctrl-C: one training runs there, and the other in a second thread.
        second = other.submit(train_model, tmp_path / "second", seed=1)
        first = train_model(tmp_path / "first", seed=2)
        assert read_weights(second.result()) == alone["a"]
    assert read_weights(first) == alone["b"]


def test_configuration_is_validated_and_frozen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        TrainConfig(train_data_file=tmp_path / "none.npz", output_dir=tmp_path / "out", batch_size=-1)
    config = TrainConfig(train_data_file=tmp_path / "none.npz", output_dir=tmp_path / "out")
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]


def test_import_has_no_side_effects(run_process: Callable[..., Any]) -> None:
    code = (
        "import logging, random, numpy as np, torch\n"
        "before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()\n"
        "import ptycho_torch.train, ptycho_torch.training.trainer, ptycho_torch.models.registry\n"
        "after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()\n"
        "print(before == after, logging.getLogger('ptycho_torch').handlers, logging.getLogger().handlers)"
    )
    assert run_process("-c", code).out.split("\n")[0] == "True [] []"
