"""A run in progress on disk: what going on exactly needs, and its history, a row an epoch."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.core.files import make_output_dir, write_text
from ptycho_torch.models.saved_model import load_tensors, save_tensors
from ptycho_torch.training.optimizer import Optimizer

CHECKPOINT_PATH = Path("checkpoints") / "last" / "state.safetensors"


@dataclass(frozen=True)
class EpochRecord:
    """One row of the history."""

    epoch: int
    groups: int
    loss: float
    val_loss: float
    learning_rate: float


def save_checkpoint(
    path: Path, optimizer: Optimizer, history: Sequence[EpochRecord], resume_settings: dict[str, Any]
) -> None:
    """Write all that :func:`load_checkpoint` needs; ``fingerprint`` (JSON) must be the same to go on exactly."""
    make_output_dir(path.parent)
    note = {"steps": optimizer.steps, "history": [asdict(row) for row in history], "fingerprint": resume_settings}
    save_tensors(path, optimizer.state_dict(), note)


def load_checkpoint(path: Path, optimizer: Optimizer, resume_settings: dict[str, Any]) -> list[EpochRecord]:
    """Bring ``optimiser``, and the model that it moves, to where the checkpoint was written; returns the history.

    Raises:
        BundleError: the file is damaged or of another network.
        ConfigError: it was made with other settings, so that going on would mix two runs.
    """
    tensors, note = load_tensors(path)
    _check_same_settings(path, note.get("fingerprint", {}), resume_settings)
    try:
        optimizer.load_state_dict(tensors, note["steps"])
        return [EpochRecord(**row) for row in note["history"]]
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: does not fit this training ({error}); drop --resume") from error


def check_checkpoint_exists(path: Path) -> None:
    """Raise :class:`ConfigError` where there is no checkpoint at ``path``."""
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that no file can have
        raise ConfigError(f"{path}: no checkpoint to go on from; start without --resume first")


def _check_same_settings(path: Path, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise :class:`ConfigError` where the checkpoint at ``path`` was made with other settings than those of now."""
    differing = [
        f"{name} ({value} there, {current.get(name)} now)"
        for name, value in stored.items()
        if current.get(name) != value
    ]
    if differing:
        raise ConfigError(f"{path}: cannot go on with another {', '.join(differing)}; set it back, or drop --resume")


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write ``history`` as CSV, one row an epoch; figures in full, so that equal runs give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EpochRecord.__dataclass_fields__)
    writer.writerows([repr(value) for value in asdict(row).values()] for row in history)
    write_text(path, text.getvalue())


def make_history_columns(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """``history`` by column, as a :class:`~ptycho_torch.data.reconstruction.Reconstruction` keeps it."""
    return {name: [getattr(row, name) for row in history] for name in ("epoch", "loss", "val_loss")}
