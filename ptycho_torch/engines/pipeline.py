"""Pipelines: engines that run one after the other, each from the estimate of the engine before."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.engines import EngineOptions, NetworkEngine
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.holdout import mask_pixels
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan, require_scan
from ptycho_torch.data.scan_numbers import require_single_scan
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.initialization import make_initial_state
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.pipeline_start import (
    check_run_settings,
    draw_holdout,
    estimate_probe,
    match_initial,
    update_probe,
    warn_other_extent,
)
from ptycho_torch.engines.registry import compute_required_margin, make_stage
from ptycho_torch.models.saved_model import Model

log = logging.getLogger(__name__)


class Pipeline:
    """Engines that run one after the other on one scan.

    Args:
        *stages: options of the engines, in order.

    Raises:
        ConfigError: there is no stage, or one is no options of an engine.

    Example:
        >>> result = Pipeline(PIE(), LSQML(update_probe=True)).run(scan)
    """

    def __init__(self, *stages: EngineOptions) -> None:
        if not stages:
            raise ConfigError("the pipeline has no stage; expected the options of at least one engine")
        for number, stage in enumerate(stages, 1):
            if not isinstance(stage, EngineOptions):
                found = f"the class {stage.__name__}" if isinstance(stage, type) else f"a {type(stage).__name__}"
                raise ConfigError(
                    f"stage {number} is {found}; expected engine options such as PIE(), each as its own argument; "
                    "wrap a model in NetworkEngine(model)"
                )
        self.stages = stages

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(_format_stage, self.stages))})"

    def run(self, scan: Scan, *, observer: Observer | None = None, **settings: Any) -> Reconstruction:
        """Reconstruct ``scan``.

        The full signature is ``run(scan, *, initial=None, init_probe=None, init_positions=None, photons_per_unit=None,
        device="auto", seed=0, holdout=0.0, observer=None)``.

        Args:
            scan: the diffraction patterns, positions and probe.
            observer: receives the progress.
            **settings: keyword arguments of :meth:`start`.

                - ``initial``: initial estimate: a :class:`Reconstruction`, or a complex object (rows, columns) with the
                  origin (0, 0). None: an object of ones.
                - ``init_probe``: (M, N, N) complex initial probe of any power, or a function that makes it from the
                  scan. None: the probe of ``initial`` or of the scan.
                - ``init_positions``: (n, 2) initial positions (y, x) in object pixels. None: the positions of
                  ``initial`` or of the scan.
                - ``photons_per_unit``: photons per squared unit of amplitude. None: determined from the scan.
                - ``device``: ``auto``, ``cpu``, ``cuda`` or ``mps``.
                - ``seed``: seed of every random choice.
                - ``holdout``: fraction of the detector pixels that iterative engines do not use, for
                  cross-validation.

        Returns:
            The reconstruction, with its history and metadata. After ctrl-C it is the estimate after the last
            complete epoch, and a warning is logged.

        Raises:
            PtychoError: an option or the scan cannot be used.
        """
        run = self.start(scan, **settings)
        run.check()
        if not run.run(observer):
            log.warning("interrupted; the result is the estimate after the last complete epoch")
        return run.make_reconstruction()

    def start(
        self,
        scan: Scan,
        *,
        initial: Any = None,
        init_probe: NDArray[Any] | Callable[[Scan], NDArray[Any]] | None = None,
        init_positions: NDArray[np.float64] | None = None,
        photons_per_unit: float | None = None,
        device: str = "auto",
        seed: int = 0,
        holdout: float = 0.0,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> PipelineRun:
        """Return the run of this pipeline on ``scan`` at its beginning.

        Args:
            scan: the diffraction patterns, positions and probe.
            initial: initial estimate: a reconstruction, or a complex object (rows, columns) with the origin (0, 0).
                None: an object of ones.
            init_probe: (M, N, N) complex initial probe of any power, or a function that makes it from the scan, whose
                held-out pixels are masked. None: the probe of ``initial`` or of the scan.
            init_positions: (n, 2) initial positions (y, x). None: the positions of ``initial`` or of the scan.
            photons_per_unit: photons per squared unit of the amplitudes; None: estimated from the scan.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            seed: seed of every random choice.
            holdout: fraction of the detector pixels that iterative engines do not use, for cross-validation.
            process_group: processes that share the prediction of a network.

        Raises:
            PtychoError: an option or the scan cannot be used.
        """
        scan = require_scan(scan)
        require_single_scan(scan)
        check_run_settings(holdout, seed)
        lacks_probe = scan.probe is None and init_probe is None and not isinstance(initial, Reconstruction)
        options = update_probe(self.stages) if lacks_probe else self.stages
        stages = [make_stage(each) for each in options]
        cpu_only = any(stage.requires_cpu for stage in stages)
        where = process_group.select_device("cpu" if cpu_only else device)
        if lacks_probe:
            init_probe = stages[0].get_probe(scan, photons_per_unit, where)
        if lacks_probe and init_probe is None:
            init_probe = estimate_probe(scan, seed)
        scale = stages[0].select_photon_scale(scan, photons_per_unit, where)
        centers = stages[0].select_centers(scan, where)
        part = scan if len(centers) == len(scan) else scan.select(centers)
        held_out = draw_holdout(part, holdout, seed)
        visible = part if held_out is None else mask_pixels(part, held_out)
        if isinstance(initial, Reconstruction):
            initial = match_initial(initial, scan, part, centers)
        if init_positions is not None:
            init_positions = init_positions[centers]
        elif not isinstance(initial, Reconstruction):
            init_positions = stages[0].get_positions(scan, where)[centers]
        margin = compute_required_margin(options, scan, init_positions, centers, where)
        state = make_initial_state(
            visible,
            scale,
            initial,
            init_probe=init_probe(visible) if callable(init_probe) else init_probe,
            positions=init_positions,
            device=where,
            margin=margin,
        )
        warn_other_extent(state.positions.numpy(), part.positions)
        return PipelineRun(
            part,
            scale,
            options,
            state,
            seed,
            held_out=held_out,
            full_scan=scan,
            centers=centers,
            photons_per_unit_setting=photons_per_unit,
            process_group=process_group,
        )


def _format_stage(options: EngineOptions) -> str:
    """Return the name of the engine options, with the values that differ from the defaults."""
    changed = []
    for setting in dataclasses.fields(options):
        value = getattr(options, setting.name)
        if value != setting.default:
            changed.append(f"{setting.name}={'…' if setting.name == 'model' else repr(value)}")
    return f"{type(options).__name__}({', '.join(changed)})"


def run_stages(stages: Sequence[EngineOptions], scan: Scan, **settings: Any) -> Reconstruction:
    """Reconstruct ``scan`` with ``stages``; the settings are those of :meth:`Pipeline.run`."""
    return Pipeline(*stages).run(scan, **settings)


def predict(model: Model, scan: Scan, *, observer: Observer | None = None, **options: Any) -> Reconstruction:
    """Reconstruct ``scan`` with a trained model, on the device of the model.

    Args:
        model: the trained model.
        scan: the diffraction patterns, positions and probe.
        observer: receives the progress.
        **options: options of :class:`~ptycho_torch.config.engines.NetworkEngine`, such as ``uncertainty``.

    Returns:
        The reconstruction, with the history of the training and metadata.
    """
    device = model.model.device.type
    return Pipeline(NetworkEngine(model=model, **options)).run(scan, device=device, observer=observer)
