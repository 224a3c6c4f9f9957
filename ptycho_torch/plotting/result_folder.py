"""What a reconstruction leaves behind: the file, its pictures, its metrics and its report, for every maker alike."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import atomic_write, make_output_dir, write_json, write_text
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.fourier_error import (
    FourierError,
    compute_fourier_error,
    compute_measured_photons,
    predict_photons,
    select_intensities,
)
from ptycho_torch.evaluation.metrics import TruthComparison, compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import UncertaintyCalibration, compute_calibration
from ptycho_torch.plotting import figures
from ptycho_torch.plotting.report import ReportImage, render_report


class ExamplePatterns(NamedTuple):
    """A few patterns, measured and predicted, in photons with zero frequency in the middle."""

    measured: NDArray[np.float32]
    """(k, N, N), NaN where masked."""

    predicted: NDArray[np.float32]
    """(k, N, N)."""

    titles: list[str]


class EvaluationResult(NamedTuple):
    """All that is found out about a reconstruction, from what was given."""

    fourier_error: FourierError | None = None
    validation: FourierError | None = None
    patterns: ExamplePatterns | None = None
    comparison: TruthComparison | None = None
    calibration: UncertaintyCalibration | None = None


def write_results(
    output_dir: Path,
    reconstruction: Reconstruction,
    scan: Scan,
    *,
    photons_per_unit: float,
    command: str,
    truth: NDArray[np.complexfloating] | None = None,
    validation: NDArray[np.intp] | None = None,
    device: str = "cpu",
    report: bool = True,
    extra_images: Sequence[ReportImage] = (),
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``reconstruction.npz``, two pictures, ``metrics.json`` and ``report.html`` into ``output_dir``.

    Args:
        output_dir: made if need be.
        reconstruction: the result.
        scan: the patterns that judge it; ``scan.select(indices)`` for a part.
        photons_per_unit: photons for one squared unit of the scan's amplitude.
        command: the exact command, for the report.
        truth: the true object (rows, columns; origin (0, 0)), given by the user and by nobody else.
        validation: indices into ``scan`` of patterns held out of training, for the held-out figures.
        device: where the patterns are predicted.
        report: write the report and the pictures too.
        further: pictures that the report shows after its own.
        found: further metrics, by names that :data:`ptycho_torch.plotting.report.METRICS` explains.

    Returns:
        What is in ``metrics.json``.

    Raises:
        DataError: the folder cannot be made, or what was given does not belong together.
    """
    evaluation = evaluate_result(
        reconstruction, scan, photons_per_unit=photons_per_unit, truth=truth, validation=validation, device=device
    )
    output_dir = make_output_dir(output_dir)
    reconstruction.save(output_dir / "reconstruction.npz")
    return write_evaluation(
        output_dir, reconstruction, evaluation, command=command, report=report, extra_images=extra_images, found=found
    )


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

    Raises:
        DataError: the object cannot be shown (nothing is covered, or it is not finite), or does not belong to the rest.
    """
    compute_covered_region(reconstruction)  # raises before anything is computed or written
    evaluation = EvaluationResult()
    if scan is not None:
        measured = compute_fourier_error(reconstruction, scan, photons_per_unit=photons_per_unit, device=device)
        patterns = select_example_patterns(reconstruction, scan, measured, photons_per_unit)
        evaluation = EvaluationResult(measured, None, patterns)
        if validation is not None and len(validation):
            held_out = compute_fourier_error(
                reconstruction, scan, photons_per_unit=photons_per_unit, device=device, indices=validation
            )
            evaluation = evaluation._replace(validation=held_out)
    if truth is not None:
        comparison = compare_with_truth(reconstruction, truth, remove_ramp=remove_ramp, remove_shift=remove_shift)
        evaluation = evaluation._replace(
            comparison=comparison, calibration=compute_calibration(reconstruction, comparison)
        )
    return evaluation


def write_evaluation(
    output_dir: Path,
    reconstruction: Reconstruction,
    evaluation: EvaluationResult,
    *,
    command: str,
    report: bool = True,
    extra_images: Sequence[ReportImage] = (),
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.json`` and, with ``report``, the two plain pictures and ``report.html``; return the metrics."""
    metrics = collect_metrics(reconstruction, evaluation)
    metrics |= {name: _convert_to_finite(value) for name, value in (found or {}).items()}
    if not report:
        write_json(output_dir / "metrics.json", metrics)
        return metrics
    page = render_report(
        title="Ptychographic reconstruction",
        subtitle=_make_subtitle(reconstruction),
        pictures=[*make_report_images(reconstruction, evaluation), *extra_images],
        metrics=metrics,
        command=command,
        origin=_collect_origin(reconstruction),
    )
    write_images(output_dir, reconstruction)
    write_json(output_dir / "metrics.json", metrics)
    write_text(output_dir / "report.html", page)
    return metrics


def write_images(output_dir: Path, reconstruction: Reconstruction) -> list[Path]:
    """Write ``reconstructed_amplitude.png`` and ``reconstructed_phase.png`` into a folder that is there.

    Raises:
        DataError: nothing is covered, or the folder cannot be written to.
    """
    view = figures.crop_to_covered_region(reconstruction)
    plain = {"amplitude": figures.render_amplitude(view), "phase": figures.render_phase(view)}
    paths = [output_dir / f"reconstructed_{name}.png" for name in plain]
    for path, png in zip(paths, plain.values(), strict=True):
        with atomic_write(path) as temp_path:
            temp_path.write_bytes(png)
    return paths


def collect_metrics(reconstruction: Reconstruction, evaluation: EvaluationResult) -> dict[str, Any]:
    """The entries of ``metrics.json``: numbers, lists of numbers, or None for what is not finite or not defined.

    :data:`ptycho_torch.plotting.report.METRICS` says what each is.
    """
    region = compute_covered_region(reconstruction)
    metrics: dict[str, Any] = {"coverage_share": region.mean(), "covered_pixels": int(region.sum())}
    if evaluation.fourier_error is not None:
        found = evaluation.fourier_error
        metrics |= {
            "r": found.r,
            "r_floor": found.r_floor,
            "amplitude_loss": found.loss,
            "patterns": len(found.indices),
            "patterns_skipped": found.skipped,
            "photons_per_pattern": found.photons_per_pattern,
        }
    if evaluation.validation is not None:
        held_out = evaluation.validation
        metrics |= {
            "validation_r": held_out.r,
            "validation_r_floor": held_out.r_floor,
            "validation_loss": held_out.loss,
            "validation_patterns": len(held_out.indices),
        }
    if evaluation.comparison is not None:
        metrics |= evaluation.comparison.to_metrics()
    if reconstruction.uncertainty is not None:
        metrics["uncertainty_median"] = np.median(reconstruction.uncertainty[region])
    if evaluation.calibration is not None:
        metrics |= evaluation.calibration.to_metrics()
    return {name: _convert_to_finite(value) for name, value in metrics.items()}


def select_example_patterns(
    reconstruction: Reconstruction, scan: Scan, found: FourierError, photons_per_unit: float
) -> ExamplePatterns:
    """The patterns that the model explains best, middling and worst, by their R."""

    order = np.argsort(found.per_pattern, kind="stable")  # patterns without a photon have R = NaN and come last
    usable = order[: max(1, int(np.isfinite(found.per_pattern).sum()))]
    places = usable[[0, len(usable) // 2, len(usable) - 1]]
    chosen = found.indices[places]
    batch_intensities = select_intensities(reconstruction, scan, chosen)
    predicted = predict_photons(reconstruction, scan.positions[chosen], intensities=batch_intensities).numpy()
    measured = compute_measured_photons(scan, chosen, photons_per_unit).numpy()
    measured, predicted = (np.fft.fftshift(patterns, axes=(-2, -1)) for patterns in (measured, predicted))
    if scan.mask is not None:
        measured = np.where(scan.mask if scan.mask.ndim == 2 else scan.mask[chosen], measured, np.float32(np.nan))
    titles = [
        f"pattern {index} ({name}, R {r:.3g})"
        for name, index, r in zip(("best", "median", "worst"), chosen, found.per_pattern[places], strict=True)
    ]
    return ExamplePatterns(measured, predicted, titles)


def make_report_images(reconstruction: Reconstruction, evaluation: EvaluationResult) -> list[ReportImage]:
    """The pictures that the report shows, in order."""
    pictures = [
        ReportImage(
            "Object",
            figures.plot_object(figures.crop_to_covered_region(reconstruction)),
            "The covered region, axes in object pixels. The mean over the region is real: the global phase is free.",
        ),
        ReportImage(
            "Illumination",
            figures.plot_illumination(reconstruction),
            "Probe power summed over the scan positions (dots), and the probe: hue is phase, brightness amplitude.",
        ),
    ]
    if evaluation.comparison is not None:
        removed = "After the best complex factor and whatever else the table names as removed. Errors: 99th percentile."
        pictures.insert(
            1, ReportImage("Against the truth", figures.plot_truth_comparison(evaluation.comparison), removed)
        )
    pictures += _make_uncertainty_images(reconstruction, evaluation)
    if evaluation.patterns is not None:
        caption = "Photons on a log scale; the patterns that the stitched object explains best, middling and worst."
        pictures.append(ReportImage("Diffraction patterns", figures.plot_patterns(*evaluation.patterns), caption))
    history = figures.plot_history(reconstruction.history)
    frc = evaluation.comparison.frc if evaluation.comparison is not None else None
    if history is not None:
        title, caption = _make_history_caption(reconstruction.history)
        pictures.append(ReportImage(title, history, caption, wide=frc is None))
    if frc is not None:
        caption = "Complex fields of reconstruction and truth, without their means, under a Hann taper."
        pictures.append(ReportImage("Fourier ring correlation", figures.plot_frc(frc), caption, wide=history is None))
    return pictures


def _make_uncertainty_images(reconstruction: Reconstruction, evaluation: EvaluationResult) -> list[ReportImage]:
    """The stated standard deviation, beside the true error where that is known."""
    if evaluation.calibration is not None and evaluation.comparison is not None:
        caption = (
            "Stated standard deviation and true error on one scale, and how many pixels lie within k of the former."
        )
        figure = figures.plot_calibration(evaluation.calibration, evaluation.comparison.overlap_region)
        return [ReportImage("Uncertainty against the error", figure, caption)]
    if reconstruction.uncertainty is not None:
        caption = "The root of the mean squared distance of the complex object from the truth that is to be expected."
        return [ReportImage("Uncertainty", figures.plot_uncertainty(reconstruction), caption, wide=False)]
    return []


def _make_history_caption(history: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """Title and caption of the picture of a history."""
    if "r" not in history:
        return "Loss", "As recorded by the maker of the result."
    caption = "R of each epoch, batch by batch before its step, and what counting noise alone would leave of it."
    if "held_out_deviance" in history:
        caption += " Below: how well pixels that no engine saw are predicted after each epoch."
    return "Convergence", caption


def make_stage_images(stages: Sequence[tuple[str, Reconstruction]]) -> list[ReportImage]:
    """The object after each stage of a chain, by the name of the stage."""
    return [
        ReportImage(
            f"Stage {number}: {name}",
            figures.plot_object(figures.crop_to_covered_region(result)),
            f"The object that this stage left{_format_last_r(result)}.",
        )
        for number, (name, result) in enumerate(stages, start=1)
    ]


def _format_last_r(result: Reconstruction) -> str:
    r = result.history.get("r", [])
    return f", R {r[-1]:.4g} in its last epoch" if r else ""


def _make_subtitle(reconstruction: Reconstruction) -> str:
    rows, columns = reconstruction.object.shape
    method = reconstruction.metadata.get("method")
    caption = [str(method)] if method else []
    caption += [f"{len(reconstruction.positions):,} positions", f"canvas of {rows} × {columns} pixels"]
    return " · ".join([*caption, f"ptycho-torch {version('ptycho-torch')}"])


def _collect_origin(reconstruction: Reconstruction) -> dict[str, Any]:
    modes, size, _ = reconstruction.probe.shape
    return dict(sorted(reconstruction.metadata.items())) | {
        "probe": f"{modes} mode{'s' * (modes > 1)} of {size} × {size} pixels",
        "origin (y, x)": tuple(reconstruction.origin_yx.tolist()),
        "photons per squared unit of amplitude": f"{reconstruction.photons_per_unit:.9g}",
    }


def _convert_to_finite(value: Any) -> Any:
    """``value`` in plain Python types, None where it is not finite."""
    if isinstance(value, list):
        return [_convert_to_finite(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if not isinstance(value, float | np.floating):
        raise DataError(f"a metric is a {type(value).__name__}, expected a number")
    return float(value) if math.isfinite(value) else None
