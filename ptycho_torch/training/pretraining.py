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
from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.simulation.dataset import Lesson, Stream
from ptycho_torch.training.checkpoint import Epoch, load_checkpoint, save_checkpoint
from ptycho_torch.training.losses import mark
from ptycho_torch.training.optimizer import Optimiser, Pace
from ptycho_torch.training.tracking import Tracker

ROUND = 200
"""Lessons a row of the history: after each the network is examined and a checkpoint written."""

EXAMINATION = 12
"""Lessons that the network is examined by, always the same and none of those that it learns from."""


@dataclass(frozen=True)
class Course:
    """How long to learn, and how."""

    pace: Pace

    lessons: int | None = None
    """Lessons in all; None: until the time is over."""

    seconds: float | None = None
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

    def __init__(self, model: PtychoModel, stream: Stream, course: Course, ranks: Ranks = ALONE) -> None:
        if course.lessons is None and course.seconds is None:
            raise ConfigError("a pretraining needs an end: set --time_limit or --lessons")
        self.model, self.stream, self.course, self.ranks = model, stream, course, ranks
        ranks.follow_first(list(model.state_dict().values()))
        self.optimiser = Optimiser(model, course.pace, ranks)
        self.history: list[Epoch] = []
        # Lessons from the far end of the numbers, which no pretraining reaches.
        first = 2**62 // stream.settings.reuse
        self._examination = [stream.lesson((first + index) * stream.settings.reuse) for index in range(EXAMINATION)]

    def run(self, observer: Observer, tracker: Tracker, checkpoint: Path) -> bool:
        """Learn until the course is over, with a checkpoint at the start and after each round.

        Returns:
            True, or False when ctrl-C ended it: then everything is as it was after the last complete round.

        Raises:
            ConfigError: the loss is no longer a finite number.
        """
        if not self.history:
            self.save(checkpoint)
        began = time.monotonic()
        clock = _Clock(self.course, self.optimiser.steps, began, self.ranks)
        observer.begin("pretraining", clock.total)
        try:
            while not clock.over(self.optimiser.steps):
                row = self._round(observer, clock)
                self.history.append(row)
                self.save(checkpoint)
                tracker.figures(row.epoch, {"loss": row.loss, "val_loss": row.val_loss})
        except KeyboardInterrupt:
            if self.ranks.first:
                self.load(checkpoint)
            return False
        finally:
            observer.end()
        return True

    def _round(self, observer: Observer, clock: "_Clock") -> Epoch:
        self.model.train()
        total, done = 0.0, 0
        for lesson in self._lessons(ROUND - self.optimiser.steps % ROUND):  # rounds end where they would have
            with self._autocast():
                loss = mark(self.model, lesson, self.ranks).loss
            value = self.ranks.sum(loss.detach()).item()
            if not math.isfinite(value):
                raise ConfigError(
                    f"the loss became {value} at lesson {self.optimiser.steps}: choose a smaller --learning_rate "
                    f"(it is {self.course.pace.learning_rate:g})"
                )
            self.optimiser.descend(loss)
            total, done = total + value, done + 1
            observer.advance(clock.advanced(self.optimiser.steps), loss=total / done)
            if clock.over(self.optimiser.steps):
                break
        patterns = done * self.stream.settings.patterns
        return Epoch(len(self.history) + 1, patterns, total / done, self.examine(), self.optimiser.rate)

    def _lessons(self, count: int) -> Iterator[Lesson]:
        """The next lessons. Beside a GPU each is drawn while the network learns the one before."""
        first, device = self.optimiser.steps, self.model.device
        numbers = range(first, first + count)
        if device.type == "cpu":  # a third thread on two cores would make the other two wait for each other
            yield from map(self.stream.lesson, numbers)
            return
        with ThreadPoolExecutor(1) as drawer:
            ahead = drawer.submit(self.stream.lesson, first)
            for number in numbers:
                lesson, ahead = ahead.result(), drawer.submit(self.stream.lesson, number + 1)
                yield lesson_on(lesson, device)

    @torch.no_grad()
    def examine(self) -> float:
        """Mean loss of the averaged weights on lessons that are never learned from."""
        with self.optimiser.averaged() as model, self._autocast():
            marks = [mark(model, lesson_on(one, model.device), self.ranks).loss for one in self._examination]
            return self.ranks.sum(torch.stack(marks).mean()).item()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.course.precision == "bf16")

    def save(self, path: Path) -> None:
        """Write all that :meth:`load` needs to go on exactly."""
        if self.ranks.first:
            save_checkpoint(path, self.optimiser, self.history, self.fingerprint)

    def load(self, path: Path) -> None:
        """Go on from the checkpoint at ``path``.

        Raises:
            BundleError: the file is damaged or of another network.
            ConfigError: it was made with other settings, so that going on would mix two pretrainings.
        """
        self.history = load_checkpoint(path, self.optimiser, self.fingerprint)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a resumed pretraining to equal an uninterrupted one; JSON."""
        probes = hashlib.sha256(b"".join(probe.tobytes() for probe in self.stream.given)).hexdigest()[:16]
        settings = {name: repr(value) for name, value in asdict(self.stream.settings).items()}
        return settings | {
            "network": asdict(self.model.config),
            "pace": list(self.course.pace),
            "precision": self.course.precision,
            "probes": probes,
        }


class _Clock:
    """How far a course is: by lessons where their number is the end, else by whole seconds."""

    def __init__(self, course: Course, learned: int, began: float, ranks: Ranks) -> None:
        self.course, self.began, self.ranks, self._learned, self._told = course, began, ranks, learned, 0
        self.by_time = course.lessons is None
        self.total = max(0, course.lessons - learned) if course.lessons is not None else round(course.seconds or 0)

    def over(self, learned: int) -> bool:
        """Whether no lesson is to be begun any more."""
        late = False
        if self.course.seconds is not None:
            spent = torch.tensor(time.monotonic() - self.began, dtype=torch.float64)
            late = float(self.ranks.largest(spent)) >= self.course.seconds
        return late or (self.course.lessons is not None and learned >= self.course.lessons)

    def advanced(self, learned: int) -> int:
        """By how much since it was last asked."""
        now = learned - self._learned
        if self.by_time:
            now = min(self.total, int(time.monotonic() - self.began))
        step, self._told = now - self._told, now
        return step


def lesson_on(lesson: Lesson, device: torch.device) -> Lesson:
    """``lesson`` with its tensors on ``device``; the positions stay in float64."""
    if device.type == "cpu":
        return lesson
    probe = lesson.probe.to(device)
    return lesson._replace(
        amplitudes=lesson.amplitudes.to(device),
        mask=None if lesson.mask is None else lesson.mask.to(device),
        probe=probe,
        probe_guess=probe if lesson.probe_guess is lesson.probe else lesson.probe_guess.to(device),
        object=lesson.object.to(device),
        positions=lesson.positions.to(device),
    )
