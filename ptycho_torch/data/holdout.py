"""Detector pixels that a fit does not see, so that they can tell how well it predicts."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan


def draw_holdout_pixels(scan: Scan, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random ``share`` of the pixels that count, in every pattern others: (n, N, N) bool, centred as the patterns.

    Pixels and not whole patterns, because every pattern is needed for its piece of the object; and the counting noise
    of one pixel says nothing about that of the next.

    Raises:
        DataError: the scan is so small that none is drawn.
    """
    unmasked = np.ones((scan.size, scan.size), bool) if scan.mask is None else scan.mask
    held_out = np.empty(scan.amplitudes.shape, bool)
    for pattern in held_out:  # one by one: random numbers take several times the memory of a mask
        pattern[:] = rng.random(pattern.shape, np.float32) < share
    held_out &= unmasked
    if not held_out.any():
        raise DataError(
            f"--holdout {share:g} draws none of the scan's {held_out.size} pixels, expected at least one; raise it"
        )
    return held_out


def mask_pixels(scan: Scan, held_out: NDArray[np.bool_]) -> Scan:
    """``scan`` with the pixels ``held`` (n, N, N) masked too."""
    return replace(scan, mask=~held_out if scan.mask is None else scan.mask & ~held_out)
