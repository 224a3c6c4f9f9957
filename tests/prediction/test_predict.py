"""The network as an engine: groups are independent, true patches give the true object, the scale is the bundle's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TruePatchNetwork

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.prediction.predict import predict_scan


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PtychoModel:
    return load_model(model_folder).model


def knowing(scan: Scan) -> PtychoModel:
    model = PtychoModel(NetworkConfig(width=4), scale_probe_to_photons(scan, 1.0))
    model.network = TruePatchNetwork(scan)
    return model


@pytest.mark.parametrize("gridsize", [1, 2, 3])
@pytest.mark.parametrize("modes", [1, 2])
def test_true_patches_give_the_true_object(gridsize: int, modes: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(25, 24, modes=modes)
    result = predict_scan(knowing(scan), scan, 1.0, gridsize=gridsize)
    assert scan.truth is not None
    row, column = result.origin_yx
    lit = np.argwhere(result.coverage > 0)
    found = result.object[tuple(lit.T)]
    expected = scan.truth[tuple((lit + np.array([row, column])).T)]
    assert np.abs(found - expected).max() < 1e-5
    assert len(lit) > 24 * 24


def test_positions_may_be_anywhere(scan: Scan) -> None:
    """Moved by whole pixels, far out and below zero: the same object, with its origin moved alike."""
    model = knowing(scan)
    here = predict_scan(model, scan, 1.0)
    moved = replace(scan, positions=scan.positions + np.array([-100_000, 7_000_000]))
    there = predict_scan(model, moved, 1.0)
    assert (there.origin_yx - here.origin_yx).tolist() == [-100_000, 7_000_000]
    assert np.abs(there.object - here.object).max() < 1e-5


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_canvas_holds_all_windows_and_two_pixels_more(gridsize: int, scan: Scan, model: PtychoModel) -> None:
    result = predict_scan(model, scan, 1.0, gridsize=gridsize)
    corners = np.floor(scan.positions - scan.size // 2 + 0.5)
    np.testing.assert_array_equal(result.origin_yx, corners.min(0) - 2)
    np.testing.assert_array_equal(result.object.shape, np.ptp(corners, axis=0) + scan.size + 4)
    rim = np.ones(result.object.shape, dtype=bool)
    rim[2:-2, 2:-2] = False
    assert not result.coverage[rim].any()
    assert (result.object[rim] == 1).all()


@pytest.mark.parametrize("gridsize", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 10**30])
def test_the_batch_does_not_matter(gridsize: int, batch_size: int, scan: Scan, model: PtychoModel) -> None:
    reference = predict_scan(model, scan, 1.0, gridsize=gridsize)
    other = predict_scan(model, scan, 1.0, gridsize=gridsize, batch_size=batch_size)
    assert np.abs(other.object - reference.object).max() < 1e-5


@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_group_does_not_see_the_rest_of_the_scan(gridsize: int, scan: Scan, model: PtychoModel) -> None:
    """A single position, with its neighbours, gives the same alone as among others in whatever batch."""
    from ptycho_torch.data.grouping import find_nearest_groups

    for centre in (0, 14):
        asked = np.array([centre])
        alone = predict_scan(model, scan, 1.0, gridsize=gridsize, centers=asked)
        group = find_nearest_groups(scan.positions, gridsize, asked)[0]
        company = scan.select(group)
        without = predict_scan(model, company, 1.0, gridsize=gridsize, centers=np.array([0]))
        assert np.abs(alone.object - without.object).max() < 1e-5
        np.testing.assert_array_equal(alone.origin_yx, without.origin_yx)


@pytest.mark.parametrize("gridsize", [2, 3])
def test_merging_a_group_does_not_depend_on_other_groups(gridsize: int, scan: Scan) -> None:
    """Also where no probe falls, and also beside a group that is lit a million times brighter."""
    from ptycho_torch.physics.overlap import merge_patches

    members, rng = gridsize**2, np.random.default_rng(0)
    patches = torch.from_numpy(rng.normal(size=(2, members, 8, 8)) + 1j * rng.normal(size=(2, members, 8, 8)))
    weights = torch.from_numpy(10.0 ** rng.uniform(-9, 0, (2, members, 8, 8)))
    corners = torch.from_numpy(rng.integers(0, 5, (2, members, 2)))
    weights[1] *= 1e6
    together = merge_patches(patches, weights, corners)
    for group in range(2):
        some = slice(group, group + 1)
        assert (merge_patches(patches[some], weights[some], corners[some]) - together[some]).abs().max() < 1e-10


def test_some_positions_in_any_order(scan: Scan, model: PtychoModel) -> None:
    some = np.array([3, 30, 17])
    result = predict_scan(model, scan, 1.0, centers=some)
    np.testing.assert_array_equal(result.positions, scan.positions[some])
    turned = predict_scan(model, scan, 1.0, centers=some[::-1])
    assert np.abs(turned.object - result.object).max() < 1e-5


def test_the_scale_given_is_the_scale_used(scan: Scan, model: PtychoModel) -> None:
    """Amplitudes twice as large with a quarter of the photons a squared unit are the same patterns."""
    reference = predict_scan(model, scan, 1.0)
    twice = replace(scan, amplitudes=2 * scan.amplitudes)
    assert np.abs(predict_scan(model, twice, 0.25).object - reference.object).max() < 1e-5
    assert np.abs(predict_scan(model, twice, 1.0).object - reference.object).max() > 1e-2


def test_a_group_larger_than_the_scan_is_refused(scan: Scan, model: PtychoModel) -> None:
    with pytest.raises(ConfigError, match="`gridsize` is 7, which needs groups of 49 positions"):
        predict_scan(model, scan, 1.0, gridsize=7)


def test_half_precision_is_near(scan: Scan, model: PtychoModel) -> None:
    full, half = (predict_scan(model, scan, 1.0, precision=name).object for name in ("fp32", "bf16"))
    assert half.dtype == full.dtype
    assert 0 < np.abs(half - full).max() < 0.05


def test_progress_is_told_to_the_end(scan: Scan, model: PtychoModel) -> None:
    class Listener:
        def __init__(self) -> None:
            self.told: list[tuple[str, int]] = []

        def start(self, task: str, total: int) -> None:
            self.told.append((task, total))

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.told.append(("advance", steps))

        def finish(self) -> None:
            self.told.append(("end", 0))

    listener = Listener()
    predict_scan(model, scan, 1.0, batch_size=10, observer=listener)
    assert listener.told[0] == ("inference", 36)
    assert sum(steps for what, steps in listener.told if what == "advance") == 36
    assert listener.told[-1] == ("end", 0)
