"""The rules by which an orientation search is decided, with given scores instead of reconstructions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.data.orientation_search import OrientationSearch
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.orientation import Comparison
from ptycho_torch.engines.orientation_placement import OrientationSearcher, Placement, ProbeSource
from ptycho_torch.engines.orientation_trial import Map, OrientationTrials, Trial
from ptycho_torch.simulation.probes import PROBES

SIZE = 24

RIGHT = Placement(True, 90.0, 1.0)
"""Usual best placement."""


def make_probe() -> NDArray[np.complex64]:
    return PROBES["zernike"](SIZE)[None].astype(np.complex64)


class Landscape(NamedTuple):
    """Scores of the trials: ``low`` at the best placement, ``high`` far from it."""

    best: Placement = RIGHT
    low: float = 0.1
    high: float = 5.0
    given: float = 0.9
    """Ratio of scores with the given probe to those with the estimated one."""
    conjugate: float = 10.0
    """Ratio of scores with the conjugate of the given probe to those with the estimated one, at the best placement."""
    scatter: float = 0.5
    """Deviation of the patterns of one trial, relative to their mean, far from the best placement."""

    decoy: float | None = None
    """Score with the given probe at :data:`RIGHT`; None: that of the landscape."""

    def make_trial(self, placement: Placement, source: ProbeSource, patterns: int) -> Trial:
        gap = abs((placement.angle_deg - self.best.angle_deg + 90) % 180 - 90)
        distance = (gap / 20) ** 2 + (np.log(placement.scale / self.best.scale) / 0.3) ** 2
        far = placement.mirrored != self.best.mirrored or distance >= 1
        score = self.high if far else self.low + (self.high - self.low) * float(distance)
        score = min(self.high, score * {"estimated": 1.0, "given": self.given, "conjugate": self.conjugate}[source])
        if self.decoy is not None and placement == RIGHT and source == "given":
            score, far = self.decoy, False
        deviations = np.resize([-1.0, 1.0], patterns) * (self.scatter if far else 0.0)
        return Trial(score, score * (1 + deviations))


class ProbeTrials(OrientationTrials):
    """Trials whose estimated probe is the right one, for any placement."""

    def make_probe(self, linear_map: Map) -> NDArray[np.complex64]:
        del linear_map
        return make_probe()


class ScoredSearcher(OrientationSearcher):
    """A search whose trials have the scores of a landscape."""

    def __init__(self, window: Scan, landscape: Landscape) -> None:
        super().__init__(ProbeTrials(window, 0), SilentObserver())
        self.landscape = landscape

    def _reconstruct(self, placement: Placement, source: ProbeSource, epochs: int) -> Trial:
        del epochs
        return self.landscape.make_trial(placement, source, len(self.trials.window))


def decide(
    landscape: Landscape,
    *,
    overlap: float = 0.8,
    has_probe: bool = True,
    pixel_known: bool = False,
    line: bool = False,
) -> OrientationSearch:
    """Search in a window of patterns with this overlap, of about 4 photons per pixel."""
    probe = make_probe()
    positions = np.stack(np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij"), -1).reshape(-1, 2)
    if line:
        positions = np.stack([np.arange(20.0), np.resize([0.0, 0.1], 20)], 1)
    positions *= (1 - overlap) * compute_probe_diameter(probe) / (compute_median_step(positions) or 1.0)
    counts = np.random.default_rng(0).poisson(4, (20, SIZE, SIZE))
    window = Scan(
        amplitudes=np.sqrt(counts).astype(np.float32),
        positions=positions,
        probe=probe if has_probe else None,
        photons_per_unit=1.0,
    )
    return Comparison(ScoredSearcher(window, landscape), pixel_known).decide()


@pytest.mark.parametrize(
    ("best", "rotation_deg", "scale"),
    [(RIGHT, 0.0, 1.0), (Placement(False, 102.0, 1.0), 12.0, 1.0), (Placement(True, 0.0, 2.0), 0.0, 2.0)],
)
@pytest.mark.parametrize("has_probe", [True, False])
def test_a_distinct_placement_is_decided(best: Placement, rotation_deg: float, scale: float, has_probe: bool) -> None:
    result = decide(Landscape(best), overlap=0.9, has_probe=has_probe)
    assert result.decided, result
    assert result.inversion_decided == has_probe
    assert result.orientation == best.orientation
    assert result.rotation_deg == pytest.approx(best.rotation_deg, abs=0.5)
    assert abs(result.rotation_deg) == pytest.approx(rotation_deg, abs=0.5)
    assert result.position_scale == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda: decide(Landscape(low=3.4, scatter=0.01)),
            "the margin over",
            id="the next orientation fits too",
        ),
        pytest.param(
            lambda: decide(Landscape(scatter=6.0)), "standard errors", id="the patterns contradict each other"
        ),
        pytest.param(lambda: decide(Landscape(), line=True), "lie on a line", id="positions on a line"),
        pytest.param(
            lambda: decide(Landscape(), overlap=0.4, has_probe=False),
            "searched from 50% on",
            id="little overlap and no probe",
        ),
        pytest.param(
            lambda: decide(Landscape(low=2.5), overlap=0.4),
            "the margin is 50%, expected at least 60%",
            id="little overlap and a moderate margin",
        ),
        pytest.param(
            lambda: decide(Landscape(given=3.0, conjugate=3.0), overlap=0.4),
            "with a probe of the scan that fits",
            id="little overlap and a probe that does not fit",
        ),
        pytest.param(
            lambda: decide(Landscape(Placement(True, 75.0, 1.0), low=2.9)),
            "better than positions as they are; expected at least 50%",
            id="a rotation of little gain",
        ),
        pytest.param(
            lambda: decide(Landscape(Placement(True, 90.0, 1.5), low=1.5), pixel_known=True),
            "better than positions as they are; expected at least 80%",
            id="an unusual scale of a known object pixel",
        ),
        pytest.param(
            lambda: decide(Landscape(Placement(True, 90.0, 2.0)), overlap=0.7),
            "neighboring patterns overlap by 40% with positions scaled by 2",
            id="a scale that leaves little overlap",
        ),
    ],
)
def test_an_uncertain_placement_is_undecided_with_its_reason(
    make: Callable[[], OrientationSearch], reason: str
) -> None:
    result = make()
    assert not result.decided, result
    assert not result.inversion_decided
    assert reason in result.verdict


@pytest.mark.parametrize(
    ("given", "conjugate", "reason"),
    [
        (2.0, 4.0, "the probe of the scan does not fit the patterns"),
        (1.0, 1.2, "the probe of the scan and its conjugate fit equally"),
        (1.0, 4.0, ""),
    ],
)
def test_a_probe_decides_the_inversion_only_if_it_fits_better_than_its_conjugate(
    given: float, conjugate: float, reason: str
) -> None:
    result = decide(Landscape(given=given, conjugate=conjugate))
    assert result.decided
    assert result.inversion_decided == (not reason)
    assert reason in result.verdict
    assert {each.orientation for each in result.scores[:2]} == {
        RIGHT.orientation,
        RIGHT.orientation.then(Orientation(True, True)),
    }


def test_a_conjugate_probe_that_fits_inverts_the_orientation() -> None:
    result = decide(Landscape(given=10.0, conjugate=1.0))
    assert result.inversion_decided
    assert result.orientation == RIGHT.orientation.then(Orientation(True, True))


def test_little_overlap_and_a_probe_that_fits_decide_with_a_note() -> None:
    result = decide(Landscape(), overlap=0.4)
    assert result.inversion_decided
    assert "neighboring patterns overlap by 40%; rotation and scale are searched from 50% on" in result.verdict


def test_a_known_object_pixel_requires_more_gain_from_an_unusual_scale() -> None:
    landscape = Landscape(Placement(True, 90.0, 1.5), low=1.5)
    assert decide(landscape, pixel_known=False).position_scale == pytest.approx(1.5, rel=0.02)
    assert not decide(landscape, pixel_known=True).decided


@pytest.mark.parametrize(("decoy", "high"), [(0.9, 5.0), (0.45, 2.0)], ids=["moderate fit", "moderate margin"])
def test_other_placements_are_searched_unless_one_as_placed_fits_clearly(decoy: float, high: float) -> None:
    best = Placement(False, 30.0, 1.0)
    result = decide(Landscape(best, low=0.05, high=high, decoy=decoy))
    assert result.decided
    assert result.rotation_deg == pytest.approx(best.rotation_deg, abs=0.5)


def test_a_rotation_without_gain_is_not_reported() -> None:
    result = decide(Landscape(Placement(True, 92.0, 1.0), low=1.0))
    assert result.decided
    assert result.rotation_deg == 0
