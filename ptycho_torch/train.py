"""Train a network on a scan, without labels.

::

    python -m ptycho_torch.train --train_data_file scan.npz --output_dir model

The folder then holds the bundle (``model.safetensors``, ``bundle.json``), ``history.csv``, ``timing.json``,
``config.yaml``, ``checkpoints/last/`` and the tracker's records.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ptycho_torch import cli
from ptycho_torch.core.config import TrainConfig
from ptycho_torch.core.errors import PtychoError
from ptycho_torch.core.observer import Observer, SilentObserver

if TYPE_CHECKING:
    import torch

    from ptycho_torch.data.grouping import Indices
    from ptycho_torch.data.scaling import PhotonScale
    from ptycho_torch.data.scan import Scan
    from ptycho_torch.networks.batch import Batch
    from ptycho_torch.networks.model import PtychoModel
    from ptycho_torch.training.bundle import Bundle
    from ptycho_torch.training.loop import Epoch, Patterns, Settings, Trainer
    from ptycho_torch.training.teacher import Teacher

log = logging.getLogger("ptycho_torch.train")  # __name__ is __main__ under python -m


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves."""

    output_dir: Path
    """The folder of the bundle."""

    history: "list[Epoch]"
    """One entry an epoch, from the first."""

    completed: bool
    """False where ctrl-C ended it early."""


def train(config: TrainConfig, observer: Observer | None = None) -> TrainResult:
    """Train as ``config`` says and write the bundle into ``config.output_dir``.

    Raises:
        PtychoError: bad input, before anything is written.
    """
    from ptycho_torch.core.clock import Clock
    from ptycho_torch.core.files import make_output_dir, write_json
    from ptycho_torch.data.npz import load_scan
    from ptycho_torch.data.scaling import photon_scale
    from ptycho_torch.physics.devices import select_device
    from ptycho_torch.training.bundle import save_bundle
    from ptycho_torch.training.loop import CHECKPOINT, Trainer, write_history
    from ptycho_torch.training.tracking import make_tracker

    clock = Clock()
    device = select_device(config.device)
    scan = load_scan(config.train_data_file, axis_order=config.axis_order, measurement=config.measurement)
    scale = photon_scale(scan, config.photons_per_unit)
    clock.lap("load")
    training, held_out, validation = _patterns(config, scan, scale, device)
    settings = _settings(config, scan.size, len(training.groups))
    model = _model(config, scan, scale, device)
    teacher = _teacher(config, scan, scale, training, model) if config.teacher else None
    if teacher is not None:
        clock.lap("teach")
    trainer = Trainer(model, training, held_out, settings, teacher)
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / CHECKPOINT
    if config.resume:
        _resume(trainer, checkpoint)
    make_output_dir(output_dir)
    log.info("validation: %s", validation.told)
    cli.write_config(output_dir / "config.yaml", config)
    tracker = make_tracker(config.logger, output_dir)
    tracker.parameters(cli.resolved(config) | asdict(settings))
    if config.resume:
        log.info("going on after epoch %d", len(trainer.history))
    clock.lap("prepare")

    try:
        completed = trainer.run(observer or SilentObserver(), tracker, checkpoint)
    except PtychoError:
        tracker.finish(completed=False)
        raise
    clock.lap("train")
    with trainer.averaged() as model:
        bundle = _bundle(config, trainer, model, scale, validation)
        save_bundle(output_dir, bundle)
        write_history(output_dir / "history.csv", trainer.history)
        clock.lap("save")
        if config.logger in ("mlflow", "tensorboard") and completed:
            for picture in _pictures(bundle, scan, output_dir):
                tracker.artifact(picture)
            clock.lap("pictures")
    tracker.finish(completed)
    write_json(output_dir / "timing.json", clock.seconds)
    return TrainResult(output_dir, trainer.history, completed)


def _model(config: TrainConfig, scan: "Scan", scale: "PhotonScale", device: "torch.device") -> "PtychoModel":
    import torch

    from ptycho_torch.networks.batch import probe_in_photons
    from ptycho_torch.networks.model import PtychoModel
    from ptycho_torch.networks.registry import NetworkConfig

    network = NetworkConfig(config.network, config.head, config.width)
    probe = probe_in_photons(scan, scale.photons_per_unit)
    model = PtychoModel(network, probe, config.update_probe, torch.Generator().manual_seed(config.seed))
    return model.to(device)


def _teacher(
    config: TrainConfig, scan: "Scan", scale: "PhotonScale", training: "Patterns", model: "PtychoModel"
) -> "Teacher":
    """What an engine finds from the patterns of the training, and none of those held out; the model gets its probe."""
    import numpy as np
    import torch

    from ptycho_torch.engines.chain import Chain, coverage_of
    from ptycho_torch.engines.problem import flat_estimate
    from ptycho_torch.engines.registry import require_engine
    from ptycho_torch.training.teacher import teacher_of

    stage = cli.stage_of(str(config.teacher), "--teacher")
    require_engine(stage)
    if config.update_probe:
        stage = replace(stage, update_probe=True)
    seen = scan.select(np.unique(training.groups))
    start = flat_estimate(torch.from_numpy(seen.positions.copy()), model.probe.detach().clone())
    chain = Chain(seen, scale.photons_per_unit, [stage], start, config.seed)
    if not chain.next_stage(SilentObserver()):
        raise KeyboardInterrupt
    with torch.no_grad():
        if chain.estimate.probe.shape == model.probe.shape:
            model.probe_parts.copy_(torch.view_as_real(chain.estimate.probe))
    log.info("taught by %s, R %.4g", stage.engine, chain.history["r"][-1] if chain.history["r"] else float("nan"))
    return teacher_of(chain.estimate.object, coverage_of(chain.estimate), chain.estimate.frame.origin)


def _settings(config: TrainConfig, size: int, groups: int) -> "Settings":
    """What the configuration leaves out comes from the recipe."""
    from ptycho_torch.training.loop import Settings, recipe_batch_size, recipe_epochs

    batch_size = config.batch_size or recipe_batch_size(size)
    return Settings(
        max_epochs=recipe_epochs(size, groups, batch_size) if config.max_epochs is None else config.max_epochs,
        batch_size=batch_size,
        learning_rate=config.learning_rate,
        loss=config.loss,
        precision=config.precision,
        seed=config.seed,
        num_workers=config.num_workers,
    )


class _Validation(NamedTuple):
    """What the validation figure is computed on, and how to say so."""

    scan: "Scan"
    data: "Batch"
    indices: "Indices"
    told: str


def _patterns(
    config: TrainConfig, scan: "Scan", scale: "PhotonScale", device: "torch.device"
) -> "tuple[Patterns, Patterns, _Validation]":
    """Patterns to train on, patterns to validate on, and what the latter are."""
    import numpy as np

    from ptycho_torch.data.grouping import draw_groups
    from ptycho_torch.networks.batch import batch_of_scan
    from ptycho_torch.training.loop import Patterns

    data = batch_of_scan(scan, scale.photons_per_unit).to(device)
    used, validation = _hold_out(config, scan, data)
    rng = np.random.default_rng([config.seed, 0])
    groups = draw_groups(scan.positions, config.gridsize, used, config.n_images, rng)
    held = draw_groups(validation.scan.positions, config.gridsize, validation.indices, None, rng)
    return (
        Patterns(
            data, groups, scan.positions[groups[:, 0]], f"{scan.digest()} at {scale.photons_per_unit:.9g} photons"
        ),
        Patterns(validation.data, held, validation.scan.positions[held[:, 0]], validation.told),
        validation,
    )


def _hold_out(config: TrainConfig, scan: "Scan", data: "Batch") -> "tuple[Indices, _Validation]":
    """Indices to train on, and the validation: another file, the same file, or a region of it."""
    import numpy as np

    from ptycho_torch.data.grouping import hold_out_region
    from ptycho_torch.data.npz import load_scan
    from ptycho_torch.data.scaling import photon_scale
    from ptycho_torch.networks.batch import batch_of_scan

    test_file = config.test_data_file
    if test_file is None:
        split = hold_out_region(scan.positions, at_least=config.gridsize**2)
        told = f"region held out of the training scan, {split.region}"
        return split.training, _Validation(scan, data, split.validation, told)
    everything = np.arange(len(scan))
    test = load_scan(test_file, axis_order=config.axis_order, measurement=config.measurement)
    if test.digest() == scan.digest():
        told = "the training scan itself, so the figure says nothing about patterns not seen"
        return everything, _Validation(scan, data, everything, told)
    require_same_size(test, scan)
    scale = photon_scale(test, config.photons_per_unit)
    test_data = batch_of_scan(test, scale.photons_per_unit).to(data.corners.device)
    return everything, _Validation(test, test_data, np.arange(len(test)), f"the scan {test_file.name}")


def require_same_size(scan: "Scan", other: "Scan") -> None:
    """Raise DataError unless both scans have patterns of one size."""
    from ptycho_torch.core.errors import DataError

    if scan.size != other.size:
        raise DataError(
            f"{scan.source}: patterns of {scan.size} × {scan.size} pixels, where {other.source} has "
            f"{other.size} × {other.size}; give scans of one size"
        )


def _resume(trainer: "Trainer", checkpoint: Path) -> None:
    from ptycho_torch.core.errors import ConfigError

    if not os.path.isfile(checkpoint):  # unlike Path.is_file, also False for a name that no file can have
        raise ConfigError(f"{checkpoint}: no checkpoint to go on from; train without --resume first")
    trainer.load(checkpoint)


def _bundle(
    config: TrainConfig, trainer: "Trainer", model: "PtychoModel", scale: "PhotonScale", validation: _Validation
) -> "Bundle":
    import ptycho_torch
    from ptycho_torch.training.bundle import Bundle
    from ptycho_torch.training.loop import history_columns

    provenance = {
        "version": ptycho_torch.__version__,
        "config": cli.resolved(config),
        "settings": asdict(trainer.settings),
        "photon_scale": scale._asdict(),
        "epochs": len(trainer.history),
        "history": history_columns(trainer.history),
        "validation": validation.told,
        "validation_scan": validation.scan.digest(),
        "validation_indices": validation.indices.tolist(),
    }
    return Bundle(model, scale.photons_per_unit, config.gridsize, provenance)


def _pictures(bundle: "Bundle", scan: "Scan", folder: Path) -> list[Path]:
    """Pictures of what the network makes of the training scan, for the tracker."""
    from ptycho_torch.engines.neural import reconstruct_by_network
    from ptycho_torch.imaging.results import write_pictures

    result = reconstruct_by_network(bundle.model, scan, bundle.photons_per_unit, gridsize=bundle.gridsize)
    return write_pictures(folder, result)


def _command(config: TrainConfig) -> int:
    result = train(config, cli.observer_for(config))
    if not result.completed:
        print(f"interrupted after epoch {len(result.history)}; go on with --resume", file=sys.stderr)
        return cli.EXIT_INTERRUPTED
    if not config.quiet:
        last = result.history[-1] if result.history else None
        print(
            f"{result.output_dir}: "
            + (f"loss {last.loss:.4g}, validation {last.val_loss:.4g}" if last else "untrained")
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run_verb(TrainConfig, _command, argv, "ptycho-torch train")


if __name__ == "__main__":
    raise SystemExit(main())
