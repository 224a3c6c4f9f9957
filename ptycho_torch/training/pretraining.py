"""Pretraining on an endless stream of simulated lessons: a network that reads scans which it was never trained on."""

import hashlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import Observer
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.simulation.dataset import SimulatedBatch, SimulatedDataset
from ptycho_torch.training.checkpoint import EpochRecord, load_checkpoint, save_checkpoint
from ptycho_torch.training.losses import compute_loss_terms
from ptycho_torch.training.optimizer import LearningRateSchedule, Optimizer
from ptycho_torch.training.tracking import Tracker

STEPS_PER_VALIDATION = 200
"""Lessons a row of the history: after each the network is examined and a checkpoint written."""

VALIDATION_BATCHES = 12
"""Lessons that the network is examined by, always the same and none of those that it learns from."""


@dataclass(frozen=True)
class PretrainerSettings:
    """How long to learn, and how."""

    schedule: LearningRateSchedule

    max_batches: int | None = None
    """Lessons in all; None: until the time is over."""

    max_seconds: float | None = None
    """Time after which no lesson is begun; None: until all lessons are learned."""

    precision: str = "fp32"
    """Arithmetic of the network: fp32 or bf16."""


class Pretrainer:
    """A pretraining in progress: model, optimiser, history. A resumed one has the bytes of one never interrupted.

    Args:
        model: trained in place; it holds no probe, because each lesson brings its own.
        stream: of the lessons.
        course: how long to learn, and how.
        ranks: the processes that share this pretraining, each a part of every lesson; only the first writes.
    """

    def __init__(
        self,
        model: PtychoModel,
        dataset: SimulatedDataset,
        settings: PretrainerSettings,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if settings.max_batches is None and settings.max_seconds is None:
            raise ConfigError("a pretraining needs an end: set --time_limit or --lessons")
        self.model, self.dataset, self.settings, self.process_group = model, dataset, settings, process_group
        process_group.broadcast_(list(model.state_dict().values()))
        self.optimizer = Optimizer(model, settings.schedule, process_group)
        self.history: list[EpochRecord] = []
        # Lessons from the far end of the numbers, which no pretraining reaches.
        first = 2**62 // dataset.settings.reuse
        self._validation_batches = [
            dataset.make_batch((first + index) * dataset.settings.reuse) for index in range(VALIDATION_BATCHES)
        ]

    def run(self, observer: Observer, tracker: Tracker, checkpoint: Path) -> bool:
        """Learn until the course is over, with a checkpoint at the start and after each round.

        Returns:
            True, or False when ctrl-C ended it: then everything is as it was after the last complete round.

        Raises:
            ConfigError: the loss is no longer a finite number.
        """
        if not self.history:
            self.save(checkpoint)
        start_time = time.monotonic()
        clock = _ProgressClock(self.settings, self.optimizer.steps, start_time, self.process_group)
        observer.start("pretraining", clock.total)
        try:
            while not clock.is_finished(self.optimizer.steps):
                row = self._run_round(observer, clock)
                self.history.append(row)
                self.save(checkpoint)
                tracker.log_metrics(row.epoch, {"loss": row.loss, "val_loss": row.val_loss})
        except KeyboardInterrupt:
            if self.process_group.is_main:
                self.load(checkpoint)
            return False
        finally:
            observer.finish()
        return True

    def _run_round(self, observer: Observer, clock: "_ProgressClock") -> EpochRecord:
        self.model.train()
        total, done = 0.0, 0
        for simulated in self._iterate_batches(
            STEPS_PER_VALIDATION - self.optimizer.steps % STEPS_PER_VALIDATION
        ):  # rounds end where they would have
            with self._autocast():
                loss = compute_loss_terms(self.model, simulated, self.process_group).loss
            value = self.process_group.all_reduce_sum(loss.detach()).item()
            if not math.isfinite(value):
                raise ConfigError(
                    f"the loss became {value} at lesson {self.optimizer.steps}: choose a smaller --learning_rate "
                    f"(it is {self.settings.schedule.learning_rate:g})"
                )
            self.optimizer.backward_and_step(loss)
            total, done = total + value, done + 1
            observer.advance(clock.count_progress(self.optimizer.steps), loss=total / done)
            if clock.is_finished(self.optimizer.steps):
                break
        patterns = done * self.dataset.settings.patterns
        return EpochRecord(len(self.history) + 1, patterns, total / done, self.validate(), self.optimizer.learning_rate)

    def _iterate_batches(self, count: int) -> Iterator[SimulatedBatch]:
        """The next lessons. Beside a GPU each is drawn while the network learns the one before."""
        first, device = self.optimizer.steps, self.model.device
        numbers = range(first, first + count)
        if device.type == "cpu":  # a third thread on two cores would make the other two wait for each other
            yield from map(self.dataset.make_batch, numbers)
            return
        with ThreadPoolExecutor(1) as executor:
            pending = executor.submit(self.dataset.make_batch, first)
            for number in numbers:
                simulated, pending = pending.result(), executor.submit(self.dataset.make_batch, number + 1)
                yield move_to_device(simulated, device)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the averaged weights on lessons that are never learned from."""
        with self.optimizer.use_averaged_weights() as model, self._autocast():
            losses = [
                compute_loss_terms(model, move_to_device(one, model.device), self.process_group).loss
                for one in self._validation_batches
            ]
            return self.process_group.all_reduce_sum(torch.stack(losses).mean()).item()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def save(self, path: Path) -> None:
        """Write all that :meth:`load` needs to go on exactly."""
        if self.process_group.is_main:
            save_checkpoint(path, self.optimizer, self.history, self.resume_settings)

    def load(self, path: Path) -> None:
        """Go on from the checkpoint at ``path``.

        Raises:
            BundleError: the file is damaged or of another network.
            ConfigError: it was made with other settings, so that going on would mix two pretrainings.
        """
        self.history = load_checkpoint(path, self.optimizer, self.resume_settings)

    @property
    def resume_settings(self) -> dict[str, Any]:
        """What must be the same for a resumed pretraining to equal an uninterrupted one; JSON."""
        probes = hashlib.sha256(b"".join(probe.tobytes() for probe in self.dataset.given_probes)).hexdigest()[:16]
        settings = {name: repr(value) for name, value in asdict(self.dataset.settings).items()}
        return settings | {
            "network": asdict(self.model.config),
            "pace": list(self.settings.schedule),
            "precision": self.settings.precision,
            "probes": probes,
        }


class _ProgressClock:
    """How far a course is: by lessons where their number is the end, else by whole seconds."""

    def __init__(
        self, settings: PretrainerSettings, steps_done: int, start_time: float, process_group: ProcessGroup
    ) -> None:
        self.settings, self.start_time, self.process_group, self._initial_steps, self._reported = (
            settings,
            start_time,
            process_group,
            steps_done,
            0,
        )
        self.is_timed = settings.max_batches is None
        self.total = (
            max(0, settings.max_batches - steps_done)
            if settings.max_batches is not None
            else round(settings.max_seconds or 0)
        )

    def is_finished(self, steps_done: int) -> bool:
        """Whether no lesson is to be begun any more."""
        late = False
        if self.settings.max_seconds is not None:
            spent = torch.tensor(time.monotonic() - self.start_time, dtype=torch.float64)
            late = float(self.process_group.all_reduce_max(spent)) >= self.settings.max_seconds
        return late or (self.settings.max_batches is not None and steps_done >= self.settings.max_batches)

    def count_progress(self, steps_done: int) -> int:
        """By how much since it was last asked."""
        now = steps_done - self._initial_steps
        if self.is_timed:
            now = min(self.total, int(time.monotonic() - self.start_time))
        step, self._reported = now - self._reported, now
        return step


def move_to_device(simulated: SimulatedBatch, device: torch.device) -> SimulatedBatch:
    """``lesson`` with its tensors on ``device``; the positions stay in float64."""
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
