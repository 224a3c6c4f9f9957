"""Reconstruct a scan with a trained network.

::

    python -m ptycho_torch.inference --model_path model --test_data scan.npz --output_dir reconstruction

The folder then holds ``reconstruction.npz``, two pictures, ``metrics.json``, ``timing.json`` and ``report.html``.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.inference import InferenceConfig
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.grouping import Indices, check_group_size
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.uncertainty import add_uncertainty
from ptycho_torch.io.inputs import read_positions
from ptycho_torch.io.npz import load_scan
from ptycho_torch.models.calibration import ScanCalibration, select_calibration
from ptycho_torch.models.onnx import load_onnx_network
from ptycho_torch.models.saved_model import Model, load_model
from ptycho_torch.physics.position_refinement import check_position_bound
from ptycho_torch.plotting.result_folder import write_results
from ptycho_torch.prediction import predict as neural
from ptycho_torch.prediction.predict import predict_scan

log = logging.getLogger("ptycho_torch.inference")  # __name__ is __main__ under python -m


def inference(
    config: InferenceConfig,
    observer: Observer | None = None,
    command: str = "",
    process_group: ProcessGroup | None = None,
) -> tuple[Reconstruction, dict[str, Any]]:
    """Reconstruct as ``config`` says and write all results into ``config.output_dir``.

    ``ranks``, where there are several: this process, the first, and those that call :func:`inference_share` meanwhile.

    Returns:
        The reconstruction, and what is in ``metrics.json``.

    Raises:
        PtychoError: bad input, before anything is written.
    """

    clock = Clock()
    process_group = process_group or SINGLE_PROCESS
    bundle, scan, calibration, centers = _load_inputs(config, process_group)
    _warn_photon_scale(config, scan, calibration.photons_per_unit)
    log.info("probe: %s", calibration.probe_source)
    if config.positions is not None:
        log.info("positions: of %s", config.positions.name)
    elif calibration.position_offsets is not None:
        log.info("positions: as the model learned them on this scan")
    make_output_dir(config.output_dir)
    clock.record("load")
    placed = calibration.apply_positions(scan)
    reconstruction = predict_scan(
        bundle.model,
        placed,
        calibration.photons_per_unit,
        gridsize=config.gridsize or bundle.gridsize,
        centers=centers,
        batch_size=config.batch_size,
        precision=_select_precision(config, bundle),
        observer=observer,
        history=bundle.provenance.get("history", {}),
        metadata=_make_metadata(config, bundle, scan, calibration),
        probe=calibration.probe,
        position_bound=_select_position_bound(config),
        background=calibration.background,
        process_group=process_group,
    )
    clock.record("infer and stitch")
    reconstruction = calibration.attach_background(reconstruction)
    evaluated = replace(placed.select(centers), positions=reconstruction.positions)
    if config.uncertainty:
        reconstruction = add_uncertainty(reconstruction, evaluated, device=bundle.model.device, observer=observer)
        clock.record("uncertainty")
    metrics = write_results(
        config.output_dir,
        reconstruction,
        evaluated,
        photons_per_unit=calibration.photons_per_unit,
        command=command,
        validation=_select_held_out(bundle, scan, centers),
        report=config.report,
    )
    clock.record("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds)
    return reconstruction, metrics


def inference_share(config: InferenceConfig, process_group: ProcessGroup) -> None:
    """What the other ranks do while the first calls :func:`inference`: predict their share of the patches for it.

    Raises:
        PtychoError: bad input.
    """

    bundle, scan, calibration, centers = _load_inputs(config, process_group)
    neural.predict_scan_share(
        bundle.model,
        calibration.apply_positions(scan),
        calibration.photons_per_unit,
        gridsize=config.gridsize or bundle.gridsize,
        centers=centers,
        batch_size=config.batch_size,
        precision=_select_precision(config, bundle),
        probe=calibration.probe,
        position_bound=_select_position_bound(config),
        process_group=process_group,
    )


def _load_inputs(config: InferenceConfig, process_group: ProcessGroup) -> tuple[Model, Scan, ScanCalibration, Indices]:
    """The model, the scan, what lights it, and which of its positions to reconstruct."""

    bundle = load_model(config.model_path, process_group.select_device("cpu" if config.onnx else config.device))
    if config.onnx:
        load_onnx_network(bundle.model, config.onnx)
    scan = load_scan(config.test_data, axis_order=config.axis_order, measurement=config.measurement)
    check_position_bound(_select_position_bound(config), scan.size)
    calibration = select_calibration(bundle, scan, config.probe, config.photons_per_unit)
    if config.positions is not None:
        found = read_positions(config.positions, len(scan), "positions")
        calibration = calibration._replace(position_offsets=torch.from_numpy(found - scan.positions))
    return bundle, scan, calibration, _select_centers(config, bundle, scan)


def _select_position_bound(config: InferenceConfig) -> float | None:
    return config.position_bound if config.update_positions else None


def _select_precision(config: InferenceConfig, bundle: Model) -> str:
    """fp32 or bf16; onnxruntime runs what was exported, which is fp32."""

    return "fp32" if config.onnx else select_precision(config.precision, bundle.model.device)


def _select_centers(config: InferenceConfig, bundle: Model, scan: Scan) -> Indices:
    """The positions to reconstruct, spread over the file's order."""

    check_group_size(config.gridsize or bundle.gridsize, len(scan))
    count = config.n_images or len(scan)
    if count > len(scan):
        raise ConfigError(
            f"--n_images is {count}, and {config.test_data} has {len(scan)} positions; choose at most that"
        )
    return np.linspace(0, len(scan) - 1, count).round().astype(np.intp)


def _warn_photon_scale(config: InferenceConfig, scan: Scan, used: float) -> None:
    """Say so where the file states another photon scale: the model's is used, and not one found anew, so that a
    pattern gives the same patch in whatever company."""

    declared = scan.photons_per_unit
    if config.photons_per_unit is None and declared and not np.isclose(declared, used, rtol=1e-3):
        log.warning(
            "%s states %.6g photons a squared unit, and the model's scale %.6g is used; "
            "set --photons_per_unit if this file is in another unit",
            config.test_data.name,
            declared,
            used,
        )


def _select_held_out(bundle: Model, scan: Scan, centers: Indices) -> Indices | None:
    """Which of ``centres`` the training held out for validation, where this is the scan that it held them out of."""

    known = bundle.find_scan(scan.digest())
    if known is None or not bundle.scans[known].held_out:
        return None
    return np.flatnonzero(np.isin(centers, bundle.scans[known].held_out))


def _make_metadata(config: InferenceConfig, bundle: Model, scan: Scan, calibration: ScanCalibration) -> dict[str, Any]:
    """Where the reconstruction comes from. No paths and no clock: the same work gives the same bytes anywhere."""
    provenance = bundle.provenance
    return {
        "method": f"network {bundle.model.config.name}" + (" by onnxruntime" if config.onnx else ""),
        "scan": config.test_data.name,
        "scan_digest": scan.digest(),
        "probe": calibration.probe_source,
        "positions": "refined"
        if config.update_positions or calibration.position_offsets is not None
        else "as in the scan",
        "epochs": provenance.get("epochs"),
        "gridsize": config.gridsize or bundle.gridsize,
        "precision": _select_precision(config, bundle),
        "validation": provenance.get("validation"),
    }


def run(config: InferenceConfig, invocation: Invocation) -> int:
    """Reconstruct, and print R; return the exit code."""
    process_group = invocation.process_group
    if process_group and not process_group.is_main:
        inference_share(config, process_group)
        return 0
    _, metrics = inference(config, invocation.observer, invocation.command_line, process_group)
    written = "report.html" if config.report else "metrics.json"
    if not config.quiet:
        print(f"R {metrics['r']:.4f} (counting noise alone {metrics['r_floor']:.4f})")
        print(f"{written.split('.')[0]}: {config.output_dir / written}")
    return 0
