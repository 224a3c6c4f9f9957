"""The result of an orientation search, and its application to a scan."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.summary import format_summary_html
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.data.scan import Scan


class OrientationScore(NamedTuple):
    """The best trial of one orientation."""

    orientation: Orientation
    """Orientation that is applied to the patterns as they are."""

    rotation_deg: float
    """Rotation of the scan positions from the row axis to the column axis, in degrees."""

    score: float
    """Mean deviance of held-out pixels above its noise floor; lower is better."""


@dataclass(frozen=True, repr=False)
class OrientationSearch:
    """The orientation of the detector against the scan positions, found by short reconstructions."""

    orientation: Orientation
    """Orientation that is applied to the patterns as they are."""

    rotation_deg: float
    """Rotation of the scan positions from the row axis to the column axis, in degrees."""

    position_scale: float
    """Factor on the scan positions. The object pixel is smaller than assumed by this factor if the positions are right
    in meters."""

    margin: float
    """1 − score / score of the next different orientation, 0 to 1."""

    significance: float
    """Difference of these scores in standard errors over the patterns."""

    decided: bool
    """Whether one orientation is clearly better, up to an inversion of the detector."""

    inversion_decided: bool
    """Whether the orientation is distinguished from its inversion, which conjugates object and probe."""

    scores: tuple[OrientationScore, ...]
    """Scores of the eight orientations, best first."""

    reasons: tuple[str, ...] = ()
    """Why the orientation or its inversion is not decided."""

    notes: tuple[str, ...] = ()
    """Limits of a decided orientation."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of reading that correspond to the result."""
        return {
            "flip_y": self.orientation.flip_rows,
            "flip_x": self.orientation.flip_columns,
            "transpose": self.orientation.transpose,
            "rotation": self.rotation_deg,
            "position_scale": self.position_scale,
        }

    @property
    def verdict(self) -> str:
        """The conclusion in one sentence."""
        if not self.decided:
            return f"undecided: {'; '.join(self.reasons)}"
        found = str(self.orientation)
        if self.rotation_deg:
            found += f", positions rotated by {self.rotation_deg:.1f} degrees"
        if self.position_scale != 1:
            found += f", positions scaled by {self.position_scale:.3g}"
        note = "" if self.inversion_decided else f"; or the inversion of it: {'; '.join(self.reasons)}"
        return "; ".join([f"{found} (margin {self.margin:.0%}){note}", *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as values that JSON can store."""
        return {
            "settings": self.settings,
            "decided": self.decided,
            "inversion_decided": self.inversion_decided,
            "margin": self.margin,
            "significance": self.significance,
            "verdict": self.verdict,
            "scores": [
                {
                    "orientation": str(each.orientation),
                    "code": each.orientation.code,
                    "rotation": each.rotation_deg,
                    "score": each.score,
                }
                for each in self.scores
            ],
        }

    def __repr__(self) -> str:
        rows = [
            f"  {orientation!s:<24}  {rotation:8.1f}  {score:10.4g}" for orientation, rotation, score in self.scores
        ]
        header = f"  {'orientation':<24}  {'rotation':>8}  {'deviance':>10}"
        return "\n".join([f"Orientation: {self.verdict}", header, *rows])

    def _repr_html_(self) -> str:
        facts = {
            str(each.orientation): f"{each.score:.4g}, rotation {each.rotation_deg:.1f} degrees" for each in self.scores
        }
        return format_summary_html(f"Orientation: {self.verdict}", facts)


def apply_orientation(scan: Scan, result: OrientationSearch) -> Scan:
    """Return ``scan`` with the orientation, rotation and scale of ``result``.

    Patterns and mask are flipped and transposed about zero frequency. Positions are rotated about the middle of their
    bounding box and scaled. The probe stays as it is, because it belongs to the object, and so does the true object
    unless the positions move. The metadata hold the result.

    Args:
        scan: the scan that was searched.
        result: result of the search.

    Raises:
        DataError: the result is undecided.
    """
    if not result.decided:
        raise DataError(
            f"{scan.source or 'scan'}: the orientation is {result.verdict}; expected a clear one; set `flip_y`, "
            "`flip_x`, `transpose` and `rotation`"
        )
    orientation = result.orientation
    moved = result.rotation_deg != 0 or result.position_scale != 1

    def orient(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(orientation.apply(array))

    def place(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        middle = (scan.positions.min(0) + scan.positions.max(0)) / 2
        linear_map = result.position_scale * make_rotation(result.rotation_deg)
        placed: NDArray[np.float64] = (positions - middle) @ linear_map.T + middle
        return placed

    return replace(
        scan,
        amplitudes=orient(scan.amplitudes),
        mask=None if scan.mask is None else orient(scan.mask),
        positions=place(scan.positions) if moved else scan.positions,
        nominal_positions=(
            place(scan.nominal_positions) if moved and scan.nominal_positions is not None else scan.nominal_positions
        ),
        truth=None if moved else scan.truth,
        labels=None if moved else scan.labels,
        metadata=scan.metadata | {"orientation": result.to_dict()},
    )


def make_rotation(angle_deg: float) -> NDArray[np.float64]:
    """Return the rotation (2, 2) of positions (y, x) by ``angle_deg``, from the row axis to the column axis."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s], [s, c]])
