"""Judge a reconstruction by the true object, by the measured patterns, or by both.

::

    python -m ptycho_torch.evaluate reconstruction.npz --truth scan.npz --scan scan.npz --output_dir evaluation
"""

import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.inference import EvaluateConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.files import make_output_dir
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.metric_table import METRICS, format_value
from ptycho_torch.evaluation.scores import apply_refined_positions, evaluate_result
from ptycho_torch.io.npz import load_scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.plotting.result_folder import write_evaluation

log = logging.getLogger("ptycho_torch.evaluate")  # __name__ is "__main__" under python -m


def evaluate(config: EvaluateConfig, command: str = "") -> dict[str, Any]:
    """Write ``metrics.json``, and unless told not to ``report.html`` and two pictures; return the metrics.

    The photons for one squared unit of amplitude are the reconstruction's, unless the configuration gives them.
    ``command`` is what the report says it was made by.

    Raises:
        ConfigError: neither a truth nor a scan is given.
        DataError: a file cannot be used, or the files do not belong together.
    """
    if config.truth is None and config.scan is None:
        raise ConfigError("nothing to judge by: give `truth` SCAN.npz (its objectGuess), `scan` SCAN.npz, or both")

    reconstruction = load_reconstruction(config.reconstruction)
    # The same file twice is read once.
    scans = {path: _read_scan(path, config) for path in (config.scan, config.truth) if path is not None}
    scan = scans[config.scan] if config.scan is not None else None
    if scan is not None and reconstruction.metadata.get("positions") == "refined":
        scan = apply_refined_positions(scan, reconstruction)
    truth = scans[config.truth].truth if config.truth is not None else None
    if config.truth is not None and truth is None:
        raise DataError(
            f"{config.truth}: no objectGuess in it, expected the true object; leave `truth` out to judge by R"
        )

    evaluation = evaluate_result(
        reconstruction,
        scan,
        photons_per_unit=_select_photons_per_unit(config, reconstruction, scan),
        truth=truth,
        remove_ramp=config.remove_ramp,
        remove_shift=config.remove_shift,
    )
    return write_evaluation(
        make_output_dir(config.output_dir), reconstruction, evaluation, command=command, report=config.report
    )


def _select_photons_per_unit(config: EvaluateConfig, reconstruction: Reconstruction, scan: Scan | None) -> float:
    """The configuration's, else the reconstruction's; a warning where the scan states another."""
    scale = config.photons_per_unit or reconstruction.photons_per_unit
    stated = scan.photons_per_unit if scan is not None else None
    if stated is not None and abs(stated - scale) > 1e-3 * scale:
        log.warning(
            "%s states %.6g photons a squared unit, and the reconstruction's %.6g is used; "
            "set `photons_per_unit` if this file is in another unit",
            config.scan,
            stated,
            scale,
        )
    return scale


def _read_scan(path: Path, config: EvaluateConfig) -> Scan:

    return load_scan(
        path,
        axis_order=config.axis_order,
        measurement=config.measurement,
        photons_per_unit=config.photons_per_unit,
    )


def _print_table(metrics: dict[str, Any], config: EvaluateConfig) -> None:

    table = Table(box=None, pad_edge=False)
    for heading in ("metric", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left", no_wrap=True)
    for name, figure in METRICS.items():
        if name in metrics:
            table.add_row(figure.label, format_value(metrics[name]), figure.unit)
    console = Console()
    console.print(table)
    if config.report:
        console.print(f"report: {config.output_dir / 'report.html'}", soft_wrap=True, highlight=False)


def run(config: EvaluateConfig, invocation: Invocation) -> int:
    """Evaluate, and print the metrics; return the exit code."""
    metrics = evaluate(config, invocation.command_line)
    if not config.quiet:
        _print_table(metrics, config)
    return 0
