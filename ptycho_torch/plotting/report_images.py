"""The images of the report, with their titles and captions."""

from collections.abc import Mapping, Sequence

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.half_split import FIXED_FRC_LEVEL, HalfScanCorrelation
from ptycho_torch.evaluation.scores import EvaluationResult
from ptycho_torch.plotting import curves, figures
from ptycho_torch.plotting.canvas import encode_figure
from ptycho_torch.plotting.report import ReportImage


def make_report_images(reconstruction: Reconstruction, evaluation: EvaluationResult) -> list[ReportImage]:
    """Return the images of a result and its evaluation, in order."""
    images = [
        ReportImage(
            "Object",
            encode_figure(figures.plot_object(reconstruction)),
            "The covered region, axes in object pixels. The mean over the region is real: the global phase is free.",
        ),
        *_make_truth_images(reconstruction, evaluation),
        ReportImage(
            "Illumination",
            encode_figure(figures.plot_illumination(reconstruction)),
            "Probe power summed over the scan positions (dots), and the probe: hue is phase, brightness is amplitude.",
        ),
        *_make_uncertainty_images(reconstruction, evaluation),
    ]
    if evaluation.patterns is not None:
        caption = "Photons on a log scale; the patterns with the lowest, the median and the highest R."
        images.append(
            ReportImage("Diffraction patterns", encode_figure(figures.plot_patterns(*evaluation.patterns)), caption)
        )
    has_history = bool(curves.select_curves(reconstruction.history))
    frc = evaluation.comparison.frc if evaluation.comparison is not None else None
    if has_history:
        title, caption = _make_history_caption(reconstruction.history)
        history = encode_figure(curves.plot_history(reconstruction))
        images.append(ReportImage(title, history, caption, wide=frc is None))
    if frc is not None:
        caption = "Complex fields of reconstruction and truth, without their means, under a Hann taper."
        image = ReportImage(
            "Fourier ring correlation", encode_figure(curves.plot_frc(frc)), caption, wide=not has_history
        )
        images.append(image)
    return images


def make_stage_images(stages: Sequence[tuple[str, Reconstruction]]) -> list[ReportImage]:
    """Return the object after each stage of a pipeline, given the name and the result of each stage."""
    return [
        ReportImage(
            f"Stage {number}: {name}",
            encode_figure(figures.plot_object(result)),
            f"The object after this stage{_format_last_r(result)}.",
        )
        for number, (name, result) in enumerate(stages, start=1)
    ]


def make_half_scan_image(correlation: HalfScanCorrelation) -> ReportImage:
    """Return the ring correlation of two half scans."""
    side = 2 * len(correlation.frc.frequency) + 1
    caption = (
        f"Two reconstructions from disjoint halves of the positions, in {side} × {side} pixels that both cover, "
        "after one complex factor, a ramp and a shift. Each half has half of the dose and of the overlap."
    )
    figure = curves.plot_frc(correlation.frc, FIXED_FRC_LEVEL)
    return ReportImage("Half-scan Fourier ring correlation", encode_figure(figure), caption, wide=False)


def _make_truth_images(reconstruction: Reconstruction, evaluation: EvaluationResult) -> list[ReportImage]:
    """Return truth, reconstruction and errors, where there is a truth."""
    if evaluation.comparison is None:
        return []
    caption = (
        "After the best complex factor and the ramp and shift that the table lists as removed. "
        "Range of the errors: 99th percentile."
    )
    figure = figures.plot_truth_comparison(evaluation.comparison, geometry=reconstruction.geometry)
    return [ReportImage("Against the truth", encode_figure(figure), caption)]


def _make_uncertainty_images(reconstruction: Reconstruction, evaluation: EvaluationResult) -> list[ReportImage]:
    """Return the estimated standard deviation, with the true error where there is a truth."""
    if evaluation.calibration is not None and evaluation.comparison is not None:
        caption = "Estimated standard deviation and true error on one scale, and the share of pixels within k σ."
        figure = figures.plot_calibration(
            evaluation.calibration, evaluation.comparison.overlap_region, geometry=reconstruction.geometry
        )
        return [ReportImage("Uncertainty against the error", encode_figure(figure), caption)]
    if reconstruction.uncertainty is not None:
        caption = "The root of the expected squared distance of the complex object from the truth."
        figure = figures.plot_uncertainty(reconstruction)
        return [ReportImage("Uncertainty", encode_figure(figure), caption, wide=False)]
    return []


def _make_history_caption(history: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """Return title and caption of the image of a history."""
    if "r" not in history:
        return "Loss", "As recorded during training."
    caption = "R of each epoch, batch by batch before its step, and the level of counting noise alone."
    if "held_out_deviance" in history:
        caption += " Below: the deviance of held-out detector pixels after each epoch."
    return "Convergence", caption


def _format_last_r(result: Reconstruction) -> str:
    r = result.history.get("r", [])
    return f", R {r[-1]:.4g} in its last epoch" if r else ""
