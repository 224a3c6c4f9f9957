"""Training of a network on measured scans."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ptycho_torch.config.train import DEFAULT_LEARNING_RATE, DEFAULT_WARM_UP_STEPS
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.position_refinement import limit_displacements
from ptycho_torch.training.batches import (
    VALIDATION_BATCH_GROUPS,
    PatternGroups,
    cache_network_inputs,
    iterate_batches,
    shard_indices,
)
from ptycho_torch.training.loop import TrainingLoop
from ptycho_torch.training.losses import ScanLoss, StepLoss
from ptycho_torch.training.optimizer import LearningRateSchedule
from ptycho_torch.training.targets import ObjectTarget


class TrainingDefaults(NamedTuple):
    """Values of the settings that a user leaves open."""

    steps: int
    """Optimizer steps for patterns of up to 64 pixels; proportional to the root of the side for larger ones."""

    learning_rate: float

    warm_up: int
    """Steps over which the learning rate rises."""


FROM_SCRATCH = TrainingDefaults(steps=900, learning_rate=DEFAULT_LEARNING_RATE, warm_up=DEFAULT_WARM_UP_STEPS)
"""Defaults for fresh weights."""

FINE_TUNE = TrainingDefaults(steps=200, learning_rate=DEFAULT_LEARNING_RATE, warm_up=10)
"""Defaults for the weights of another training."""


@dataclass(frozen=True)
class TrainerSettings:
    """Resolved settings of a training that determine the weights."""

    max_epochs: int
    """Passes over the groups in total."""

    batch_size: int
    """Groups per batch."""

    learning_rate: float
    """Largest step of Adam for the biases of the network; Muon's step for the kernels is proportional to it."""

    loss: str = "amplitude"
    """Noise model, a key of :data:`~ptycho_torch.physics.noise.NOISE_MODELS`."""

    precision: str = "fp32"
    """Arithmetic of the network: fp32 or bf16."""

    seed: int = 0
    """Seed of the order of the batches."""

    num_workers: int = 0
    """Processes that prepare batches."""

    warm_up: int = FROM_SCRATCH.warm_up
    """Steps over which the learning rate rises."""

    position_bound: float = 0.0
    """Largest change of a position on each axis, in pixels; 0 keeps the positions fixed."""

    start: str = ""
    """Digest of the initial network; empty: fresh weights."""


def compute_default_batch_size(size: int) -> int:
    """Return the groups per batch for patterns of ``size`` pixels: 24 at 64, fewer for larger ones, at least 8."""
    return max(8, round(24 * (64 / size) ** 2))


def compute_default_epochs(size: int, groups: int, batch_size: int, defaults: TrainingDefaults = FROM_SCRATCH) -> int:
    """Return the epochs of ``groups`` groups that make the default number of steps at ``size`` pixels."""
    steps = defaults.steps * max(1.0, size / 64) ** 0.5
    return max(1, round(steps * batch_size / groups))


class Trainer(TrainingLoop[Batch]):
    """A training on measured scans in progress.

    The learning rate and the averaging do not depend on the number of epochs to come. A training that is continued to
    any length has the bytes of one that was never interrupted.

    Args:
        model: trained in place, on the device of the scans.
        scans: the groups to train on, of each scan, in the order of the model's probes.
        validation: the groups of the validation loss.
        settings: resolved settings.
        targets: the target object of each scan; empty: none.
        process_group: the processes that share this training; all use the weights and targets of the main process.
    """

    task = "training"

    def __init__(
        self,
        model: PtychoModel,
        scans: Sequence[PatternGroups],
        validation: Sequence[PatternGroups],
        settings: TrainerSettings,
        targets: Sequence[ObjectTarget] = (),
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        schedule = LearningRateSchedule(settings.learning_rate, settings.warm_up)
        super().__init__(model, schedule, settings.precision, process_group)
        process_group.broadcast_([target.object for target in targets])
        self.validation, self.settings, self.targets = validation, settings, targets
        self.scans = [cache_network_inputs(model, patterns) for patterns in scans]
        self.loss = ScanLoss(make_noise_model(settings.loss), targets, process_group)
        self._trained_indices = [
            torch.from_numpy(np.unique(patterns.groups)).to(patterns.scan.corners.device) for patterns in scans
        ]

    @property
    def groups(self) -> int:
        """Groups per epoch, of all scans."""
        return sum(len(patterns.groups) for patterns in self.scans)

    def _begin(self) -> int:
        batches = sum(-(-len(patterns.groups) // self.settings.batch_size) for patterns in self.scans)
        return max(self.settings.max_epochs - len(self.history), 0) * batches

    def _is_finished(self) -> bool:
        return len(self.history) >= self.settings.max_epochs

    def _iterate_batches(self, epoch: int) -> Iterator[tuple[int, Batch]]:
        rng = np.random.default_rng([self.settings.seed, epoch])
        return iterate_batches(self.scans, self.settings.batch_size, rng, self.process_group, self.settings.num_workers)

    def _compute_loss(self, batch: Batch) -> StepLoss:
        return self.loss.compute(self.model, batch)

    @torch.no_grad()
    def _clip_parameters(self) -> None:
        """Bound the position offsets on each axis about a mean of zero, and make the background non-negative.

        A common offset of all positions is a shift of the object or of the probe.
        """
        for index, trained in enumerate(self._trained_indices):
            offsets = self.model.get_position_offsets(index)
            if offsets is None:
                continue
            offsets[trained] = limit_displacements(offsets[trained], self.settings.position_bound)
        for index in range(len(self.scans)):
            background = self.model.get_background(index)
            if background is not None:
                background.clamp_(min=0)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean deviance of the averaged weights on the validation groups, always in the same batches."""
        with self.use_averaged_weights():
            total = weight = 0.0
            for patterns in self.validation:
                for groups, indices in patterns.batches(VALIDATION_BATCH_GROUPS, 1, np.random.default_rng(0)):
                    own = shard_indices(indices, self.process_group).to(patterns.scan.corners.device)
                    with self._autocast():
                        deviance = self.loss.compute_deviance(self.model, patterns.scan.take(own), patterns.probe)
                        value = self.process_group.all_reduce_sum(deviance).item()
                    total, weight = total + groups * value, weight + groups
        return total / weight

    @property
    def resume_settings(self) -> dict[str, Any]:
        """Values that must be equal for a resumed training to equal an uninterrupted one; JSON."""
        settings = asdict(self.settings)
        for free in ("max_epochs", "num_workers"):
            del settings[free]
        groups = b"".join(patterns.groups.tobytes() for patterns in self.scans)
        return settings | {
            "network": self.model.config.to_record(),
            "update_probe": any(parts.requires_grad for parts in self.model.probe_parameters),
            "probe_modes": [len(parts) for parts in self.model.probe_parameters],
            "update_background": self.model.get_background(0) is not None,
            "groups": self.groups,
            "groups_digest": hashlib.sha256(groups).hexdigest()[:16],
            "scan": ", ".join(patterns.digest for patterns in self.scans),
            "validation": ", ".join(patterns.digest for patterns in self.validation),
            "teacher": ", ".join(target.digest() for target in self.targets),
        }
