"""Checkpoints: exact content, comparison of settings, and files of earlier versions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.models.checkpoint import load_checkpoint, require_checkpoint, save_checkpoint
from ptycho_torch.models.saved_model import save_tensors

SETTINGS: dict[str, Any] = {"seed": 0, "network": {"width": 4}, "betas": (0.9, 0.99)}


def test_checkpoint_returns_tensors_and_record(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    path = tmp_path / "checkpoints" / "state.safetensors"
    save_checkpoint(path, {"first": shared, "second": shared}, {"steps": 3}, SETTINGS)
    tensors, record = load_checkpoint(path, SETTINGS)
    assert record == {"steps": 3}
    assert torch.equal(tensors["first"], shared)
    assert torch.equal(tensors["second"], shared)


@pytest.mark.parametrize("key", ["fingerprint", "of"])
def test_checkpoint_of_an_earlier_version_is_read(key: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"weight": torch.ones(2)}, {"steps": 5, key: SETTINGS})
    assert load_checkpoint(path, SETTINGS)[1] == {"steps": 5}
    with pytest.raises(ConfigError, match=r"different seed \(0 in the checkpoint, 1 now\)"):
        load_checkpoint(path, SETTINGS | {"seed": 1})


def test_added_and_removed_settings_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, {}, {}, SETTINGS | {"removed": 1})
    load_checkpoint(path, SETTINGS | {"added": 2})


def test_file_without_settings_is_no_checkpoint(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", {"weight": torch.ones(2)})
    with pytest.raises(BundleError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "model.safetensors", SETTINGS)


def test_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        require_checkpoint(tmp_path / "none")
