"""Compare a reconstruction with the true object, with the measured patterns, or with both.

::

    python -m ptycho_torch.evaluate reconstruction.npz --truth scan.npz --scan scan.npz --output_dir evaluation
"""

import logging
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.inference import EvaluateConfig
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.files import make_output_dir
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.data.scan_numbers import require_single_scan
from ptycho_torch.evaluation.matching import match_patterns
from ptycho_torch.evaluation.metric_table import METRICS, format_value
from ptycho_torch.evaluation.scores import apply_refined_positions, evaluate_result
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan
from ptycho_torch.plotting.result_folder import write_evaluation

log = logging.getLogger("ptycho_torch.evaluate")  # __name__ is __main__ under python -m


def evaluate(config: EvaluateConfig, command: str = "") -> dict[str, Any]:
    """Compute the metrics of a reconstruction and write them into ``config.output_dir``.

    The folder then contains ``metrics.json`` and, with ``config.report``, ``report.html`` and two images.

    Args:
        config: the settings of the command. If ``photons_per_unit`` is None, the scale of the reconstruction is used.
        command: the command line, for the report.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ConfigError: neither ``truth`` nor ``scan`` is set.
        DataError: a file cannot be used, or the files do not belong together.
    """
    if config.truth is None and config.scan is None:
        raise ConfigError(
            "neither the true object nor the patterns are given; expected at least one of them; set `truth` to a scan "
            "file with objectGuess, or `scan` to a scan file"
        )
    reconstruction = load_reconstruction(config.reconstruction)
    scan, truth = _load_references(config)
    if scan is not None:
        reconstruction, scan = match_patterns(reconstruction, scan)
        if reconstruction.metadata.get("positions") == "refined":
            scan = apply_refined_positions(scan, reconstruction)
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


def _load_references(config: EvaluateConfig) -> tuple[Scan | None, NDArray[Any] | None]:
    """Read the scan and the true object, if they are set; a file that has both roles is read once."""
    settings = collect_input_settings(config)
    scans = {path: load_scan(path, **settings) for path in (config.scan, config.truth) if path is not None}
    scan = None if config.scan is None else scans[config.scan]
    if scan is not None:
        require_single_scan(scan)
    truth = None if config.truth is None else scans[config.truth].truth
    if config.truth is not None and truth is None:
        raise DataError(
            f"{config.truth}: no objectGuess; expected the true object; omit `truth` to compare with the patterns only"
        )
    return scan, truth


def _select_photons_per_unit(config: EvaluateConfig, reconstruction: Reconstruction, scan: Scan | None) -> float:
    """Return the scale of the settings, otherwise of the reconstruction; warn if the scan states another scale."""
    scale = config.photons_per_unit or reconstruction.photons_per_unit
    stated = None if scan is None else scan.photons_per_unit
    if stated is not None and abs(stated - scale) > 1e-3 * scale:
        log.warning(
            "%s states %.6g photons per squared unit; the scale %.6g of the reconstruction is used; set "
            "`photons_per_unit` if this file is in another unit",
            config.scan,
            stated,
            scale,
        )
    return scale


def _print_table(metrics: dict[str, Any], config: EvaluateConfig, format_message: Callable[[str], str]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("metric", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left", no_wrap=True)
    for name, metric in METRICS.items():
        if name in metrics:
            table.add_row(metric.label, format_value(metrics[name]), metric.unit)
    console = Console()
    console.print(table)
    if "verdict_text" in metrics:
        causes = [f"  {number}. {cause}" for number, cause in enumerate(metrics["likely_causes"], 1)]
        console.print(format_message("\n".join([metrics["verdict_text"], *causes])), soft_wrap=True, highlight=False)
    if config.report:
        console.print(f"report: {config.output_dir / 'report.html'}", soft_wrap=True, highlight=False)


def run(config: EvaluateConfig, invocation: Invocation) -> int:
    """Evaluate, and print the metrics; return the exit code."""
    metrics = evaluate(config, invocation.command_line)
    if not config.quiet:
        _print_table(metrics, config, invocation.format_message)
    return 0
