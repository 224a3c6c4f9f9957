"""Prediction of a whole scan: true patches give the true object, and groups are independent of each other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TruePatchNetwork

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.grouping import find_nearest_groups
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.overlap import merge_patches
from ptycho_torch.prediction.predict import predict_scan


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PtychoModel:
    return load_model(model_folder).model


def make_true_model(scan: Scan) -> PtychoModel:
    """Return a model whose network returns the true patches."""
    model = PtychoModel(NetworkConfig(width=4), scale_probe_to_photons(scan, 1.0))
    model.network = TruePatchNetwork(scan)
    return model


@pytest.mark.parametrize("gridsize", [1, 2, 3])
@pytest.mark.parametrize("modes", [1, 2])
def test_true_patches_give_the_true_object(gridsize: int, modes: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(25, 24, modes=modes)
    result = predict_scan(make_true_model(scan), scan, 1.0, gridsize=gridsize)
    assert scan.truth is not None
    row, column = result.origin_yx
    covered = np.argwhere(result.coverage > 0)
    expected = scan.truth[tuple((covered + np.array([row, column])).T)]
    assert np.abs(result.object[tuple(covered.T)] - expected).max() < 1e-5
    assert len(covered) > 24 * 24


def test_a_shift_of_all_positions_shifts_the_origin_only(scan: Scan) -> None:
    model = make_true_model(scan)
    reference = predict_scan(model, scan, 1.0)
    shifted_scan = replace(scan, positions=scan.positions + np.array([-100_000, 7_000_000]))
    shifted = predict_scan(model, shifted_scan, 1.0)
    assert (shifted.origin_yx - reference.origin_yx).tolist() == [-100_000, 7_000_000]
    assert np.abs(shifted.object - reference.object).max() < 1e-5


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_canvas_contains_all_patches_and_a_margin_of_two_pixels(
    gridsize: int, scan: Scan, model: PtychoModel
) -> None:
    result = predict_scan(model, scan, 1.0, gridsize=gridsize)
    corners = np.floor(scan.positions - scan.size // 2 + 0.5)
    np.testing.assert_array_equal(result.origin_yx, corners.min(0) - 2)
    np.testing.assert_array_equal(result.object.shape, np.ptp(corners, axis=0) + scan.size + 4)
    margin = np.ones(result.object.shape, dtype=bool)
    margin[2:-2, 2:-2] = False
    assert not result.coverage[margin].any()
    assert (result.object[margin] == 1).all()


@pytest.mark.parametrize("gridsize", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 10**30])
def test_the_batch_size_has_no_effect(gridsize: int, batch_size: int, scan: Scan, model: PtychoModel) -> None:
    reference = predict_scan(model, scan, 1.0, gridsize=gridsize)
    other = predict_scan(model, scan, 1.0, gridsize=gridsize, batch_size=batch_size)
    assert np.abs(other.object - reference.object).max() < 1e-5


@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_group_is_independent_of_the_rest_of_the_scan(gridsize: int, scan: Scan, model: PtychoModel) -> None:
    for center in (0, 14):
        centers = np.array([center])
        in_scan = predict_scan(model, scan, 1.0, gridsize=gridsize, centers=centers)
        group = scan.select(find_nearest_groups(scan.positions, gridsize, centers)[0])
        alone = predict_scan(model, group, 1.0, gridsize=gridsize, centers=np.array([0]))
        assert np.abs(in_scan.object - alone.object).max() < 1e-5
        np.testing.assert_array_equal(in_scan.origin_yx, alone.origin_yx)


@pytest.mark.parametrize("gridsize", [2, 3])
def test_merging_a_group_does_not_depend_on_other_groups(gridsize: int, scan: Scan) -> None:
    """The weights of a group span nine decades, and those of the other group are a million times higher."""
    members, rng = gridsize**2, np.random.default_rng(0)
    patches = torch.from_numpy(rng.normal(size=(2, members, 8, 8)) + 1j * rng.normal(size=(2, members, 8, 8)))
    weights = torch.from_numpy(10.0 ** rng.uniform(-9, 0, (2, members, 8, 8)))
    corners = torch.from_numpy(rng.integers(0, 5, (2, members, 2)))
    weights[1] *= 1e6
    together = merge_patches(patches, weights, corners)
    for group in range(2):
        one = slice(group, group + 1)
        assert (merge_patches(patches[one], weights[one], corners[one]) - together[one]).abs().max() < 1e-10


def test_the_order_of_the_centers_has_no_effect(scan: Scan, model: PtychoModel) -> None:
    centers = np.array([3, 30, 17])
    result = predict_scan(model, scan, 1.0, centers=centers)
    np.testing.assert_array_equal(result.positions, scan.positions[centers])
    reversed_result = predict_scan(model, scan, 1.0, centers=centers[::-1])
    assert np.abs(reversed_result.object - result.object).max() < 1e-5


def test_amplitudes_are_converted_by_the_photon_scale(scan: Scan, model: PtychoModel) -> None:
    """Twice the amplitudes with a quarter of the photons per squared unit are the same patterns."""
    reference = predict_scan(model, scan, 1.0)
    twice = replace(scan, amplitudes=2 * scan.amplitudes)
    assert np.abs(predict_scan(model, twice, 0.25).object - reference.object).max() < 1e-5
    assert np.abs(predict_scan(model, twice, 1.0).object - reference.object).max() > 1e-2


def test_a_group_larger_than_the_scan_raises(scan: Scan, model: PtychoModel) -> None:
    with pytest.raises(ConfigError, match="`gridsize` is 7, which needs groups of 49 positions"):
        predict_scan(model, scan, 1.0, gridsize=7)


def test_half_precision_agrees_approximately(scan: Scan, model: PtychoModel) -> None:
    full, half = (predict_scan(model, scan, 1.0, precision=name).object for name in ("fp32", "bf16"))
    assert half.dtype == full.dtype
    assert 0 < np.abs(half - full).max() < 0.05


def test_the_observer_receives_the_progress_of_all_patterns(scan: Scan, model: PtychoModel) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[str, int]] = []

        def start(self, task: str, total: int) -> None:
            self.calls.append((task, total))

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.calls.append(("advance", steps))

        def finish(self) -> None:
            self.calls.append(("finish", 0))

    recorder = Recorder()
    predict_scan(model, scan, 1.0, batch_size=10, observer=recorder)
    assert recorder.calls[0] == ("inference", 36)
    assert sum(steps for name, steps in recorder.calls if name == "advance") == 36
    assert recorder.calls[-1] == ("finish", 0)
