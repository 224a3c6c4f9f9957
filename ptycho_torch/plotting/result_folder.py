"""What a reconstruction leaves behind: the file, its pictures, its metrics and its report, for every maker alike."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import make_output_dir, write_json, write_text, written_whole
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.alignment import covered_region
from ptycho_torch.evaluation.metrics import TruthComparison, compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import Calibration, calibration_of
from ptycho_torch.plotting import figures
from ptycho_torch.plotting.report import Picture, render_report

if TYPE_CHECKING:
    from ptycho_torch.evaluation.fourier_error import Consistency


class ExamplePatterns(NamedTuple):
    """A few patterns, measured and predicted, in photons with zero frequency in the middle."""

    measured: NDArray[np.float32]
    """(k, N, N), NaN where masked."""

    predicted: NDArray[np.float32]
    """(k, N, N)."""

    titles: list[str]


class Judgement(NamedTuple):
    """All that is found out about a reconstruction, from what was given."""

    consistency: "Consistency | None" = None
    validation: "Consistency | None" = None
    patterns: ExamplePatterns | None = None
    comparison: TruthComparison | None = None
    calibration: Calibration | None = None


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
    further: Sequence[Picture] = (),
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
        found: further metrics, by names that :data:`ptycho_torch.plotting.report.FIGURES` explains.

    Returns:
        What is in ``metrics.json``.

    Raises:
        DataError: the folder cannot be made, or what was given does not belong together.
    """
    judgement = judge(
        reconstruction, scan, photons_per_unit=photons_per_unit, truth=truth, validation=validation, device=device
    )
    output_dir = make_output_dir(output_dir)
    reconstruction.save(output_dir / "reconstruction.npz")
    return write_judgement(
        output_dir, reconstruction, judgement, command=command, report=report, further=further, found=found
    )


def judge(
    reconstruction: Reconstruction,
    scan: Scan | None = None,
    *,
    photons_per_unit: float = 1.0,
    truth: NDArray[np.complexfloating] | None = None,
    validation: NDArray[np.intp] | None = None,
    remove_ramp: bool = False,
    remove_shift: bool = False,
    device: str = "cpu",
) -> Judgement:
    """Compare a reconstruction with the patterns of ``scan`` and with ``truth``, each where it is given.

    Raises:
        DataError: the object cannot be shown (nothing is covered, or it is not finite), or does not belong to the rest.
    """
    covered_region(reconstruction)  # raises before anything is computed or written
    judgement = Judgement()
    if scan is not None:
        from ptycho_torch.evaluation.fourier_error import consistency  # torch, which a truth alone does without

        measured = consistency(reconstruction, scan, photons_per_unit=photons_per_unit, device=device)
        patterns = example_patterns(reconstruction, scan, measured, photons_per_unit)
        judgement = Judgement(measured, None, patterns)
        if validation is not None and len(validation):
            held_out = consistency(
                reconstruction, scan, photons_per_unit=photons_per_unit, device=device, indices=validation
            )
            judgement = judgement._replace(validation=held_out)
    if truth is not None:
        comparison = compare_with_truth(reconstruction, truth, remove_ramp=remove_ramp, remove_shift=remove_shift)
        judgement = judgement._replace(comparison=comparison, calibration=calibration_of(reconstruction, comparison))
    return judgement


def write_judgement(
    output_dir: Path,
    reconstruction: Reconstruction,
    judgement: Judgement,
    *,
    command: str,
    report: bool = True,
    further: Sequence[Picture] = (),
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.json`` and, with ``report``, the two plain pictures and ``report.html``; return the metrics."""
    metrics = metrics_of(reconstruction, judgement)
    metrics |= {name: _finite(value) for name, value in (found or {}).items()}
    if not report:
        write_json(output_dir / "metrics.json", metrics)
        return metrics
    page = render_report(
        title="Ptychographic reconstruction",
        subtitle=_subtitle(reconstruction),
        pictures=[*report_pictures(reconstruction, judgement), *further],
        metrics=metrics,
        command=command,
        origin=_origin(reconstruction),
    )
    write_pictures(output_dir, reconstruction)
    write_json(output_dir / "metrics.json", metrics)
    write_text(output_dir / "report.html", page)
    return metrics


def write_pictures(output_dir: Path, reconstruction: Reconstruction) -> list[Path]:
    """Write ``reconstructed_amplitude.png`` and ``reconstructed_phase.png`` into a folder that is there.

    Raises:
        DataError: nothing is covered, or the folder cannot be written to.
    """
    view = figures.view_of(reconstruction)
    plain = {"amplitude": figures.amplitude_picture(view), "phase": figures.phase_picture(view)}
    paths = [output_dir / f"reconstructed_{name}.png" for name in plain]
    for path, png in zip(paths, plain.values(), strict=True):
        with written_whole(path) as aside:
            aside.write_bytes(png)
    return paths


def metrics_of(reconstruction: Reconstruction, judgement: Judgement) -> dict[str, Any]:
    """The entries of ``metrics.json``: numbers, lists of numbers, or None for what is not finite or not defined.

    :data:`ptycho_torch.plotting.report.FIGURES` says what each is.
    """
    region = covered_region(reconstruction)
    metrics: dict[str, Any] = {"coverage_share": region.mean(), "covered_pixels": int(region.sum())}
    if judgement.consistency is not None:
        found = judgement.consistency
        metrics |= {
            "r": found.r,
            "r_floor": found.r_floor,
            "amplitude_loss": found.loss,
            "patterns": len(found.indices),
            "patterns_skipped": found.skipped,
            "photons_per_pattern": found.photons_per_pattern,
        }
    if judgement.validation is not None:
        held_out = judgement.validation
        metrics |= {
            "validation_r": held_out.r,
            "validation_r_floor": held_out.r_floor,
            "validation_loss": held_out.loss,
            "validation_patterns": len(held_out.indices),
        }
    if judgement.comparison is not None:
        metrics |= judgement.comparison.figures()
    if reconstruction.uncertainty is not None:
        metrics["uncertainty_median"] = np.median(reconstruction.uncertainty[region])
    if judgement.calibration is not None:
        metrics |= judgement.calibration.figures()
    return {name: _finite(value) for name, value in metrics.items()}


def example_patterns(
    reconstruction: Reconstruction, scan: Scan, found: "Consistency", photons_per_unit: float
) -> ExamplePatterns:
    """The patterns that the model explains best, middling and worst, by their R."""
    from ptycho_torch.evaluation.fourier_error import expected_photons, intensities_of, measured_photons

    order = np.argsort(found.per_pattern, kind="stable")  # patterns without a photon have R = NaN and come last
    usable = order[: max(1, int(np.isfinite(found.per_pattern).sum()))]
    places = usable[[0, len(usable) // 2, len(usable) - 1]]
    chosen = found.indices[places]
    brightness = intensities_of(reconstruction, scan, chosen)
    predicted = expected_photons(reconstruction, scan.positions[chosen], intensities=brightness).numpy()
    measured = measured_photons(scan, chosen, photons_per_unit).numpy()
    measured, predicted = (np.fft.fftshift(patterns, axes=(-2, -1)) for patterns in (measured, predicted))
    if scan.mask is not None:
        measured = np.where(scan.mask if scan.mask.ndim == 2 else scan.mask[chosen], measured, np.float32(np.nan))
    titles = [
        f"pattern {index} ({name}, R {r:.3g})"
        for name, index, r in zip(("best", "median", "worst"), chosen, found.per_pattern[places], strict=True)
    ]
    return ExamplePatterns(measured, predicted, titles)


def report_pictures(reconstruction: Reconstruction, judgement: Judgement) -> list[Picture]:
    """The pictures that the report shows, in order."""
    pictures = [
        Picture(
            "Object",
            figures.object_figure(figures.view_of(reconstruction)),
            "The covered region, axes in object pixels. The mean over the region is real: the global phase is free.",
        ),
        Picture(
            "Illumination",
            figures.illumination_figure(reconstruction),
            "Probe power summed over the scan positions (dots), and the probe: hue is phase, brightness amplitude.",
        ),
    ]
    if judgement.comparison is not None:
        removed = "After the best complex factor and whatever else the table names as removed. Errors: 99th percentile."
        pictures.insert(1, Picture("Against the truth", figures.truth_figure(judgement.comparison), removed))
    pictures += _uncertainty_pictures(reconstruction, judgement)
    if judgement.patterns is not None:
        told = "Photons on a log scale; the patterns that the stitched object explains best, middling and worst."
        pictures.append(Picture("Diffraction patterns", figures.patterns_figure(*judgement.patterns), told))
    history = figures.history_figure(reconstruction.history)
    frc = judgement.comparison.frc if judgement.comparison is not None else None
    if history is not None:
        title, told = _history_caption(reconstruction.history)
        pictures.append(Picture(title, history, told, wide=frc is None))
    if frc is not None:
        told = "Complex fields of reconstruction and truth, without their means, under a Hann taper."
        pictures.append(Picture("Fourier ring correlation", figures.frc_figure(frc), told, wide=history is None))
    return pictures


def _uncertainty_pictures(reconstruction: Reconstruction, judgement: Judgement) -> list[Picture]:
    """The stated standard deviation, beside the true error where that is known."""
    if judgement.calibration is not None and judgement.comparison is not None:
        told = "Stated standard deviation and true error on one scale, and how many pixels lie within k of the former."
        figure = figures.calibration_figure(judgement.calibration, judgement.comparison.pair)
        return [Picture("Uncertainty against the error", figure, told)]
    if reconstruction.uncertainty is not None:
        told = "The root of the mean squared distance of the complex object from the truth that is to be expected."
        return [Picture("Uncertainty", figures.uncertainty_figure(reconstruction), told, wide=False)]
    return []


def _history_caption(history: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """Title and caption of the picture of a history."""
    if "r" not in history:
        return "Loss", "As recorded by the maker of the result."
    told = "R of each epoch, batch by batch before its step, and what counting noise alone would leave of it."
    if "held_out_deviance" in history:
        told += " Below: how well pixels that no engine saw are predicted after each epoch."
    return "Convergence", told


def stage_pictures(stages: Sequence[tuple[str, Reconstruction]]) -> list[Picture]:
    """The object after each stage of a chain, by the name of the stage."""
    return [
        Picture(
            f"Stage {number}: {name}",
            figures.object_figure(figures.view_of(result)),
            f"The object that this stage left{_last_r(result)}.",
        )
        for number, (name, result) in enumerate(stages, start=1)
    ]


def _last_r(result: Reconstruction) -> str:
    r = result.history.get("r", [])
    return f", R {r[-1]:.4g} in its last epoch" if r else ""


def _subtitle(reconstruction: Reconstruction) -> str:
    rows, columns = reconstruction.object.shape
    method = reconstruction.metadata.get("method")
    told = [str(method)] if method else []
    told += [f"{len(reconstruction.positions):,} positions", f"canvas of {rows} × {columns} pixels"]
    return " · ".join([*told, f"ptycho-torch {version('ptycho-torch')}"])


def _origin(reconstruction: Reconstruction) -> dict[str, Any]:
    modes, size, _ = reconstruction.probe.shape
    return dict(sorted(reconstruction.metadata.items())) | {
        "probe": f"{modes} mode{'s' * (modes > 1)} of {size} × {size} pixels",
        "origin (y, x)": tuple(reconstruction.origin_yx.tolist()),
        "photons per squared unit of amplitude": f"{reconstruction.photons_per_unit:.9g}",
    }


def _finite(value: Any) -> Any:
    """``value`` in plain Python types, None where it is not finite."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if not isinstance(value, float | np.floating):
        raise DataError(f"a metric is a {type(value).__name__}, expected a number")
    return float(value) if math.isfinite(value) else None
