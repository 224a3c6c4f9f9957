"""Reconstruct a scan with a trained network.

::

    python -m ptycho_torch.inference --model_path model --test_data scan.npz --output_dir reconstruction

The output folder contains ``reconstruction.npz``, two images, ``metrics.json``, ``timing.json`` and ``report.html``.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from ptycho_torch.commands.base import Invocation, report_verdict
from ptycho_torch.commands.provenance import add_provenance
from ptycho_torch.config.engines import NetworkEngine, iterate_settings
from ptycho_torch.config.inference import InferenceConfig
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.grouping import Indices
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.io.reconstruction import check_result_paths
from ptycho_torch.io.scan import load_scan
from ptycho_torch.models.saved_model import Model, load_model
from ptycho_torch.plotting.result_folder import write_results


def inference(
    config: InferenceConfig,
    observer: Observer | None = None,
    command: str = "",
    process_group: ProcessGroup | None = None,
) -> tuple[Reconstruction, dict[str, Any]]:
    """Reconstruct a scan with a network and write all results into ``config.output_dir``.

    Args:
        config: the settings of the command.
        observer: receives the progress.
        command: the command line, for the report.
        process_group: processes that all call this function; the main process writes the results.

    Returns:
        The reconstruction, and the content of ``metrics.json``; other processes return no metrics.

    Raises:
        PtychoError: bad input, or R above 1, which an empty model reaches; nothing is written then.
    """
    clock, process_group = Clock(), process_group or SINGLE_PROCESS
    device = process_group.select_device("cpu" if config.onnx else config.device)
    model = load_model(config.model_path, device)
    names = {field.name for field in iterate_settings(NetworkEngine)} - {"model_path"}
    options = NetworkEngine(model=model, **{name: getattr(config, name) for name in names})
    check_result_paths(config.save_as)
    scan = load_scan(config.test_data, **collect_input_settings(config))
    pipeline = Pipeline(options).start(
        scan, photons_per_unit=config.photons_per_unit, device=config.device, process_group=process_group
    )
    pipeline.check()
    if process_group.is_main:
        make_output_dir(config.output_dir)
    clock.record("load")
    pipeline.run(observer)
    result = add_provenance(pipeline.make_reconstruction(), "inference", config, scan)
    clock.record("infer and stitch")
    if not process_group.is_main:
        return result, {}
    metrics = write_results(
        config.output_dir,
        result,
        replace(pipeline.scan, positions=result.positions),
        photons_per_unit=result.photons_per_unit,
        command=command,
        validation=_select_held_out(model, pipeline),
        report=config.report,
        max_r=1.0,
    )
    for path in config.save_as:
        result.save(path)
    clock.record("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds)
    return result, metrics


def _select_held_out(model: Model, pipeline: PipelineRun) -> Indices | None:
    """Return the patterns that the training on this scan held out for validation; None: the training was on others."""
    scan, centers = pipeline.full_scan, pipeline.centers
    index = None if scan is None else model.find_scan(scan.digest())
    if index is None or centers is None or not model.scans[index].held_out:
        return None
    return np.flatnonzero(np.isin(centers, model.scans[index].held_out))


def run(config: InferenceConfig, invocation: Invocation) -> int:
    """Run the command and print R with its verdict; return the exit code."""
    group = invocation.process_group
    _, metrics = inference(config, invocation.observer, invocation.command_line, group)
    if group and not group.is_main:
        return 0
    code = report_verdict(metrics, invocation, config.quiet)
    if not config.quiet:
        written = "report.html" if config.report else "metrics.json"
        print(f"{written.split('.')[0]}: {config.output_dir / written}")
    return code
