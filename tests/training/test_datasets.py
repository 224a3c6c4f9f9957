"""Training data of several scans: each with its own probe and photon scale, each batch from one scan."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.process_group import SINGLE_PROCESS
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.training.batches import iterate_batches
from ptycho_torch.training.datasets import make_pattern_groups, make_training_scan

Command = Callable[..., Any]
Train = Callable[..., Path]
REPEATED = ("model.safetensors", "history.csv")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, scan_factory: Callable[..., Scan]) -> tuple[Path, Path, Path]:
    """Write three scans with equal N and different positions, probe modes, photons and units of the amplitudes."""
    folder = tmp_path_factory.mktemp("scans")
    first, second, third = (
        scan_factory(36, seed=0),
        scan_factory(25, seed=1, modes=2, photons=5e4),
        scan_factory(25, seed=2),
    )
    second = replace(second, amplitudes=second.amplitudes / 2, photons_per_unit=4.0)
    paths = tuple(folder / name for name in ("a.npz", "b.npz", "c.npz"))
    for path, scan in zip(paths, (first, second, replace(third, probe=third.probe.conj())), strict=True):
        save_scan(path, scan)
    return paths[0], paths[1], paths[2]


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in REPEATED]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("update_probe", [False, True])
def test_each_scan_has_its_own_probe_and_scale(
    update_probe: bool, tmp_path: Path, train_model: Train, files: tuple[Path, ...]
) -> None:
    before, after = (
        load_model(
            train_model(tmp_path / str(epochs), train_data_file=files, max_epochs=epochs, update_probe=update_probe)
        )
        for epochs in (0, 2)
    )
    assert [scan.name for scan in after.scans] == ["a.npz", "b.npz", "c.npz"]
    assert [scan.photons_per_unit for scan in after.scans] == [1.0, 4.0, 1.0]
    assert [len(probe) for probe in after.model.probes] == [1, 2, 1]
    for first, second in zip(before.model.probes, after.model.probes, strict=True):
        assert torch.equal(first, second) is not update_probe


def test_list_of_one_scan_equals_the_scan(tmp_path: Path, train_model: Train, files: tuple[Path, ...]) -> None:
    alone, listed = (
        contents(train_model(tmp_path / name, train_data_file=given))
        for name, given in (("alone", files[0]), ("listed", files[:1]))
    )
    assert alone == listed


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_epoch_has_all_groups_of_all_scans(
    tmp_path: Path, train_model: Train, files: tuple[Path, ...], gridsize: int
) -> None:
    folder = train_model(tmp_path / "all", train_data_file=files, gridsize=gridsize)
    held_out = [len(scan.held_out) for scan in load_model(folder).scans]
    assert min(held_out) >= gridsize**2
    assert [row["groups"] for row in history(folder)] == [str(36 + 25 + 25 - sum(held_out))]
    some = train_model(tmp_path / "some", train_data_file=files, gridsize=gridsize, n_images=5)
    assert [row["groups"] for row in history(some)] == ["15"]


@pytest.mark.parametrize(
    "settings",
    [{"update_probe": True}, {"gridsize": 2, "n_images": 7}, {"teacher": "pie:epochs=2", "update_probe": True}],
    ids=lambda settings: "-".join(settings),
)
def test_training_is_reproducible_and_resumes_exactly(
    tmp_path: Path, train_model: Train, files: tuple[Path, ...], settings: dict[str, Any]
) -> None:
    settings = {"train_data_file": files, **settings}
    uninterrupted = contents(train_model(tmp_path / "uninterrupted", max_epochs=3, **settings))
    train_model(tmp_path / "resumed", max_epochs=1, **settings)
    assert contents(train_model(tmp_path / "resumed", max_epochs=3, resume=True, **settings)) == uninterrupted
    with pytest.raises(ConfigError, match=r"cannot resume with a different .*scan"):
        train_model(tmp_path / "resumed", max_epochs=4, resume=True, **settings | {"train_data_file": files[:2]})


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_workers_do_not_change_the_bytes(tmp_path: Path, train_model: Train, files: tuple[Path, ...]) -> None:
    without, with_worker = (
        contents(train_model(tmp_path / str(workers), train_data_file=files, num_workers=workers)) for workers in (0, 1)
    )
    assert without == with_worker


def test_batches_are_of_one_scan_in_random_order(files: tuple[Path, ...]) -> None:
    scans = [load_scan(file) for file in files]
    sources = [make_training_scan(scan, index, scale=photon_scale(scan)) for index, scan in enumerate(scans)]
    patterns, _ = make_pattern_groups(sources)
    orders = []
    for seed in (0, 1):
        batches = [batch for _, batch in iterate_batches(patterns, 4, np.random.default_rng(seed), SINGLE_PROCESS)]
        for scan_index, groups in enumerate(patterns):
            corners = torch.cat([batch.corners for batch in batches if batch.scan_index == scan_index])
            expected = groups.scan.corners[torch.from_numpy(groups.groups.ravel())]
            assert sorted(map(tuple, corners.tolist())) == sorted(map(tuple, expected.tolist()))
        orders.append([batch.scan_index for batch in batches])
        assert orders[-1] != sorted(orders[-1])
    assert orders[0] != orders[1]


def test_provenance_describes_the_validation(tmp_path: Path, train_model: Train, files: tuple[Path, ...]) -> None:
    descriptions = {}
    for name, test_file in (("regions", None), ("itself", files[1]), ("other", files[2])):
        folder = train_model(tmp_path / name, train_data_file=files[:2], test_data_file=test_file)
        descriptions[name] = load_model(folder).provenance["validation"]
    assert descriptions["regions"].startswith("region held out of each training scan, a.npz: y >= ")
    assert "; b.npz: y >= " in descriptions["regions"]
    assert "itself" in descriptions["itself"]
    assert descriptions["other"] == "the scan c.npz"


def test_training_reduces_r_of_every_scan_with_its_own_probe(
    tmp_path: Path, train_model: Train, files: tuple[Path, ...], run_main: Command
) -> None:
    r = {}
    for epochs in (0, 8):
        folder = train_model(
            tmp_path / f"{epochs}", train_data_file=files, max_epochs=epochs, update_probe=True, width=8
        )
        probes = load_model(folder).model.probes
        for index, file in enumerate(files):
            out = tmp_path / f"{epochs} {file.stem}"
            words = ("--model_path", folder, "--test_data", file, "--output_dir", out, "--no_report")
            assert run_main("inference", *words).code == 0
            result = load_reconstruction(out / "reconstruction.npz")
            np.testing.assert_array_equal(result.probe, probes[index].detach().numpy())
            metrics = json.loads((out / "metrics.json").read_text())
            assert metrics["validation_patterns"] == len(load_model(folder).scans[index].held_out)
            r[epochs, file.stem] = metrics["r"]
    for file in files:
        assert r[8, file.stem] < 0.8 * r[0, file.stem]


def test_scans_of_two_sizes_are_refused(
    tmp_path: Path, train_model: Train, files: tuple[Path, ...], scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(PtychoError, match=r"large\.npz: patterns of 32 × 32 pixels, and .*a\.npz has 24 × 24"):
        train_model(tmp_path / "model", train_data_file=(files[0], tmp_path / "large.npz"))
    assert not (tmp_path / "model").exists()


def test_repeated_scan_is_refused(tmp_path: Path, train_model: Train, files: tuple[Path, ...]) -> None:
    with pytest.raises(ConfigError, match="hold the same scan"):
        train_model(tmp_path / "model", train_data_file=(files[0], files[1], files[0]))
    with pytest.raises(ConfigError, match="`train_data_file` is empty"):
        train_model(tmp_path / "model", train_data_file=())
