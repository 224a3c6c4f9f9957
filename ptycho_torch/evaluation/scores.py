"""Scores of a reconstruction against the measured patterns and against the true object, as readable tables."""

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan, require_scan
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.fourier_error import (
    FourierError,
    compute_fourier_error,
    compute_measured_photons,
    predict_photons,
    select_intensities,
)
from ptycho_torch.evaluation.matching import find_excluded, match_patterns
from ptycho_torch.evaluation.metric_table import METRICS, MetricInfo, format_value
from ptycho_torch.evaluation.metrics import TruthComparison, compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import UncertaintyCalibration, compute_calibration
from ptycho_torch.evaluation.verdict import Verdict, judge_result

UNTABULATED_METRICS = ("verdict_text", "likely_causes")
"""Texts of ``metrics.json`` that are too long for a table."""


class ExamplePatterns(NamedTuple):
    """A few patterns, measured and predicted, in photons with zero frequency in the middle."""

    measured: NDArray[np.float32]
    """(k, N, N), NaN where masked."""

    predicted: NDArray[np.float32]
    """(k, N, N)."""

    titles: list[str]


class EvaluationResult(NamedTuple):
    """The comparisons of a reconstruction with a scan and with the truth; None where none was given."""

    fourier_error: FourierError | None = None
    validation: FourierError | None = None
    patterns: ExamplePatterns | None = None
    comparison: TruthComparison | None = None
    calibration: UncertaintyCalibration | None = None
    verdict: Verdict | None = None


class Scores(Mapping[str, Any]):
    """Metrics by name: numbers, lists of numbers, or None where a metric is undefined.

    ``scores["nrmse"]`` is a number; ``print(scores)`` prints a table of labels, values and units.
    """

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self._metrics = dict(metrics)

    def __getitem__(self, name: str) -> Any:
        if name not in self._metrics:
            raise KeyError(f"no metric {name!r}; expected one of {', '.join(self._metrics)}")
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    def __repr__(self) -> str:
        rows = [("metric", "value", "unit"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{label:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}".rstrip() for label, value, unit in rows
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align: left">{html.escape(label)}</td><td>{html.escape(value)}</td>'
            f'<td style="text-align: left">{html.escape(unit)}</td></tr>'
            for label, value, unit in self._rows()
        )
        return f"<table><thead><tr><th>metric</th><th>value</th><th>unit</th></tr></thead><tbody>{rows}</tbody></table>"

    def _rows(self) -> list[tuple[str, str, str]]:
        """Return label, value and unit of each metric, in the order of :data:`METRICS`."""
        known = [name for name in METRICS if name in self._metrics]
        names = known + [name for name in self._metrics if name not in METRICS and name not in UNTABULATED_METRICS]
        infos = {name: METRICS.get(name, MetricInfo(name.replace("_", " "), "", "")) for name in names}
        return [(infos[name].label, format_value(self._metrics[name]), infos[name].unit) for name in names]


def score_against_scan(reconstruction: Reconstruction, scan: Scan) -> Scores:
    """Compute R, its noise floor and the dose of the patterns of ``scan``.

    Args:
        reconstruction: the result to evaluate.
        scan: measured patterns in the unit of the reconstructed scan. Where the reconstruction has refined positions
            of this scan, they replace the positions of the scan.

    Raises:
        DataError: the patterns do not belong to the reconstruction.
    """
    scan = require_scan(scan)
    refined = reconstruction.metadata.get("positions") == "refined"
    replaced = refined or reconstruction.metadata.get("scan_digest") == scan.digest()
    reconstruction, scan = match_patterns(reconstruction, scan)
    if replaced:
        scan = apply_refined_positions(scan, reconstruction)
    scale = reconstruction.photons_per_unit
    return Scores(collect_metrics(reconstruction, evaluate_result(reconstruction, scan, photons_per_unit=scale)))


def score_against_truth(
    reconstruction: Reconstruction,
    truth: NDArray[np.complexfloating] | None,
    remove_ramp: bool = False,
    remove_shift: bool = False,
) -> Scores:
    """Compute the errors of the reconstruction after the stated alignment.

    Args:
        reconstruction: the result to evaluate.
        truth: complex object, (rows, columns), with origin (0, 0).
        remove_ramp: remove a linear phase ramp first.
        remove_shift: remove a sub-pixel shift first.

    Raises:
        DataError: there is no truth, it is no finite object, or it shares no covered pixel with the reconstruction.
    """
    comparison = compare_with_truth(
        reconstruction, _require_object(truth), remove_ramp=remove_ramp, remove_shift=remove_shift
    )
    metrics = comparison.to_metrics()
    metrics |= _convert_resolution(metrics["frc_resolution_pixels"], reconstruction)
    calibration = compute_calibration(reconstruction, comparison)
    if calibration is not None:
        metrics |= calibration.to_metrics()
    return Scores({name: convert_to_finite(value) for name, value in metrics.items()})


def _require_object(truth: Any) -> NDArray[Any]:
    """Return ``truth`` as an array if it is a finite object.

    Raises:
        DataError: it is not.
    """
    if truth is None:
        raise DataError("`truth` is None; expected the complex object of the scan; evaluate against the scan instead")
    if isinstance(truth, Scan | Reconstruction):
        attribute = "truth" if isinstance(truth, Scan) else "object"
        raise DataError(
            f"`truth` is a {type(truth).__name__}; expected a complex array (rows, columns) with the origin (0, 0), "
            f"such as its `{attribute}`"
        )
    values = np.asarray(truth)
    if values.ndim != 2 or values.dtype.kind not in "fiuc":
        raise DataError(
            f"`truth` is {values.dtype} of shape {values.shape}; expected a complex array (rows, columns); "
            "pass the true object"
        )
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise DataError(f"`truth` has {bad} value{'s' * (bad > 1)} not finite; expected none; crop or replace them")
    return values


def evaluate_result(
    reconstruction: Reconstruction,
    scan: Scan | None = None,
    *,
    photons_per_unit: float = 1.0,
    truth: NDArray[np.complexfloating] | None = None,
    validation: NDArray[np.intp] | None = None,
    remove_ramp: bool = False,
    remove_shift: bool = False,
    device: str = "cpu",
) -> EvaluationResult:
    """Compare a reconstruction with the patterns of ``scan`` and with ``truth``, each where it is given.

    Args:
        reconstruction: the result to evaluate.
        scan: measured patterns.
        photons_per_unit: photons per squared unit of the scan's amplitude.
        truth: complex object, (rows, columns), with origin (0, 0).
        validation: indices into ``scan`` of patterns held out of training.
        remove_ramp: remove a linear phase ramp before the comparison with the truth.
        remove_shift: remove a sub-pixel shift before the comparison with the truth.
        device: device of the predicted patterns.

    Raises:
        DataError: nothing is covered, the object is not finite, or scan or truth do not belong to it.
    """
    compute_covered_region(reconstruction)  # raises before anything is computed or written
    evaluation = EvaluationResult()
    if scan is not None:
        measured = compute_fourier_error(
            reconstruction,
            scan,
            photons_per_unit=photons_per_unit,
            device=device,
            indices=_find_included(reconstruction, scan),
        )
        patterns = select_example_patterns(reconstruction, scan, measured, photons_per_unit)
        verdict = judge_result(reconstruction, scan, measured, photons_per_unit)
        evaluation = EvaluationResult(measured, None, patterns, verdict=verdict)
        if validation is not None and len(validation):
            held_out = compute_fourier_error(
                reconstruction, scan, photons_per_unit=photons_per_unit, device=device, indices=validation
            )
            evaluation = evaluation._replace(validation=held_out)
    if truth is not None:
        comparison = compare_with_truth(reconstruction, truth, remove_ramp=remove_ramp, remove_shift=remove_shift)
        calibration = compute_calibration(reconstruction, comparison)
        evaluation = evaluation._replace(comparison=comparison, calibration=calibration)
    return evaluation


def _find_included(reconstruction: Reconstruction, scan: Scan) -> NDArray[np.intp] | None:
    """Return the indices of the patterns that the engine of the result did not leave out; None: all."""
    excluded = find_excluded(reconstruction)
    if not excluded.any() or excluded.all() or len(scan) != len(excluded):
        return None
    return np.flatnonzero(np.logical_not(excluded))


def collect_metrics(reconstruction: Reconstruction, evaluation: EvaluationResult) -> dict[str, Any]:
    """Return the metrics by the names of :data:`METRICS`, and the verdict; a number that is not finite is None."""
    region = compute_covered_region(reconstruction)
    metrics: dict[str, Any] = {"coverage_share": region.mean(), "covered_pixels": int(region.sum())}
    if evaluation.fourier_error is not None:
        error = evaluation.fourier_error
        metrics |= {
            "r": error.r,
            "r_floor": error.r_floor,
            "r_over_floor": error.r / error.r_floor if error.r_floor > 0 else None,
            "amplitude_loss": error.loss,
            "patterns": len(error.indices),
            "patterns_skipped": error.skipped,
            "photons_per_pattern": error.photons_per_pattern,
        }
        excluded = int(find_excluded(reconstruction).sum())
        metrics |= {"patterns_excluded": excluded} if excluded else {}
    if evaluation.validation is not None:
        held_out = evaluation.validation
        metrics |= {
            "validation_r": held_out.r,
            "validation_r_floor": held_out.r_floor,
            "validation_loss": held_out.loss,
            "validation_patterns": len(held_out.indices),
        }
    object_pixel_m = None if reconstruction.geometry is None else reconstruction.geometry.object_pixel_m
    if object_pixel_m is not None:
        metrics["object_pixel_nm"] = [side * 1e9 for side in object_pixel_m]
    if evaluation.comparison is not None:
        metrics |= evaluation.comparison.to_metrics()
        metrics |= _convert_resolution(metrics["frc_resolution_pixels"], reconstruction)
    if reconstruction.uncertainty is not None:
        metrics["uncertainty_median"] = np.median(reconstruction.uncertainty[region])
    if evaluation.calibration is not None:
        metrics |= evaluation.calibration.to_metrics()
    finite = {name: convert_to_finite(value) for name, value in metrics.items()}
    return finite | (evaluation.verdict.to_metrics() if evaluation.verdict is not None else {})


def _convert_resolution(pixels: float | None, reconstruction: Reconstruction) -> dict[str, float | None]:
    """Return the resolution in nanometers by its name, if the object pixel is known."""
    side = None if reconstruction.geometry is None else reconstruction.geometry.mean_object_pixel_m
    return {} if side is None else {"frc_resolution_nm": None if pixels is None else pixels * side * 1e9}


def select_example_patterns(
    reconstruction: Reconstruction, scan: Scan, error: FourierError, photons_per_unit: float
) -> ExamplePatterns:
    """Return the patterns of the lowest, the median and the highest R, measured and predicted.

    Args:
        reconstruction: the result that predicts the patterns.
        scan: measured patterns.
        error: the comparison of the reconstruction with ``scan``.
        photons_per_unit: photons per squared unit of the scan's amplitude.
    """
    order = np.argsort(error.per_pattern, kind="stable")  # patterns without a photon have R = NaN and come last
    usable = order[: max(1, int(np.isfinite(error.per_pattern).sum()))]
    places = usable[[0, len(usable) // 2, len(usable) - 1]]
    chosen = error.indices[places]
    intensities = select_intensities(reconstruction, scan, chosen)
    predicted = predict_photons(reconstruction, scan.positions[chosen], intensities=intensities).numpy()
    measured = compute_measured_photons(scan, chosen, photons_per_unit).numpy()
    measured, predicted = (np.fft.fftshift(patterns, axes=(-2, -1)) for patterns in (measured, predicted))
    if scan.mask is not None:
        measured = np.where(scan.mask if scan.mask.ndim == 2 else scan.mask[chosen], measured, np.float32(np.nan))
    titles = [
        f"pattern {index} ({name}, R {r:.3g})"
        for name, index, r in zip(("best", "median", "worst"), chosen, error.per_pattern[places], strict=True)
    ]
    return ExamplePatterns(measured, predicted, titles)


def apply_refined_positions(scan: Scan, reconstruction: Reconstruction) -> Scan:
    """Return ``scan`` at the positions of the reconstruction.

    Raises:
        DataError: scan and reconstruction have different numbers of patterns.
    """
    if len(scan) != len(reconstruction.positions):
        raise DataError(
            f"{scan.source or 'scan'}: {len(scan)} patterns; the reconstruction has refined positions of "
            f"{len(reconstruction.positions)} patterns; choose the scan that was reconstructed"
        )
    return replace(scan, positions=reconstruction.positions)


def convert_to_finite(value: Any) -> Any:
    """Return a metric in plain Python types, None where it is not finite."""
    if isinstance(value, list):
        return [convert_to_finite(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if not isinstance(value, float | np.floating):
        raise DataError(f"a metric is a {type(value).__name__}; expected a number")
    return float(value) if math.isfinite(value) else None
