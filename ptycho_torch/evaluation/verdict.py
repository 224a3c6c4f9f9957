"""The verdict on a result: R against its noise floor, in words, with the likely causes of a difference."""

from typing import Any, Literal, NamedTuple

import numpy as np

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.fourier_error import FourierError
from ptycho_torch.evaluation.residual_causes import Cause, find_causes

Level = Literal[
    "at the noise floor", "above the noise floor", "far above the noise floor", "below the noise floor", "no image"
]

NO_IMAGE_R = 0.9
"""R at or above which a model explains nothing of the patterns; an empty model has R = 1."""

AT_FLOOR_RATIO = 1.5
"""Largest ratio of R to its noise floor of a result at the floor; right results of simulations have 1.0 to 1.2."""

FAR_RATIO = 5.0
"""Ratio of R to its noise floor above which a result is far above the floor, unless R is at most
:data:`MAX_MODEL_ERROR_R`."""

MAX_MODEL_ERROR_R = 0.005
"""R that imperfections of a measurement leave at high dose, far above the floor; the image is right all the same."""

BELOW_FLOOR_RATIO = 0.8
"""Ratio of R to the floor that the unknowns of the fit leave, below which noise is smaller than counting noise."""

NOISELESS_RATIO = 0.01
"""Ratio of R to its noise floor below which the patterns have no counting noise."""

MAX_FITTED_SHARE = 0.8
"""Largest share of counting noise that a fit is expected to absorb."""

MAX_CAUSES = 4
"""Number of causes in a verdict."""

UNCHANGED_PROBE_CORRELATION = 0.9999
"""Correlation of the probe of a result with that of the scan above which the probe was not updated."""

NETWORK_CAUSE = Cause(
    0.1, "the network is trained too briefly, or on other samples: more epochs, or an engine after the network (`then`)"
)
"""The most frequent cause of a difference for the result of a network."""


class Verdict(NamedTuple):
    """The verdict on a result."""

    level: Level
    text: str
    """One sentence with R, its noise floor and their meaning."""

    causes: tuple[str, ...]
    """Likely causes, the most likely first; empty at the noise floor."""

    def format(self) -> str:
        """Return the verdict as lines of text, one for each cause."""
        return "\n".join([self.text, *(f"  {number}. {cause}" for number, cause in enumerate(self.causes, 1))])

    def to_metrics(self) -> dict[str, Any]:
        """Return the verdict by the names of ``metrics.json``."""
        return {"verdict": self.level, "verdict_text": self.text, "likely_causes": list(self.causes)}


def judge_result(reconstruction: Reconstruction, scan: Scan, error: FourierError, photons_per_unit: float) -> Verdict:
    """Return the verdict on ``reconstruction``, compared with ``scan`` by ``error``.

    Args:
        reconstruction: the result.
        scan: measured patterns.
        error: the comparison of both.
        photons_per_unit: photons per squared unit of the scan's amplitude.
    """
    ratio = error.r / error.r_floor if error.r_floor > 0 else np.inf
    found = f"R {error.r:.4g} is {ratio:.3g} times its noise floor {error.r_floor:.3g}"
    if error.r >= NO_IMAGE_R:
        worse = "worse than an empty model, which has R 1" if error.r > 1 else "no better than an empty model"
        causes = find_causes(reconstruction, scan, error, photons_per_unit)
        return Verdict("no image", f"no image: R {error.r:.4g} is {worse}", _rank(causes, reconstruction, scan))
    if ratio < BELOW_FLOOR_RATIO * _compute_expected_ratio(reconstruction, scan, error):
        return Verdict(
            "below the noise floor",
            f"{found}: the patterns have less noise than counting noise, or the fit follows their noise",
            _list_causes_below(ratio, photons_per_unit),
        )
    if ratio <= AT_FLOOR_RATIO:
        return Verdict("at the noise floor", f"{found}: the model explains the patterns up to counting noise", ())
    ranked = _rank(find_causes(reconstruction, scan, error, photons_per_unit), reconstruction, scan)
    if ratio <= FAR_RATIO or error.r <= MAX_MODEL_ERROR_R:
        text = f"{found}: the model explains {1 - error.r:.2%} of the intensity, and not all of the rest is noise"
        return Verdict("above the noise floor", text, ranked)
    text = f"{found}: the patterns contradict the model, and the image is likely to be wrong"
    return Verdict("far above the noise floor", text, ranked)


def _rank(causes: list[Cause], reconstruction: Reconstruction, scan: Scan) -> tuple[str, ...]:
    ranked = sorted([*causes, *_list_general_causes(reconstruction, scan)], key=lambda cause: -cause.share)
    return tuple(cause.text for cause in ranked[:MAX_CAUSES])


def _list_general_causes(reconstruction: Reconstruction, scan: Scan) -> list[Cause]:
    """Return causes without evidence of their own, as far as the result leaves them open; the most frequent first."""
    axes = "the axes of the positions do not belong to those of the detector: check `swap_xy`, `flip_y`, `flip_x`, "
    axes += "`transpose` and `position_scale` by an orientation search"
    if reconstruction.metadata.get("positions") == "refined":
        positions = Cause(0.025, f"{axes}, or raise `position_bound`")
    else:
        positions = Cause(0.04, f"the positions have errors: set `update_positions`; or {axes}")
    if _is_probe_of_scan(reconstruction, scan):
        probe = Cause(0.03, "the probe is not that of the scan: set `update_probe`, and further `probe_modes`")
    else:
        probe = Cause(0.03, "the illumination is not fully coherent, or vibrates: set more `probe_modes`")
    scale = Cause(
        0.02, "the photon scale or the measured quantity is wrong: check `photons_per_unit` and `measurement`"
    )
    by_network = str(reconstruction.metadata.get("method", "")).startswith("network")
    return [positions, probe, scale, *([NETWORK_CAUSE] if by_network else [])]


def _is_probe_of_scan(reconstruction: Reconstruction, scan: Scan) -> bool:
    """Return True if the probe of the result is that of the scan up to a factor."""
    if scan.probe is None or scan.probe.shape != reconstruction.probe.shape:
        return False
    first, second = (probe.astype(np.complex128).ravel() for probe in (scan.probe, reconstruction.probe))
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return bool(abs(np.vdot(first, second)) > UNCHANGED_PROBE_CORRELATION * norms)


def _compute_expected_ratio(reconstruction: Reconstruction, scan: Scan, error: FourierError) -> float:
    """Return the ratio of R to its floor that a fit leaves: 1 − unknowns / measured pixels.

    Only pixels with photons count, because an empty pixel constrains little.
    """
    amplitudes = scan.amplitudes[error.indices]
    if scan.mask is not None:
        amplitudes = amplitudes * (scan.mask if scan.mask.ndim == 2 else scan.mask[error.indices])
    unknowns = 2 * (compute_covered_region(reconstruction).sum() + reconstruction.probe.size)
    return 1 - min(MAX_FITTED_SHARE, float(unknowns) / max(int(np.count_nonzero(amplitudes)), 1))


def _list_causes_below(ratio: float, photons_per_unit: float) -> tuple[str, ...]:
    scale = (
        f"the photon scale is too small: `photons_per_unit` {photons_per_unit / max(ratio, 1e-12):.4g} instead of "
        f"{photons_per_unit:.4g} puts R at its floor"
    )
    processed = (
        "the patterns were averaged, smoothed, denoised or simulated without noise, so that their noise is not "
        "counting noise"
    )
    return (
        *((processed, scale) if ratio < NOISELESS_RATIO else (scale, processed)),
        "the fit has more unknowns than the patterns determine: fewer unknowns, or `holdout` to test them",
    )
