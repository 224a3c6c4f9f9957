"""Checkpoints: the tensors and the record of a run in progress, from which the run resumes exactly."""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.core.files import make_output_dir
from ptycho_torch.models.saved_model import load_tensors, save_tensors

CHECKPOINT = Path("checkpoints") / "last" / "state.safetensors"
"""Path of the checkpoint inside an output folder."""

SETTINGS_KEYS = ("settings", "fingerprint", "of")
"""Keys that hold the settings of a run: the one that is written, then those of older files."""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint to ``path``, completely or not at all.

    Args:
        path: file to write; its folder is made.
        tensors: state by name; two names may share one tensor.
        record: state that is not in tensors, such as the history; JSON.
        settings: values that must be equal for a resumed run to equal an uninterrupted one; JSON.
    """
    make_output_dir(path.parent)
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}  # safetensors: no sharing
    save_tensors(path, copies, record | {SETTINGS_KEYS[0]: settings})


def load_checkpoint(path: Path, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the checkpoint at ``path``: its tensors, on the CPU, and its record.

    Settings that only the file or only ``settings`` has are not compared, because a version of the program added or
    removed them.

    Raises:
        BundleError: the file is damaged, or is no checkpoint.
        ConfigError: the checkpoint was made with different settings, so that resuming would mix two runs.
    """
    tensors, record = load_tensors(path)
    key = next((key for key in SETTINGS_KEYS if key in record), None)
    stored = record.pop(key) if key else {}
    current = json.loads(json.dumps(settings))
    if not isinstance(stored, dict) or not stored.keys() & current.keys():
        raise BundleError(f"{path}: not a checkpoint of this command; expected one; leave out `resume`")
    differing = [
        f"{name} ({stored[name]} in the checkpoint, {value} now)"
        for name, value in current.items()
        if name in stored and stored[name] != value
    ]
    if differing:
        raise ConfigError(
            f"{path}: cannot resume with a different {', '.join(differing)}; expected the settings of the checkpoint; "
            "restore them, or leave out `resume`"
        )
    return tensors, record


def require_checkpoint(path: Path) -> None:
    """Raise :class:`ConfigError` unless there is a checkpoint at ``path``."""
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that no file can have
        raise ConfigError(f"{path}: no checkpoint to resume from; run without `resume` first")
