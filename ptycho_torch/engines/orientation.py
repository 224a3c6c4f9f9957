"""Search for the orientation of the detector against the scan positions, their rotation and their scale.

A flip or transpose of all patterns is equivalent to the inverse map of the positions, with an object and a probe that
are mapped alike. So patterns stay as they are, and every trial maps the positions by ``scale · O``, with an orthogonal
O. The inversion O = −1 is equivalent to the identity: the far field of the complex conjugate of an inverted wave has
the same intensity. Orientations therefore come in four pairs that only a known probe distinguishes.

The order of a search: :func:`~ptycho_torch.engines.orientation_window.select_window` takes 40 patterns,
:class:`~ptycho_torch.engines.orientation_trial.OrientationTrials` reconstructs them with mapped positions,
:class:`~ptycho_torch.engines.orientation_placement.OrientationSearcher` searches the map of the lowest score, and
:class:`Comparison` decides whether it is certain, from the placements without rotation and scale
(``orientation_simplest.py``) on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.data.orientation_search import OrientationScore, OrientationSearch
from ptycho_torch.data.scan import Scan, require_scan
from ptycho_torch.engines.orientation_placement import (
    FINE_STEPS,
    LONG_EPOCHS,
    ROTATION_STEPS,
    SHORT_EPOCHS,
    OrientationSearcher,
    Placement,
    ProbeSource,
)
from ptycho_torch.engines.orientation_simplest import (
    MAX_FIT_EXCESS,
    MIN_FIT_MARGIN,
    MIN_OVERLAP,
    MIN_SPARSE_MARGIN,
    MIN_UNUSUAL_SCALE_GAIN,
    Finalist,
    compare_simplest,
    compute_required_gain,
    invert,
    is_unusual,
    measure_largest_overlap,
    measure_overlap,
)
from ptycho_torch.engines.orientation_trial import OrientationTrials
from ptycho_torch.engines.orientation_window import select_window

MAX_OTHERS = 3
"""Number of other orientations in the comparison: one of each pair of inversions."""

MAX_NEGLIGIBLE_DEG, MAX_NEGLIGIBLE_LOG_SCALE = 6.0, 0.25
"""Largest rotation and logarithm of a scale that are reported only with :data:`MIN_GAIN`."""

MIN_MARGIN, MIN_SIGNIFICANCE = 0.35, 5.0
"""Smallest margin, and its smallest number of standard errors, of an orientation that is decided."""

MIN_PROBE_MARGIN = 0.35
"""Smallest margin of the given probe over its conjugate that decides between an orientation and its inversion."""

MAX_PROBE_EXCESS = 1.3
"""Largest ratio of the score with the given probe to the score with the estimated one, if the given one is right."""

MIN_GAIN = 0.2
"""Smallest relative gain in score for which a scale or a rotation other than the simplest is reported."""

MIN_PATTERNS = 8
"""Smallest number of patterns in which an orientation is searched."""

MIN_WIDTH_FRACTION = 0.05
"""Width of the positions, as a fraction of their length, below which they lie on a line."""

COMPARISON_TRIALS = 40
"""Largest usual number of trials of the refinement and the comparison of finalists."""


class ProbeVerdict(NamedTuple):
    """Comparison of the given probe with its conjugate."""

    source: ProbeSource
    """The probe that fits; ``estimated`` if the comparison is undecided."""

    reason: str
    """Why the comparison is undecided; empty if it is decided."""


def find_orientation(scan: Scan, *, seed: int = 0, observer: Observer | None = None) -> OrientationSearch:
    """Find orientation of the detector, rotation and scale of the positions, by short reconstructions.

    A window of neighboring patterns is reconstructed, object and probe, with mapped positions; held-out pixels judge.
    The four distinguishable orientations are first compared with positions as they are. Rotation and scale are searched
    unless the given probe fits one of these clearly, or neighboring patterns overlap by less than half: then only the
    given probe decides. The search takes about 15 to 50 seconds on two CPU cores. The true object of a
    simulated scan is never used.

    The given probe decides only between an orientation and its inversion, both of which fit equally with conjugate
    object and probe. Without a probe, or with a real one, the inversion stays open.

    Args:
        scan: the scan, in any orientation. Its probe, if any, is that of the right orientation.
        seed: seed of the held-out pixels and of the batches of the engine.
        observer: receives the progress. None: no receiver.

    Returns:
        The orientation with its margin, or why it is undecided.

    Raises:
        DataError: the scan has too few patterns, or no photons.
    """
    scan = require_scan(scan)
    if len(scan) < MIN_PATTERNS:
        raise DataError(
            f"{scan.source or 'scan'}: {len(scan)} patterns; expected at least {MIN_PATTERNS} to find an orientation; "
            "set `flip_y`, `flip_x` and `transpose`"
        )
    trials = OrientationTrials(select_window(scan), seed)
    pixel_known = scan.geometry is not None and scan.geometry.object_pixel_m is not None
    return Comparison(OrientationSearcher(trials, observer or SilentObserver()), pixel_known).decide()


class Comparison:
    """The comparison of the best placement with the other orientations.

    Args:
        searcher: the search.
        pixel_known: whether the geometry of the scan gives the object pixel, so that an unusual scale is unlikely.
    """

    def __init__(self, searcher: OrientationSearcher, pixel_known: bool) -> None:
        self.searcher, self.window, self.pixel_known = searcher, searcher.trials.window, pixel_known

    def decide(self) -> OrientationSearch:
        """Compare the orientations as they are, search others unless that decides, and return the result."""
        simplest = compare_simplest(self.searcher)
        first, *rest = simplest
        probe = self._compare_probes(first.placement)
        overlap = measure_largest_overlap(self.searcher.trials)
        if overlap < MIN_OVERLAP:
            return self._conclude_sparse(simplest, probe, overlap)
        margin = compute_margin(first.trial.score, rest[0].trial.score)
        if first.source != "estimated" and first.trial.score <= MAX_FIT_EXCESS and margin >= MIN_FIT_MARGIN:
            with self.searcher.observe("refinement of rotation and scale", COMPARISON_TRIALS):
                return self._conclude(self._refine(first.placement, probe), rest, probe)
        return self._search(simplest)

    def _search(self, simplest: Sequence[Finalist]) -> OrientationSearch:
        """Search rotations and scales, and compare the best placement with the others and with the simplest."""
        start = self.searcher.search()
        others = self.searcher.find_others(start)[:MAX_OTHERS]
        with self.searcher.observe("comparison of orientations", COMPARISON_TRIALS):
            ranked = self._rank_others(start, others)
            probe = self._compare_probes(start)
            winner = self._refine(start, probe)
        different = [each for each in simplest if each.placement.differs(winner.placement)]
        ranked = sorted([*ranked, *different], key=lambda each: each.trial.score)
        return self._conclude(winner, ranked, probe, self._list_doubts(winner, simplest[0]))

    def _list_doubts(self, winner: Finalist, simplest: Finalist) -> list[str]:
        """Return why a rotation or a scale is not certain although it fits better than the simplest placement."""
        placement, doubts = winner.placement, []
        rotation, log_scale = placement.rotation_deg, float(np.log(placement.scale))
        if abs(rotation) > MAX_NEGLIGIBLE_DEG or abs(log_scale) > MAX_NEGLIGIBLE_LOG_SCALE:
            gain = compute_margin(winner.trial.score, simplest.trial.score)
            required = compute_required_gain(placement.scale, self.pixel_known)
            if gain < required:
                doubts.append(
                    f"positions rotated by {rotation:.1f} degrees and scaled by {placement.scale:.3g} fit {gain:.0%} "
                    f"better than positions as they are; expected at least {required:.0%}"
                )
        overlap = measure_overlap(self.searcher.trials, placement)
        if overlap < MIN_OVERLAP:
            doubts.append(
                f"neighboring patterns overlap by {max(overlap, 0.0):.0%} with positions scaled by "
                f"{placement.scale:.3g}; expected at least {MIN_OVERLAP:.0%}"
            )
        return doubts

    def _conclude_sparse(self, simplest: Sequence[Finalist], probe: ProbeVerdict, overlap: float) -> OrientationSearch:
        """Return the result of the simplest placements alone, for patterns of little overlap."""
        first, *rest = simplest
        note = (
            f"neighboring patterns overlap by {max(overlap, 0.0):.0%}; rotation and scale are searched from "
            f"{MIN_OVERLAP:.0%} on"
        )
        margin = compute_margin(first.trial.score, rest[0].trial.score)
        doubts = []
        if first.source == "estimated" or probe.source == "estimated":
            doubts.append(f"{note}, and an orientation is found with a probe of the scan that fits the patterns")
        elif margin < MIN_SPARSE_MARGIN:
            doubts.append(f"{note}; the margin is {margin:.0%}, expected at least {MIN_SPARSE_MARGIN:.0%}")
        return self._conclude(first, rest, probe, doubts, () if doubts else (note,))

    def _rank_others(self, start: Placement, others: Sequence[Placement]) -> list[Finalist]:
        """Return longer trials of the other orientations, best first; the rotation of the best one is refined."""
        if not others:
            return []
        closest = self.searcher.refine(others[0], ROTATION_STEPS, "estimated", SHORT_EPOCHS)
        placements = [closest if closest.differs(start) else others[0], *others[1:]]
        trials = [Finalist(each, self.searcher.run(each, "estimated", LONG_EPOCHS)) for each in placements]
        return sorted(trials, key=lambda each: each.trial.score)

    def _refine(self, start: Placement, probe: ProbeVerdict) -> Finalist:
        """Return the finalist near ``start``: the simplest one that no other surpasses by much."""
        searcher, source = self.searcher, probe.source
        epochs = LONG_EPOCHS if source == "estimated" else SHORT_EPOCHS
        best = searcher.refine(start, FINE_STEPS, source, epochs)
        best = searcher.interpolate(best, FINE_STEPS[-1], source, epochs)
        finalists = [self._judge(each, source) for each in [*_list_simpler(best), best]]
        general = finalists[-1]
        stretched = self.pixel_known and is_unusual(general.placement.scale)
        for each in finalists[:-1]:
            gain = MIN_UNUSUAL_SCALE_GAIN if stretched and not is_unusual(each.placement.scale) else MIN_GAIN
            if (1 - gain) * each.trial.score <= max(general.trial.score, 0.0):
                return each
        return general

    def _judge(self, placement: Placement, source: ProbeSource) -> Finalist:
        """Return the better of the long trials from the estimated probe and from ``source``.

        An inaccurate given probe prefers a wrong scale: on a measured Siemens star one that is 10 % too small.
        """
        sources: set[ProbeSource] = {"estimated", source}
        trials = [
            Finalist(placement, self.searcher.run(placement, each, LONG_EPOCHS), each) for each in sorted(sources)
        ]
        return min(trials, key=lambda each: each.trial.score)

    def _compare_probes(self, start: Placement) -> ProbeVerdict:
        """Compare reconstructions that start from the given probe and from its conjugate."""
        if self.window.probe is None:
            return ProbeVerdict("estimated", "the scan has no probe, which could distinguish them")
        sources: tuple[ProbeSource, ProbeSource] = ("given", "conjugate")
        scores = {source: self.searcher.run(start, source, LONG_EPOCHS).score for source in sources}
        best = min(sources, key=lambda source: scores[source])
        if scores[best] > MAX_PROBE_EXCESS * max(self.searcher.run(start, "estimated", LONG_EPOCHS).score, 0.0):
            return ProbeVerdict("estimated", "the probe of the scan does not fit the patterns")
        if compute_margin(scores[best], max(scores.values())) < MIN_PROBE_MARGIN:
            return ProbeVerdict("estimated", "the probe of the scan and its conjugate fit equally")
        return ProbeVerdict(best, "")

    def _conclude(
        self,
        winner: Finalist,
        others: Sequence[Finalist],
        probe: ProbeVerdict,
        doubts: Sequence[str] = (),
        notes: tuple[str, ...] = (),
    ) -> OrientationSearch:
        """Return the result; ``doubts`` leave it undecided."""
        placement = winner.placement
        orientation = invert(placement.orientation) if probe.source == "conjugate" else placement.orientation
        margin, significance, reasons = 0.0, 0.0, list(doubts)
        if is_line(self.window.positions):
            reasons.append("the positions lie on a line, so that a mirror image of them is the same")
        if others:
            margin = compute_margin(winner.trial.score, others[0].trial.score)
            significance = compute_significance(others[0].trial.scores - winner.trial.scores)
        if margin < MIN_MARGIN or significance < MIN_SIGNIFICANCE:
            names = f" over {others[0].placement.orientation}" if others else ""
            reasons.append(
                f"the margin{names} is {margin:.0%} ({significance:.1f} standard errors); expected at least "
                f"{MIN_MARGIN:.0%} and {MIN_SIGNIFICANCE:g} standard errors"
            )
        decided = not reasons
        if decided and probe.reason:
            reasons.append(f"{probe.reason}; with a conjugate object and probe both fit equally")
        return OrientationSearch(
            orientation=orientation,
            rotation_deg=round(placement.rotation_deg, 2),
            position_scale=round(placement.scale, 4),
            margin=margin,
            significance=significance,
            decided=decided,
            inversion_decided=decided and not probe.reason,
            scores=_list_scores(winner, others, orientation),
            reasons=tuple(reasons),
            notes=notes,
        )


def _list_simpler(best: Placement) -> list[Placement]:
    """Return the placements near ``best`` without rotation, without scale and without both, simplest first."""
    rotation, log_scale = best.rotation_deg, float(np.log(best.scale))
    turns, stretches = [0.0], [0.0]
    if 0 < abs(rotation) <= MAX_NEGLIGIBLE_DEG:
        turns.insert(0, min((rotation, -rotation), key=lambda turn: abs(best.move(turn, 0.0).rotation_deg)))
    if 0 < abs(log_scale) <= MAX_NEGLIGIBLE_LOG_SCALE:
        stretches.insert(0, -log_scale)
    return [best.move(turn, stretch) for stretch in stretches for turn in turns][:-1]


def compute_margin(score: float, other: float) -> float:
    """Return 1 − ``score`` / ``other``, from 0 to 1; 0 where ``other`` is at the noise floor."""
    return float(np.clip(1 - max(score, 0.0) / other, 0, 1)) if other > 0 else 0.0


def compute_significance(differences: NDArray[np.float64]) -> float:
    """Return the mean of ``differences`` (n,) in standard errors, at most 999."""
    spread = float(differences.std(ddof=1)) / len(differences) ** 0.5
    return float(np.clip(differences.mean() / spread, -999, 999)) if spread > 0 else 0.0


def is_line(positions: NDArray[np.float64]) -> bool:
    """Return True if ``positions`` (n, 2) lie on a line, for which two orientations are the same."""
    widths = np.linalg.svd(positions - positions.mean(0), compute_uv=False)
    return bool(widths[-1] <= MIN_WIDTH_FRACTION * widths[0])


def _list_scores(winner: Finalist, others: Sequence[Finalist], chosen: Orientation) -> tuple[OrientationScore, ...]:
    """Return the scores of the eight orientations, best first; ``chosen`` comes before its inversion."""
    rows: dict[Orientation, OrientationScore] = {}
    for finalist in (winner, *others):
        place = finalist.placement
        pair = (place.orientation, invert(place.orientation))
        for orientation in sorted(pair, key=lambda each: each != chosen):
            rows.setdefault(orientation, OrientationScore(orientation, place.rotation_deg, finalist.trial.score))
    return tuple(rows.values())
