"""Positions by a network's picture: they come to where the truth is, no farther than allowed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.patches import Canvas, split_positions
from ptycho_torch.prediction.position_refinement import GaussNewtonPositionRefiner
from ptycho_torch.prediction.predict import predict_scan

WRONG = 0.7
"""Pixels rms an axis by which positions are off."""


def astray(scan: Scan) -> Scan:
    """With wrong positions, whose mean is right: a shift of all of them is one of the object."""
    errors = np.random.default_rng(0).normal(0, WRONG, scan.positions.shape)
    return replace(scan, positions=scan.positions + errors - errors.mean(0))


def off(positions: NDArray[np.float64], scan: Scan) -> float:
    """Pixels rms an axis, but for a common shift."""
    error = positions - scan.positions
    return float(np.square(error - error.mean(0)).mean() ** 0.5)


def settling(scan: Scan, bound: float = 5.0) -> tuple[GaussNewtonPositionRefiner, torch.Tensor]:
    """For a scan whose truth is its picture, and that picture."""
    assert scan.truth is not None
    truth = torch.from_numpy(scan.truth)
    frame = Canvas((0, 0), tuple(truth.shape))
    batch, positions = make_batch(scan, 1.0), torch.from_numpy(scan.positions)
    return GaussNewtonPositionRefiner(batch, positions, scale_probe_to_photons(scan, 1.0), frame, bound), truth


def test_the_truth_brings_positions_home(scan_factory: Callable[..., Scan]) -> None:
    """Measured: 0.179 pixels after a step, from 0.653, 0.036 after two and 0.022 after three; 10⁶ photons a pattern."""
    scan = scan_factory(photons=1e6)
    found, truth = settling(astray(scan))
    found.refine(truth)
    assert off(found.positions.numpy(), scan) < 0.25
    for _ in range(2):
        batch = found.refine(truth)
    assert off(found.positions.numpy(), scan) < 0.04
    placed = split_positions(found.positions, scan.size)
    assert torch.equal(batch.corners, placed.corners)
    assert torch.equal(batch.fractions, placed.fractions.float())


def test_no_farther_than_allowed_and_never_all_together(scan: Scan) -> None:
    wrong = astray(scan)
    found, truth = settling(replace(wrong, positions=wrong.positions + 0.4), bound=0.25)
    found.refine(truth)
    moves = found.positions - found.initial_positions
    assert 0.2 < float(moves.abs().max()) <= 0.25 + 1e-9
    free, _ = settling(replace(scan, positions=scan.positions + 0.4))
    free.refine(truth)
    assert float((free.positions - free.initial_positions).mean(0).abs().max()) < 1e-9


def test_a_flat_picture_moves_nothing(scan: Scan) -> None:
    found, truth = settling(astray(scan))
    found.refine(torch.ones_like(truth))
    assert torch.equal(found.positions, found.initial_positions)


def test_the_unit_of_a_picture_does_not_matter(scan: Scan) -> None:
    one, truth = settling(astray(scan))
    other, _ = settling(astray(scan))
    one.refine(truth)
    other.refine(3 * truth)
    assert float((one.positions - other.positions).abs().max()) < 1e-3


def test_what_lies_on_masked_pixels_does_not_matter(scan: Scan) -> None:
    mask = np.random.default_rng(0).random((scan.size, scan.size)) > 0.1
    found = []
    for rubbish in (0.0, 50.0):
        amplitudes = np.where(mask, scan.amplitudes, np.float32(rubbish))
        one, truth = settling(astray(replace(scan, amplitudes=amplitudes, mask=mask)))
        for _ in range(2):
            one.refine(truth)
        found.append(one.positions)
    assert off(found[0].numpy(), scan) < 0.3
    # The probe's power is that of the patterns on pixels that count, so that nothing at all differs.
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["overlap_unet", "refined_unet"])
@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_network_that_finds_positions(name: str, gridsize: int, scan_factory: Callable[..., Scan]) -> None:
    """Untaught, with the physics that is in it: what it shows of a single pattern is too rough to say where that lies.

    Measured with the looks of `overlap_unet`: 0.479 pixels, from 0.664.
    """
    scan = scan_factory(64, photons=1e6)
    wrong = astray(scan)
    model = PtychoModel(NetworkConfig(name, width=4), scale_probe_to_photons(scan, 1.0))
    still, moved = (predict_scan(model, wrong, 1.0, gridsize=gridsize, position_bound=bound) for bound in (None, 3.0))
    np.testing.assert_array_equal(still.positions, wrong.positions)
    if model.object_stages:
        assert off(moved.positions, scan) < 0.8 * off(still.positions, scan)
    r_still, r_moved = (
        compute_fourier_error(one, replace(wrong, positions=one.positions), photons_per_unit=1.0).r
        for one in (still, moved)
    )
    assert r_moved < r_still


def test_a_part_of_the_positions(scan: Scan) -> None:
    """The canvas holds the windows wherever they go, and the positions are those of the centres asked for."""
    model = PtychoModel(NetworkConfig("overlap_unet", width=4), scale_probe_to_photons(scan, 1.0))
    some = np.array([3, 30, 17, 22])
    found = predict_scan(model, scan, 1.0, centers=some, position_bound=2.0)
    assert found.positions.shape == (4, 2)
    assert 0 < np.abs(found.positions - scan.positions[some]).max() <= 2
    corners = np.floor(found.positions - scan.size // 2 + 0.5) - found.origin_yx
    assert (corners >= 2).all()
    assert (corners + scan.size + 2 <= found.object.shape).all()
    assert np.isfinite(found.object).all()


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_how_bright_each_pattern_is_moves_nothing(spread: float, scan_factory: Callable[..., Scan]) -> None:
    """A source that fluctuates: positions find home as under a steady one."""
    scan = scan_factory(photons=1e6)
    factors = 1 + np.random.default_rng(1).uniform(-spread, spread, (len(scan), 1, 1))
    bright = replace(scan, amplitudes=(scan.amplitudes * np.sqrt(factors)).astype(np.float32))
    found = []
    for one in (scan, bright):
        moving, truth = settling(astray(one))
        for _ in range(3):
            moving.refine(truth)
        found.append(moving.positions)
    assert off(found[1].numpy(), scan) < 0.06
    assert off(found[1].numpy(), replace(scan, positions=found[0].numpy())) < 0.02


def test_a_background_that_is_known_moves_nothing(scan_factory: Callable[..., Scan]) -> None:
    """A tenth of the photons lie evenly on all pixels. Measured: 0.084 pixels left, and 0.41 where it is not known."""
    scan = scan_factory(photons=1e6)
    level = float(np.square(scan.amplitudes).sum((1, 2)).mean()) / 10 / scan.size**2
    behind = replace(scan, amplitudes=np.sqrt(np.square(scan.amplitudes) + np.float32(level)))
    left = []
    for background in (torch.full((scan.size, scan.size), level), None):
        moving, truth = settling(astray(scan))
        moving = GaussNewtonPositionRefiner(
            make_batch(behind, 1.0), moving.initial_positions, moving.probe, moving.canvas, 5.0, background
        )
        for _ in range(3):
            moving.refine(truth)
        left.append(off(moving.positions.numpy(), scan))
    assert left[0] < 0.12
    assert left[0] < left[1] / 3


@pytest.mark.parametrize("name", ["overlap_unet", "lifted_unet"])
def test_dead_patterns_neither_move_nor_drag_others(name: str, scan_factory: Callable[..., Scan]) -> None:
    """Whatever a network makes of them: here they agree with all others, since its picture is flat."""
    scan = scan_factory(64, photons=1e6)
    amplitudes = scan.amplitudes.copy()
    amplitudes[[9, 30, 50]] = 0
    model = PtychoModel(NetworkConfig(name, width=4), scale_probe_to_photons(scan, 1.0))
    found = predict_scan(model, replace(scan, amplitudes=amplitudes), 1.0, position_bound=3.0)
    moved = np.abs(found.positions - scan.positions).max(1)
    assert not moved[[9, 30, 50]].any()
    alive = np.delete(np.arange(64), [9, 30, 50])
    without = predict_scan(model, scan.select(alive), 1.0, position_bound=3.0)
    assert np.abs(found.positions[alive] - without.positions).max() < 0.05
