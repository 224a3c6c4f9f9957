"""The beginning of a pipeline on a scan: settings, probe, held-out pixels and initial positions."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.engines import EngineOptions, IterativeOptions
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.grouping import Indices
from ptycho_torch.data.holdout import draw_holdout_pixels
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.matching import match_patterns, select_patterns
from ptycho_torch.models.probe_estimation import make_gaussian_probe

log = logging.getLogger(__name__)

HOLDOUT_SEED_KEY = (0, 1)
"""Key of the generator that draws the held-out pixels, next to the seed: different from the keys of the epochs."""

MAX_HOLDOUT_FRACTION = 0.5

MAX_EXTENT_RATIO = 1.25
"""Ratio of the extents of initial positions and of those of the scan, and its inverse, beyond which a warning is
logged."""


def check_run_settings(holdout: float, seed: int) -> None:
    """Check the fraction of held-out pixels and the seed.

    Raises:
        ConfigError: one of them is out of its range.
    """
    if not 0 <= holdout <= MAX_HOLDOUT_FRACTION:
        raise ConfigError(f"`holdout` is {holdout}; expected a fraction from 0 to {MAX_HOLDOUT_FRACTION}")
    if seed < 0:
        raise ConfigError(f"`seed` is {seed}; expected a number of at least 0")


def draw_holdout(scan: Scan, fraction: float, seed: int) -> NDArray[np.bool_] | None:
    """Draw the pixels that no iterative engine uses, (n, N, N); None if ``fraction`` is 0."""
    if not fraction:
        return None
    return draw_holdout_pixels(scan, fraction, np.random.default_rng([seed, *HOLDOUT_SEED_KEY]))


def estimate_probe(scan: Scan, seed: int) -> Callable[[Scan], NDArray[np.complex64]]:
    """Return a function that estimates the probe of a scan without one, and log a warning."""
    log.warning(
        "%s: no probe; a Gaussian with the width and curvature of the patterns is the initial probe, and every "
        "iterative engine updates it; set `init_probe` to a better one",
        scan.source or "the scan",
    )
    return lambda visible: make_gaussian_probe(visible, None, np.random.default_rng(seed))


def update_probe(stages: Sequence[EngineOptions]) -> tuple[EngineOptions, ...]:
    """Return the stages with ``update_probe`` in each iterative stage, because an estimated probe is not exact."""
    return tuple(
        replace(stage, update_probe=True) if isinstance(stage, IterativeOptions) else stage for stage in stages
    )


def warn_other_extent(initial: NDArray[np.float64], positions: NDArray[np.float64]) -> None:
    """Log a warning if the initial positions extend much more or less than those of the scan."""
    spread, expected = (float(np.linalg.norm(each.std(0))) for each in (initial, positions))
    if expected > 0 and not 1 / MAX_EXTENT_RATIO < spread / expected < MAX_EXTENT_RATIO:
        log.warning(
            "the initial positions extend over %.3g times the field of the scan; they may be in another object "
            "pixel, as before a crop; check `init_positions`",
            spread / expected,
        )


def match_initial(initial: Reconstruction, scan: Scan, part: Scan, centers: Indices) -> Reconstruction:
    """Return the initial estimate with the positions and intensities of the patterns of ``part``, if it has them."""
    if len(initial.positions) == len(part):
        return initial
    if len(initial.positions) == len(scan):
        return select_patterns(initial, centers)
    matched, common = match_patterns(initial, part)
    return matched if len(common) == len(part) else initial
