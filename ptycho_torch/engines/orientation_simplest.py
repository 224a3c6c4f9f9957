"""Comparison of the orientations without rotation and scale of the positions, and the evidence that others require."""

from typing import NamedTuple

import numpy as np

from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.engines.orientation_placement import (
    COARSE_STEP_DEG,
    LONG_EPOCHS,
    OrientationSearcher,
    Placement,
    ProbeSource,
)
from ptycho_torch.engines.orientation_trial import OrientationTrials, Trial

SIMPLEST = tuple(Placement(mirrored, angle, 1.0) for mirrored in (False, True) for angle in (0.0, 90.0))
"""The four orientations, up to an inversion, with positions as they are."""

MIN_OVERLAP = 0.5
"""Smallest linear overlap of neighboring patterns for which rotation and scale are searched.

With less overlap hardly any part of the object is in two patterns, and every placement fits: 63 patterns of 32 × 32
pixels with 25 % overlap fitted 67 % better with a wrong orientation, rotation and scale than any other orientation did.
"""

MIN_SPARSE_MARGIN = 0.6
"""Smallest margin of an orientation with the given probe that is decided where patterns overlap less."""

MAX_FIT_EXCESS, MIN_FIT_MARGIN = 0.5, 0.8
"""Largest score with the given probe, and its smallest margin, of an orientation for which no other is searched."""

MIN_FAR_GAIN, MIN_UNUSUAL_SCALE_GAIN = 0.5, 0.8
"""Smallest relative gain in score over the simplest placements of a large rotation or change of the scale, and of an
unusual scale where the object pixel is known."""

USUAL_SCALES, SCALE_TOLERANCE = (0.5, 1.0, 2.0), 0.05
"""Scales of positions that a known object pixel leaves, for instance after binning, and their relative tolerance."""


class Finalist(NamedTuple):
    """A placement with its trial."""

    placement: Placement
    trial: Trial
    source: ProbeSource = "estimated"


def compare_simplest(searcher: OrientationSearcher) -> list[Finalist]:
    """Return the four orientations of :data:`SIMPLEST`, each with its best probe, best first."""
    sources: tuple[ProbeSource, ...] = ("estimated",)
    if searcher.trials.window.probe is not None:
        sources = ("estimated", "given", "conjugate")
    with searcher.observe("comparison of orientations as placed", len(SIMPLEST) * len(sources)):
        rows = [
            [Finalist(each, searcher.run(each, source, LONG_EPOCHS), source) for source in sources] for each in SIMPLEST
        ]
    best = [min(row, key=_get_score) for row in rows]
    return sorted(best, key=_get_score)


def measure_overlap(trials: OrientationTrials, placement: Placement) -> float:
    """Return the linear overlap of neighboring patterns, 1 − step / probe diameter, with positions as placed.

    The probe is that of the scan, or the one that the patterns suggest for this placement.
    """
    window = trials.window
    probe = trials.make_probe(placement.matrix) if window.probe is None else window.probe
    return 1 - placement.scale * (compute_median_step(window.positions) or 0.0) / compute_probe_diameter(probe)


def measure_largest_overlap(trials: OrientationTrials) -> float:
    """Return the largest overlap over the orientations and coarse rotations, with positions at their scale.

    Shadows that move the wrong way suggest no curvature, and therefore a probe that is too small: only the right
    placement suggests the right probe.
    """
    if trials.window.probe is not None:
        return measure_overlap(trials, Placement(False, 0.0, 1.0))
    angles = np.arange(0, 180, COARSE_STEP_DEG).tolist()
    return max(
        measure_overlap(trials, Placement(mirrored, angle, 1.0)) for mirrored in (False, True) for angle in angles
    )


def is_unusual(scale: float) -> bool:
    """Return True for a scale that a known object pixel does not suggest."""
    return all(abs(scale / usual - 1) > SCALE_TOLERANCE for usual in USUAL_SCALES)


def compute_required_gain(scale: float, pixel_known: bool) -> float:
    """Return the relative gain over the simplest placements that a far placement of this scale requires."""
    return MIN_UNUSUAL_SCALE_GAIN if pixel_known and is_unusual(scale) else MIN_FAR_GAIN


def invert(orientation: Orientation) -> Orientation:
    """Return ``orientation`` followed by an inversion, a flip of both axes."""
    return orientation.then(Orientation(True, True))


def _get_score(finalist: Finalist) -> float:
    return finalist.trial.score
