"""Search of rotation, mirror and scale of the positions, by short reconstructions with mapped positions."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.observer import Observer
from ptycho_torch.data.orientation import ORIENTATIONS, Orientation
from ptycho_torch.data.orientation_search import make_rotation
from ptycho_torch.engines.orientation_trial import Map, OrientationTrials, Trial

SHORT_EPOCHS, LONG_EPOCHS = 6, 20
"""Epochs of a trial that ranks orientations, and of one that ranks scales or compares finalists. Short runs from an
estimated probe prefer scales that are 10 % too small."""

COARSE_STEP_DEG = 22.5
"""Step of the rotations of the coarse search: half of it is within the range from which the fine search converges."""

COARSE_SCALES = ((1.0,), (0.5, 2.0), (0.7, 1.4))
"""Scales of the positions, in groups that are tried until a trial is distinct."""

DISTINCT_RATIO = 0.75
"""Ratio of the lowest score to the median below which a trial is distinct and no further scales are tried."""

ROTATION_STEPS = ((11.25, 0.0), (5.6, 0.0))
"""Steps of rotation (degrees) and of the logarithm of the scale that first follow the coarse search."""

MEDIUM_STEPS = ((5.6, 0.25), (2.8, 0.15))
"""Steps with short trials, after those of rotation alone."""

FINE_STEPS = ((2.8, 0.12), (1.4, 0.06))
"""Steps with long trials, or with the given probe."""

MAX_MOVES = 3
"""Largest number of moves with one pair of steps."""

DIFFERENT_DEG = 25.0
"""Difference of two rotations below which they are one optimum."""

ProbeSource = Literal["estimated", "given", "conjugate"]
"""Initial probe of a trial: estimated from the patterns, that of the scan, or its complex conjugate."""


class Placement(NamedTuple):
    """A linear map of the positions: mirror of the rows, then rotation, then scale."""

    mirrored: bool
    angle_deg: float
    scale: float

    @property
    def matrix(self) -> Map:
        """The map (2, 2) of positions (y, x) that replaces :attr:`orientation` of the patterns."""
        orientation, rotation = self._split()
        matrix: Map = self.scale * orientation.matrix.T @ make_rotation(rotation)
        return matrix

    @property
    def orientation(self) -> Orientation:
        """The orientation of the patterns that leaves a rotation of at most 45 degrees, of its pair the lower code."""
        return self._split()[0]

    @property
    def rotation_deg(self) -> float:
        """The rotation of the positions that is left with :attr:`orientation`, from −45 to 45 degrees."""
        return self._split()[1]

    def differs(self, other: "Placement") -> bool:
        """Return True if this is another optimum than ``other``, up to an inversion."""
        gap = abs((self.angle_deg - other.angle_deg + 90) % 180 - 90)
        return self.mirrored != other.mirrored or gap > DIFFERENT_DEG

    def move(self, turn_deg: float, log_scale: float) -> "Placement":
        """Return the placement after a further rotation and change of the scale."""
        angle = round((self.angle_deg + turn_deg) % 180, 6)
        return self._replace(angle_deg=angle, scale=float(self.scale * np.exp(log_scale)))

    def _split(self) -> tuple[Orientation, float]:
        mirror = np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        candidates = []
        for orientation in ORIENTATIONS:
            turned = orientation.matrix @ make_rotation(self.angle_deg) @ mirror
            if np.linalg.det(turned) > 0:
                angle = float(np.degrees(np.arctan2(turned[1, 0], turned[0, 0])))
                candidates.append((orientation, (angle + 90) % 180 - 90))
        return min(candidates, key=lambda each: (round(abs(each[1]), 6), each[0].code))


class OrientationSearcher:
    """The stages of a search on one window of a scan.

    Args:
        trials: short reconstructions of the window.
        observer: receives one step per trial.
    """

    def __init__(self, trials: OrientationTrials, observer: Observer) -> None:
        self.trials, self.observer = trials, observer
        self._done: dict[tuple[Placement, ProbeSource, int], Trial] = {}
        self._left = 0

    def run(self, placement: Placement, source: ProbeSource, epochs: int) -> Trial:
        """Return the trial of a placement, which is run the first time."""
        key = (placement, source, epochs)
        if key not in self._done:
            self._done[key] = self._reconstruct(placement, source, epochs)
            if self._left > 0:
                self._left -= 1
                self.observer.advance(1, deviance=self._done[key].score)
        return self._done[key]

    def search(self) -> Placement:
        """Return the placement with the lowest score, over orientations, rotations and scales."""
        angles = [float(angle) for angle in np.arange(0, 180, COARSE_STEP_DEG)]
        for scales in COARSE_SCALES:
            grid = [Placement(*each) for each in itertools.product((False, True), angles, scales)]
            with self.observe("coarse orientation search", len(grid)):
                scores = [self.run(each, "estimated", SHORT_EPOCHS).score for each in grid]
            if min(scores) < DISTINCT_RATIO * float(np.median(scores)):
                break
        best = min((key[0] for key in self._done), key=self._rank)
        with self.observe("orientation search", MAX_MOVES * (2 * len(ROTATION_STEPS) + 4 * len(MEDIUM_STEPS))):
            return self.refine(best, (*ROTATION_STEPS, *MEDIUM_STEPS), "estimated", SHORT_EPOCHS)

    def refine(
        self, start: Placement, steps: Sequence[tuple[float, float]], source: ProbeSource, epochs: int
    ) -> Placement:
        """Return the placement with the lowest score that ``steps`` of rotation and scale reach, the largest first."""
        best = start
        for turn, log_scale in steps:
            moves = [(turn, 0.0), (-turn, 0.0)] + ([(0.0, log_scale), (0.0, -log_scale)] if log_scale else [])
            for _ in range(MAX_MOVES):
                candidates = [best, *(best.move(*move) for move in moves)]
                nearest = min(candidates, key=lambda each: self.run(each, source, epochs).score)
                if nearest == best:
                    break
                best = nearest
        return best

    def interpolate(self, best: Placement, step: tuple[float, float], source: ProbeSource, epochs: int) -> Placement:
        """Return the minimum of the parabolas through the scores one ``step`` of rotation and scale around ``best``."""
        middle = self.run(best, source, epochs).score
        moves = []
        for turn, log_scale in ((step[0], 0.0), (0.0, step[1])):
            low, high = (self.run(best.move(s * turn, s * log_scale), source, epochs).score for s in (-1, 1))
            curvature = low + high - 2 * middle
            moves.append(float(np.clip((low - high) / (2 * curvature), -0.5, 0.5)) if curvature > 0 else 0.0)
        return best.move(moves[0] * step[0], moves[1] * step[1])

    def find_others(self, best: Placement) -> list[Placement]:
        """Return the best short trial of each orientation, up to an inversion, that differs from ``best``."""
        others: dict[Orientation, Placement] = {}
        for placement in sorted({key[0] for key in self._done if key[1:] == ("estimated", SHORT_EPOCHS)}):
            if placement.differs(best):
                known = others.setdefault(placement.orientation, placement)
                others[placement.orientation] = min(known, placement, key=self._rank)
        return sorted(others.values(), key=self._rank)

    @contextmanager
    def observe(self, task: str, trials: int) -> Iterator[None]:
        """Report a task of at most about ``trials`` trials to the observer, whose count ends at ``trials``."""
        self._left = trials
        self.observer.start(task, trials)
        try:
            yield
            if self._left:
                self.observer.advance(self._left)
        finally:
            self._left = 0
            self.observer.finish()

    def _reconstruct(self, placement: Placement, source: ProbeSource, epochs: int) -> Trial:
        matrix = placement.matrix
        probe = self.trials.make_probe(matrix) if source == "estimated" else self._orient_probe(placement, source)
        return self.trials.run(matrix, probe, epochs)

    def _rank(self, placement: Placement) -> float:
        return self.run(placement, "estimated", SHORT_EPOCHS).score

    def _orient_probe(self, placement: Placement, source: ProbeSource) -> NDArray[np.complex64]:
        """Return the given probe in the orientation of the stored patterns."""
        given = self.trials.window.require_probe()
        stored = np.ascontiguousarray(placement.orientation.inverse.apply(given))
        return stored.conj() if source == "conjugate" else stored
