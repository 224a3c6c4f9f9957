"""Train a network on one scan or several.

::

    python -m ptycho_torch.train --train_data_file scan.npz --output_dir model

The output folder then contains the model (``model.safetensors``, ``bundle.json``), ``history.csv``, ``timing.json``,
``config.yaml``, ``checkpoints/last/`` and the records of the tracker.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho_torch.commands.base import Invocation, report_interruption
from ptycho_torch.commands.provenance import make_provenance
from ptycho_torch.config.engines import IterativeOptions, parse_stage
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.data.scan_numbers import split_scans
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.engines.initialization import set_num_modes
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.io.scan import load_scan
from ptycho_torch.models.calibration import read_scaled_probe
from ptycho_torch.models.checkpoint import CHECKPOINT, require_checkpoint
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, load_model, save_model
from ptycho_torch.plotting.result_folder import write_images
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.collapse_check import CollapseReport
from ptycho_torch.training.datasets import (
    TrainingScan,
    ValidationSet,
    check_distinct_scans,
    make_pattern_groups,
    make_training_scan,
)
from ptycho_torch.training.fit import (
    check_initial_model,
    make_model,
    make_trainer_settings,
    make_training_record,
    report_collapse,
    select_trained,
)
from ptycho_torch.training.history import EpochRecord, write_history
from ptycho_torch.training.targets import ObjectTarget, make_reconstruction_target
from ptycho_torch.training.tracking import NullTracker, Tracker, make_tracker
from ptycho_torch.training.trainer import Trainer, TrainerSettings

log = logging.getLogger("ptycho_torch.train")  # __name__ is __main__ under python -m


@dataclass(frozen=True)
class TrainResult:
    """Result of a training."""

    output_dir: Path
    """Folder of the model."""

    history: list[EpochRecord]
    """One row per epoch, from the first."""

    completed: bool
    """False if ctrl-C ended the training early."""

    collapse_reports: list[CollapseReport]
    """Collapse check on the validation patterns of each scan; empty except in the main process."""


def train(
    config: TrainConfig, observer: Observer | None = None, process_group: ProcessGroup | None = None
) -> TrainResult:
    """Train a network and write the model to ``config.output_dir``.

    Args:
        config: the settings.
        observer: receives progress.
        process_group: the processes that share the work; each calls this function, and the main process writes.

    Raises:
        PtychoError: bad input, before anything is written.
    """
    clock = Clock()
    process_group = process_group or SINGLE_PROCESS
    device = process_group.select_device(config.device)
    sources = _load_training_scans(config, device)
    update_probe = config.update_probe or any(source.has_estimated_probe for source in sources)
    clock.record("load")
    groups, validation = _make_pattern_groups(config, sources)
    initial = load_model(config.init_model) if config.init_model else None
    network = _collect_network_settings(config)
    check_initial_model(initial, sources[0].scan.size, network)
    settings = _make_settings(config, device, sources, groups, initial)
    if config.probe_modes is not None:
        sources = [source._replace(probe=set_num_modes(source.probe, config.probe_modes)) for source in sources]
    targets: list[ObjectTarget] = []
    if config.teacher:
        sources, targets = _compute_targets(config, sources, groups, device)
        clock.record("teach")
    model = make_model(
        sources,
        NetworkConfig(**network),
        initial=initial,
        update_probe=update_probe,
        update_positions=config.update_positions,
        update_background=config.update_background,
        seed=config.seed,
    ).to(device)
    trainer = Trainer(model, groups, validation.patterns, settings, targets, process_group)
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / CHECKPOINT
    if config.resume:
        require_checkpoint(checkpoint)
        trainer.load(checkpoint)
        log.info("resuming after epoch %d", len(trainer.history))
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
        reports = report_collapse(trainer)
        saved = _make_saved_model(config, trainer, sources, validation, reports)
        save_model(output_dir, saved)
        write_history(output_dir / "history.csv", trainer.history)
        clock.record("save")
        if config.logger in ("mlflow", "tensorboard") and completed:
            for path in write_images(output_dir, saved.predict(sources[0].scan)):
                tracker.log_artifact(path)
            clock.record("pictures")
    tracker.finish(completed)
    write_json(output_dir / "timing.json", clock.seconds)
    return TrainResult(output_dir, trainer.history, completed, reports)


def _load_training_scans(config: TrainConfig, device: torch.device) -> list[TrainingScan]:
    """Read the scans, each with its photon scale and its probe.

    Raises:
        PtychoError: a file cannot be read, the scans differ in N, or one is given twice.
    """
    paths, settings = config.train_data_file, collect_input_settings(config)
    if len(config.probe) not in (0, 1, len(paths)):
        raise ConfigError(
            f"`probe` names {len(config.probe)} files for {len(paths)} scans; expected one for all, or one per scan; "
            "change `probe`"
        )
    sources: list[TrainingScan] = []
    for index, path in enumerate(paths):
        scans = split_scans(load_scan(path, **settings))
        if len(scans) > 1:
            log.info("%s: %d scans, by scan_index; each is trained with its own probe", path, len(scans))
        for scan in scans:
            check_distinct_scans([*(source.scan for source in sources), scan])
            scale = photon_scale(scan, config.photons_per_unit)
            probe = None
            if config.probe:
                probe = read_scaled_probe(config.probe[index % len(config.probe)], scan, scale.photons_per_unit)
            sources.append(
                make_training_scan(
                    scan,
                    len(sources),
                    scale=scale,
                    probe=probe,
                    supervised=config.supervised,
                    min_held_out=config.gridsize**2 if config.test_data_file is None else 0,
                    device=device,
                )
            )
    return sources


def _make_pattern_groups(config: TrainConfig, sources: list[TrainingScan]) -> tuple[list[PatternGroups], ValidationSet]:
    """Read the validation scan, and draw the groups."""
    validation = None
    if config.test_data_file is not None:
        validation = load_scan(config.test_data_file, **collect_input_settings(config))
    return make_pattern_groups(
        sources,
        gridsize=config.gridsize,
        groups_per_scan=config.n_images,
        seed=config.seed,
        validation=validation,
        photons_per_unit=config.photons_per_unit,
    )


def _collect_network_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of the network that were given, by the names of NetworkConfig."""
    requested = {"name": config.network, "head": config.head, "width": config.width}
    return {name: value for name, value in requested.items() if value is not None}


def _make_settings(
    config: TrainConfig,
    device: torch.device,
    sources: Sequence[TrainingScan],
    groups: Sequence[PatternGroups],
    initial: Model | None,
) -> TrainerSettings:
    return make_trainer_settings(
        sources[0].scan.size,
        sum(len(patterns.groups) for patterns in groups),
        precision=select_precision(config.precision, device),
        epochs=config.max_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        loss=config.loss,
        seed=config.seed,
        num_workers=config.num_workers,
        position_bound=config.position_bound if config.update_positions else 0.0,
        initial=initial,
    )


def _compute_targets(
    config: TrainConfig, sources: Sequence[TrainingScan], groups: Sequence[PatternGroups], device: torch.device
) -> tuple[list[TrainingScan], list[ObjectTarget]]:
    """Run the engine of ``teacher`` on the training patterns of each scan, without those held out.

    Returns:
        The scans with the probes of the engine, and its objects as targets.
    """
    scans, targets = [], []
    for source, patterns in zip(sources, groups, strict=True):
        scan = select_trained(source, patterns)
        result = _run_engine(config, scan, source, device)
        targets.append(make_reconstruction_target(result, scan, device))
        same_modes = result.probe.shape == source.probe.shape
        scans.append(source._replace(probe=torch.from_numpy(result.probe)) if same_modes else source)
    return scans, targets


def _run_engine(config: TrainConfig, scan: Scan, source: TrainingScan, device: torch.device) -> Reconstruction:
    """Run the engine of ``teacher`` on ``scan``, a part of ``source``, from vacuum and the probe of ``source``."""
    stage = parse_stage(str(config.teacher), "teacher")
    if (config.update_probe or source.has_estimated_probe) and isinstance(stage, IterativeOptions):
        stage = replace(stage, update_probe=True)
    scale = source.scale.photons_per_unit
    run = Pipeline(stage).start(
        scan,
        initial=_make_vacuum(scan, source.probe, scale),
        photons_per_unit=scale,
        device=device.type,
        seed=config.seed,
    )
    if not run.run():
        raise KeyboardInterrupt
    result = run.make_reconstruction()
    r = result.history.get("r") or [float("nan")]
    log.info("targets: %s, R %.4g", stage.engine, r[-1])
    return result


def _make_vacuum(scan: Scan, probe: torch.Tensor, photons_per_unit: float) -> Reconstruction:
    """Return an object of ones with a probe whose power the pipeline keeps, unlike that of a probe alone."""
    return Reconstruction(
        object=np.ones((1, 1), np.complex64),
        coverage=np.zeros((1, 1), np.float32),
        origin_yx=np.floor(scan.positions.min(axis=0)).astype(np.int64),
        probe=probe.cpu().numpy(),
        positions=scan.positions,
        photons_per_unit=photons_per_unit,
    )


def _start_tracking(config: TrainConfig, settings: TrainerSettings) -> Tracker:
    """Make the output folder, write the configuration into it, and start the tracker."""
    folder = make_output_dir(config.output_dir)
    write_config(folder / "config.yaml", config)
    tracker = make_tracker(config.logger, folder)
    tracker.log_parameters(to_plain(config) | asdict(settings))
    return tracker


def _make_saved_model(
    config: TrainConfig,
    trainer: Trainer,
    sources: Sequence[TrainingScan],
    validation: ValidationSet,
    reports: Sequence[CollapseReport],
) -> Model:
    provenance = make_provenance(
        "train",
        config,
        scans=[source.scan for source in sources],
        precision=trainer.settings.precision,
        portable=False,
        **make_training_record(trainer, sources, validation, reports),
    )
    return Model(trainer.model, tuple(source.scan_record for source in sources), config.gridsize, provenance)


def run(config: TrainConfig, invocation: Invocation) -> int:
    """Train, and print the result; return the exit code."""
    result = train(config, invocation.observer, invocation.process_group)
    if not result.completed:
        return report_interruption(invocation, f"epoch {len(result.history)}")
    if not config.quiet:
        last = result.history[-1] if result.history else None
        print(
            f"{result.output_dir}: "
            + (f"loss {last.loss:.4g}, validation {last.val_loss:.4g}; " if last else "untrained; ")
            + "; ".join(report.description() for report in result.collapse_reports)
        )
    return 0
