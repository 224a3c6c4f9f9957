"""Reconstruct a scan by iterative engines, by a trained network, or by a chain of them.

::

    python -m ptycho_torch.reconstruct scan.npz --output_dir result --engine pie
    python -m ptycho_torch.reconstruct scan.npz --output_dir result --engine neural --model_path model --then pie

The folder then holds ``reconstruction.npz``, two pictures, ``metrics.json``, ``timing.json``, ``config.yaml`` and
``report.html``; of a chain also ``stages/``, the result of each stage.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ptycho_torch.commands.base import EXIT_INTERRUPTED, Invocation
from ptycho_torch.config.engines import EngineOptions
from ptycho_torch.config.reconstruct import ReconstructConfig, make_stages
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.holdout import draw_holdout_pixels, mask_pixels
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_device
from ptycho_torch.engines.half_scan import make_half_pipelines
from ptycho_torch.engines.initialization import (
    compute_required_margin,
    make_initial_probe,
    make_initial_state,
    read_initial_object,
)
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.evaluation.half_split import HalfScanCorrelation, correlate_half_scans, read_pixel_size
from ptycho_torch.io.inputs import read_positions
from ptycho_torch.io.npz import load_scan
from ptycho_torch.plotting.report_images import make_half_scan_image, make_stage_images
from ptycho_torch.plotting.result_folder import write_results

log = logging.getLogger("ptycho_torch.reconstruct")  # __name__ is __main__ under python -m

CHECKPOINT_PATH = Path("checkpoints") / "last" / "state.safetensors"
CHECKPOINT_INTERVAL_S = 30.0
"""A checkpoint is written at the first epoch's end after so long, and when ctrl-C is pressed."""


HOLDOUT_SEED_KEY, HALF_SPLIT_SEED_KEY = (0, 1), (0, 2)
"""What random numbers are for, beside the seed: none of these are those of an epoch."""


@dataclass(frozen=True)
class ReconstructResult:
    """What a reconstruction leaves."""

    reconstruction: Reconstruction
    metrics: dict[str, Any]
    """What is in ``metrics.json``."""

    completed: bool
    """False where ctrl-C ended it early."""


def reconstruct(config: ReconstructConfig, observer: Observer | None = None, command: str = "") -> ReconstructResult:
    """Reconstruct as ``config`` says and write all results into ``config.output_dir``.

    Raises:
        PtychoError: bad input, before anything is written.
    """

    clock = Clock()
    stages = make_stages(config)
    scan = load_scan(config.scan, axis_order=config.axis_order, measurement=config.measurement)
    photons_per_unit = photon_scale(scan, config.photons_per_unit).photons_per_unit
    pipeline = _make_pipeline(config, scan, photons_per_unit, stages)
    halves = make_half_pipelines(pipeline, _make_generator(config, HALF_SPLIT_SEED_KEY)) if config.half_scan_frc else ()
    checkpoint, run_settings = (
        config.output_dir / CHECKPOINT_PATH,
        _collect_run_settings(config, scan, photons_per_unit),
    )
    if config.resume:
        if not os.path.isfile(checkpoint):  # unlike Path.is_file, also False for a name that no file can have
            raise ConfigError(f"{checkpoint}: no checkpoint to go on from; run without --resume first")
        pipeline.load(checkpoint, run_settings)
    pipeline.check()
    _warn_shared_start(config, stages)
    make_output_dir(checkpoint.parent)
    write_config(config.output_dir / "config.yaml", config)
    clock.record("load")
    save = _throttle_checkpoints(lambda: pipeline.save(checkpoint, run_settings))
    completed = True
    stage_results: list[tuple[str, Reconstruction]] = []
    while completed and pipeline.num_finished_stages < len(stages):
        number, stage = pipeline.num_finished_stages + 1, stages[pipeline.num_finished_stages]
        completed = pipeline.run_stage(observer or SilentObserver(), save)
        clock.record(f"stage {number}: {stage.engine}")
        pipeline.save(checkpoint, run_settings)
        if completed and len(stages) > 1:
            stage_results.append((stage.engine, pipeline.make_reconstruction()))
            folder = make_output_dir(config.output_dir / "stages")
            stage_results[-1][1].save(folder / f"{number}-{stage.engine}.npz")
        clock.record("save")
    half_scan = None
    if completed and halves:
        half_scan = _correlate_half_scans(halves, scan, observer or SilentObserver())
        completed = half_scan is not None
        clock.record("half scans")
    result = pipeline.make_reconstruction(_make_metadata(config, pipeline))
    metrics = _write_results(config, scan, result, command, stage_results, pipeline.compute_holdout_scores(), half_scan)
    clock.record("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds | {"epochs": pipeline.seconds})
    return ReconstructResult(result, metrics, completed)


def _make_pipeline(
    config: ReconstructConfig, scan: Scan, photons_per_unit: float, stages: Sequence[EngineOptions]
) -> PipelineRun:
    """The chain, ready to begin. Pixels that are held out do not even reach the start, whose power is the counts'."""

    device = select_device(config.device)
    held_out = (
        draw_holdout_pixels(scan, config.holdout, _make_generator(config, HOLDOUT_SEED_KEY)) if config.holdout else None
    )
    seen = scan if held_out is None else mask_pixels(scan, held_out)
    start = make_initial_state(
        seen,
        photons_per_unit,
        None if config.init_object is None else read_initial_object(config.init_object),
        init_probe=make_initial_probe(config.init_probe, seen, np.random.default_rng(config.seed)),
        positions=None
        if config.init_positions is None
        else read_positions(config.init_positions, len(scan), "init_positions"),
        device=device,
        margin=compute_required_margin(stages, scan),
    )
    return PipelineRun(scan, photons_per_unit, stages, start, config.seed, held_out=held_out)


def _make_generator(config: ReconstructConfig, purpose: tuple[int, int]) -> np.random.Generator:

    return np.random.default_rng([config.seed, *purpose])


def _warn_shared_start(config: ReconstructConfig, stages: Sequence[EngineOptions]) -> None:
    shared = ["--init_object"] if config.init_object is not None else []
    shared += ["the trained network"] if any(stage.engine == "neural" for stage in stages) else []
    if config.half_scan_frc and shared:
        log.warning(
            "--half_scan_frc: both halves start from %s, and what they agree on may come from there",
            " and ".join(shared),
        )


def _correlate_half_scans(halves: Sequence[PipelineRun], scan: Scan, observer: Observer) -> HalfScanCorrelation | None:
    """Run both halves and correlate them; None where ctrl-C ended it."""

    for half in halves:
        while half.num_finished_stages < len(half.stages):
            if not half.run_stage(observer):
                return None
    first, second = (half.make_reconstruction() for half in halves)
    return correlate_half_scans(first, second, read_pixel_size(scan))


def _collect_run_settings(config: ReconstructConfig, scan: Scan, photons_per_unit: float) -> dict[str, Any]:
    """What must be the same for a resumed run to equal an uninterrupted one."""
    free = {"output_dir", "resume", "report", "half_scan_frc", "quiet", "debug", "scan", "device"}
    settings = {name: value for name, value in to_plain(config).items() if name not in free}
    return settings | {"scan": f"{scan.digest()} at {photons_per_unit:.9g} photons"}


def _throttle_checkpoints(save: Callable[[], None]) -> Callable[[], None]:
    """``save``, at most every so many seconds."""
    last = perf_counter()

    def sometimes() -> None:
        nonlocal last
        if perf_counter() - last > CHECKPOINT_INTERVAL_S:
            save()
            last = perf_counter()

    return sometimes


def _make_metadata(config: ReconstructConfig, pipeline: PipelineRun) -> dict[str, Any]:
    """Where the reconstruction comes from. No paths and no clock: the same work gives the same bytes anywhere."""
    refined = bool((pipeline.state.positions.numpy() != pipeline.scan.positions).any())
    return {
        "method": "engine " + " → ".join(stage.engine for stage in pipeline.stages),
        "scan": config.scan.name,
        "scan_digest": pipeline.scan.digest(),
        "seed": config.seed,
        "positions": "refined" if refined else "as in the scan",
    }


def _write_results(
    config: ReconstructConfig,
    scan: Scan,
    result: Reconstruction,
    command: str,
    stages: list[tuple[str, Reconstruction]],
    held_out: dict[str, float],
    half_scan: HalfScanCorrelation | None,
) -> dict[str, Any]:
    from dataclasses import replace

    pictures = []
    if config.report:
        pictures = [*([make_half_scan_image(half_scan)] if half_scan else []), *make_stage_images(stages)]
    return write_results(
        config.output_dir,
        result,
        replace(scan, positions=result.positions),
        photons_per_unit=result.photons_per_unit,
        command=command,
        report=config.report,
        extra_images=pictures,
        extra_metrics=held_out | (half_scan.to_metrics() if half_scan else {}),
    )


def _format_resolution(metrics: dict[str, Any]) -> str:
    crossing, pixels = (metrics[f"half_scan_{name}"] for name in ("crossing_cycles_per_pixel", "resolution_pixels"))
    if crossing is None:
        return "resolution by half scans: 1 pixel or better (their correlation stays above the threshold)"
    if not crossing:
        return "resolution by half scans: none (their correlation is never above the threshold)"
    nm = metrics.get("half_scan_resolution_nm")
    return f"resolution by half scans: {pixels:.2f} pixels{'' if nm is None else f', {nm:.3g} nm'}"


def run(config: ReconstructConfig, invocation: Invocation) -> int:
    """Reconstruct, and print R; return the exit code."""
    result = reconstruct(config, invocation.observer, invocation.command_line)
    if not config.quiet:
        written = config.output_dir / ("report.html" if config.report else "metrics.json")
        print(f"R {result.metrics['r']:.4f} (counting noise alone {result.metrics['r_floor']:.4f})")
        if config.half_scan_frc and result.completed:
            print(_format_resolution(result.metrics))
        print(f"{written.stem}: {written}")
    if not result.completed:
        done = len(result.reconstruction.history["r"])
        if config.half_scan_frc:
            print("the half scans are not done", file=sys.stderr)
        print(f"interrupted after epoch {done}; go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
