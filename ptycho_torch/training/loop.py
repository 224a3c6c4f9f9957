"""The training loop: batches, optimizer steps, a history row and a checkpoint per epoch, exact resume."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.core.observer import Observer
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.checkpoint import load_checkpoint, save_checkpoint
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.training.history import EpochRecord
from ptycho_torch.training.losses import StepLoss
from ptycho_torch.training.optimizer import LearningRateSchedule, Optimizer
from ptycho_torch.training.tracking import Tracker

BatchType = TypeVar("BatchType")


class TrainingLoop(ABC, Generic[BatchType]):
    """A training in progress: the model, its optimizer and the history.

    A subclass adds a dataset (the batches of an epoch), a loss, and the condition that ends the training. The averaged
    weights are the result; see :mod:`ptycho_torch.training.optimizer`. A resumed training gives the bytes of an
    uninterrupted one.

    The processes of a group share a training: all draw the same batches, each computes its part of every batch,
    gradients are summed, and all make the same steps. Only the main process writes checkpoints.

    Args:
        model: trained in place.
        schedule: learning rate by step.
        precision: arithmetic of the network, fp32 or bf16.
        process_group: the processes that share this training; all start from the weights of the main process.
    """

    task: str
    """Name of the task for the observer."""

    def __init__(
        self,
        model: PtychoModel,
        schedule: LearningRateSchedule,
        precision: str,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.model, self.precision, self.process_group = model, precision, process_group
        process_group.broadcast_(list(model.state_dict().values()))
        self.optimizer = Optimizer(model, schedule, process_group)
        self.history: list[EpochRecord] = []

    def run(self, observer: Observer, tracker: Tracker, checkpoint: Path | None = None) -> bool:
        """Train to the end, with a checkpoint at the start and after each epoch.

        Args:
            observer: receives progress.
            tracker: receives the loss of each epoch.
            checkpoint: file to write; None keeps the last complete epoch in memory.

        Returns:
            True, or False if ctrl-C ended the training; the state is then that after the last complete epoch.

        Raises:
            ConfigError: the loss is not finite.
        """
        last = None if checkpoint else self._make_checkpoint()
        if checkpoint and not self.history:
            self.save(checkpoint)  # replaces the checkpoint of an earlier training in this folder
        observer.start(self.task, self._begin())
        try:
            while not self._is_finished():
                row = self._train_epoch(len(self.history) + 1, observer)
                self.history.append(row)
                if checkpoint:
                    self.save(checkpoint)
                else:
                    last = self._make_checkpoint()
                tracker.log_metrics(row.epoch, {"loss": row.loss, "val_loss": row.val_loss})
        except KeyboardInterrupt:
            if last:
                self._restore(*last)
            elif checkpoint and self.process_group.is_main:
                self.load(checkpoint)
            return False
        finally:
            observer.finish()
        return True

    def _train_epoch(self, epoch: int, observer: Observer) -> EpochRecord:
        self.model.train()
        total, weight = 0.0, 0
        for batch_weight, batch in self._iterate_batches(epoch):
            with self._autocast():
                loss = self._compute_loss(batch)
            value = self._check_finite(self.process_group.all_reduce_sum(loss.recorded.detach()).item(), epoch)
            self.optimizer.backward_and_step(loss.minimized, self._clip_parameters)
            total, weight = total + batch_weight * value, weight + batch_weight
            observer.advance(self._count_progress(), loss=total / weight)
            if self._is_out_of_time():
                break
        val_loss = self._check_finite(self.validate(), epoch)
        return EpochRecord(epoch, self._count_groups(weight), total / weight, val_loss, self.optimizer.learning_rate)

    def _check_finite(self, loss: float, epoch: int) -> float:
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss} in epoch {epoch}; expected a finite number; choose a smaller `learning_rate` "
                f"(it is {self.optimizer.schedule.learning_rate:g})"
            )
        return loss

    @abstractmethod
    def _begin(self) -> int:
        """Return the number of progress steps to the end, before the first epoch of this run."""

    @abstractmethod
    def _is_finished(self) -> bool:
        """Return True if no further epoch begins."""

    def _is_out_of_time(self) -> bool:
        """Return True if the epoch ends after the current batch."""
        return False

    def _count_progress(self) -> int:
        """Return the number of progress steps since the last call; called once per batch."""
        return 1

    @abstractmethod
    def _iterate_batches(self, epoch: int) -> Iterator[tuple[int, BatchType]]:
        """Yield the batches of an epoch, each with its weight in the mean loss."""

    def _count_groups(self, weight: int) -> int:
        """Return the number of groups in batches of ``weight`` in total."""
        return weight

    @abstractmethod
    def _compute_loss(self, batch: BatchType) -> StepLoss:
        """Return the loss of a batch."""

    def _clip_parameters(self) -> None:
        """Project the parameters back into their bounds after a step."""

    @abstractmethod
    def validate(self) -> float:
        """Return the validation loss of the averaged weights."""

    @property
    @abstractmethod
    def resume_settings(self) -> dict[str, Any]:
        """Values that must be equal for a resumed training to equal an uninterrupted one; JSON."""

    @property
    def _device(self) -> torch.device:
        return self.model.device

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def use_averaged_weights(self) -> AbstractContextManager[PtychoModel]:
        """Return a context in which the model has the averaged weights."""
        return self.optimizer.use_averaged_weights()

    def save(self, path: Path) -> None:
        """Write a checkpoint from which :meth:`load` resumes exactly; only the main process writes."""
        if self.process_group.is_main:
            save_checkpoint(path, *self._make_checkpoint(), self.resume_settings)

    def load(self, path: Path) -> None:
        """Resume from the checkpoint at ``path``.

        Raises:
            BundleError: the file is damaged, or belongs to another network.
            ConfigError: the checkpoint was made with different settings, so that resuming would mix two trainings.
        """
        tensors, record = load_checkpoint(path, self.resume_settings)
        try:
            self._restore(tensors, record)
        except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
            raise BundleError(f"{path}: does not fit this training ({error}); leave out `resume`") from error

    def _make_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all tensors, and the record of this training."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.optimizer.state_dict().items()}
        return tensors, {"steps": self.optimizer.steps, "history": [asdict(row) for row in self.history]}

    def _restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(tensors, record["steps"])
        self.history = [EpochRecord(**row) for row in record["history"]]
