"""Reconstruct a scan with a trained network.

::

    python -m ptycho_torch.inference --model_path model --test_data scan.npz --output_dir reconstruction

The folder then holds ``reconstruction.npz``, two pictures, ``metrics.json``, ``timing.json`` and ``report.html``.
"""

import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptycho_torch import cli
from ptycho_torch.core.config import InferenceConfig
from ptycho_torch.core.observer import Observer

if TYPE_CHECKING:
    from ptycho_torch.data.grouping import Indices
    from ptycho_torch.data.reconstruction import Reconstruction
    from ptycho_torch.data.scan import Scan
    from ptycho_torch.training.bundle import Bundle

log = logging.getLogger("ptycho_torch.inference")  # __name__ is __main__ under python -m


def inference(
    config: InferenceConfig, observer: Observer | None = None, command: str = ""
) -> "tuple[Reconstruction, dict[str, Any]]":
    """Reconstruct as ``config`` says and write all results into ``config.output_dir``.

    Returns:
        The reconstruction, and what is in ``metrics.json``.

    Raises:
        PtychoError: bad input, before anything is written.
    """
    from ptycho_torch.core.clock import Clock
    from ptycho_torch.core.files import make_output_dir, write_json
    from ptycho_torch.data.npz import load_scan
    from ptycho_torch.engines.neural import reconstruct_by_network
    from ptycho_torch.imaging.results import write_results
    from ptycho_torch.physics.devices import select_device
    from ptycho_torch.training.bundle import load_bundle

    clock = Clock()
    bundle = load_bundle(config.model_path, select_device("cpu" if config.onnx else config.device))
    if config.onnx:
        from ptycho_torch.networks.exported import run_exported

        run_exported(bundle.model, config.onnx)
    scan = load_scan(config.test_data, axis_order=config.axis_order, measurement=config.measurement)
    centres, photons_per_unit = _check(config, bundle, scan)
    make_output_dir(config.output_dir)
    clock.lap("load")
    reconstruction = reconstruct_by_network(
        bundle.model,
        scan,
        photons_per_unit,
        gridsize=config.gridsize or bundle.gridsize,
        centres=centres,
        batch_size=config.batch_size,
        precision=config.precision,
        observer=observer,
        history=bundle.provenance.get("history", {}),
        metadata=_metadata(config, bundle, scan),
    )
    clock.lap("infer and stitch")
    if config.uncertainty:
        from ptycho_torch.engines.doubt import with_uncertainty

        device = bundle.model.probe_parts.device
        reconstruction = with_uncertainty(reconstruction, scan.select(centres), device=device, observer=observer)
        clock.lap("uncertainty")
    metrics = write_results(
        config.output_dir,
        reconstruction,
        scan.select(centres),
        photons_per_unit=photons_per_unit,
        command=command,
        validation=_held_out(bundle, scan, centres),
        report=config.report,
    )
    clock.lap("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds)
    return reconstruction, metrics


def _check(config: InferenceConfig, bundle: "Bundle", scan: "Scan") -> "tuple[Indices, float]":
    """The positions to reconstruct, spread over the file's order, and the photon scale: the bundle's.

    The scale of the training, not one found anew, so that a pattern gives the same patch in whatever company.
    """
    import numpy as np

    from ptycho_torch.core.errors import ConfigError, DataError
    from ptycho_torch.data.grouping import require_group

    size = bundle.model.probe.shape[-1]
    if scan.size != size:
        raise DataError(
            f"{config.test_data}: patterns of {scan.size} × {scan.size} pixels, and {config.model_path} was trained on "
            f"{size} × {size}; give a scan of that size, or train on this one"
        )
    require_group(config.gridsize or bundle.gridsize, len(scan))
    count = config.n_images or len(scan)
    if count > len(scan):
        raise ConfigError(
            f"--n_images is {count}, and {config.test_data} has {len(scan)} positions; choose at most that"
        )
    centres = np.linspace(0, len(scan) - 1, count).round().astype(np.intp)
    scale = config.photons_per_unit or bundle.photons_per_unit
    if (
        config.photons_per_unit is None
        and scan.photons_per_unit
        and not np.isclose(scan.photons_per_unit, scale, rtol=1e-3)
    ):
        log.warning(
            "%s states %.6g photons a squared unit, and the model's scale %.6g is used; "
            "set --photons_per_unit if this file is in another unit",
            config.test_data.name,
            scan.photons_per_unit,
            scale,
        )
    return centres, scale


def _held_out(bundle: "Bundle", scan: "Scan", centres: "Indices") -> "Indices | None":
    """Which of ``centres`` the training held out for validation, where this is the scan that it held them out of."""
    import numpy as np

    kept = bundle.provenance
    if kept.get("validation_scan") != scan.digest() or len(kept["validation_indices"]) == len(scan):
        return None
    return np.flatnonzero(np.isin(centres, kept["validation_indices"]))


def _metadata(config: InferenceConfig, bundle: "Bundle", scan: "Scan") -> dict[str, Any]:
    """Where the reconstruction comes from. No paths and no clock: the same work gives the same bytes anywhere."""
    kept = bundle.provenance
    return {
        "method": f"network {bundle.model.config.name}" + (" by onnxruntime" if config.onnx else ""),
        "scan": config.test_data.name,
        "scan_digest": scan.digest(),
        "epochs": kept.get("epochs"),
        "gridsize": config.gridsize or bundle.gridsize,
        "validation": kept.get("validation"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)

    def command(config: InferenceConfig) -> None:
        _, metrics = inference(
            config, cli.observer_for(config), shlex.join(["python", "-m", "ptycho_torch.inference", *words])
        )
        written = "report.html" if config.report else "metrics.json"
        if not config.quiet:
            print(f"R {metrics['r']:.4f} (counting noise alone {metrics['r_floor']:.4f})")
            print(f"{written.split('.')[0]}: {config.output_dir / written}")

    return cli.run_verb(InferenceConfig, command, argv, "ptycho-torch inference")


if __name__ == "__main__":
    raise SystemExit(main())
