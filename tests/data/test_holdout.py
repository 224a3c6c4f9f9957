"""Held-out pixels: a random share of those that count, others in every pattern."""

from dataclasses import replace

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.holdout import draw_holdout_pixels, mask_pixels
from ptycho_torch.data.scan import Scan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_share_is_drawn_by_the_seed_and_differs_between_patterns(scan: Scan, share: float) -> None:
    held = draw_holdout_pixels(scan, share, rng())
    assert held.shape == scan.amplitudes.shape
    assert held.mean() == pytest.approx(share, abs=4 * (share / held.size) ** 0.5)
    assert (held[0] != held[1]).any()
    assert (held == draw_holdout_pixels(scan, share, rng())).all()
    assert (held != draw_holdout_pixels(scan, share, rng(1))).any()


@pytest.mark.parametrize("per_pattern", [False, True])
def test_only_pixels_that_count_are_held_out(scan: Scan, per_pattern: bool) -> None:
    shape = scan.amplitudes.shape if per_pattern else scan.amplitudes.shape[1:]
    mask = rng(3).uniform(size=shape) > 0.4
    masked = replace(scan, mask=mask)
    held = draw_holdout_pixels(masked, 0.2, rng())
    assert not (held & ~mask).any()
    left = mask_pixels(masked, held).mask
    assert left is not None
    assert (left == (mask & ~held)).all()
    assert (mask_pixels(scan, held).mask == ~held).all()


def test_none_drawn_is_refused(scan: Scan) -> None:
    with pytest.raises(DataError, match="--holdout 1e-09 draws none"):
        draw_holdout_pixels(scan, 1e-9, rng())
