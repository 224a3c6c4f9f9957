"""Pretrain a network on simulated patterns, for scans and probes that it was not trained on.

::

    python -m ptycho_torch.pretrain --output_dir general --probe scan.npz --time_limit 600

The simulated patterns are generated during the training and never stored. The output folder then contains the files of
``train``: the model (without a probe), ``history.csv``, ``timing.json``, ``config.yaml`` and ``checkpoints/last/``.
"""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ptycho_torch.commands.base import Invocation, report_interruption
from ptycho_torch.commands.provenance import make_provenance
from ptycho_torch.config.pretrain import PretrainConfig
from ptycho_torch.config.train import DEFAULT_WARM_UP_STEPS
from ptycho_torch.config.values import to_plain, write_config
from ptycho_torch.core.errors import PtychoError
from ptycho_torch.core.files import make_output_dir, write_json
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.core.timing import Clock
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.io.inputs import read_probe, read_probe_size
from ptycho_torch.models.checkpoint import CHECKPOINT, require_checkpoint
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, save_model
from ptycho_torch.simulation.dataset import SimulatedDataset, SimulatedDatasetSettings
from ptycho_torch.simulation.probe_families import PROBE_FAMILIES
from ptycho_torch.training.history import EpochRecord, make_history_columns, write_history
from ptycho_torch.training.optimizer import LearningRateSchedule
from ptycho_torch.training.pretraining import Pretrainer, PretrainerSettings
from ptycho_torch.training.tracking import NullTracker, Tracker, make_tracker

log = logging.getLogger("ptycho_torch.pretrain")  # __name__ is __main__ under python -m

PROBE_POWER_LOG_SIGMA = 0.1
"""Standard deviation of the logarithm of the probe's power, which differs between the regions of a scan."""


def pretrain(
    config: PretrainConfig, observer: Observer | None = None, process_group: ProcessGroup | None = None
) -> tuple[list[EpochRecord], bool]:
    """Pretrain a network and write the model to ``config.output_dir``.

    Args:
        config: the settings.
        observer: receives progress.
        process_group: the processes that share the work; each calls this function, and the main process writes.

    Returns:
        The history, one row per validation, and False if ctrl-C ended the pretraining early.

    Raises:
        PtychoError: bad input, before anything is written.
    """
    clock = Clock()
    process_group = process_group or SINGLE_PROCESS
    device = process_group.select_device(config.device)
    dataset = _make_dataset(config)
    network = NetworkConfig(config.network, config.head, config.width, probe_channel=True)
    generator = torch.Generator().manual_seed(config.seed)
    model = PtychoModel(network, [], generator=generator, size=dataset.settings.size).to(device)
    trainer = Pretrainer(model, dataset, _make_settings(config, device), process_group)
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / CHECKPOINT
    if config.resume:
        require_checkpoint(checkpoint)
        trainer.load(checkpoint)
        log.info("resuming after simulated batch %d", trainer.optimizer.steps)
    tracker: Tracker = NullTracker()
    if process_group.is_main:
        make_output_dir(output_dir)
        write_config(output_dir / "config.yaml", config)
        tracker = make_tracker(config.logger, output_dir)
        tracker.log_parameters(to_plain(config))
    clock.record("prepare")
    try:
        completed = trainer.run(observer or SilentObserver(), tracker, checkpoint)
    except PtychoError:
        tracker.finish(completed=False)
        raise
    clock.record("pretrain")
    if not process_group.is_main:
        return trainer.history, completed
    with trainer.use_averaged_weights() as averaged:
        save_model(output_dir, Model(averaged, (), 1, _make_provenance(config, trainer)))
        write_history(output_dir / "history.csv", trainer.history)
    tracker.finish(completed)
    clock.record("save")
    write_json(output_dir / "timing.json", clock.seconds)
    return trainer.history, completed


def _make_dataset(config: PretrainConfig) -> SimulatedDataset:
    probes = _read_probes(config)
    size = probes[0].shape[-1] if probes else config.size or 64
    families = config.probe_family or (() if probes else ("all",))
    settings = SimulatedDatasetSettings(
        size=size,
        patterns=config.batch_size or (16 if size <= 64 else 8),
        seed=config.seed,
        families=tuple(PROBE_FAMILIES) if "all" in families else families,
        variation=config.probe_variation,
        photons=(config.min_photons, config.max_photons),
        overlap=(config.min_overlap, config.max_overlap),
        masked=config.masked_fraction,
        power_error=PROBE_POWER_LOG_SIGMA,
    )
    if config.objects:
        settings = replace(settings, objects=tuple((name, 1.0) for name in config.objects))
    return SimulatedDataset(settings, probes)


def _read_probes(config: PretrainConfig) -> list[NDArray[Any]]:
    """Read the probes of the files, all with patterns of one size."""
    if not config.probe:
        return []
    size = config.size or read_probe_size(config.probe[0], "probe")
    return [read_probe(path, size, "probe").modes for path in config.probe]


def _make_settings(config: PretrainConfig, device: torch.device) -> PretrainerSettings:
    precision = select_precision(config.precision, device)
    return PretrainerSettings(
        LearningRateSchedule(config.learning_rate, DEFAULT_WARM_UP_STEPS), config.steps, config.time_limit, precision
    )


def _make_provenance(config: PretrainConfig, trainer: Pretrainer) -> dict[str, Any]:
    return make_provenance(
        "pretrain",
        config,
        precision=trainer.settings.precision,
        portable=False,
        stream={name: repr(value) for name, value in asdict(trainer.dataset.settings).items()},
        lessons=trainer.optimizer.steps,
        epochs=len(trainer.history),
        history=make_history_columns(trainer.history),
        validation="simulated batches that the training does not use",
    )


def run(config: PretrainConfig, invocation: Invocation) -> int:
    """Pretrain, and print the result; return the exit code."""
    history, completed = pretrain(config, invocation.observer, invocation.process_group)
    if not completed:
        return report_interruption(invocation, f"row {len(history)} of the history")
    if not config.quiet:
        patterns = sum(row.groups for row in history)
        figure = f"{patterns} patterns, validation {history[-1].val_loss:.4g}" if history else "untrained"
        print(f"{config.output_dir}: {figure}")
    return 0
