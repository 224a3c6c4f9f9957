"""Hold-out pixels: detector pixels that a fit does not use, so that its predictions can be tested on them."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan


def draw_holdout_pixels(scan: Scan, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a random share of the pixels that count, independently in every pattern.

    Single pixels are drawn rather than whole patterns, because every pattern is needed for its part of the object and
    the counting noise of one pixel is independent of the next.

    Args:
        scan: the scan.
        share: share of the pixels, between 0 and 1.
        rng: random generator.

    Returns:
        (n, N, N) bool, True for the drawn pixels, centered as the patterns.

    Raises:
        DataError: no pixel is drawn because the scan is too small.
    """
    unmasked = np.ones((scan.size, scan.size), bool) if scan.mask is None else scan.mask
    held_out = np.empty(scan.amplitudes.shape, bool)
    for pattern in held_out:  # one by one: random numbers take several times the memory of a mask
        pattern[:] = rng.random(pattern.shape, np.float32) < share
    held_out &= unmasked
    if not held_out.any():
        raise DataError(
            f"`holdout` is {share:g}, which draws none of the scan's {held_out.size} pixels; expected at least one; "
            "choose a larger share"
        )
    return held_out


def mask_pixels(scan: Scan, held_out: NDArray[np.bool_]) -> Scan:
    """Return ``scan`` with the pixels ``held_out`` (n, N, N) masked in addition to its own mask."""
    return replace(scan, mask=~held_out if scan.mask is None else scan.mask & ~held_out)
