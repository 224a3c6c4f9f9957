"""Errors of a reconstruction against the truth, over the covered region and after a stated alignment."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.alignment import Alignment, OverlapRegion, align, crop_to_overlap, fit_complex_scale
from ptycho_torch.evaluation.frc import (
    MIN_SQUARE_SIDE_PX,
    RingCorrelation,
    compute_ring_correlation,
    find_largest_square,
)

SSIM_WINDOW_PX = 7
"""Side of the window of structural similarity, in pixels (Wang et al., IEEE Trans. Image Process. 13, 600, 2004)."""

RealImage = NDArray[np.float64]


class TruthComparison(NamedTuple):
    """The comparison of a reconstruction with the truth, over the covered region."""

    nrmse: float
    """‖c·rec − truth‖ / ‖truth‖ of the complex fields."""

    nrmse_scanned_box: float
    """NRMSE over the bounding box of the scan positions, with the factor c fitted there."""

    amplitude_psnr: float
    """dB; the peak is the range (maximum − minimum) of the true amplitude."""

    amplitude_ssim: float
    """Structural similarity of the amplitudes, data range that of the truth."""

    phase_mae: float
    """Mean absolute phase difference in rad, the difference wrapped to (−π, π]."""

    phase_ssim: float
    """Structural similarity of the phases: the truth's unwrapped, the reconstruction's on the branch nearest to it."""

    frc: RingCorrelation | None
    """Complex ring correlation in the largest square of the region; None where that is too small."""

    overlap_region: OverlapRegion
    alignment: Alignment

    def to_metrics(self) -> dict[str, Any]:
        """Return the numbers by the names that ``metrics.json`` uses."""
        return {
            "nrmse": self.nrmse,
            "nrmse_scanned_box": self.nrmse_scanned_box,
            "amplitude_psnr_db": self.amplitude_psnr,
            "amplitude_ssim": self.amplitude_ssim,
            "phase_mae_rad": self.phase_mae,
            "phase_ssim": self.phase_ssim,
            "frc_crossing_cycles_per_pixel": self.frc.crossing if self.frc else None,
            "frc_resolution_pixels": self.frc.resolution if self.frc else None,
            "compared_pixels": int(self.overlap_region.region.sum()),
            "removed_scale": abs(self.alignment.scale),
            "removed_phase_rad": float(np.angle(self.alignment.scale)),
            "removed_ramp_rad_per_pixel": self.alignment.ramp.tolist(),
            "removed_shift_pixels": self.alignment.shift.tolist(),
        }


def compare_with_truth(
    reconstruction: Reconstruction,
    truth: NDArray[np.complexfloating],
    *,
    remove_ramp: bool = False,
    remove_shift: bool = False,
) -> TruthComparison:
    """Compare with ``truth`` (rows, columns; origin (0, 0)) after one complex factor and the requested alignment.

    Raises:
        DataError: the two share no covered pixel.
    """
    pair = crop_to_overlap(reconstruction, truth)
    alignment = align(pair, remove_ramp=remove_ramp, remove_shift=remove_shift)
    rec, true, region = alignment.object, pair.truth, pair.region
    box = make_scanned_box_mask(reconstruction.positions, pair)
    rec_phase, true_phase = match_phases(rec, true, region)
    return TruthComparison(
        nrmse=compute_nrmse(rec, true, region),
        nrmse_scanned_box=compute_nrmse(rec * fit_complex_scale(rec, true, box), true, box),
        amplitude_psnr=compute_psnr(np.abs(rec), np.abs(true), region),
        amplitude_ssim=compute_ssim(np.abs(rec), np.abs(true), region),
        phase_mae=float(np.mean(np.abs(rec_phase - true_phase)[region])),
        phase_ssim=compute_ssim(rec_phase, true_phase, region),
        frc=_correlate_largest_square(rec, true, region),
        overlap_region=pair,
        alignment=alignment,
    )


def make_scanned_box_mask(positions: NDArray[np.float64], pair: OverlapRegion) -> NDArray[np.bool_]:
    """Return True on the pixels of ``pair`` that lie in the bounding box of the scan positions (n, 2)."""
    low, high = positions.min(0), positions.max(0)
    rows, columns = (
        (start + np.arange(n) >= least) & (start + np.arange(n) <= most)
        for start, n, least, most in zip(pair.origin_yx, pair.region.shape, low, high, strict=True)
    )
    return np.asarray(np.logical_and.outer(rows, columns), np.bool_)


def compute_nrmse(rec: NDArray[np.complex128], truth: NDArray[np.complex128], region: NDArray[np.bool_]) -> float:
    """Return ‖rec − truth‖ / ‖truth‖ over the region; NaN where the truth is zero or the region is empty."""
    norm = float(np.linalg.norm(truth[region]))
    return float(np.linalg.norm((rec - truth)[region])) / norm if norm > 0 else math.nan


def compute_psnr(image: RealImage, truth: RealImage, region: NDArray[np.bool_]) -> float:
    """Return 10·log₁₀(range² / mean squared error) in dB, range = maximum − minimum of the truth over the region.

    Infinite for equal images, NaN where the truth is flat.
    """
    spread = float(np.ptp(truth[region]))
    error = float(np.mean((image - truth)[region] ** 2))
    if not spread > 0:
        return math.nan
    return math.inf if error == 0 else 10 * math.log10(spread**2 / error)


def compute_ssim(image: RealImage, truth: RealImage, region: NDArray[np.bool_]) -> float:
    """Return the mean structural similarity over the windows within the region; the data range is that of the truth.

    NaN where no window fits or the truth is flat.
    """
    from scipy.ndimage import binary_erosion
    from skimage.metrics import structural_similarity as compared

    inner = binary_erosion(region, np.ones((SSIM_WINDOW_PX, SSIM_WINDOW_PX), bool))
    spread = float(np.ptp(truth[region]))
    if not inner.any() or not spread > 0:
        return math.nan
    measure: Callable[..., tuple[float, RealImage]] = compared
    _, similarity = measure(image, truth, win_size=SSIM_WINDOW_PX, data_range=spread, full=True)
    return float(similarity[inner].mean())


def match_phases(
    rec: NDArray[np.complex128], truth: NDArray[np.complex128], region: NDArray[np.bool_]
) -> tuple[RealImage, RealImage]:
    """Return both phases in rad: the truth's unwrapped over the region, the other within π of it at every pixel."""
    from skimage import restoration

    unwrap: Callable[..., Any] = restoration.unwrap_phase
    wrapped = np.ma.masked_array(np.angle(truth), ~region) if not region.all() else np.angle(truth)
    true_phase = np.where(region, np.ma.getdata(unwrap(wrapped, rng=0)), np.angle(truth))
    return true_phase + np.angle(rec * truth.conj()), true_phase


def _correlate_largest_square(
    rec: NDArray[np.complex128], truth: NDArray[np.complex128], region: NDArray[np.bool_]
) -> RingCorrelation | None:
    square = find_largest_square(region)
    if truth[square].shape[0] < MIN_SQUARE_SIDE_PX:
        return None
    return compute_ring_correlation(rec[square], truth[square])
