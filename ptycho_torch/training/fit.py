"""Train a network on scans in memory: :func:`fit`, and the steps that it shares with the command ``train``."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

import ptycho_torch
from ptycho_torch.config.base import require_not_negative, require_positive
from ptycho_torch.config.train import DEFAULT_POSITION_BOUND
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan, require_scan
from ptycho_torch.data.scan_numbers import split_scans
from ptycho_torch.distributed.devices import select_device, select_precision
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.models.saved_model import Model, compute_weights_digest
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.collapse_check import CollapseReport, check_collapse
from ptycho_torch.training.datasets import (
    TrainingScan,
    ValidationSet,
    check_distinct_scans,
    make_pattern_groups,
    make_training_scan,
)
from ptycho_torch.training.history import make_history_columns
from ptycho_torch.training.targets import ObjectTarget, make_reconstruction_target
from ptycho_torch.training.tracking import NullTracker
from ptycho_torch.training.trainer import (
    FINE_TUNE,
    FROM_SCRATCH,
    Trainer,
    TrainerSettings,
    compute_default_batch_size,
    compute_default_epochs,
)

log = logging.getLogger(__name__)


def fit(
    scans: Scan | Sequence[Scan],
    *,
    epochs: int | None = None,
    targets: Reconstruction | Sequence[Reconstruction] | Literal["labels"] | None = None,
    initial: Model | None = None,
    network: str | NetworkConfig | None = None,
    update_probe: bool = False,
    update_positions: bool = False,
    update_background: bool = False,
    position_bound: float = DEFAULT_POSITION_BOUND,
    gridsize: int = 1,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    loss: str = "amplitude",
    validation: Scan | None = None,
    photons_per_unit: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    observer: Observer | None = None,
) -> Model:
    """Train a network on one scan or several, in memory.

    Ctrl-C ends the training early; the result is then the model after the last complete epoch.

    Args:
        scans: scans with patterns of one size; patterns with several values of ``scan_index`` are several scans. The
            probe of a scan without one is estimated, and optimized.
        epochs: passes over the patterns; None: about 900 optimizer steps, or 200 from ``initial``.
        targets: objects to train towards besides the patterns: a reconstruction of each scan, or ``"labels"`` for the
            labels of the scans. A reconstruction also gives the initial probe. A target computed from
            all patterns makes the validation loss optimistic.
        initial: trained or pretrained model whose network to fine-tune.
        network: name or configuration of the network; None: the default network, or that of ``initial``.
        update_probe: optimize the probe of each scan together with the network.
        update_positions: optimize the scan positions together with the network.
        update_background: optimize a background of each scan, equal in all of its patterns.
        position_bound: largest change of a position on each axis, in pixels.
        gridsize: g; the network reconstructs groups of a position and its g² − 1 nearest neighbors.
        batch_size: groups per batch; None: by the size of the patterns.
        learning_rate: largest step of Adam; None: 3e-3.
        loss: noise model, ``"amplitude"`` or ``"poisson"``.
        validation: scan of the validation loss; None: a region of each scan is held out.
        photons_per_unit: photons per squared unit of amplitude; None: estimated for each scan.
        seed: seed of every random choice.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: arithmetic of the network: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        observer: receives progress.

    Returns:
        The trained model; ``provenance`` contains the history.

    Raises:
        PtychoError: the scans, targets or settings do not fit together.
    """
    scans = [require_scan(scan) for scan in (scans if isinstance(scans, Iterable) else [scans])]
    if not scans:
        raise ConfigError("there is no scan; expected at least one; add it to `scans`")
    _check_numbers(
        epochs=epochs,
        position_bound=position_bound,
        gridsize=gridsize,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    scans = [part for scan in scans for part in split_scans(scan)]
    check_distinct_scans(scans)
    selected_device = select_device(device)
    _check_target_name(targets)
    supervised = isinstance(targets, str)
    sources = [
        make_training_scan(
            scan,
            index,
            scale=photon_scale(scan, photons_per_unit),
            supervised=supervised,
            min_held_out=gridsize**2 if validation is None else 0,
            device=selected_device,
        )
        for index, scan in enumerate(scans)
    ]
    groups, validation_set = make_pattern_groups(
        sources, gridsize=gridsize, seed=seed, validation=validation, photons_per_unit=photons_per_unit
    )
    requested = {"name": network} if isinstance(network, str) else network.to_record() if network else {}
    check_initial_model(initial, sources[0].scan.size, requested)
    settings = make_trainer_settings(
        sources[0].scan.size,
        sum(len(patterns.groups) for patterns in groups),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        precision=select_precision(precision, selected_device),
        seed=seed,
        position_bound=position_bound if update_positions else 0.0,
        initial=initial,
    )
    object_targets: list[ObjectTarget] = []
    if targets is not None and not isinstance(targets, str):
        sources, object_targets = _apply_targets(sources, groups, targets, selected_device)
    model = make_model(
        sources,
        NetworkConfig(**requested),
        initial=initial,
        update_probe=update_probe or any(source.has_estimated_probe for source in sources),
        update_positions=update_positions,
        update_background=update_background,
        seed=seed,
    ).to(selected_device)
    trainer = Trainer(model, groups, validation_set.patterns, settings, object_targets)
    log.info("validation: %s", validation_set.description)
    if not trainer.run(observer or SilentObserver(), NullTracker()):
        log.warning("the training was interrupted after epoch %d", len(trainer.history))
    return _make_trained_model(trainer, sources, validation_set, gridsize)


def _check_numbers(**settings: float | None) -> None:
    """Raise ConfigError if a setting of :func:`fit` is out of its range."""
    numbers = SimpleNamespace(**settings)
    require_positive(numbers, "position_bound", "gridsize", "batch_size", "learning_rate")
    require_not_negative(numbers, "epochs", "seed")


def _check_target_name(targets: object) -> None:
    """Raise ConfigError if ``targets`` is text other than ``"labels"``."""
    if isinstance(targets, str) and targets != "labels":
        raise ConfigError(f"`targets` is {targets!r}; expected a reconstruction of each scan, or 'labels'")


def _make_trained_model(
    trainer: Trainer, sources: Sequence[TrainingScan], validation: ValidationSet, gridsize: int
) -> Model:
    """Return the model of a finished training with its averaged weights and its provenance."""
    trainer.model.load_state_dict(trainer.optimizer.averaged_weights)
    trainer.model.eval()
    record = make_training_record(trainer, sources, validation, report_collapse(trainer))
    provenance = {"version": ptycho_torch.__version__, "command": "fit", "seed": trainer.settings.seed, **record}
    return Model(trainer.model, tuple(source.scan_record for source in sources), gridsize, provenance)


def _apply_targets(
    sources: Sequence[TrainingScan],
    groups: Sequence[PatternGroups],
    targets: Reconstruction | Sequence[Reconstruction],
    device: torch.device,
) -> tuple[list[TrainingScan], list[ObjectTarget]]:
    """Return the scans with the probes of the reconstructions, and the reconstructed objects as targets."""
    results = [targets] if isinstance(targets, Reconstruction) else list(targets)
    if len(results) != len(sources):
        raise ConfigError(
            f"there are {len(results)} targets for {len(sources)} scans; expected one per scan; change `targets`"
        )
    scans, object_targets = [], []
    for source, patterns, result in zip(sources, groups, results, strict=True):
        object_targets.append(make_reconstruction_target(result, select_trained(source, patterns), device))
        scale = (source.scale.photons_per_unit / result.photons_per_unit) ** 0.5
        scans.append(source._replace(probe=torch.from_numpy(result.probe) * scale))
    return scans, object_targets


def select_trained(source: TrainingScan, patterns: PatternGroups) -> Scan:
    """Return the scan with only those patterns that occur in the groups of the training."""
    return source.scan.select(np.unique(patterns.groups))


def check_initial_model(initial: Model | None, size: int, requested: dict[str, Any]) -> None:
    """Raise unless training can start from ``initial``.

    Args:
        initial: the model; None: fresh weights.
        size: side of the patterns in pixels.
        requested: fields of :class:`~ptycho_torch.models.registry.NetworkConfig` that the network must have.

    Raises:
        ConfigError: the model has another network or another pattern size.
    """
    if initial is None:
        return
    for name, value in requested.items():
        actual = getattr(initial.model.config, name)
        if value != actual:
            setting = "network" if name == "name" else name
            raise ConfigError(
                f"`{setting}` is {value}, and the initial network has {actual}; expected no other value; leave out "
                f"`{setting}`"
            )
    if initial.model.size != size:
        raise ConfigError(
            f"the initial network has patterns of {initial.model.size} × {initial.model.size} pixels, and the scan has "
            f"{size} × {size}; expected one size; start from another network, or none"
        )


def make_trainer_settings(
    size: int,
    groups: int,
    *,
    precision: str,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    loss: str = "amplitude",
    seed: int = 0,
    num_workers: int = 0,
    position_bound: float = 0.0,
    initial: Model | None = None,
) -> TrainerSettings:
    """Resolve the settings of a training; None stands for the default of a fresh or a fine-tuned network.

    Args:
        size: side of the patterns in pixels.
        groups: groups per epoch.
        precision: fp32 or bf16.
        epochs, batch_size, learning_rate, loss, seed, num_workers, position_bound: as in
            :class:`~ptycho_torch.training.trainer.TrainerSettings`.
        initial: the model to start from.
    """
    defaults = FINE_TUNE if initial else FROM_SCRATCH
    batch_size = batch_size or compute_default_batch_size(size)
    return TrainerSettings(
        max_epochs=compute_default_epochs(size, groups, batch_size, defaults) if epochs is None else epochs,
        batch_size=batch_size,
        learning_rate=learning_rate or defaults.learning_rate,
        loss=loss,
        precision=precision,
        seed=seed,
        num_workers=num_workers,
        warm_up=defaults.warm_up,
        position_bound=position_bound,
        start=compute_weights_digest(initial.model.network) if initial else "",
    )


def make_model(
    scans: Sequence[TrainingScan],
    network: NetworkConfig,
    *,
    initial: Model | None = None,
    update_probe: bool = False,
    update_positions: bool = False,
    update_background: bool = False,
    seed: int = 0,
) -> PtychoModel:
    """Make the model of a training, on the CPU.

    Args:
        scans: the training scans, whose probes the model contains.
        network: configuration of a fresh network.
        initial: model whose network to copy in place of a fresh one.
        update_probe, update_positions, update_background: parameters of the scans to optimize.
        seed: seed of the fresh weights.
    """
    model = PtychoModel(
        initial.model.config if initial else network,
        [source.probe for source in scans],
        update_probe,
        torch.Generator().manual_seed(seed),
        positions=[len(source.scan) for source in scans] if update_positions else (),
        backgrounds=[update_background] * len(scans),
    )
    if initial is not None:
        model.network.load_state_dict(initial.model.network.state_dict())
    return model


def report_collapse(trainer: Trainer) -> list[CollapseReport]:
    """Check the model on the validation patterns of each scan, and log a warning if it has collapsed after warm-up."""
    reports = [check_collapse(trainer.model, patterns) for patterns in trainer.validation]
    is_warmed_up = trainer.optimizer.steps > trainer.settings.warm_up
    for report, patterns in zip(reports, trainer.validation, strict=True):
        if report.is_collapsed and is_warmed_up:
            log.warning(
                "%s: %s; train longer, with another `seed`, or with `update_probe`",
                patterns.digest,
                report.description(),
            )
    return reports


def make_training_record(
    trainer: Trainer, scans: Sequence[TrainingScan], validation: ValidationSet, reports: Sequence[CollapseReport]
) -> dict[str, Any]:
    """Return the settings and the results of a training for the provenance of its model; JSON."""
    return {
        "settings": asdict(trainer.settings),
        "excluded_patterns": [source.excluded.tolist() for source in scans],
        "photon_scale": [source.scale._asdict() for source in scans],
        "epochs": len(trainer.history),
        "history": make_history_columns(trainer.history),
        "validation": validation.description,
        "seen": [report.to_record() for report in reports],
    }
