"""Alignment removes the freedoms of ptychography and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.evaluation.alignment import (
    MIN_COVERAGE_FRACTION,
    OverlapRegion,
    align,
    apply_phase_ramp,
    compute_covered_region,
    crop_to_overlap,
    estimate_phase_ramp,
    estimate_shift,
    fit_complex_scale,
    shift_image,
)

Complex = NDArray[np.complex128]
RAMPS = [(0.0, 0.0), (0.031, -0.012), (-0.4, 0.25)]
SHIFTS = [(0.0, 0.0), (0.37, -0.81), (-3.2, 5.6)]


def pair_of(
    object_at: Callable[..., Complex], ramp: Any = (0, 0), shift: Any = (0, 0), factor: complex = 1
) -> OverlapRegion:
    """The object, and the same moved back by ``shift`` under a ramp; the region is an oval off the middle."""
    rows, columns = np.arange(101.0), np.arange(94.0)
    truth = object_at(rows, columns)
    moved = object_at(rows + shift[0], columns + shift[1])
    region = ((rows[:, None] - 53) / 28) ** 2 + ((columns - 42) / 24) ** 2 < 1
    return OverlapRegion(factor * apply_phase_ramp(moved, np.array(ramp)), truth, region, np.zeros(2, np.int64))


def residual(pair: OverlapRegion, obj: Complex) -> float:
    return float(np.linalg.norm((obj - pair.truth)[pair.region]) / np.linalg.norm(pair.truth[pair.region]))


@pytest.mark.parametrize("factor", [1, -2.5, 3e4j, 0.01 * np.exp(2.2j)])
def test_a_complex_factor_is_always_removed(sample_object: Callable[..., Complex], factor: complex) -> None:
    pair = pair_of(sample_object, factor=factor)
    found = align(pair)
    assert residual(pair, found.object) < 1e-10
    assert found.scale == pytest.approx(1 / factor, rel=1e-10)


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_ramp_is_removed_on_request(sample_object: Callable[..., Complex], ramp: tuple[float, float]) -> None:
    pair = pair_of(sample_object, ramp=ramp, factor=2j)
    found = align(pair, remove_ramp=True)
    assert residual(pair, found.object) < 1e-6
    np.testing.assert_allclose(found.ramp, ramp, atol=1e-7)
    np.testing.assert_array_equal(found.shift, 0)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_removed_on_request(sample_object: Callable[..., Complex], shift: tuple[float, float]) -> None:
    pair = pair_of(sample_object, shift=shift, factor=2j)
    found = align(pair, remove_shift=True)
    np.testing.assert_allclose(found.shift, shift, atol=1e-3)
    assert residual(pair, found.object) < 0.01
    np.testing.assert_array_equal(found.ramp, 0)


@pytest.mark.parametrize("ramp", RAMPS[1:])
@pytest.mark.parametrize("shift", SHIFTS[1:])
def test_ramp_and_shift_together(sample_object: Callable[..., Complex], ramp: Any, shift: Any) -> None:
    pair = pair_of(sample_object, ramp=ramp, shift=shift)
    found = align(pair, remove_ramp=True, remove_shift=True)
    np.testing.assert_allclose(found.shift, shift, atol=1e-3)
    np.testing.assert_allclose(found.ramp, ramp, atol=1e-3)
    assert residual(pair, found.object) < 0.01


@pytest.mark.parametrize(
    ("left", "removed"),
    [
        ({"ramp": (0.05, 0.03)}, {}),
        ({"ramp": (0.05, 0.03)}, {"remove_shift": True}),
        ({"shift": (1.5, -1)}, {}),
        ({"shift": (1.5, -1)}, {"remove_ramp": True}),
    ],
)
def test_ambiguities_that_are_not_requested_remain(
    sample_object: Callable[..., Complex], left: Any, removed: Any
) -> None:
    pair = pair_of(sample_object, **left)
    assert residual(pair, align(pair, **removed).object) > 0.2


@pytest.mark.parametrize(
    "change",
    [np.conj, lambda obj: obj[::-1], np.abs, lambda obj: obj**2],
    ids=["twin", "reversed", "no phase", "square"],
)
def test_nothing_else_is_removed(sample_object: Callable[..., Complex], change: Callable[[Complex], Complex]) -> None:
    pair = pair_of(sample_object)
    pair = pair._replace(object=np.asarray(change(pair.truth), np.complex128))
    assert residual(pair, align(pair, remove_ramp=True, remove_shift=True).object) > 0.3


def test_the_scale_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    rec, truth = rng.normal(size=(2, 5, 7)) + 1j * rng.normal(size=(2, 5, 7))
    weights = rng.random((5, 7))
    scale = fit_complex_scale(rec, truth, weights)

    def error(factor: complex) -> float:
        return float(np.sum(weights * np.abs(factor * rec - truth) ** 2))

    for step in (1e-3, -1e-3, 1e-3j, -1e-3j):
        assert error(scale + step) > error(scale)
    assert fit_complex_scale(0 * rec, truth, weights) == 0


def test_a_shift_by_whole_pixels_is_a_roll() -> None:
    image = np.random.default_rng(0).normal(size=(9, 12)).astype(np.complex128)
    moved = shift_image(image, np.array([2.0, -3.0]))
    assert np.abs(moved - np.roll(image, (2, -3), (0, 1))).max() < 1e-12


def test_signs_of_ramp_and_shift(sample_object: Callable[..., Complex]) -> None:
    region = np.ones((40, 33), bool)
    truth = sample_object(np.arange(40), np.arange(33))
    np.testing.assert_allclose(
        estimate_phase_ramp(apply_phase_ramp(truth, np.array([0.2, -0.1])), truth, region), [0.2, -0.1], atol=1e-7
    )
    # An object that is 4 rows too low moves up.
    np.testing.assert_allclose(estimate_shift(np.roll(truth, (4, -2), (0, 1)), truth, region), [-4, 2], atol=1e-4)


def test_the_covered_region_is_where_light_is(simulated_case: Any) -> None:
    rec = simulated_case.reconstruction
    region = compute_covered_region(rec)
    assert rec.coverage[region].min() >= MIN_COVERAGE_FRACTION * rec.coverage.max()
    assert rec.coverage[~region].max() < MIN_COVERAGE_FRACTION * rec.coverage.max()
    brighter = replace(rec, coverage=rec.coverage * 7)
    np.testing.assert_array_equal(compute_covered_region(brighter), region)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (9, 4), (-7, 30), (60, -50)])
def test_the_overlap_is_cut_on_one_grid(simulated_case: Any, dy: int, dx: int) -> None:
    """A canvas that reaches out of the truth on any side meets the truth pixel on pixel."""
    rec = simulated_case.reconstruction
    origin = rec.origin_yx + np.array([dy, dx])
    top, left = origin
    truth = np.zeros((100, 100), complex)
    inside = [(r, c) for r in range(100) for c in range(100) if 0 <= r - top < rec.object.shape[0]]
    for r, c in inside:
        if 0 <= c - left < rec.object.shape[1]:
            truth[r, c] = rec.object[r - top, c - left]
    pair = crop_to_overlap(replace(rec, origin_yx=origin), truth)
    assert pair.region.any()
    np.testing.assert_array_equal(pair.object, pair.truth)
    np.testing.assert_array_equal(pair.truth[0, 0], truth[tuple(pair.origin_yx)])


def test_what_cannot_be_compared_is_refused(simulated_case: Any) -> None:
    rec = simulated_case.reconstruction
    with pytest.raises(DataError, match="share no covered pixel"):
        crop_to_overlap(replace(rec, origin_yx=rec.origin_yx + 1000), simulated_case.truth)
    with pytest.raises(DataError, match="share no covered pixel"):
        crop_to_overlap(rec, simulated_case.truth[:3])
    with pytest.raises(DataError, match=r"largest coverage is 0\.0"):
        compute_covered_region(replace(rec, coverage=0 * rec.coverage))
    with pytest.raises(DataError, match="expected equal shapes"):
        compute_covered_region(replace(rec, coverage=rec.coverage[1:]))
    broken = rec.object.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinity at 1 pixels"):
        compute_covered_region(replace(rec, object=broken))
