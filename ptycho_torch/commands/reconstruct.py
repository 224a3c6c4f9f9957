"""Reconstruct a scan with iterative engines, a trained network, or a pipeline of both.

::

    python -m ptycho_torch.reconstruct scan.npz --output_dir result --engine pie
    python -m ptycho_torch.reconstruct scan.npz --output_dir result --engine neural --model_path model --then pie

The output folder contains ``reconstruction.npz``, two images, ``metrics.json``, ``timing.json``, ``config.yaml`` and
``report.html``. A pipeline of several stages adds ``stages/`` with the result of each stage.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.commands.base import EXIT_INTERRUPTED, Invocation, report_verdict
from ptycho_torch.commands.provenance import add_provenance
from ptycho_torch.config.engines import ENGINES, EngineOptions, IterativeOptions
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.config.reconstruct import ReconstructConfig, make_stages
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import InitialObject, make_initial_probe, read_initial_object
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.evaluation.half_split import HalfScanCorrelation, correlate_half_scans
from ptycho_torch.io.inputs import read_positions
from ptycho_torch.io.reconstruction import check_result_paths, load_reconstruction
from ptycho_torch.io.scan import load_scan
from ptycho_torch.models.checkpoint import CHECKPOINT, require_checkpoint
from ptycho_torch.plotting.report_images import make_half_scan_image, make_stage_images
from ptycho_torch.plotting.result_folder import write_results

log = logging.getLogger("ptycho_torch.reconstruct")  # __name__ is __main__ under python -m

CHECKPOINT_INTERVAL_S = 30.0
"""Seconds between two checkpoints, which are written at the end of an epoch and at ctrl-C."""

HALF_SPLIT_SEED_KEY = (0, 2)
"""Key of the generator that splits the scan, next to the seed: different from the keys of epochs and hold-out."""


@dataclass(frozen=True)
class ReconstructResult:
    """The result of the command."""

    reconstruction: Reconstruction
    metrics: dict[str, Any]
    """The content of ``metrics.json``."""

    completed: bool
    """False if ctrl-C interrupted the run."""


def reconstruct(config: ReconstructConfig, observer: Observer | None = None, command: str = "") -> ReconstructResult:
    """Reconstruct a scan and write all results into ``config.output_dir``.

    Args:
        config: the settings of the command.
        observer: receives the progress.
        command: the command line, for the report.

    Raises:
        PtychoError: bad input; nothing is written then.
    """
    clock, observer = Clock(), observer or SilentObserver()
    check_result_paths(config.save_as)
    scan = load_scan(config.scan, **collect_input_settings(config))
    pipeline = _start_pipeline(config, scan, make_stages(config))
    halves: Sequence[PipelineRun] = ()
    if config.half_scan_frc:
        halves = pipeline.split(np.random.default_rng([config.seed, *HALF_SPLIT_SEED_KEY]))
    checkpoint = config.output_dir / CHECKPOINT
    run_settings = _collect_run_settings(config, scan, pipeline.photons_per_unit)
    if config.resume:
        require_checkpoint(checkpoint)
        pipeline.load(checkpoint, run_settings)
    pipeline.check()
    _warn_shared_start(config, pipeline.stages)
    make_output_dir(checkpoint.parent)
    if not config.resume:
        _remove_stage_results(config.output_dir / "stages")
    write_config(config.output_dir / "config.yaml", config)
    clock.record("load")
    completed, stage_results = _run_stages(
        config, scan, pipeline, clock, observer, lambda: pipeline.save(checkpoint, run_settings)
    )
    half_scan = None
    if completed and halves:
        half_scan = _correlate_half_scans(halves, observer)
        completed = half_scan is not None
        clock.record("half scans")
    result = add_provenance(pipeline.make_reconstruction(), "reconstruct", config, scan)
    for path in config.save_as:
        result.save(path)
    metrics = _write_results(config, scan, result, command, stage_results, pipeline.compute_holdout_scores(), half_scan)
    clock.record("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds | {"epochs": pipeline.seconds})
    return ReconstructResult(result, metrics, completed)


def _remove_stage_results(folder: Path) -> None:
    """Remove the results of the stages of an earlier run from ``folder``, and the folder if it is then empty."""
    if not folder.is_dir():
        return
    names = {f"-{engine}.npz" for engine in ENGINES}
    for path in folder.iterdir():
        number = path.name.partition("-")[0]
        if number.isdecimal() and path.name.removeprefix(number) in names:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _run_stages(
    config: ReconstructConfig,
    scan: Scan,
    pipeline: PipelineRun,
    clock: Clock,
    observer: Observer,
    save: Callable[[], None],
) -> tuple[bool, list[tuple[str, Reconstruction]]]:
    """Run the stages that are left, with a checkpoint after each and the result of each in ``stages/``.

    Returns:
        True, or False if ctrl-C interrupted the run; and name and result of each stage of several.
    """
    stages, results = pipeline.stages, []
    throttled = _throttle_checkpoints(save)
    completed = True
    while completed and pipeline.num_finished_stages < len(stages):
        number, engine = pipeline.num_finished_stages + 1, stages[pipeline.num_finished_stages].engine
        completed = pipeline.run_stage(observer, throttled)
        clock.record(f"stage {number}: {engine}")
        save()
        if completed and len(stages) > 1:
            results.append((engine, add_provenance(pipeline.make_reconstruction(), "reconstruct", config, scan)))
            folder = make_output_dir(config.output_dir / "stages")
            results[-1][1].save(folder / f"{number}-{engine}.npz")
        clock.record("save")
    return completed, results


def _start_pipeline(config: ReconstructConfig, scan: Scan, stages: Sequence[EngineOptions]) -> PipelineRun:
    """Return the pipeline at its beginning, with the initial estimate that the settings name."""

    def make_probe(visible: Scan) -> NDArray[Any]:
        return make_initial_probe(config.init_probe, visible, np.random.default_rng(config.seed))

    positions = None
    if config.init_positions is not None:
        positions = read_positions(config.init_positions, len(scan), "init_positions", scan.source_index)
    return Pipeline(*stages).start(
        scan,
        initial=_read_initial(config, scan.positions if positions is None else positions),
        init_probe=None if config.init_probe == "auto" else make_probe,
        init_positions=positions,
        photons_per_unit=config.photons_per_unit,
        device=config.device,
        seed=config.seed,
        holdout=config.holdout,
    )


def _read_initial(config: ReconstructConfig, positions: NDArray[np.float64]) -> Reconstruction | InitialObject | None:
    """Return the result of ``init`` with the object of ``init_object``, or one of both, on ``positions`` (n, 2)."""
    if config.init is None:
        return None if config.init_object is None else read_initial_object(config.init_object, positions)
    earlier = load_reconstruction(config.init)
    if config.init_object is None:
        return earlier
    obj = read_initial_object(config.init_object, earlier.positions)
    coverage = np.zeros(obj.values.shape, np.float32)
    return replace(earlier, object=obj.values, origin_yx=obj.origin_yx, coverage=coverage, uncertainty=None)


def _warn_shared_start(config: ReconstructConfig, stages: Sequence[EngineOptions]) -> None:
    shared = [f"`{name}`" for name in ("init", "init_object") if getattr(config, name) is not None]
    shared += [] if all(isinstance(stage, IterativeOptions) for stage in stages) else ["the trained network"]
    if config.half_scan_frc and shared:
        log.warning(
            "`half_scan_frc`: both halves start from %s, so their agreement may come from there", " and ".join(shared)
        )


def _correlate_half_scans(halves: Sequence[PipelineRun], observer: Observer) -> HalfScanCorrelation | None:
    """Reconstruct both halves and correlate them; return None if ctrl-C interrupted the run."""
    if not all(half.run(observer) for half in halves):
        return None
    first, second = (half.make_reconstruction() for half in halves)
    return correlate_half_scans(first, second)


def _collect_run_settings(config: ReconstructConfig, scan: Scan, photons_per_unit: float) -> dict[str, Any]:
    """Return the settings that must be equal for a resumed run to equal an uninterrupted one."""
    free = {"output_dir", "resume", "report", "half_scan_frc", "quiet", "debug", "scan", "device", "save_as"}
    if not config.then:
        free |= {"epochs"}  # more epochs extend the run; in a chain the stages after it depend on it
    settings = {name: value for name, value in to_plain(config).items() if name not in free}
    return settings | {"scan": f"{scan.digest()} at {photons_per_unit:.9g} photons"}


def _throttle_checkpoints(save: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls ``save`` if :data:`CHECKPOINT_INTERVAL_S` seconds passed since the last call."""
    last = perf_counter()

    def throttled() -> None:
        nonlocal last
        if perf_counter() - last > CHECKPOINT_INTERVAL_S:
            save()
            last = perf_counter()

    return throttled


def _write_results(
    config: ReconstructConfig,
    scan: Scan,
    result: Reconstruction,
    command: str,
    stages: list[tuple[str, Reconstruction]],
    held_out: dict[str, float],
    half_scan: HalfScanCorrelation | None,
) -> dict[str, Any]:
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
    """Reconstruct, and print R with its verdict; return the exit code."""
    result = reconstruct(config, invocation.observer, invocation.command_line)
    code = report_verdict(result.metrics, invocation, config.quiet)
    if not config.quiet:
        written = config.output_dir / ("report.html" if config.report else "metrics.json")
        if config.half_scan_frc and result.completed:
            print(_format_resolution(result.metrics))
        print(f"{written.stem}: {written}")
    if not result.completed:
        done = len(result.reconstruction.history.get("r", []))
        if config.half_scan_frc:
            print("the half scans are not reconstructed", file=sys.stderr)
        print(f"interrupted after epoch {done}; resume with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code
