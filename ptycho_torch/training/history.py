"""The history of a training: one row per epoch, as ``history.csv`` and in the saved model."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ptycho_torch.core.files import write_text


@dataclass(frozen=True)
class EpochRecord:
    """One row of the history."""

    epoch: int
    """Number of the epoch, from 1."""

    groups: int
    """Groups that the epoch trained on; in pretraining, patterns."""

    loss: float
    """Mean training loss of the epoch."""

    val_loss: float
    """Validation loss of the averaged weights after the epoch."""

    learning_rate: float
    """Learning rate after the epoch."""


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write ``history`` as CSV, one row per epoch, with all digits, because equal runs must give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EpochRecord.__dataclass_fields__)
    writer.writerows([repr(value) for value in asdict(row).values()] for row in history)
    write_text(path, text.getvalue())


def make_history_columns(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """Return ``history`` by column, as a :class:`~ptycho_torch.data.reconstruction.Reconstruction` stores it."""
    return {name: [getattr(row, name) for row in history] for name in ("epoch", "loss", "val_loss")}
