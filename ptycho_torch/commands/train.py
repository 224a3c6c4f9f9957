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
from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.engines.initialization import margin_for, with_modes
from ptycho_torch.engines.pipeline import Chain, coverage_of
from ptycho_torch.engines.registry import require_engine
from ptycho_torch.engines.state import flat_estimate
from ptycho_torch.models.calibration import light_for
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Bundle, fingerprint, load_bundle, save_bundle
from ptycho_torch.plotting.result_folder import write_pictures
from ptycho_torch.prediction.predict import reconstruct_by_network
from ptycho_torch.training.checkpoint import CHECKPOINT, Epoch, history_columns, require_checkpoint, write_history
from ptycho_torch.training.collapse_check import Verdict, judge
from ptycho_torch.training.datasets import Source, load_sources, patterns_of
from ptycho_torch.training.targets import Teacher, teacher_of
from ptycho_torch.training.tracking import NoTracker, Tracker, make_tracker
from ptycho_torch.training.trainer import FRESH, TUNING, Patterns, Settings, Trainer, recipe_batch_size, recipe_epochs

log = logging.getLogger("ptycho_torch.train")  # __name__ is __main__ under python -m


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves."""

    output_dir: Path
    """The folder of the bundle."""

    history: list[Epoch]
    """One entry an epoch, from the first."""

    completed: bool
    """False where ctrl-C ended it early."""

    verdicts: list[Verdict]
    """Whether the network sees anything, on the validation patterns of each scan; of several ranks the first says."""


def train(config: TrainConfig, observer: Observer | None = None, ranks: Ranks | None = None) -> TrainResult:
    """Train as ``config`` says and write the bundle into ``config.output_dir``.

    ``ranks`` are the processes that share the work, each of which calls this; the first of them writes.

    Raises:
        PtychoError: bad input, before anything is written.
    """

    clock = Clock()
    ranks = ranks or ALONE
    device = ranks.device(config.device)
    sources = load_sources(config, device)
    clock.lap("load")
    patterns, validation = patterns_of(config, sources)
    start = _start(config, sources[0].scan.size)
    settings = _settings(config, device, sources[0].scan.size, sum(len(one.groups) for one in patterns), start)
    model = _model(config, sources, start, device)
    teachers = []
    if config.teacher:
        teachers = [_teacher(config, *pair, model) for pair in zip(sources, patterns, strict=True)]
        clock.lap("teach")
    trainer = Trainer(model, patterns, validation.patterns, settings, teachers, ranks)
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / CHECKPOINT
    if config.resume:
        _resume(trainer, checkpoint)
    log.info("validation: %s", validation.told)
    tracker = _begin(config, settings) if ranks.first else NoTracker()
    clock.lap("prepare")

    try:
        completed = trainer.run(observer or SilentObserver(), tracker, checkpoint)
    except PtychoError:
        tracker.finish(completed=False)
        raise
    clock.lap("train")
    if not ranks.first:
        return TrainResult(output_dir, trainer.history, completed, [])
    with trainer.averaged():
        verdicts = _verdicts(trainer)
        bundle = _bundle(config, trainer, sources, validation.told, verdicts)
        save_bundle(output_dir, bundle)
        write_history(output_dir / "history.csv", trainer.history)
        clock.lap("save")
        if config.logger in ("mlflow", "tensorboard") and completed:
            for picture in _pictures(bundle, sources[0].scan, output_dir):
                tracker.artifact(picture)
            clock.lap("pictures")
    tracker.finish(completed)
    write_json(output_dir / "timing.json", clock.seconds)
    return TrainResult(output_dir, trainer.history, completed, verdicts)


def _model(config: TrainConfig, sources: Sequence[Source], start: Bundle | None, device: torch.device) -> PtychoModel:

    network = start.model.config if start else NetworkConfig(**_typed_network(config))
    probes = [source.probe for source in sources]
    if config.probe_modes is not None:
        probes = [with_modes(probe, config.probe_modes) for probe in probes]
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


def _typed_network(config: TrainConfig) -> dict[str, Any]:
    """What the settings say of the network, by the names of NetworkConfig."""
    asked = {"name": config.network, "head": config.head, "width": config.width}
    return {name: value for name, value in asked.items() if value is not None}


def _start(config: TrainConfig, size: int) -> Bundle | None:
    """The bundle whose network to start from."""

    if config.init is None:
        return None
    start = load_bundle(config.init)
    for name, asked in _typed_network(config).items():
        there = getattr(start.model.config, name)
        if asked != there:
            flag = "network" if name == "name" else name
            raise ConfigError(f"--{flag} is {asked}, and the network of --init {config.init} has {there}; leave it out")
    if start.model.size != size:
        raise ConfigError(
            f"--init {config.init} is of patterns of {start.model.size} × {start.model.size} pixels, and the scan has "
            f"{size} × {size}; start from another, or from none"
        )
    return start


def _teacher(config: TrainConfig, source: Source, training: Patterns, model: PtychoModel) -> Teacher:
    """What an engine finds from the patterns of the training, and none of those held out; the model gets its probe."""

    stage = parse_stage(str(config.teacher), "--teacher")
    require_engine(stage)
    if config.update_probe:
        stage = replace(stage, update_probe=True)
    seen = source.scan.select(np.unique(training.groups))
    parts = model.all_probe_parts[source.data.source]
    lit, margin = torch.view_as_complex(parts).detach().clone(), margin_for([stage], seen)
    start = flat_estimate(torch.from_numpy(seen.positions.copy()), lit, margin)
    chain = Chain(seen, source.scale.photons_per_unit, [stage], start, config.seed)
    if not chain.next_stage(SilentObserver()):
        raise KeyboardInterrupt
    with torch.no_grad():
        if torch.view_as_real(chain.estimate.probe).shape == parts.shape:
            parts.copy_(torch.view_as_real(chain.estimate.probe))
    log.info("taught by %s, R %.4g", stage.engine, chain.history["r"][-1] if chain.history["r"] else float("nan"))
    return teacher_of(chain.estimate.object, coverage_of(chain.estimate), chain.estimate.frame.origin)


def _settings(config: TrainConfig, device: torch.device, size: int, groups: int, start: Bundle | None) -> Settings:
    """What the configuration leaves out comes from the recipe: a short one where a trained network is the start."""

    recipe = TUNING if start else FRESH
    batch_size = config.batch_size or recipe_batch_size(size)
    epochs = recipe_epochs(size, groups, batch_size, recipe)
    return Settings(
        max_epochs=epochs if config.max_epochs is None else config.max_epochs,
        batch_size=batch_size,
        learning_rate=config.learning_rate or recipe.learning_rate,
        loss=config.loss,
        precision=select_precision(config.precision, device),
        seed=config.seed,
        num_workers=config.num_workers,
        warm_up=recipe.warm_up,
        position_bound=config.position_bound if config.update_positions else 0.0,
        start=fingerprint(start.model.network) if start else "",
    )


def _resume(trainer: Trainer, checkpoint: Path) -> None:

    require_checkpoint(checkpoint)
    trainer.load(checkpoint)
    log.info("going on after epoch %d", len(trainer.history))


def _verdicts(trainer: Trainer) -> list[Verdict]:
    """Whether the network sees anything of each scan; a warning where it does not, once it has had its warm-up."""

    verdicts = [judge(trainer.model, patterns) for patterns in trainer.validation]
    begun = trainer.optimiser.steps > trainer.settings.warm_up
    for verdict, patterns in zip(verdicts, trainer.validation, strict=True):
        if verdict.collapsed and begun:
            log.warning(
                "%s: %s: train longer, from another --seed, or with --update_probe", patterns.digest, verdict.told()
            )
    return verdicts


def _begin(config: TrainConfig, settings: Settings) -> Tracker:
    """Make the output folder and say in it what will be done."""

    folder = make_output_dir(config.output_dir)
    write_config(folder / "config.yaml", config)
    tracker = make_tracker(config.logger, folder)
    tracker.parameters(to_plain(config) | asdict(settings))
    return tracker


def _bundle(
    config: TrainConfig,
    trainer: Trainer,
    sources: Sequence[Source],
    validation: str,
    verdicts: Sequence[Verdict],
) -> Bundle:

    provenance = {
        "version": ptycho_torch.__version__,
        "config": to_plain(config),
        "settings": asdict(trainer.settings),
        "photon_scale": [source.scale._asdict() for source in sources],
        "epochs": len(trainer.history),
        "history": history_columns(trainer.history),
        "validation": validation,
        "seen": [verdict._asdict() | {"collapsed": verdict.collapsed, "told": verdict.told()} for verdict in verdicts],
    }
    return Bundle(trainer.model, tuple(source.known for source in sources), config.gridsize, provenance)


def _pictures(bundle: Bundle, scan: Scan, folder: Path) -> list[Path]:
    """Pictures of what the network makes of the (first) training scan, for the tracker."""

    light = light_for(bundle, scan)
    result = reconstruct_by_network(
        bundle.model, light.placed(scan), light.photons_per_unit, gridsize=bundle.gridsize, probe=light.probe
    )
    return write_pictures(folder, light.completed(result))


def run(config: TrainConfig, invocation: Invocation) -> int:
    """Train, and print the result; return the exit code."""
    ranks = invocation.ranks
    result = train(config, invocation.observer, ranks)
    if not result.completed:
        if ranks is None or (ranks.first and ranks.speaks()):
            print(f"interrupted after epoch {len(result.history)}; go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not config.quiet:
        last = result.history[-1] if result.history else None
        print(
            f"{result.output_dir}: "
            + (f"loss {last.loss:.4g}, validation {last.val_loss:.4g}; " if last else "untrained; ")
            + "; ".join(verdict.told() for verdict in result.verdicts)
        )
    return 0
