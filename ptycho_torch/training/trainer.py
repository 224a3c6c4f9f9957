"""The training loop: epochs of batches of neighbours, checkpoints at each end, exact resume."""

import hashlib
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.grouping import Indices, make_compact_batches
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch, NetworkInputs
from ptycho_torch.physics.forward import Wavefields
from ptycho_torch.physics.noise import make_noise_model, masked_sum
from ptycho_torch.physics.position_refinement import limit_displacements
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.training.checkpoint import EpochRecord, load_checkpoint, save_checkpoint
from ptycho_torch.training.labels import align_phases
from ptycho_torch.training.optimizer import LearningRateSchedule, Optimizer
from ptycho_torch.training.targets import MERGED_TARGET_WEIGHT, TARGET_WEIGHT, ObjectTarget, compute_patch_distance
from ptycho_torch.training.tracking import Tracker

BATCHES_PER_CELL = 4
"""Batches that share a compact cell of the field: they reach further than compact ones for the same cost."""

MAX_CACHED_INPUT_BYTES = 2**28
"""Memory up to which what the network is shown of a scan is kept for all of a training, if its light does not learn."""

VALIDATION_BATCH_GROUPS = 64
"""Groups a batch of validation, where no gradient is kept."""


class TrainingDefaults(NamedTuple):
    """How to train where the configuration does not say."""

    steps: int
    """Optimiser steps for patterns up to 64 pixels; with the root of the side for larger ones."""

    learning_rate: float
    warm_up: int
    """Steps over which the learning rate rises."""


FROM_SCRATCH = TrainingDefaults(steps=900, learning_rate=3e-3, warm_up=50)
"""From fresh weights."""

FINE_TUNE = TrainingDefaults(steps=200, learning_rate=3e-3, warm_up=10)
"""From the weights of another training."""


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; the resolved part of the configuration that shapes the weights."""

    max_epochs: int
    """Passes over the groups, in all."""

    batch_size: int
    """Groups a batch."""

    learning_rate: float
    """Largest step of Adam for the network's biases; a multiple of it is Muon's for its kernels."""

    loss: str = "amplitude"
    """Noise model, a key of :data:`~ptycho_torch.physics.noise.NOISE_MODELS`."""

    precision: str = "fp32"
    """Arithmetic of the network: fp32 or bf16."""

    seed: int = 0
    """Seed of the order of batches."""

    num_workers: int = 0
    """Processes that prepare batches."""

    warm_up: int = FROM_SCRATCH.warm_up
    """Steps over which the learning rate rises."""

    position_bound: float = 0.0
    """Farthest that a position moves on either axis, in pixels; 0: they stay."""

    start: str = ""
    """Fingerprint of the network that it starts from; empty: fresh weights."""


def compute_default_batch_size(size: int) -> int:
    """Groups a batch, for patterns of ``size`` pixels: 24 of 64², fewer of larger ones, at least 8."""
    return max(8, round(24 * (64 / size) ** 2))


def compute_default_epochs(size: int, groups: int, batch_size: int, defaults: TrainingDefaults = FROM_SCRATCH) -> int:
    """Epochs of ``groups`` groups that make the recipe's steps, for patterns of ``size`` pixels."""
    steps = defaults.steps * max(1.0, size / 64) ** 0.5
    return max(1, round(steps * batch_size / groups))


@dataclass(frozen=True, eq=False)
class PatternGroups:
    """Patterns to go through: all of a scan, and the groups of them that count."""

    scan: Batch
    """All patterns."""

    groups: Indices
    """(m, g²) indices into ``scan``, each group's own position first."""

    positions: np.ndarray[Any, np.dtype[np.float64]]
    """(m, 2) (y, x) in pixels: positions of the groups."""

    digest: str = ""
    """Fingerprint of the scan and its photon scale."""

    probe: Tensor | None = None
    """(M, N, N) complex in √photons: lights these patterns, where it is none of the model's."""

    def batches(self, batch_size: int, spread: int, rng: np.random.Generator) -> Iterator[tuple[int, Tensor]]:
        """Batches of neighbours: the number of groups in each, and the indices of their patterns, each once."""
        for batch in make_compact_batches(self.positions, batch_size, spread, rng):
            yield len(batch), torch.from_numpy(np.unique(self.groups[batch]))


class _BatchIndices(NamedTuple):
    """A batch to be cut out of a scan."""

    scan_index: int
    """Which of the scans."""

    groups: int
    """Groups in it."""

    indices: Tensor
    """(m,) int64: its patterns."""


class _BatchDataset(torch.utils.data.Dataset[tuple[int, Batch]]):
    """The batches of an epoch, cut out when asked for: what a DataLoader's workers share."""

    def __init__(self, scans: list[Batch], batches: list[_BatchIndices]) -> None:
        self._scans, self._iterate_batches = scans, batches

    def __len__(self) -> int:
        return len(self._iterate_batches)

    def __getitem__(self, index: int) -> tuple[int, Batch]:
        cut = self._iterate_batches[index]
        return cut.groups, self._scans[cut.scan_index].take(cut.indices)


class Trainer:
    """A training in progress: model, optimiser, running mean of the weights, and history.

    The learning rate falls with the square root of the steps, and what counts is a running mean of the weights whose
    memory is a fixed share of the steps so far. Nothing depends on how many epochs are still to come, so that a
    training may be continued to any length with the same bytes as one that was never interrupted.

    ProcessGroup share a training: all draw the same batches, each takes its part of every one, gradients are summed, and all
    make the same steps. Only the first writes checkpoints.

    Args:
        model: trained in place, on the device that it and ``patterns`` are on.
        patterns: what to train on, of each scan, in the order of the model's probes.
        validation: what the validation figure is computed on, all of it together.
        settings: how to train.
        teachers: of each scan, an object whose patches are a target beside the patterns; empty: none.
        ranks: the processes that share this training; all go by the first one's weights and teachers.
    """

    def __init__(
        self,
        model: PtychoModel,
        patterns: Sequence[PatternGroups],
        validation: Sequence[PatternGroups],
        settings: TrainerSettings,
        targets: Sequence[ObjectTarget] = (),
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.model, self.validation, self.settings = model, validation, settings
        self.targets, self.process_group = targets, process_group
        process_group.broadcast_([*model.state_dict().values(), *(target.object for target in targets)])
        self.patterns = [self._cache_inputs(one) for one in patterns]
        self.noise_model = make_noise_model(settings.loss)
        self.optimizer = Optimizer(model, LearningRateSchedule(settings.learning_rate, settings.warm_up), process_group)
        self._trained_indices = [torch.from_numpy(np.unique(one.groups)).to(self._device) for one in patterns]
        self.history: list[EpochRecord] = []

    def run(self, observer: Observer, tracker: Tracker, checkpoint: Path) -> bool:
        """Train up to ``settings.max_epochs`` epochs, with a checkpoint at the start and after each.

        Returns:
            True, or False when ctrl-C ended it: then everything is as it was after the last complete epoch.

        Raises:
            ConfigError: the loss is no longer a finite number.
        """
        done = len(self.history)
        if not done:
            self.save(checkpoint)  # of this training, in place of any that an earlier one left
        batches = sum(-(-len(one.groups) // self.settings.batch_size) for one in self.patterns)
        observer.start("training", max(self.settings.max_epochs - done, 0) * batches)
        try:
            for epoch in range(done + 1, self.settings.max_epochs + 1):
                loss = self._train_epoch(epoch, observer)
                row = EpochRecord(
                    epoch, self.groups, loss, self._check_finite(self.validate(), epoch), self.optimizer.learning_rate
                )
                self.history.append(row)
                self.save(checkpoint)
                tracker.log_metrics(epoch, {"loss": row.loss, "val_loss": row.val_loss})
        except KeyboardInterrupt:
            if self.process_group.is_main:
                self.load(checkpoint)
            return False
        finally:
            observer.finish()
        return True

    def _cache_inputs(self, patterns: PatternGroups) -> PatternGroups:
        """``patterns`` with what the network is shown of them, where that never changes and memory allows."""
        scan = patterns.scan
        if self.model.has_trainable_illumination(scan.scan_index):
            return patterns
        parts = torch.arange(len(scan.corners), device=scan.corners.device).split(VALIDATION_BATCH_GROUPS)
        each = sum(
            tensor[0].numel() * tensor.element_size() for tensor in self.model.compute_inputs(scan.take(parts[0]))
        )
        if each * len(scan.corners) > MAX_CACHED_INPUT_BYTES:
            return patterns
        shown = zip(*(self.model.compute_inputs(scan.take(some)) for some in parts), strict=True)
        return replace(patterns, scan=scan._replace(cached_inputs=NetworkInputs(*map(torch.cat, shown))))

    @property
    def groups(self) -> int:
        """Groups an epoch, of all scans."""
        return sum(len(one.groups) for one in self.patterns)

    def _train_epoch(self, epoch: int, observer: Observer) -> float:
        self.model.train()
        total = weight = 0.0
        for groups, batch in self._iterate_batches(np.random.default_rng([self.settings.seed, epoch])):
            with self._autocast():
                loss, target_loss = self._compute_losses(batch)
            value = self._check_finite(self.process_group.all_reduce_sum(loss.detach()).item(), epoch)
            self.optimizer.backward_and_step(loss + target_loss, self._clip_parameters)
            total, weight = total + groups * value, weight + groups
            observer.advance(loss=total / weight)
        return total / weight

    def _check_finite(self, loss: float, epoch: int) -> float:
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss} in epoch {epoch}: choose a smaller --learning_rate "
                f"(it is {self.settings.learning_rate:g}), or look at the scan with describe"
            )
        return loss

    @torch.no_grad()
    def _clip_parameters(self) -> None:
        """No background is negative; no position is farther off than allowed, and but for that their mean stays.

        A shift of all of them is a shift of the object, or of a probe that is learned.
        """
        for source, trained in enumerate(self._trained_indices):
            shifts = self.model.get_position_offsets(source)
            if shifts is None:
                continue
            shifts[trained] = limit_displacements(shifts[trained], self.settings.position_bound)
        for source in range(len(self.patterns)):
            background = self.model.get_background(source)
            if background is not None:
                background.clamp_(min=0)

    def loss(self, batch: Batch, probe: Tensor | None = None) -> Tensor:
        """This rank's part of the mean deviance a pixel of its batch, of which 0.5 is about the noise of counting."""
        return self._compute_deviance(self.model.forward_details(batch, probe, self.process_group).fields, batch)

    def _compute_deviance(self, fields: Wavefields, batch: Batch) -> Tensor:
        total, pixels = masked_sum(self.noise_model.deviance(fields.intensity, batch.counts), batch.mask)
        return total / self.process_group.all_reduce_sum(pixels).clamp_min(1)

    def _compute_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the patterns say, and what the teacher says: this rank's parts of both."""
        found = self.model.forward_details(batch, process_group=self.process_group)
        stages = (*found.intermediate, found.fields)
        loss = torch.stack([self._compute_deviance(fields, batch) for fields in stages]).mean()
        if batch.labels is None and not self.targets:
            return loss, torch.zeros_like(loss)
        patterns = self.process_group.all_reduce_sum(torch.tensor(len(batch.corners), device=self._device))
        patch_loss, *merged = (
            self._compute_target_distances(patches, found.probes, batch).sum() / patterns
            for patches in (found.patches, *(fields.patches for fields in stages))
        )
        return loss, TARGET_WEIGHT * patch_loss + MERGED_TARGET_WEIGHT * torch.stack(merged).mean()

    def _compute_target_distances(self, patches: Tensor, probes: Tensor, batch: Batch) -> Tensor:
        """Of patches (n, N, N) from the labels, whose phases are free, or else from the teacher's, (n,)."""
        if batch.labels is None:
            return self.targets[batch.scan_index].compute_distance(patches, probes, batch.corners)
        weights = compute_power(probes.detach())
        return compute_patch_distance(patches, align_phases(batch.labels, patches, weights), weights)

    @torch.no_grad()
    def validate(self) -> float:
        """The loss of the averaged weights on the validation patterns, always in the same batches."""
        with self.use_averaged_weights():
            total = weight = 0.0
            for patterns in self.validation:
                for groups, indices in patterns.batches(VALIDATION_BATCH_GROUPS, 1, np.random.default_rng(0)):
                    batch = patterns.scan.take(self._select_share(indices).to(patterns.scan.corners.device))
                    with self._autocast():
                        value = self.process_group.all_reduce_sum(self.loss(batch, patterns.probe)).item()
                    total, weight = total + groups * value, weight + groups
        return total / weight

    def _select_share(self, indices: Tensor) -> Tensor:
        """What falls to this rank of a batch."""
        return indices[self.process_group.shard(len(indices))]

    def _iterate_batches(self, rng: np.random.Generator) -> Iterator[tuple[int, Batch]]:
        """The batches of an epoch, each from one scan, in random order."""
        scans, device = [one.scan for one in self.patterns], self._device
        chosen = [
            _BatchIndices(source, groups, self._select_share(indices))
            for source, one in enumerate(self.patterns)
            for groups, indices in one.batches(self.settings.batch_size, BATCHES_PER_CELL, rng)
        ]
        if len(scans) > 1:  # those of a single scan are in random order already
            chosen = [chosen[index] for index in rng.permutation(len(chosen))]
        if self.settings.num_workers == 0:
            for source, groups, indices in chosen:
                yield groups, scans[source].take(indices.to(device))
            return
        on_cpu = [scan.to(torch.device("cpu")) for scan in scans]
        loader = torch.utils.data.DataLoader(
            _BatchDataset(on_cpu, chosen), batch_size=None, num_workers=self.settings.num_workers
        )
        with _block_interrupts():  # workers inherit that, so that ctrl-C is for this process alone
            prepared = iter(loader)
        for groups, batch in prepared:
            yield groups, batch.to(device)

    @property
    def _device(self) -> torch.device:
        return self.patterns[0].scan.corners.device

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def use_averaged_weights(self) -> AbstractContextManager[PtychoModel]:
        """The model with the averaged weights, for as long as the context lasts."""
        return self.optimizer.use_averaged_weights()

    def save(self, path: Path) -> None:
        """Write all that :meth:`load` needs to go on exactly."""
        if self.process_group.is_main:
            save_checkpoint(path, self.optimizer, self.history, self.resume_settings)

    def load(self, path: Path) -> None:
        """Go on from the checkpoint at ``path``.

        Raises:
            BundleError: the file is damaged or of another network.
            ConfigError: it was made with other settings, so that going on would mix two trainings.
        """
        self.history = load_checkpoint(path, self.optimizer, self.resume_settings)

    @property
    def resume_settings(self) -> dict[str, Any]:
        """What must be the same for a resumed training to equal an uninterrupted one."""
        settings = asdict(self.settings)
        for free in ("max_epochs", "num_workers"):
            del settings[free]
        groups = b"".join(one.groups.tobytes() for one in self.patterns)
        return settings | {
            "network": asdict(self.model.config),
            "update_probe": any(parts.requires_grad for parts in self.model.probe_parameters),
            "probe_modes": [len(parts) for parts in self.model.probe_parameters],
            "update_background": self.model.get_background(0) is not None,
            "groups": self.groups,
            "groups_digest": hashlib.sha256(groups).hexdigest()[:16],
            "scan": ", ".join(one.digest for one in self.patterns),
            "validation": ", ".join(one.digest for one in self.validation),
            "teacher": ", ".join(target.digest() for target in self.targets),
        }


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the context ends; processes started within never see it."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
