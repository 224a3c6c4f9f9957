"""Likely causes of a residual, each with the share of R that it explains, from the residuals of a sample of patterns.

Each cause is tested by itself: one parameter or one mask is fitted to the sample, and the drop of R is its evidence.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.fourier_error import (
    FourierError,
    compute_measured_photons,
    predict_photons,
    select_intensities,
)

MAX_SAMPLED_PATTERNS = 64
"""Number of patterns, spread over the scan, whose residuals are examined."""

MIN_EXPLAINED_SHARE = 0.2
"""Smallest share of R that a cause must explain to be reported with its evidence."""

WORST_PATTERN_FRACTION = 0.05
"""Fraction of the patterns, those of the highest R, that may be outliers."""

MIN_OUTLIER_SHARE = 0.4
"""Smallest share of the residual in the worst patterns that makes them outliers; equal patterns hold
:data:`WORST_PATTERN_FRACTION`."""

OUTLIER_FACTOR = 2.0
"""Ratio of brightness to that of the model above which a pattern may be an outlier, and below whose inverse."""

MAX_OUTLIER_FRACTION = 0.15
"""Largest fraction of the patterns that are outliers; more patterns are a fluctuating intensity."""

MIN_DARK_PIXEL_PHOTONS = 1.0
"""Mean predicted photons of a pixel without a single photon, above which the pixel is dead or covered."""

MIN_SURROUNDING_PHOTONS = 20.0
"""Mean photons, summed over the examined patterns, of the pixels around a pixel without photons that is dead."""

ENCLOSED_SHARE, MIN_LOST_SHARE = 0.95, 1e-3
"""Rank of enclosed dark pixels, and the share of the photons that is missing there: a fit follows the hole, so that the
residual does not measure its effect."""

MIN_CENTER_OFFSET_PX = 0.5
"""Smallest distance in pixels between the mean pattern and the far field of the probe that is reported."""

MIN_FALL_OF_R = 0.1
"""Relative decrease of R over the last fifth of the epochs, above which a fit has not converged."""


class Cause(NamedTuple):
    """A likely cause of a residual."""

    share: float
    """Share of R that the cause explains, 0 to 1; the order of causes."""

    text: str
    """Evidence, and the setting that corrects it."""


class ResidualSample(NamedTuple):
    """Measured and predicted photons of a sample of patterns, zero frequency at [0, 0]."""

    measured: NDArray[np.float64]
    """(k, N, N), 0 where masked."""

    predicted: NDArray[np.float64]
    """(k, N, N), 0 where masked."""

    counted: NDArray[np.bool_]
    """(k, N, N), True where a pixel counts."""

    indices: NDArray[np.intp]
    """(k,), index of each pattern in the scan."""

    def compute_residual(self, predicted: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return (√predicted − √measured)² of every pixel, (k, N, N)."""
        model = self.predicted if predicted is None else np.where(self.counted, predicted, 0.0)
        return np.square(np.sqrt(model) - np.sqrt(self.measured))

    def compute_explained_share(self, predicted: NDArray[np.float64]) -> float:
        """Return the share of the residual that vanishes if ``predicted`` (k, N, N) replaces the prediction."""
        before = float(self.compute_residual().sum())
        return 1 - float(self.compute_residual(predicted).sum()) / before if before > 0 else 0.0


def sample_residuals(
    reconstruction: Reconstruction, scan: Scan, error: FourierError, photons_per_unit: float
) -> ResidualSample:
    """Return measured and predicted photons of patterns spread over those evaluated.

    Args:
        reconstruction: the result that predicts the patterns.
        scan: measured patterns.
        error: the comparison of both.
        photons_per_unit: photons per squared unit of the scan's amplitude.
    """
    places = np.unique(np.linspace(0, len(error.indices) - 1, MAX_SAMPLED_PATTERNS).round().astype(np.intp))
    chosen = error.indices[places]
    intensities = select_intensities(reconstruction, scan, chosen)
    predicted = predict_photons(reconstruction, scan.positions[chosen], intensities=intensities).numpy()
    measured = compute_measured_photons(scan, chosen, photons_per_unit).numpy()
    counted = np.ones(measured.shape, bool)
    if scan.mask is not None:
        mask = scan.mask if scan.mask.ndim == 2 else scan.mask[chosen]
        counted &= np.fft.ifftshift(mask, axes=(-2, -1))
    return ResidualSample(
        np.where(counted, measured, 0).astype(np.float64),
        np.where(counted, predicted, 0).astype(np.float64),
        counted,
        chosen,
    )


def find_causes(
    reconstruction: Reconstruction, scan: Scan, error: FourierError, photons_per_unit: float
) -> list[Cause]:
    """Return the causes with evidence, the strongest first."""
    sample = sample_residuals(reconstruction, scan, error, photons_per_unit)
    enclosed = find_enclosed_dark_pixels(sample)
    tests: list[Callable[[], Cause | None]] = [
        lambda: _test_convergence(reconstruction),
        lambda: _test_outlier_patterns(error),
        lambda: _test_total_scale(sample, photons_per_unit),
        lambda: None if reconstruction.intensities is not None else _test_pattern_scales(sample, error),
        lambda: None if reconstruction.background is not None else _test_background(sample),
    ]
    if enclosed.any():  # the center of mass of a pattern with covered pixels is not that of its light
        tests.append(lambda: _test_enclosed_dark_pixels(enclosed, sample))
    else:
        tests += [lambda: _test_dark_pixels(sample), lambda: _test_center(scan, sample)]
    causes = [cause for cause in (test() for test in tests) if cause is not None]
    return sorted(causes, key=lambda cause: -cause.share)


def _test_convergence(reconstruction: Reconstruction) -> Cause | None:
    r = [value for value in reconstruction.history.get("r", []) if np.isfinite(value)]
    back = max(1, len(r) // 5)
    if len(r) < 2 or not r[-1 - back] > 0:
        return None
    fall = 1 - r[-1] / r[-1 - back]
    if fall < MIN_FALL_OF_R:
        return None
    last = f"the last {back} epochs" if back > 1 else "the last epoch"
    return Cause(fall, f"the fit has not converged, since R fell by {fall:.0%} in {last}: more `epochs`")


def _test_outlier_patterns(error: FourierError) -> Cause | None:
    known = np.flatnonzero(np.isfinite(error.per_pattern))
    count = max(1, round(WORST_PATTERN_FRACTION * len(known)))
    if len(known) < 2 * count + 2:
        return None
    order = known[np.argsort(-error.per_pattern[known], kind="stable")]
    total = error.per_pattern[known].sum()
    share = float(error.per_pattern[order[:count]].sum() / total) if total > 0 else 0.0
    if share < max(MIN_OUTLIER_SHARE, 4 * count / len(known)):
        return None
    names = ", ".join(map(str, np.sort(error.indices[order[:count]])[:8])) + (", …" if count > 8 else "")
    return Cause(
        share,
        f"{count} of {len(known)} patterns hold {share:.0%} of the residual ({names}): leave them out by `frames`",
    )


def _test_total_scale(sample: ResidualSample, photons_per_unit: float) -> Cause | None:
    model = sample.predicted.sum()
    factor = float(sample.measured.sum() / model) if model > 0 else 1.0
    share = sample.compute_explained_share(sample.predicted * factor)
    if share < MIN_EXPLAINED_SHARE:
        return None
    return Cause(
        share,
        f"the model has {1 / max(factor, 1e-12):.3g} times the measured photons: the photon scale, "
        f"`photons_per_unit` {photons_per_unit:.4g}, or the power of the probe is wrong",
    )


def _test_pattern_scales(sample: ResidualSample, error: FourierError) -> Cause | None:
    """Test a factor per pattern; factors of a few patterns far from all others make these patterns outliers."""
    measured, model = (photons.sum((1, 2)) for photons in (sample.measured, sample.predicted))
    common = float(measured.sum() / max(float(model.sum()), 1e-12))
    factors = measured / np.maximum(model, 1e-12)
    together = sample.compute_explained_share(sample.predicted * common)
    share = sample.compute_explained_share(sample.predicted * factors[:, None, None]) - max(0.0, together)
    if share < MIN_EXPLAINED_SHARE:
        return None
    typical = float(np.median(factors))
    strange = np.flatnonzero((factors > OUTLIER_FACTOR * typical) | (factors * OUTLIER_FACTOR < typical))
    if 0 < len(strange) <= MAX_OUTLIER_FRACTION * len(factors):
        names = ", ".join(map(str, sample.indices[strange][:8])) + (", …" if len(strange) > 8 else "")
        return Cause(
            share,
            f"{len(strange)} of {len(factors)} examined patterns are more than {OUTLIER_FACTOR:g} times brighter or "
            f"darker than the model ({names}): leave them out by `frames`, or set `update_intensity`",
        )
    spread = float(np.std(factors / np.mean(factors)))
    return Cause(share, f"the intensity of the patterns varies by {spread:.0%} (rms): set `update_intensity`")


def find_enclosed_dark_pixels(sample: ResidualSample) -> NDArray[np.bool_]:
    """Return the pixels (N, N) without a photon in any pattern that bright pixels enclose, zero frequency at [0, 0]."""
    from scipy import ndimage

    photons = np.fft.fftshift(sample.measured.sum(0))
    lit = (photons > 0) | ~np.fft.fftshift(sample.counted.any(0))
    holes, count = ndimage.label(ndimage.binary_fill_holes(lit) & ~lit)
    found = np.zeros(lit.shape, bool)
    for number in range(1, count + 1):
        hole = holes == number
        ring = ndimage.binary_dilation(hole) & ~hole
        if photons[ring].mean() >= MIN_SURROUNDING_PHOTONS:
            found |= hole
    return np.fft.ifftshift(found)


def _test_enclosed_dark_pixels(enclosed: NDArray[np.bool_], sample: ResidualSample) -> Cause | None:
    """Test covered pixels by the photons that the pixels around them lead to expect there."""
    from scipy import ndimage

    if not enclosed.any():
        return None
    photons, holes = (np.fft.fftshift(image) for image in (sample.measured.sum(0), enclosed))
    ring = ndimage.binary_dilation(holes) & ~holes
    lost = float(photons[ring].mean() * holes.sum() / max(float(photons.sum()), 1e-300))
    return Cause(
        ENCLOSED_SHARE if lost > MIN_LOST_SHARE else lost,
        f"{int(enclosed.sum())} detector pixels are zero in every pattern and bright pixels enclose them: a beam stop "
        "or dead pixels, to be masked by `mask`",
    )


def _test_dark_pixels(sample: ResidualSample) -> Cause | None:
    without_photons = (sample.measured == 0).all(0) & sample.counted.any(0)
    covered = without_photons & (sample.predicted.mean(0) > MIN_DARK_PIXEL_PHOTONS)
    residual = sample.compute_residual()
    share = float(residual[:, covered].sum() / max(float(residual.sum()), 1e-300))
    if share < MIN_EXPLAINED_SHARE:
        return None
    return Cause(
        share,
        f"{int(covered.sum())} detector pixels are zero in every pattern where the model is bright, and hold "
        f"{share:.0%} of the residual: covered or dead pixels, to be masked by `mask`",
    )


def _test_background(sample: ResidualSample) -> Cause | None:
    """Test a constant background, fitted to the dimmer half of the pixels."""
    mean_model = sample.predicted.mean(0)
    counted = sample.counted.all(0)
    if not counted.any():
        return None
    dim = counted & (mean_model <= np.median(mean_model[counted]))
    level = float((sample.measured.mean(0) - mean_model)[dim].mean())
    if level <= 0:
        return None
    share = sample.compute_explained_share(sample.predicted + level)
    if share < MIN_EXPLAINED_SHARE:
        return None
    return Cause(share, f"the patterns have about {level:.3g} more photons per pixel: set `update_background`")


def _test_center(scan: Scan, sample: ResidualSample) -> Cause | None:
    """Test the offset of the mean pattern from the far field of the probe of the scan."""
    if scan.probe is None:
        return None
    far_field = np.square(np.abs(np.fft.fft2(scan.probe.astype(np.complex128)))).sum(0)
    counted = sample.counted.all(0) & (sample.measured > 0).any(0)
    places = (_compute_centroid(np.where(counted, image, 0)) for image in (sample.measured.mean(0), far_field))
    offset = next(places) - next(places)
    distance = float(np.hypot(*offset))
    if not distance > MIN_CENTER_OFFSET_PX:
        return None
    return Cause(
        min(0.5, 0.1 * distance),
        f"the mean pattern is ({offset[0]:.1f}, {offset[1]:.1f}) pixels (y, x) off the far field of the probe: "
        "check `center`, and the axes by `transpose`, `flip_y` and `flip_x`",
    )


def _compute_centroid(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the center of mass (y, x) of an image with zero frequency at [0, 0], relative to zero frequency."""
    centered = np.fft.fftshift(image)
    total = max(float(centered.sum()), 1e-300)
    return np.array(
        [(centered.sum(1 - axis) @ (np.arange(image.shape[axis]) - image.shape[axis] // 2)) / total for axis in (0, 1)]
    )
