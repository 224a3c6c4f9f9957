"""Train a network on one scan or several, without labels.

::

    python -m ptycho_torch.train --train_data_file scan.npz --output_dir model

The folder then holds the bundle (``model.safetensors``, ``bundle.json``), ``history.csv``, ``timing.json``,
``config.yaml``, ``checkpoints/last/`` and the tracker's records.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ptycho_torch
from ptycho_torch.commands.base import EXIT_INTERRUPTED, Invocation
from ptycho_torch.config.engines import parse_stage
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.initialization import compute_required_margin, set_num_modes
from ptycho_torch.engines.pipeline import Pipeline, compute_coverage
from ptycho_torch.engines.registry import check_engine
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.models.calibration import select_calibration
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, compute_weights_digest, load_model, save_model
from ptycho_torch.plotting.result_folder import write_images
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.training.checkpoint import (
    CHECKPOINT_PATH,
    EpochRecord,
    check_checkpoint_exists,
    make_history_columns,
    write_history,
)
from ptycho_torch.training.collapse_check import CollapseReport, check_collapse
from ptycho_torch.training.datasets import TrainingScan, load_training_scans, make_pattern_groups
from ptycho_torch.training.targets import ObjectTarget, make_object_target
from ptycho_torch.training.tracking import NullTracker, Tracker, make_tracker
from ptycho_torch.training.trainer import (
    FINE_TUNE,
    FROM_SCRATCH,
    PatternGroups,
    Trainer,
    TrainerSettings,
    compute_default_batch_size,
    compute_default_epochs,
)

log = logging.getLogger("ptycho_torch.train")  # __name__ is __main__ under python -m


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves."""

    output_dir: Path
    """The folder of the bundle."""

    history: list[EpochRecord]
    """One entry an epoch, from the first."""

    completed: bool
    """False where ctrl-C ended it early."""

    collapse_reports: list[CollapseReport]
    """Whether the network sees anything, on the validation patterns of each scan; of several ranks the first says."""


def train(
    config: TrainConfig, observer: Observer | None = None, process_group: ProcessGroup | None = None
) -> TrainResult:
    """Train as ``config`` says and write the bundle into ``config.output_dir``.

    ``ranks`` are the processes that share the work, each of which calls this; the first of them writes.

    Raises:
        PtychoError: bad input, before anything is written.
    """

    clock = Clock()
    process_group = process_group or SINGLE_PROCESS
    device = process_group.select_device(config.device)
    sources = load_training_scans(config, device)
    clock.record("load")
    patterns, validation = make_pattern_groups(config, sources)
    start = _load_initial_model(config, sources[0].scan.size)
    settings = _make_settings(config, device, sources[0].scan.size, sum(len(one.groups) for one in patterns), start)
    model = _make_model(config, sources, start, device)
    teachers = []
    if config.teacher:
        teachers = [_compute_targets(config, *pair, model) for pair in zip(sources, patterns, strict=True)]
        clock.record("teach")
    trainer = Trainer(model, patterns, validation.patterns, settings, teachers, process_group)
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / CHECKPOINT_PATH
    if config.resume:
        _resume(trainer, checkpoint)
    log.info("validation: %s", validation.description)
    tracker = _start_tracking(config, settings) if process_group.is_main else NullTracker()
    clock.record("prepare")

    try:
        completed = trainer.run(observer or SilentObserver(), tracker, checkpoint)
    except PtychoError:
        tracker.finish(completed=False)
        raise
    clock.record("train")
    if not process_group.is_main:
        return TrainResult(output_dir, trainer.history, completed, [])
    with trainer.use_averaged_weights():
        reports = _check_collapse(trainer)
        bundle = _make_saved_model(config, trainer, sources, validation.description, reports)
        save_model(output_dir, bundle)
        write_history(output_dir / "history.csv", trainer.history)
        clock.record("save")
        if config.logger in ("mlflow", "tensorboard") and completed:
            for picture in _write_images(bundle, sources[0].scan, output_dir):
                tracker.log_artifact(picture)
            clock.record("pictures")
    tracker.finish(completed)
    write_json(output_dir / "timing.json", clock.seconds)
    return TrainResult(output_dir, trainer.history, completed, reports)


def _make_model(
    config: TrainConfig, sources: Sequence[TrainingScan], start: Model | None, device: torch.device
) -> PtychoModel:

    network = start.model.config if start else NetworkConfig(**_collect_network_settings(config))
    probes = [source.probe for source in sources]
    if config.probe_modes is not None:
        probes = [set_num_modes(probe, config.probe_modes) for probe in probes]
    model = PtychoModel(
        network,
        probes,
        config.update_probe,
        torch.Generator().manual_seed(config.seed),
        positions=[len(source.scan) for source in sources] if config.update_positions else (),
        backgrounds=[config.update_background] * len(sources),
    )
    if start is not None:
        model.network.load_state_dict(start.model.network.state_dict())
    return model.to(device)


def _collect_network_settings(config: TrainConfig) -> dict[str, Any]:
    """What the settings say of the network, by the names of NetworkConfig."""
    requested = {"name": config.network, "head": config.head, "width": config.width}
    return {name: value for name, value in requested.items() if value is not None}


def _load_initial_model(config: TrainConfig, size: int) -> Model | None:
    """The bundle whose network to start from."""

    if config.init is None:
        return None
    start = load_model(config.init)
    for name, requested in _collect_network_settings(config).items():
        there = getattr(start.model.config, name)
        if requested != there:
            flag = "network" if name == "name" else name
            raise ConfigError(
                f"--{flag} is {requested}, and the network of --init {config.init} has {there}; leave it out"
            )
    if start.model.size != size:
        raise ConfigError(
            f"--init {config.init} is of patterns of {start.model.size} × {start.model.size} pixels, and the scan has "
            f"{size} × {size}; start from another, or from none"
        )
    return start


def _compute_targets(
    config: TrainConfig, source: TrainingScan, training: PatternGroups, model: PtychoModel
) -> ObjectTarget:
    """What an engine finds from the patterns of the training, and none of those held out; the model gets its probe."""

    stage = parse_stage(str(config.teacher), "--teacher")
    check_engine(stage)
    if config.update_probe:
        stage = replace(stage, update_probe=True)
    seen = source.scan.select(np.unique(training.groups))
    parts = model.probe_parameters[source.data.scan_index]
    probe, margin = torch.view_as_complex(parts).detach().clone(), compute_required_margin([stage], seen)
    start = make_vacuum_state(torch.from_numpy(seen.positions.copy()), probe, margin)
    pipeline = Pipeline(seen, source.scale.photons_per_unit, [stage], start, config.seed)
    if not pipeline.run_stage(SilentObserver()):
        raise KeyboardInterrupt
    with torch.no_grad():
        if torch.view_as_real(pipeline.state.probe).shape == parts.shape:
            parts.copy_(torch.view_as_real(pipeline.state.probe))
    log.info("taught by %s, R %.4g", stage.engine, pipeline.history["r"][-1] if pipeline.history["r"] else float("nan"))
    return make_object_target(pipeline.state.object, compute_coverage(pipeline.state), pipeline.state.canvas.origin)


def _make_settings(
    config: TrainConfig, device: torch.device, size: int, groups: int, start: Model | None
) -> TrainerSettings:
    """What the configuration leaves out comes from the recipe: a short one where a trained network is the start."""

    recipe = FINE_TUNE if start else FROM_SCRATCH
    batch_size = config.batch_size or compute_default_batch_size(size)
    epochs = compute_default_epochs(size, groups, batch_size, recipe)
    return TrainerSettings(
        max_epochs=epochs if config.max_epochs is None else config.max_epochs,
        batch_size=batch_size,
        learning_rate=config.learning_rate or recipe.learning_rate,
        loss=config.loss,
        precision=select_precision(config.precision, device),
        seed=config.seed,
        num_workers=config.num_workers,
        warm_up=recipe.warm_up,
        position_bound=config.position_bound if config.update_positions else 0.0,
        start=compute_weights_digest(start.model.network) if start else "",
    )


def _resume(trainer: Trainer, checkpoint: Path) -> None:

    check_checkpoint_exists(checkpoint)
    trainer.load(checkpoint)
    log.info("going on after epoch %d", len(trainer.history))


def _check_collapse(trainer: Trainer) -> list[CollapseReport]:
    """Whether the network sees anything of each scan; a warning where it does not, once it has had its warm-up."""

    reports = [check_collapse(trainer.model, patterns) for patterns in trainer.validation]
    begun = trainer.optimizer.steps > trainer.settings.warm_up
    for report, patterns in zip(reports, trainer.validation, strict=True):
        if report.is_collapsed and begun:
            log.warning(
                "%s: %s: train longer, from another --seed, or with --update_probe",
                patterns.digest,
                report.description(),
            )
    return reports


def _start_tracking(config: TrainConfig, settings: TrainerSettings) -> Tracker:
    """Make the output folder and say in it what will be done."""

    folder = make_output_dir(config.output_dir)
    write_config(folder / "config.yaml", config)
    tracker = make_tracker(config.logger, folder)
    tracker.log_parameters(to_plain(config) | asdict(settings))
    return tracker


def _make_saved_model(
    config: TrainConfig,
    trainer: Trainer,
    sources: Sequence[TrainingScan],
    validation: str,
    reports: Sequence[CollapseReport],
) -> Model:

    provenance = {
        "version": ptycho_torch.__version__,
        "config": to_plain(config),
        "settings": asdict(trainer.settings),
        "photon_scale": [source.scale._asdict() for source in sources],
        "epochs": len(trainer.history),
        "history": make_history_columns(trainer.history),
        "validation": validation,
        "seen": [
            report._asdict() | {"collapsed": report.is_collapsed, "told": report.description()} for report in reports
        ],
    }
    return Model(trainer.model, tuple(source.scan_record for source in sources), config.gridsize, provenance)


def _write_images(bundle: Model, scan: Scan, folder: Path) -> list[Path]:
    """Pictures of what the network makes of the (first) training scan, for the tracker."""

    calibration = select_calibration(bundle, scan)
    result = predict_scan(
        bundle.model,
        calibration.apply_positions(scan),
        calibration.photons_per_unit,
        gridsize=bundle.gridsize,
        probe=calibration.probe,
    )
    return write_images(folder, calibration.attach_background(result))


def run(config: TrainConfig, invocation: Invocation) -> int:
    """Train, and print the result; return the exit code."""
    process_group = invocation.process_group
    result = train(config, invocation.observer, process_group)
    if not result.completed:
        if process_group is None or (process_group.is_main and process_group.claim_error_report()):
            print(f"interrupted after epoch {len(result.history)}; go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not config.quiet:
        last = result.history[-1] if result.history else None
        print(
            f"{result.output_dir}: "
            + (f"loss {last.loss:.4g}, validation {last.val_loss:.4g}; " if last else "untrained; ")
            + "; ".join(report.description() for report in result.collapse_reports)
        )
    return 0
