"""The files of a result: the reconstruction, two images, the metrics and the report."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import atomic_write, make_output_dir, write_json, write_text
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.scores import EvaluationResult, collect_metrics, convert_to_finite, evaluate_result
from ptycho_torch.plotting import figures
from ptycho_torch.plotting.report import ReportImage, render_report
from ptycho_torch.plotting.report_images import make_report_images


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
    extra_metrics: Mapping[str, Any] | None = None,
    max_r: float = math.inf,
) -> dict[str, Any]:
    """Write ``reconstruction.npz``, two images, ``metrics.json`` and ``report.html`` into ``output_dir``.

    Args:
        output_dir: created if it does not exist.
        reconstruction: the result.
        scan: the patterns for the evaluation; ``scan.select(indices)`` for a part.
        photons_per_unit: photons per squared unit of the scan's amplitude.
        command: the exact command, for the report.
        truth: the true object, (rows, columns), origin (0, 0), if the user gave it for the evaluation.
        validation: indices into ``scan`` of patterns held out of training.
        device: device of the predicted patterns.
        report: write the report and the images too.
        extra_images: images for the end of the report.
        extra_metrics: further metrics, by names of :data:`~ptycho_torch.evaluation.metric_table.METRICS`.
        max_r: largest R of a result that is written.

    Returns:
        The content of ``metrics.json``.

    Raises:
        DataError: the folder cannot be created, reconstruction, scan and truth do not belong together, or R exceeds
            ``max_r``; the error then gives the likely causes.
    """
    evaluation = evaluate_result(
        reconstruction, scan, photons_per_unit=photons_per_unit, truth=truth, validation=validation, device=device
    )
    if evaluation.fourier_error is not None and evaluation.verdict is not None and evaluation.fourier_error.r > max_r:
        causes = "; ".join(evaluation.verdict.causes)
        raise DataError(f"{scan.source or 'scan'}: {evaluation.verdict.text}; likely causes: {causes}")
    output_dir = make_output_dir(output_dir)
    reconstruction.save(output_dir / "reconstruction.npz")
    return write_evaluation(
        output_dir,
        reconstruction,
        evaluation,
        command=command,
        report=report,
        extra_images=extra_images,
        extra_metrics=extra_metrics,
    )


def write_evaluation(
    output_dir: Path,
    reconstruction: Reconstruction,
    evaluation: EvaluationResult,
    *,
    command: str,
    report: bool = True,
    extra_images: Sequence[ReportImage] = (),
    extra_metrics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.json`` and, with ``report``, the two images and ``report.html``; return the metrics.

    Args:
        output_dir: an existing folder.
        reconstruction: the result.
        evaluation: its comparisons.
        command: the exact command, for the report.
        report: write the report and the images too.
        extra_images: images for the end of the report.
        extra_metrics: further metrics, by names of :data:`~ptycho_torch.evaluation.metric_table.METRICS`.
    """
    metrics = collect_metrics(reconstruction, evaluation)
    metrics |= {name: convert_to_finite(value) for name, value in (extra_metrics or {}).items()}
    if not report:
        write_json(output_dir / "metrics.json", metrics)
        return metrics
    page = render_report(
        title="Ptychographic reconstruction",
        subtitle=_make_subtitle(reconstruction),
        images=[*make_report_images(reconstruction, evaluation), *extra_images],
        metrics=metrics,
        command=command,
        origin=_collect_origin(reconstruction),
    )
    write_images(output_dir, reconstruction)
    write_json(output_dir / "metrics.json", metrics)
    write_text(output_dir / "report.html", page)
    return metrics


def write_images(output_dir: Path, reconstruction: Reconstruction) -> list[Path]:
    """Write ``reconstructed_amplitude.png`` and ``reconstructed_phase.png`` into an existing folder.

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


def _make_subtitle(reconstruction: Reconstruction) -> str:
    rows, columns = reconstruction.object.shape
    method = reconstruction.metadata.get("method")
    parts = [str(method)] if method else []
    parts += [f"{len(reconstruction.positions):,} positions", f"canvas of {rows} × {columns} pixels"]
    return " · ".join([*parts, f"ptycho-torch {version('ptycho-torch')}"])


def _collect_origin(reconstruction: Reconstruction) -> dict[str, Any]:
    modes, size, _ = reconstruction.probe.shape
    return dict(sorted(reconstruction.metadata.items())) | {
        "probe": f"{modes} mode{'s' * (modes > 1)} of {size} × {size} pixels",
        "origin (y, x)": tuple(reconstruction.origin_yx.tolist()),
        "photons per squared unit of amplitude": f"{reconstruction.photons_per_unit:.9g}",
    }
