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
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ptycho_torch.commands.base import EXIT_INTERRUPTED, Invocation
from ptycho_torch.config.engines import StageConfig, parse_stage
from ptycho_torch.config.reconstruct import ReconstructConfig
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.holdout import held_out_pixels, without
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_device
from ptycho_torch.engines.half_scan import half_chains
from ptycho_torch.engines.initialization import margin_for, start_of
from ptycho_torch.engines.pipeline import Chain
from ptycho_torch.engines.registry import require_engine
from ptycho_torch.evaluation.half_split import HalfScan, half_scan_correlation, pixel_size_of
from ptycho_torch.io.npz import load_scan
from ptycho_torch.plotting.result_folder import stage_pictures, write_results

log = logging.getLogger("ptycho_torch.reconstruct")  # __name__ is __main__ under python -m

CHECKPOINT = Path("checkpoints") / "last" / "state.safetensors"
CHECKPOINT_SECONDS = 30.0
"""A checkpoint is written at the first epoch's end after so long, and when ctrl-C is pressed."""


HELD_OUT, HALVES = (0, 1), (0, 2)
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
    stages = stages_of(config)
    scan = load_scan(config.scan, axis_order=config.axis_order, measurement=config.measurement)
    photons_per_unit = photon_scale(scan, config.photons_per_unit).photons_per_unit
    chain = _chain_of(config, scan, photons_per_unit, stages)
    halves = half_chains(chain, _generator(config, HALVES)) if config.half_scan_frc else ()
    checkpoint, fingerprint = config.output_dir / CHECKPOINT, _fingerprint(config, scan, photons_per_unit)
    if config.resume:
        if not os.path.isfile(checkpoint):  # unlike Path.is_file, also False for a name that no file can have
            raise ConfigError(f"{checkpoint}: no checkpoint to go on from; run without --resume first")
        chain.load(checkpoint, fingerprint)
    chain.check()
    _warn_of_what_halves_share(config, stages)
    make_output_dir(checkpoint.parent)
    write_config(config.output_dir / "config.yaml", config)
    clock.lap("load")
    save = _checkpoints(lambda: chain.save(checkpoint, fingerprint))
    completed = True
    stage_results: list[tuple[str, Reconstruction]] = []
    while completed and chain.finished < len(stages):
        number, stage = chain.finished + 1, stages[chain.finished]
        completed = chain.next_stage(observer or SilentObserver(), save)
        clock.lap(f"stage {number}: {stage.engine}")
        chain.save(checkpoint, fingerprint)
        if completed and len(stages) > 1:
            stage_results.append((stage.engine, chain.result()))
            folder = make_output_dir(config.output_dir / "stages")
            stage_results[-1][1].save(folder / f"{number}-{stage.engine}.npz")
        clock.lap("save")
    half_scan = None
    if completed and halves:
        half_scan = _half_scan(halves, scan, observer or SilentObserver())
        completed = half_scan is not None
        clock.lap("half scans")
    result = chain.result(_metadata(config, chain))
    metrics = _write(config, scan, result, command, stage_results, chain.held_out_figures(), half_scan)
    clock.lap("judge and write")
    write_json(config.output_dir / "timing.json", clock.seconds | {"epochs": chain.seconds})
    return ReconstructResult(result, metrics, completed)


def _chain_of(config: ReconstructConfig, scan: Scan, photons_per_unit: float, stages: list[StageConfig]) -> Chain:
    """The chain, ready to begin. Pixels that are held out do not even reach the start, whose power is the counts'."""

    device = select_device(config.device)
    held_out = held_out_pixels(scan, config.holdout, _generator(config, HELD_OUT)) if config.holdout else None
    seen = scan if held_out is None else without(scan, held_out)
    start = start_of(config, seen, photons_per_unit, device, margin_for(stages, scan))
    return Chain(scan, photons_per_unit, stages, start, config.seed, held_out=held_out)


def _generator(config: ReconstructConfig, purpose: tuple[int, int]) -> np.random.Generator:

    return np.random.default_rng([config.seed, *purpose])


def _warn_of_what_halves_share(config: ReconstructConfig, stages: list[StageConfig]) -> None:
    shared = ["--init_object"] if config.init_object is not None else []
    shared += ["the trained network"] if any(stage.engine == "neural" for stage in stages) else []
    if config.half_scan_frc and shared:
        log.warning(
            "--half_scan_frc: both halves start from %s, and what they agree on may come from there",
            " and ".join(shared),
        )


def _half_scan(halves: Sequence[Chain], scan: Scan, observer: Observer) -> HalfScan | None:
    """Run both halves and correlate them; None where ctrl-C ended it."""

    for half in halves:
        while half.finished < len(half.stages):
            if not half.next_stage(observer):
                return None
    first, second = (half.result() for half in halves)
    return half_scan_correlation(first, second, pixel_size_of(scan))


def stages_of(config: ReconstructConfig) -> list[StageConfig]:
    """The first stage, made of the bare settings, and one for each ``--then``.

    Raises:
        ConfigError: an unknown engine or setting, or a bad value.
    """
    names = [field.name for field in fields(StageConfig)]
    first = StageConfig(**{name: getattr(config, name) for name in names})
    stages = [first, *(parse_stage(text, "--then") for text in config.then)]

    for stage in stages:
        require_engine(stage)
    return stages


def _fingerprint(config: ReconstructConfig, scan: Scan, photons_per_unit: float) -> dict[str, Any]:
    """What must be the same for a resumed run to equal an uninterrupted one."""
    free = {"output_dir", "resume", "report", "half_scan_frc", "quiet", "debug", "scan", "device"}
    settings = {name: value for name, value in to_plain(config).items() if name not in free}
    return settings | {"scan": f"{scan.digest()} at {photons_per_unit:.9g} photons"}


def _checkpoints(save: Callable[[], None]) -> Callable[[], None]:
    """``save``, at most every so many seconds."""
    last = perf_counter()

    def sometimes() -> None:
        nonlocal last
        if perf_counter() - last > CHECKPOINT_SECONDS:
            save()
            last = perf_counter()

    return sometimes


def _metadata(config: ReconstructConfig, chain: Chain) -> dict[str, Any]:
    """Where the reconstruction comes from. No paths and no clock: the same work gives the same bytes anywhere."""
    refined = bool((chain.estimate.positions.numpy() != chain.scan.positions).any())
    return {
        "method": "engine " + " → ".join(stage.engine for stage in chain.stages),
        "scan": config.scan.name,
        "scan_digest": chain.scan.digest(),
        "seed": config.seed,
        "positions": "refined" if refined else "as in the scan",
    }


def _write(
    config: ReconstructConfig,
    scan: Scan,
    result: Reconstruction,
    command: str,
    stages: list[tuple[str, Reconstruction]],
    held_out: dict[str, float],
    half_scan: HalfScan | None,
) -> dict[str, Any]:
    from dataclasses import replace

    pictures = []
    if config.report:
        pictures = [*([half_scan.picture()] if half_scan else []), *stage_pictures(stages)]
    return write_results(
        config.output_dir,
        result,
        replace(scan, positions=result.positions),
        photons_per_unit=result.photons_per_unit,
        command=command,
        report=config.report,
        further=pictures,
        found=held_out | (half_scan.figures() if half_scan else {}),
    )


def _told_resolution(metrics: dict[str, Any]) -> str:
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
            print(_told_resolution(result.metrics))
        print(f"{written.stem}: {written}")
    if not result.completed:
        done = len(result.reconstruction.history["r"])
        if config.half_scan_frc:
            print("the half scans are not done", file=sys.stderr)
        print(f"interrupted after epoch {done}; go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
