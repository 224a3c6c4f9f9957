"""Pretraining of a network on an endless stream of simulated batches."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.simulation.dataset import SimulatedBatch, SimulatedDataset
from ptycho_torch.training.loop import TrainingLoop
from ptycho_torch.training.losses import StepLoss, compute_loss_terms
from ptycho_torch.training.optimizer import LearningRateSchedule

STEPS_PER_VALIDATION = 200
"""Simulated batches per row of the history: after each row the network is validated and a checkpoint is written."""

VALIDATION_BATCHES = 12
"""Simulated batches of the validation: always the same, and none of the training."""

FIRST_VALIDATION_BATCH = 2**62
"""Number of the first validation batch, which no pretraining reaches."""


@dataclass(frozen=True)
class PretrainerSettings:
    """Resolved settings of a pretraining."""

    schedule: LearningRateSchedule

    max_batches: int | None = None
    """Simulated batches in total; None: until the time is over."""

    max_seconds: float | None = None
    """Time after which no batch begins; None: until all batches are done."""

    precision: str = "fp32"
    """Arithmetic of the network: fp32 or bf16."""


class Pretrainer(TrainingLoop[SimulatedBatch]):
    """A pretraining in progress.

    Args:
        model: trained in place; it has no probe, because each simulated batch brings its own.
        dataset: the stream of simulated batches.
        settings: resolved settings.
        process_group: the processes that share this pretraining, each a part of every batch.

    Raises:
        ConfigError: neither the number of batches nor the time is limited.
    """

    task = "pretraining"

    def __init__(
        self,
        model: PtychoModel,
        dataset: SimulatedDataset,
        settings: PretrainerSettings,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if settings.max_batches is None and settings.max_seconds is None:
            raise ConfigError("a pretraining has no end; expected a limit; set `time_limit` or `lessons`")
        super().__init__(model, settings.schedule, settings.precision, process_group)
        self.dataset, self.settings = dataset, settings
        self._clock = _ProgressClock(settings, 0, process_group)
        first = FIRST_VALIDATION_BATCH // dataset.settings.reuse
        self._validation_batches = [
            dataset.make_batch((first + index) * dataset.settings.reuse) for index in range(VALIDATION_BATCHES)
        ]

    def _begin(self) -> int:
        self._clock = _ProgressClock(self.settings, self.optimizer.steps, self.process_group)
        return self._clock.total

    def _is_finished(self) -> bool:
        return self._clock.is_finished(self.optimizer.steps)

    def _is_out_of_time(self) -> bool:
        return self._clock.is_finished(self.optimizer.steps)

    def _count_progress(self) -> int:
        return self._clock.count_progress(self.optimizer.steps)

    def _count_groups(self, weight: int) -> int:
        return weight * self.dataset.settings.patterns

    def _iterate_batches(self, epoch: int) -> Iterator[tuple[int, SimulatedBatch]]:
        """Yield the batches up to the next validation, which is at the same steps after a resume."""
        del epoch
        first, device = self.optimizer.steps, self.model.device
        numbers = range(first, first + STEPS_PER_VALIDATION - first % STEPS_PER_VALIDATION)
        if device.type == "cpu":  # drawing in a third thread would slow down the other two on two cores
            for number in numbers:
                yield 1, self.dataset.make_batch(number)
            return
        with ThreadPoolExecutor(1) as executor:  # draw the next batch while the GPU computes
            pending = executor.submit(self.dataset.make_batch, first)
            for number in numbers:
                simulated, pending = pending.result(), executor.submit(self.dataset.make_batch, number + 1)
                yield 1, move_to_device(simulated, device)

    def _compute_loss(self, batch: SimulatedBatch) -> StepLoss:
        loss = compute_loss_terms(self.model, batch, self.process_group).loss
        return StepLoss(loss, loss)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss of the averaged weights on the validation batches."""
        with self.use_averaged_weights() as model, self._autocast():
            losses = [
                compute_loss_terms(model, move_to_device(batch, model.device), self.process_group).loss
                for batch in self._validation_batches
            ]
            return self.process_group.all_reduce_sum(torch.stack(losses).mean()).item()

    @property
    def resume_settings(self) -> dict[str, Any]:
        """Values that must be equal for a resumed pretraining to equal an uninterrupted one; JSON."""
        probes = hashlib.sha256(b"".join(probe.tobytes() for probe in self.dataset.given_probes)).hexdigest()[:16]
        settings = {name: repr(value) for name, value in asdict(self.dataset.settings).items()}
        return settings | {
            "network": self.model.config.to_record(),
            "pace": list(self.settings.schedule),
            "precision": self.settings.precision,
            "probes": probes,
        }


class _ProgressClock:
    """Progress of a pretraining: in batches if their number is limited, otherwise in whole seconds."""

    def __init__(self, settings: PretrainerSettings, steps_done: int, process_group: ProcessGroup) -> None:
        self._settings, self._process_group = settings, process_group
        self._start_time, self._initial_steps, self._reported = time.monotonic(), steps_done, 0
        self._is_timed = settings.max_batches is None
        self.total = (
            max(0, settings.max_batches - steps_done)
            if settings.max_batches is not None
            else round(settings.max_seconds or 0)
        )

    def is_finished(self, steps_done: int) -> bool:
        """Return True if no further batch begins; equal in all processes."""
        late = False
        if self._settings.max_seconds is not None:
            elapsed = torch.tensor(time.monotonic() - self._start_time, dtype=torch.float64)
            late = float(self._process_group.all_reduce_max(elapsed)) >= self._settings.max_seconds
        return late or (self._settings.max_batches is not None and steps_done >= self._settings.max_batches)

    def count_progress(self, steps_done: int) -> int:
        """Return the progress since the last call."""
        now = steps_done - self._initial_steps
        if self._is_timed:
            now = min(self.total, int(time.monotonic() - self._start_time))
        step, self._reported = now - self._reported, now
        return step


def move_to_device(simulated: SimulatedBatch, device: torch.device) -> SimulatedBatch:
    """Return ``simulated`` with its tensors on ``device``; the positions stay in float64."""
    if device.type == "cpu":
        return simulated
    probe = simulated.probe.to(device)
    return simulated._replace(
        amplitudes=simulated.amplitudes.to(device),
        mask=None if simulated.mask is None else simulated.mask.to(device),
        probe=probe,
        assumed_probe=probe if simulated.assumed_probe is simulated.probe else simulated.assumed_probe.to(device),
        object=simulated.object.to(device),
        positions=simulated.positions.to(device),
    )
