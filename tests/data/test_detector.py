"""Corrections of raw frames: every step keeps counts, and no padded or defective pixel counts."""

from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.detector import (
    apply_flat,
    bin_frames,
    clip_negative,
    find_gap_pixels,
    find_marker_pixels,
    fit_window,
    subtract_dark,
)

Array = np.ndarray[Any, Any]


def make_counts(shape: tuple[int, ...] = (20, 24, 20), mean: float = 40, seed: int = 0) -> Array:
    """Poisson counts that fall off from the middle of a frame."""
    rows, columns = (np.arange(side) - side // 2 for side in shape[1:])
    envelope = np.exp(-(rows[:, None] ** 2 + columns**2) / (min(shape[1:]) / 4) ** 2)
    return np.random.default_rng(seed).poisson(mean * envelope, shape)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("center", [(12.0, 10.0), (3.2, 17.9), (22.0, 0.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_window_has_zero_frequency_at_its_middle_and_masks_padded_pixels(
    size: int, center: tuple[float, float], masked: bool
) -> None:
    frames = make_counts() + 1
    mask = np.ones(frames.shape[1:], bool) if masked else None
    window, counting = fit_window(frames, mask, center, size)
    row, column = round(center[0]), round(center[1])
    assert window.shape == (20, size, size)
    assert (window[:, size // 2, size // 2] == frames[:, row, column]).all()
    complete = all(
        middle - size // 2 >= 0 and middle - size // 2 + size <= side
        for middle, side in zip((row, column), frames.shape[1:], strict=True)
    )
    if counting is None:
        assert complete
        assert not masked
    else:
        assert counting.all() == complete
        assert ((window > 0) == counting).all()


def test_window_keeps_the_mask_of_every_frame() -> None:
    frames = make_counts()
    mask = frames != 3
    _, counting = fit_window(frames, mask, (4, 10), 16)
    assert counting is not None
    assert counting.shape == (20, 16, 16)
    assert (counting[:, 8, 8] == mask[:, 4, 10]).all()
    assert not counting[:, 0].any()


def test_window_outside_the_frame_is_rejected() -> None:
    with pytest.raises(ConfigError, match="`center`"):
        fit_window(make_counts(), None, (60, 10), 16)


def test_dark_subtraction_of_small_integers_does_not_wrap() -> None:
    frames = np.full((2, 4, 4), 3, np.uint8)
    corrected = subtract_dark(frames, np.full((4, 4), 5, np.uint8))
    assert (corrected == -2).all()
    clipped, number = clip_negative(corrected)
    assert (clipped == 0).all()
    assert number == 32


def test_flat_keeps_the_total_of_uniform_light_and_masks_insensitive_pixels() -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(50, 150, (12, 10))
    flat[3, 4], flat[5, 5] = 0, np.nan
    usable = np.isfinite(flat) & (flat > 0)
    frames = np.where(usable, 7 * flat / flat[usable].mean(), 9)[None]
    corrected, mask = apply_flat(frames, flat)
    assert (mask == usable).all()
    np.testing.assert_allclose(corrected[0][usable], 7, rtol=1e-5)
    assert (corrected[0][~usable] == 0).all()


@pytest.mark.parametrize("correct", [subtract_dark, apply_flat])
def test_correction_frame_of_another_size_is_rejected(correct: Any) -> None:
    with pytest.raises(DataError, match=r"\(24, 20\)"):
        correct(make_counts(), np.ones((20, 24)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_binning_sums_counts_and_counts_only_complete_blocks(dtype: str) -> None:
    frames = np.full((3, 9, 12), 200, dtype)
    mask = np.ones((9, 12), bool)
    mask[4, 7] = False
    summed, counting, center = bin_frames(frames, 3, mask, (4, 7))
    assert summed.shape == (3, 3, 4)
    assert (summed == 1800).all()
    assert counting is not None
    assert np.argwhere(~counting).tolist() == [[1, 2]]
    assert center == (1, 2)


MARKERS: list[tuple[str, float]] = [
    ("uint8", 255),
    ("uint16", 65535),
    ("uint16", 65534),
    ("uint32", 4294967295),
    ("uint32", 65535),
    ("int32", -1),
    ("int32", 2147483647),
    ("int16", -2),
    ("float32", 4294967295),
    ("float32", 65535),
    ("float32", -1),
    ("float64", np.nan),
    ("float32", np.inf),
]


@pytest.mark.parametrize(("dtype", "value"), MARKERS)
def test_marker_values_in_a_gap_are_found(dtype: str, value: float) -> None:
    frames = make_counts().astype(dtype)
    frames[:, 5] = np.array(value).astype(dtype)
    frames[2, 8, 8] = np.array(value).astype(dtype)
    expected = np.zeros(frames.shape, bool)
    expected[:, 5] = expected[2, 8, 8] = True
    assert (find_marker_pixels(frames) == expected).all()


def test_gap_and_saturated_pixels_are_found_together() -> None:
    counts = make_counts(mean=4000)
    limit = int(np.quantile(counts, 0.97))
    frames = np.minimum(counts, limit).astype(np.uint16)
    frames[:, 5] = 65535
    expected = counts >= limit
    expected[:, 5] = True
    assert (find_marker_pixels(frames) == expected).all()


@pytest.mark.parametrize("mean", [0.02, 0.5, 5, 40, 3000])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_counts_without_markers_are_all_kept(mean: float, dtype: str) -> None:
    assert not find_marker_pixels(make_counts((60, 24, 20), mean).astype(dtype)).any()


def test_small_negative_noise_is_no_marker() -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, (20, 24, 20))
    assert not find_marker_pixels(make_counts() + noise).any()


@pytest.mark.parametrize("value", [-1e-12, -1e-7])
def test_rounding_error_of_a_subtraction_is_no_marker(value: float) -> None:
    counts = np.random.default_rng(0).poisson(0.7, (40, 8, 8)) * 1000.0
    counts[:, 0, 0] = 0
    assert not find_marker_pixels(counts + value).any()
    assert not find_gap_pixels(counts + value).any()
    counts[:, 2] = -1
    assert find_marker_pixels(counts).sum() == 40 * 8
