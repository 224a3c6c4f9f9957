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
from ptycho_torch.data.grouping import Indices, require_group
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.engines.modulus_positions import require_bound
from ptycho_torch.engines.uncertainty import with_uncertainty
from ptycho_torch.io.npz import load_scan
from ptycho_torch.io.positions_file import read_positions
from ptycho_torch.models.calibration import Light, light_for
from ptycho_torch.models.onnx import run_exported
from ptycho_torch.models.saved_model import Bundle, load_bundle
from ptycho_torch.plotting.result_folder import write_results
from ptycho_torch.prediction import predict as neural
from ptycho_torch.prediction.predict import reconstruct_by_network

log = logging.getLogger("ptycho_torch.inference")  # __name__ is __main__ under python -m


def inference(
    config: InferenceConfig, observer: Observer | None = None, command: str = "", ranks: Ranks | None = None
) -> tuple[Reconstruction, dict[str, Any]]:
    """Reconstruct as ``config`` says and write all results into ``config.output_dir``.

    ``ranks``, where there are several: this process, the first, and those that call :func:`assist` meanwhile.

    Returns:
        The reconstruction, and what is in ``metrics.json``.

    Raises:
        PtychoError: bad input, before anything is written.
    """

    clock = Clock()
    ranks = ranks or ALONE
    bundle, scan, light, centres = _load(config, ranks)
    _warn_of_scale(config, scan, light.photons_per_unit)
    log.info("probe: %s", light.told)
    if config.positions is not None:
        log.info("positions: of %s", config.positions.name)
    elif light.shifts is not None:
        log.info("positions: as the model learned them on this scan")
    make_output_dir(config.output_dir)
    clock.lap("load")
    placed = light.placed(scan)
    reconstruction = reconstruct_by_network(
        bundle.model,
        placed,
        light.photons_per_unit,
        gridsize=config.gridsize or bundle.gridsize,
        centres=centres,
        batch_size=config.batch_size,
        precision=_precision(config, bundle),
        observer=observer,
        history=bundle.provenance.get("history", {}),
        metadata=_metadata(config, bundle, scan, light),
        probe=light.probe,
        position_bound=_bound(config),
        background=light.background,
        ranks=ranks,
    )
    clock.lap("infer and stitch")
    reconstruction = light.completed(reconstruction)
    judged = replace(placed.select(centres), positions=reconstruction.positions)
    if config.uncertainty:
        reconstruction = with_uncertainty(reconstruction, judged, device=bundle.model.device, observer=observer)
        clock.lap("uncertainty")
    metrics = write_results(
        config.output_dir,
        reconstruction,
        judged,
        photons_per_unit=light.photons_per_unit,
        command=command,
        validation=_held_out(bundle, scan, centres),
        report=config.report,
    )
    clock.lap("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds)
    return reconstruction, metrics


def assist(config: InferenceConfig, ranks: Ranks) -> None:
    """What the other ranks do while the first calls :func:`inference`: predict their share of the patches for it.

    Raises:
        PtychoError: bad input.
    """

    bundle, scan, light, centres = _load(config, ranks)
    neural.assist(
        bundle.model,
        light.placed(scan),
        light.photons_per_unit,
        gridsize=config.gridsize or bundle.gridsize,
        centres=centres,
        batch_size=config.batch_size,
        precision=_precision(config, bundle),
        probe=light.probe,
        position_bound=_bound(config),
        ranks=ranks,
    )


def _load(config: InferenceConfig, ranks: Ranks) -> tuple[Bundle, Scan, Light, Indices]:
    """The model, the scan, what lights it, and which of its positions to reconstruct."""

    bundle = load_bundle(config.model_path, ranks.device("cpu" if config.onnx else config.device))
    if config.onnx:
        run_exported(bundle.model, config.onnx)
    scan = load_scan(config.test_data, axis_order=config.axis_order, measurement=config.measurement)
    require_bound(_bound(config), scan.size)
    light = light_for(bundle, scan, config.probe, config.photons_per_unit)
    if config.positions is not None:
        found = read_positions(config.positions, len(scan), "--positions")
        light = light._replace(shifts=torch.from_numpy(found - scan.positions))
    return bundle, scan, light, _centres(config, bundle, scan)


def _bound(config: InferenceConfig) -> float | None:
    return config.position_bound if config.update_positions else None


def _precision(config: InferenceConfig, bundle: Bundle) -> str:
    """fp32 or bf16; onnxruntime runs what was exported, which is fp32."""

    return "fp32" if config.onnx else select_precision(config.precision, bundle.model.device)


def _centres(config: InferenceConfig, bundle: Bundle, scan: Scan) -> Indices:
    """The positions to reconstruct, spread over the file's order."""

    require_group(config.gridsize or bundle.gridsize, len(scan))
    count = config.n_images or len(scan)
    if count > len(scan):
        raise ConfigError(
            f"--n_images is {count}, and {config.test_data} has {len(scan)} positions; choose at most that"
        )
    return np.linspace(0, len(scan) - 1, count).round().astype(np.intp)


def _warn_of_scale(config: InferenceConfig, scan: Scan, used: float) -> None:
    """Say so where the file states another photon scale: the model's is used, and not one found anew, so that a
    pattern gives the same patch in whatever company."""

    stated = scan.photons_per_unit
    if config.photons_per_unit is None and stated and not np.isclose(stated, used, rtol=1e-3):
        log.warning(
            "%s states %.6g photons a squared unit, and the model's scale %.6g is used; "
            "set --photons_per_unit if this file is in another unit",
            config.test_data.name,
            stated,
            used,
        )


def _held_out(bundle: Bundle, scan: Scan, centres: Indices) -> Indices | None:
    """Which of ``centres`` the training held out for validation, where this is the scan that it held them out of."""

    known = bundle.known(scan.digest())
    if known is None or not bundle.scans[known].held_out:
        return None
    return np.flatnonzero(np.isin(centres, bundle.scans[known].held_out))


def _metadata(config: InferenceConfig, bundle: Bundle, scan: Scan, light: Light) -> dict[str, Any]:
    """Where the reconstruction comes from. No paths and no clock: the same work gives the same bytes anywhere."""
    kept = bundle.provenance
    return {
        "method": f"network {bundle.model.config.name}" + (" by onnxruntime" if config.onnx else ""),
        "scan": config.test_data.name,
        "scan_digest": scan.digest(),
        "probe": light.told,
        "positions": "refined" if config.update_positions or light.shifts is not None else "as in the scan",
        "epochs": kept.get("epochs"),
        "gridsize": config.gridsize or bundle.gridsize,
        "precision": _precision(config, bundle),
        "validation": kept.get("validation"),
    }


def run(config: InferenceConfig, invocation: Invocation) -> int:
    """Reconstruct, and print R; return the exit code."""
    ranks = invocation.ranks
    if ranks and not ranks.first:
        assist(config, ranks)
        return 0
    _, metrics = inference(config, invocation.observer, invocation.command_line, ranks)
    written = "report.html" if config.report else "metrics.json"
    if not config.quiet:
        print(f"R {metrics['r']:.4f} (counting noise alone {metrics['r_floor']:.4f})")
        print(f"{written.split('.')[0]}: {config.output_dir / written}")
    return 0
