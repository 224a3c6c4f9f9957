"""Labels, units and definitions of the metrics, and their form as text."""

from typing import Any, NamedTuple


class MetricInfo(NamedTuple):
    """The label, unit and definition of a metric."""

    label: str
    unit: str
    meaning: str


METRICS: dict[str, MetricInfo] = {
    "r": MetricInfo("R", "", "Σ(|F| − √I)² / ΣI of the stitched object, cut again at every position; 0 is perfect"),
    "r_floor": MetricInfo("R, noise floor", "", "expected R of the true object: Poisson counting noise alone"),
    "r_over_floor": MetricInfo("R over noise floor", "", "R divided by its noise floor; 1.0 to 1.2 for a right model"),
    "verdict": MetricInfo("verdict", "", "R against its noise floor in words"),
    "amplitude_loss": MetricInfo(
        "amplitude loss", "", "mean of 2(|F| − √I)² per pixel; counting noise alone gives about ½ at high dose"
    ),
    "held_out_deviance": MetricInfo(
        "held-out deviance",
        "",
        "mean over the held-out detector pixels of −log Poisson(counts | model), minus its smallest possible value",
    ),
    "held_out_deviance_floor": MetricInfo(
        "held-out deviance, noise floor", "", "expected held-out deviance of the true object"
    ),
    "held_out_pixels": MetricInfo("held-out pixels", "", "number of held-out detector pixels"),
    "validation_r": MetricInfo("R, held out", "", "R over the patterns held out of training"),
    "validation_r_floor": MetricInfo("R, held out, noise floor", "", "noise floor of R over the held-out patterns"),
    "validation_loss": MetricInfo(
        "amplitude loss, held out", "", "amplitude loss over the patterns held out of training"
    ),
    "validation_patterns": MetricInfo("patterns held out", "", "number of patterns held out of training"),
    "nrmse": MetricInfo("NRMSE", "", "‖c·reconstruction − truth‖ / ‖truth‖ of the complex fields, best complex c"),
    "nrmse_scanned_box": MetricInfo("NRMSE, scanned box", "", "NRMSE over the bounding box of the scan positions"),
    "amplitude_psnr_db": MetricInfo("amplitude PSNR", "dB", "peak: the range of the true amplitude; higher is better"),
    "amplitude_ssim": MetricInfo("amplitude SSIM", "", "structural similarity of the amplitudes; 1 is perfect"),
    "phase_mae_rad": MetricInfo("phase error", "rad", "mean absolute phase difference, wrapped"),
    "phase_ssim": MetricInfo("phase SSIM", "", "structural similarity of the unwrapped phases; 1 is perfect"),
    "frc_crossing_cycles_per_pixel": MetricInfo(
        "FRC crossing",
        "cycles/pixel",
        "frequency at which the complex Fourier ring correlation with the truth first falls below the ½-bit "
        "threshold; 0: always below; none: never below",
    ),
    "frc_resolution_pixels": MetricInfo("resolution", "pixels", "half a period at the FRC crossing; at best 1"),
    "frc_resolution_nm": MetricInfo("resolution", "nm", "the resolution by the truth in nanometers"),
    "half_scan_resolution_pixels": MetricInfo(
        "resolution, half scans",
        "pixels",
        "half a period at the half-scan FRC crossing; none: the correlation has no crossing",
    ),
    "half_scan_resolution_nm": MetricInfo("resolution, half scans", "nm", "the half-scan resolution in nanometers"),
    "half_scan_crossing_cycles_per_pixel": MetricInfo(
        "half-scan FRC crossing",
        "cycles/pixel",
        "frequency at which the ring correlation of reconstructions from two halves of the positions first falls "
        "below the ½-bit threshold; 0: always below",
    ),
    "half_scan_fixed_crossing_cycles_per_pixel": MetricInfo(
        "half-scan FRC crossing, fixed",
        "cycles/pixel",
        "frequency at which the half-scan ring correlation first falls below the fixed level of 0.5",
    ),
    "half_scan_removed_shift_pixels": MetricInfo(
        "half-scan shift", "pixels", "shift (y, x) of the second half that was removed"
    ),
    "uncertainty_median": MetricInfo("uncertainty", "", "median estimated standard deviation, in the object's unit"),
    "uncertainty_shares": MetricInfo(
        "within ½, 1, 1½, 2, 3 σ", "", "shares of the pixels with an error of at most k times the estimated uncertainty"
    ),
    "uncertainty_expected_shares": MetricInfo(
        "within ½, 1, 1½, 2, 3 σ, expected", "", "the shares for complex Gaussian errors"
    ),
    "uncertainty_rank_correlation": MetricInfo(
        "uncertainty–error rank correlation", "", "Spearman's correlation of the uncertainty with the error"
    ),
    "patterns": MetricInfo("patterns", "", "number of evaluated patterns"),
    "patterns_skipped": MetricInfo("patterns skipped", "", "number of patterns that reach outside the canvas"),
    "patterns_excluded": MetricInfo(
        "patterns left out", "", "number of patterns that the engine left out because no object explains them"
    ),
    "photons_per_pattern": MetricInfo("photons per pattern", "", "mean over the measured patterns, unmasked pixels"),
    "coverage_share": MetricInfo(
        "covered share", "", "share of the canvas with at least a tenth of the highest coverage"
    ),
    "covered_pixels": MetricInfo("covered pixels", "", "number of pixels of the covered region"),
    "object_pixel_nm": MetricInfo("object pixel", "nm", "sides (y, x) of an object pixel"),
    "compared_pixels": MetricInfo("compared pixels", "", "number of covered pixels that lie on the truth"),
    "removed_scale": MetricInfo("scale removed", "", "modulus of the complex factor c"),
    "removed_phase_rad": MetricInfo("phase removed", "rad", "phase of the complex factor c"),
    "removed_ramp_rad_per_pixel": MetricInfo("ramp removed", "rad/pixel", "phase ramp (y, x) that was divided out"),
    "removed_shift_pixels": MetricInfo(
        "shift removed", "pixels", "shift (y, x) that was applied to the reconstruction"
    ),
}
"""The meaning of each entry of ``metrics.json``, in the order of tables."""


def format_value(value: Any) -> str:
    """Return a metric as text: four significant digits, thousands separated, ``none`` for null."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
