"""Alignment of a reconstruction with the truth by the ambiguities of ptychography: scale, phase ramp and shift.

A linear phase ramp and a sub-pixel shift are removed on request, repeatedly until they converge, and one complex factor
is always removed last. Each is estimated over a boolean region. Nothing else changes: no blur, no unwrapping, no scale
per pixel.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction

MIN_COVERAGE_FRACTION = 0.1
"""A pixel is covered if its illumination is at least this fraction of the largest illumination."""

ComplexImage = NDArray[np.complex128]
Region = NDArray[np.bool_]

_MAX_ITERATIONS = 10
_SHIFT_TOLERANCE_PX = 1e-3  # pixels
_N_ZOOMS = 12
_WINDOW_MARGIN_PX = 8  # pixels around the region that keep their full value when the image is shifted
_WINDOW_TAPER_PX = 16  # pixels over which the window then falls to zero


class OverlapRegion(NamedTuple):
    """A reconstruction and the truth on the pixels that both have."""

    object: ComplexImage
    """(rows, columns), as reconstructed."""

    truth: ComplexImage
    """(rows, columns)."""

    region: Region
    """(rows, columns), True where covered."""

    origin_yx: NDArray[np.int64]
    """Object coordinates of pixel [0, 0], (2,)."""


class Alignment(NamedTuple):
    """A reconstruction aligned with the truth, and the removed ambiguities."""

    object: ComplexImage
    """(rows, columns): ``scale`` · ramp⁻¹ · shifted reconstruction."""

    scale: complex
    """The complex factor, applied last."""

    ramp: NDArray[np.float64]
    """Phase ramp (y, x) that was divided out, in rad per pixel."""

    shift: NDArray[np.float64]
    """Shift (y, x) that was applied to the reconstruction, in pixels."""


def compute_covered_region(reconstruction: Reconstruction) -> Region:
    """Return True where the illumination is at least :data:`MIN_COVERAGE_FRACTION` of its maximum, (rows, columns).

    Raises:
        DataError: no pixel is illuminated, the object is not finite, or object and coverage differ in shape.
    """
    coverage = reconstruction.coverage
    if coverage.shape != reconstruction.object.shape:
        raise DataError(
            f"the reconstruction's coverage is {coverage.shape} and its object {reconstruction.object.shape} pixels, "
            "expected equal shapes"
        )
    highest = float(coverage.max(initial=0.0))
    if not (highest > 0 and np.isfinite(highest)):
        raise DataError(f"the reconstruction's largest coverage is {highest}, expected a positive number of photons")
    region: Region = coverage >= MIN_COVERAGE_FRACTION * highest
    # Windows, shifts and Fourier transforms reach outside the region, so NaN anywhere would spread into it.
    bad = int(np.count_nonzero(~np.isfinite(reconstruction.object)))
    if bad:
        raise DataError(f"the reconstructed object holds NaN or infinity at {bad} pixels, expected none")
    return region


def crop_to_overlap(reconstruction: Reconstruction, truth: NDArray[np.complexfloating]) -> OverlapRegion:
    """Crop the reconstruction and ``truth`` (rows, columns; origin (0, 0)) to their common pixels.

    Raises:
        DataError: they share no covered pixel.
    """
    region = compute_covered_region(reconstruction)
    origin = np.asarray(reconstruction.origin_yx, np.int64)
    low = np.maximum(origin, 0)
    high = np.minimum(origin + reconstruction.object.shape, truth.shape)
    height, width = np.maximum(high - low, 0)
    (top, left), (top_canvas, left_canvas) = low, low - origin
    truth_slices = np.s_[top : top + height, left : left + width]
    canvas_slices = np.s_[top_canvas : top_canvas + height, left_canvas : left_canvas + width]
    if not region[canvas_slices].any():
        raise DataError(
            f"the truth of {truth.shape} pixels and the reconstruction of {reconstruction.object.shape} pixels at "
            f"{tuple(origin.tolist())} share no covered pixel, expected objects on one coordinate grid; "
            "check that `truth` belongs to the scan that was reconstructed"
        )
    obj = np.asarray(reconstruction.object[canvas_slices], np.complex128)
    return OverlapRegion(obj, np.asarray(truth[truth_slices], np.complex128), region[canvas_slices], low)


def align(pair: OverlapRegion, *, remove_ramp: bool = False, remove_shift: bool = False) -> Alignment:
    """Remove the requested ambiguities from ``pair.object``, then the best complex factor.

    A shift uses a few pixels outside the region. Farther out the object is tapered to zero; otherwise the edges of the
    canvas would ring into the region.

    Args:
        pair: reconstruction and truth on their common pixels.
        remove_ramp: remove a linear phase ramp.
        remove_shift: remove a sub-pixel shift.
    """
    shifted, ramp, shift = pair.object, np.zeros(2), np.zeros(2)
    tapered = pair.object * _make_window(pair.region) if remove_shift else pair.object
    obj = shifted
    for _ in range(_MAX_ITERATIONS):
        if remove_ramp:
            ramp = estimate_phase_ramp(shifted, pair.truth, pair.region)
        obj = apply_phase_ramp(shifted, -ramp)
        if not remove_shift:
            break
        step = estimate_shift(obj, pair.truth, pair.region)
        shift = shift + step
        shifted = shift_image(tapered, shift)
        obj = apply_phase_ramp(shifted, -ramp)
        if np.abs(step).max() < _SHIFT_TOLERANCE_PX:
            break
    scale = fit_complex_scale(obj, pair.truth, pair.region)
    return Alignment(scale * obj, scale, ramp, shift)


def fit_complex_scale(
    rec: ComplexImage, truth: ComplexImage, weights: NDArray[np.bool_] | NDArray[np.float64]
) -> complex:
    """Return the complex c that minimizes Σ weights·|c·rec − truth|²; zero for a reconstruction of zeros.

    Args:
        rec: (rows, columns).
        truth: (rows, columns).
        weights: (rows, columns), boolean or not negative.
    """
    energy = float(np.sum(weights * np.abs(rec) ** 2))
    return complex(np.sum(weights * rec.conj() * truth) / energy) if energy > 0 else 0j


def estimate_phase_ramp(rec: ComplexImage, truth: ComplexImage, region: Region) -> NDArray[np.float64]:
    """Estimate the phase ramp (y, x) of ``rec`` against ``truth`` in rad per pixel, from the product's spectrum."""
    return 2 * np.pi * _find_peak_frequency(region * truth.conj() * rec)


def apply_phase_ramp(image: ComplexImage, ramp: NDArray[np.float64]) -> ComplexImage:
    """Multiply ``image`` by a phase ramp (y, x) in rad per pixel with zero phase at the central pixel."""
    rows, columns = (np.arange(n) - n // 2 for n in image.shape)
    factor: ComplexImage = np.exp(1j * (ramp[0] * rows[:, None] + ramp[1] * columns[None, :]))
    return image * factor


def estimate_shift(rec: ComplexImage, truth: ComplexImage, region: Region) -> NDArray[np.float64]:
    """Estimate the shift (y, x) in pixels that aligns ``rec`` with ``truth``: the peak of their cross-correlation.

    Means over the region are removed first, because the outline of the region would otherwise dominate. The remaining
    bias of the fixed outline vanishes when the estimate is repeated on the shifted image, as in :func:`align`.
    """

    def spectrum(image: ComplexImage) -> ComplexImage:
        mean = image[region].mean()
        return np.asarray(np.fft.fftshift(np.fft.fft2(np.where(region, image - mean, 0))), np.complex128)

    peak = _find_peak_frequency(spectrum(truth).conj() * spectrum(rec))
    return peak * np.array(rec.shape, np.float64)


def shift_image(image: ComplexImage, shift: NDArray[np.float64]) -> ComplexImage:
    """Shift ``image`` periodically by ``shift`` (y, x) pixels in Fourier space."""
    from scipy.ndimage import fourier_shift

    return np.asarray(np.fft.ifft2(fourier_shift(np.fft.fft2(image), shift)), np.complex128)


def _find_peak_frequency(field: ComplexImage) -> NDArray[np.float64]:
    """Return the frequency (y, x), in cycles per sample, at which |Σ field·exp(−2πi f·r)| is largest.

    The grid of a twice padded FFT gives the initial estimate; each zoom evaluates the sum on a finer grid
    (by a factor of four; matrix-multiply Fourier transform, Guizar-Sicairos et al., Opt. Lett. 33, 156, 2008).
    """
    padded = 2 * np.array(field.shape)
    coarse = np.abs(np.fft.fft2(field, s=tuple(padded.tolist())))
    best: NDArray[np.float64] = np.array(np.unravel_index(int(coarse.argmax()), coarse.shape)) / padded
    best = (best + 0.5) % 1 - 0.5
    rows, columns = (np.arange(n) for n in field.shape)
    offsets = np.linspace(-1, 1, 9)
    for zoom in range(_N_ZOOMS):
        y, x = (center + offsets / n / 4.0**zoom for center, n in zip(best, padded, strict=True))
        values = np.abs(np.exp(-2j * np.pi * np.outer(y, rows)) @ field @ np.exp(-2j * np.pi * np.outer(columns, x)))
        i, j = np.unravel_index(int(values.argmax()), values.shape)
        best = np.array([y[i], x[j]])
    return best


def _make_window(region: Region) -> NDArray[np.float64]:
    """Return a window of one on the region and its margin, with a cosine fall to zero around them."""
    from scipy.ndimage import distance_transform_edt

    if region.all():
        return np.ones(region.shape)
    distance = np.asarray(distance_transform_edt(~region), np.float64)
    fall: NDArray[np.float64] = np.clip((distance - _WINDOW_MARGIN_PX) / _WINDOW_TAPER_PX, 0, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * fall), np.float64)
