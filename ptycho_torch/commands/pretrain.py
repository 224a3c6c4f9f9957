"""Train a network on simulated patterns, so that it reads scans that it never saw, by probes that it is told.

::

    python -m ptycho_torch.pretrain --output_dir general --probe scan.npz --time_limit 600

The stream of patterns is endless, made on the fly and never stored. The folder then holds what ``train`` leaves: the
bundle (without a probe of its own), ``history.csv``, ``timing.json``, ``config.yaml`` and ``checkpoints/last/``.
"""

import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

import ptycho_torch
from ptycho_torch.commands.base import EXIT_INTERRUPTED, Invocation
from ptycho_torch.config.pretrain import PretrainConfig
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.errors import PtychoError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.io.probe_file import probe_size, read_probe
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Bundle, save_bundle
from ptycho_torch.simulation.dataset import Stream, StreamSettings
from ptycho_torch.simulation.probe_families import FAMILIES
from ptycho_torch.training.checkpoint import CHECKPOINT, Epoch, history_columns, require_checkpoint, write_history
from ptycho_torch.training.optimizer import Pace
from ptycho_torch.training.pretraining import Course, Pretrainer
from ptycho_torch.training.tracking import NoTracker, Tracker, make_tracker

log = logging.getLogger("ptycho_torch.pretrain")  # __name__ is __main__ under python -m

WARM_UP = 50
"""Lessons over which the learning rate rises."""

POWER_ERROR = 0.1
"""Standard deviation of the logarithm of the probe's power: no scan tells it for each of its neighbourhoods."""


def pretrain(
    config: PretrainConfig, observer: Observer | None = None, ranks: Ranks | None = None
) -> tuple[list[Epoch], bool]:
    """Pretrain as ``config`` says and write the bundle into ``config.output_dir``.

    ``ranks`` are the processes that share the work, each of which calls this; the first of them writes.

    Returns:
        The history, one entry a round of lessons, and False where ctrl-C ended it early.

    Raises:
        PtychoError: bad input, before anything is written.
    """

    clock = Clock()
    ranks = ranks or ALONE
    device = ranks.device(config.device)
    stream = _stream(config)
    network = NetworkConfig(config.network, config.head, config.width, probe_channel=True)
    generator = torch.Generator().manual_seed(config.seed)
    model = PtychoModel(network, [], generator=generator, size=stream.settings.size).to(device)
    trainer = Pretrainer(model, stream, _course(config, device), ranks)
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / CHECKPOINT
    if config.resume:
        require_checkpoint(checkpoint)
        trainer.load(checkpoint)
        log.info("going on after lesson %d", trainer.optimiser.steps)
    tracker: Tracker = NoTracker()
    if ranks.first:
        make_output_dir(output_dir)
        write_config(output_dir / "config.yaml", config)
        tracker = make_tracker(config.logger, output_dir)
        tracker.parameters(to_plain(config))
    clock.lap("prepare")
    try:
        completed = trainer.run(observer or SilentObserver(), tracker, checkpoint)
    except PtychoError:
        tracker.finish(completed=False)
        raise
    clock.lap("pretrain")
    if not ranks.first:
        return trainer.history, completed
    with trainer.optimiser.averaged() as averaged:
        save_bundle(output_dir, Bundle(averaged, (), 1, _provenance(config, trainer)))
        write_history(output_dir / "history.csv", trainer.history)
    tracker.finish(completed)
    clock.lap("save")
    write_json(output_dir / "timing.json", clock.seconds)
    return trainer.history, completed


def _stream(config: PretrainConfig) -> Stream:

    given = _given_probes(config)
    size = given[0].shape[-1] if given else config.size or 64
    families = config.probe_family or (() if given else ("all",))
    settings = StreamSettings(
        size=size,
        patterns=config.batch_size or (16 if size <= 64 else 8),
        seed=config.seed,
        families=tuple(FAMILIES) if "all" in families else families,
        variation=config.probe_variation,
        photons=(config.min_photons, config.max_photons),
        overlap=(config.min_overlap, config.max_overlap),
        masked=config.masked,
        power_error=POWER_ERROR,
    )
    if config.objects:
        settings = replace(settings, objects=tuple((name, 1.0) for name in config.objects))
    return Stream(settings, given)


def _given_probes(config: PretrainConfig) -> list[NDArray[Any]]:
    """The probes of the files, all of one N."""

    if not config.probe:
        return []
    size = config.size or probe_size(config.probe[0], "--probe")
    return [read_probe(path, size, "--probe").modes for path in config.probe]


def _course(config: PretrainConfig, device: torch.device) -> Course:

    precision = select_precision(config.precision, device)
    return Course(Pace(config.learning_rate, WARM_UP), config.lessons, config.time_limit, precision)


def _provenance(config: PretrainConfig, trainer: Pretrainer) -> dict[str, Any]:
    """Where the network comes from; no clock and no paths but those that were typed."""

    return {
        "version": ptycho_torch.__version__,
        "config": to_plain(config),
        "stream": {name: repr(value) for name, value in asdict(trainer.stream.settings).items()},
        "lessons": trainer.optimiser.steps,
        "precision": trainer.course.precision,
        "epochs": len(trainer.history),
        "history": history_columns(trainer.history),
        "validation": "simulated lessons that are never learned from",
    }


def run(config: PretrainConfig, invocation: Invocation) -> int:
    """Pretrain, and print the result; return the exit code."""
    ranks = invocation.ranks
    history, completed = pretrain(config, invocation.observer, ranks)
    if not completed:
        if ranks is None or (ranks.first and ranks.speaks()):
            print(f"interrupted after round {len(history)}; go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not config.quiet:
        patterns = sum(row.groups for row in history)
        figure = f"{patterns} patterns, examination {history[-1].val_loss:.4g}" if history else "untrained"
        print(f"{config.output_dir}: {figure}")
    return 0
