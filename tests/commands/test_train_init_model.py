"""``train --init``: from the weights of another training, with the scan's own probe or a better one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import save_scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, load_model, save_model
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.training.trainer import FINE_TUNE, FROM_SCRATCH

Train = Callable[..., Path]
REPEATED = ("model.safetensors", "history.csv")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, train_model: Train, scan_factory: Callable[..., Scan]) -> Path:
    """A bundle trained on another scan, in another unit; its network is not the default."""
    folder = tmp_path_factory.mktemp("elsewhere")
    other = scan_factory(36, seed=5)
    save_scan(
        folder / "other.npz",
        replace(other, probe=2 * other.probe, amplitudes=other.amplitudes / 3, photons_per_unit=9.0),
    )
    return train_model(folder / "model", train_data_file=folder / "other.npz", max_epochs=10, width=8, head="residual")


def tuned(train_to: Train, folder: Path, **settings: Any) -> Path:
    return train_to(folder, **({"width": None} | settings))


def test_it_starts_from_the_network_and_from_the_probe_of_the_scan(
    tmp_path: Path, train_model: Train, elsewhere: Path, scan: Scan
) -> None:
    found, start = load_model(tuned(train_model, tmp_path, init_model=elsewhere, max_epochs=0)), load_model(elsewhere)
    assert found.model.config == start.model.config == NetworkConfig("stepped_unet", "residual", 8)
    for name, weight in start.model.network.state_dict().items():
        assert torch.equal(found.model.network.state_dict()[name], weight)
    torch.testing.assert_close(found.model.probe.detach(), scale_probe_to_photons(scan, 1.0))
    assert [known.digest for known in found.scans] == [scan.digest()]
    assert found.photons_per_unit == 1.0


def test_a_head_start(tmp_path: Path, train_model: Train, elsewhere: Path) -> None:
    """An epoch from elsewhere is worth more than one from nothing; and the recipe is shorter."""
    after = load_model(tuned(train_model, tmp_path / "tuned", init_model=elsewhere, max_epochs=1)).provenance
    fresh = load_model(train_model(tmp_path / "fresh", max_epochs=1, width=8, head="residual")).provenance
    assert after["history"]["val_loss"][-1] < fresh["history"]["val_loss"][-1]
    assert after["settings"]["learning_rate"] == FINE_TUNE.learning_rate
    assert fresh["settings"]["learning_rate"] == FROM_SCRATCH.learning_rate
    default = load_model(tuned(train_model, tmp_path / "default", init_model=elsewhere, max_epochs=None)).provenance
    assert default["epochs"] == pytest.approx(FINE_TUNE.steps * 6 / 34, abs=1)


@pytest.mark.parametrize("update_probe", [False, True])
def test_going_on_equals_never_having_stopped(
    tmp_path: Path, train_model: Train, elsewhere: Path, update_probe: bool
) -> None:
    settings = {"init": elsewhere, "update_probe": update_probe}
    straight = tuned(train_model, tmp_path / "straight", max_epochs=3, **settings)
    tuned(train_model, tmp_path / "resumed", max_epochs=1, **settings)
    resumed = tuned(train_model, tmp_path / "resumed", max_epochs=3, resume=True, **settings)
    assert [(resumed / name).read_bytes() for name in REPEATED] == [(straight / name).read_bytes() for name in REPEATED]
    start, end = (
        load_model(tuned(train_model, tmp_path / "start", max_epochs=0, **settings)).model.probe,
        load_model(straight).model.probe,
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
    ("typed", "said"),
    [
        ({"width": 4}, "`width` is 4, and the initial network has 8"),
        ({"head": "polar"}, "`head` is polar, and .* has residual"),
        ({"network": "unet"}, "`network` is unet, and .* has stepped_unet"),
    ],
)
def test_another_network_than_that_of_the_start_is_refused(
    tmp_path: Path, train_model: Train, elsewhere: Path, typed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        tuned(train_model, tmp_path / "model", init_model=elsewhere, **typed)
    assert not (tmp_path / "model").exists()
    tuned(
        train_model,
        tmp_path / "same",
        init_model=elsewhere,
        width=8,
        head="residual",
        network="stepped_unet",
        max_epochs=0,
    )


def test_a_start_that_does_not_fit_is_refused(
    tmp_path: Path, train_model: Train, elsewhere: Path, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    with pytest.raises(ConfigError, match=r"initial network has patterns of 24 × 24 pixels, and the scan has 32 × 32"):
        tuned(train_model, tmp_path / "model", init_model=elsewhere, train_data_file=tmp_path / "large.npz")
    with pytest.raises(BundleError, match="no model bundle"):
        tuned(train_model, tmp_path / "model", init_model=tmp_path / "none")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_a_start_without_a_probe(tmp_path: Path, train_model: Train, scan: Scan, gridsize: int) -> None:
    """As training on simulation leaves it."""
    (tmp_path / "bare").mkdir()
    save_model(tmp_path / "bare", Model(PtychoModel(NetworkConfig(width=4), [], size=24), (), 1))
    folder = tuned(train_model, tmp_path / "model", init_model=tmp_path / "bare", gridsize=gridsize, update_probe=True)
    found = load_model(folder)
    assert len(found.model.probes) == 1
    assert found.gridsize == gridsize


def test_a_probe_from_a_file(tmp_path: Path, train_model: Train, scan: Scan, scan_factory: Callable[..., Scan]) -> None:
    """In training as in inference: one for all scans, or one for each."""
    other = scan_factory(25, seed=4)
    save_scan(tmp_path / "other.npz", other)
    save_scan(tmp_path / "scan.npz", scan)
    probes = [scan.probe[:, ::-1].copy(), np.concatenate([scan.probe, 0.1 * scan.probe.conj()])]
    files = (tmp_path / "one.npz", tmp_path / "two.npz")
    for file, probe in zip(files, probes, strict=True):
        save_scan(file, replace(scan, probe=probe))
    both = (tmp_path / "scan.npz", tmp_path / "other.npz")
    for name, given, taken in (("each", files, (0, 1)), ("all", files[:1], (0, 0))):
        found = load_model(train_model(tmp_path / name, train_data_file=both, probe=given, max_epochs=0)).model.probes
        for place, (lit, which) in enumerate(zip((scan, other), taken, strict=True)):
            expected = scale_probe_to_photons(replace(lit, probe=probes[which]), 1.0)
            torch.testing.assert_close(found[place].detach(), expected)
    train_model(tmp_path / "own", max_epochs=1)
    with pytest.raises(ConfigError, match=r"cannot resume with a different scan .* probe "):
        train_model(tmp_path / "own", max_epochs=2, resume=True, probe=files[:1])
    with pytest.raises(ConfigError, match="`probe` names 2 files for 1 scans"):
        train_model(tmp_path / "model", probe=files)
