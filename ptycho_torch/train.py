"""Train a network on one scan or several, without labels.

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
from typing import TYPE_CHECKING

from ptycho_torch import cli
from ptycho_torch.core.config import TrainConfig
from ptycho_torch.core.errors import PtychoError
from ptycho_torch.core.observer import Observer, SilentObserver

if TYPE_CHECKING:
    import torch

    from ptycho_torch.data.scan import Scan
    from ptycho_torch.networks.model import PtychoModel
    from ptycho_torch.training.bundle import Bundle
    from ptycho_torch.training.loop import Epoch, Patterns, Settings, Trainer
    from ptycho_torch.training.sources import Source
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
    from ptycho_torch.physics.devices import select_device
    from ptycho_torch.training.bundle import save_bundle
    from ptycho_torch.training.loop import CHECKPOINT, Trainer, write_history
    from ptycho_torch.training.sources import load_sources, patterns_of
    from ptycho_torch.training.tracking import make_tracker

    clock = Clock()
    device = select_device(config.device)
    sources = load_sources(config, device)
    clock.lap("load")
    patterns, validation = patterns_of(config, sources)
    settings = _settings(config, sources[0].scan.size, sum(len(one.groups) for one in patterns))
    model = _model(config, sources, device)
    teachers = []
    if config.teacher:
        teachers = [_teacher(config, *pair, model) for pair in zip(sources, patterns, strict=True)]
        clock.lap("teach")
    trainer = Trainer(model, patterns, validation.patterns, settings, teachers)
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
    with trainer.averaged():
        bundle = _bundle(config, trainer, sources, validation.told)
        save_bundle(output_dir, bundle)
        write_history(output_dir / "history.csv", trainer.history)
        clock.lap("save")
        if config.logger in ("mlflow", "tensorboard") and completed:
            for picture in _pictures(bundle, sources[0].scan, output_dir):
                tracker.artifact(picture)
            clock.lap("pictures")
    tracker.finish(completed)
    write_json(output_dir / "timing.json", clock.seconds)
    return TrainResult(output_dir, trainer.history, completed)


def _model(config: TrainConfig, sources: "Sequence[Source]", device: "torch.device") -> "PtychoModel":
    import torch

    from ptycho_torch.networks.batch import probe_in_photons
    from ptycho_torch.networks.model import PtychoModel
    from ptycho_torch.networks.registry import NetworkConfig

    network = NetworkConfig(config.network, config.head, config.width)
    probes = [probe_in_photons(source.scan, source.scale.photons_per_unit) for source in sources]
    model = PtychoModel(network, probes, config.update_probe, torch.Generator().manual_seed(config.seed))
    return model.to(device)


def _teacher(config: TrainConfig, source: "Source", training: "Patterns", model: "PtychoModel") -> "Teacher":
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
    seen = source.scan.select(np.unique(training.groups))
    parts = model.all_probe_parts[source.data.source]
    start = flat_estimate(torch.from_numpy(seen.positions.copy()), torch.view_as_complex(parts).detach().clone())
    chain = Chain(seen, source.scale.photons_per_unit, [stage], start, config.seed)
    if not chain.next_stage(SilentObserver()):
        raise KeyboardInterrupt
    with torch.no_grad():
        if torch.view_as_real(chain.estimate.probe).shape == parts.shape:
            parts.copy_(torch.view_as_real(chain.estimate.probe))
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


def _resume(trainer: "Trainer", checkpoint: Path) -> None:
    from ptycho_torch.core.errors import ConfigError

    if not os.path.isfile(checkpoint):  # unlike Path.is_file, also False for a name that no file can have
        raise ConfigError(f"{checkpoint}: no checkpoint to go on from; train without --resume first")
    trainer.load(checkpoint)


def _bundle(config: TrainConfig, trainer: "Trainer", sources: "Sequence[Source]", validation: str) -> "Bundle":
    import ptycho_torch
    from ptycho_torch.training.bundle import Bundle
    from ptycho_torch.training.loop import history_columns

    provenance = {
        "version": ptycho_torch.__version__,
        "config": cli.resolved(config),
        "settings": asdict(trainer.settings),
        "photon_scale": [source.scale._asdict() for source in sources],
        "epochs": len(trainer.history),
        "history": history_columns(trainer.history),
        "validation": validation,
    }
    return Bundle(trainer.model, tuple(source.known for source in sources), config.gridsize, provenance)


def _pictures(bundle: "Bundle", scan: "Scan", folder: Path) -> list[Path]:
    """Pictures of what the network makes of the (first) training scan, for the tracker."""
    from ptycho_torch.engines.neural import reconstruct_by_network
    from ptycho_torch.imaging.results import write_pictures

    photons, probe = bundle.scans[0].photons_per_unit, bundle.model.probes[0]
    result = reconstruct_by_network(bundle.model, scan, photons, gridsize=bundle.gridsize, probe=probe)
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
