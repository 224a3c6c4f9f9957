"""Hold-out pixels: a random share of the pixels that count, drawn independently per pattern."""

from dataclasses import replace

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.holdout import draw_holdout_pixels, mask_pixels
from ptycho_torch.data.scan import Scan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_share_follows_the_seed_and_differs_between_patterns(scan: Scan, share: float) -> None:
    held_out = draw_holdout_pixels(scan, share, rng())
    assert held_out.shape == scan.amplitudes.shape
    assert held_out.mean() == pytest.approx(share, abs=4 * (share / held_out.size) ** 0.5)
    assert (held_out[0] != held_out[1]).any()
    assert (held_out == draw_holdout_pixels(scan, share, rng())).all()
    assert (held_out != draw_holdout_pixels(scan, share, rng(1))).any()


@pytest.mark.parametrize("per_pattern", [False, True])
def test_masked_pixels_are_not_held_out(scan: Scan, per_pattern: bool) -> None:
    shape = scan.amplitudes.shape if per_pattern else scan.amplitudes.shape[1:]
    mask = rng(3).uniform(size=shape) > 0.4
    masked = replace(scan, mask=mask)
    held_out = draw_holdout_pixels(masked, 0.2, rng())
    assert not (held_out & ~mask).any()
    remaining = mask_pixels(masked, held_out).mask
    assert remaining is not None
    assert (remaining == (mask & ~held_out)).all()
    assert (mask_pixels(scan, held_out).mask == ~held_out).all()


def test_empty_draw_raises(scan: Scan) -> None:
    with pytest.raises(DataError, match="`holdout` is 1e-09, which draws none"):
        draw_holdout_pixels(scan, 1e-9, rng())
