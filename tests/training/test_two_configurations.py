"""CONFIG-001: one resolved configuration for each run, and two of them in one process do not meet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError

FIRST = {"seed": 1, "width": 4, "head": "polar", "loss": "poisson", "batch_size": 6}
SECOND = {"seed": 2, "width": 8, "head": "residual", "loss": "amplitude", "batch_size": 9, "update_probe": True}


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_is_the_same_whatever_ran_before_it(train_model: Callable[..., Path], tmp_path: Path) -> None:
    alone = bytes_of(train_model(tmp_path / "alone", **FIRST))
    generator = torch.get_rng_state()
    between = bytes_of(train_model(tmp_path / "between", **SECOND))
    again = bytes_of(train_model(tmp_path / "again", **FIRST))
    assert again == alone != between
    assert torch.equal(torch.get_rng_state(), generator)
    for name, settings in (("alone", FIRST), ("between", SECOND)):
        kept = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert {key: kept[key] for key in settings} == settings


def test_two_models_at_once_do_not_meet(scan_file: Path, train_model: Callable[..., Path], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = {name: bytes_of(train_model(tmp_path / f"alone {name}", seed=seed)) for name, seed in (("a", 1), ("b", 2))}
    assert alone["a"] != alone["b"]
    with ThreadPoolExecutor(1) as other:
        # ctrl-C is handled in the main thread alone, so one of the two trains there and the other beside it.
        beside = other.submit(train_model, tmp_path / "beside", seed=1)
        here = train_model(tmp_path / "here", seed=2)
        assert bytes_of(beside.result()) == alone["a"]
    assert bytes_of(here) == alone["b"]


def test_the_configuration_is_settled_before_any_file_is_touched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        TrainConfig(train_data_file=tmp_path / "none.npz", output_dir=tmp_path / "out", batch_size=-1)
    config = TrainConfig(train_data_file=tmp_path / "none.npz", output_dir=tmp_path / "out")
    with pytest.raises(AttributeError):
        config.seed = 3  # type: ignore[misc]
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_sets_nothing_up(run_process: Callable[..., Any]) -> None:
    code = (
        "import logging, random, numpy as np, torch\n"
        "before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()\n"
        "import ptycho_torch.train, ptycho_torch.training.trainer, ptycho_torch.models.registry\n"
        "after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()\n"
        "print(before == after, logging.getLogger('ptycho_torch').handlers, logging.getLogger().handlers)"
    )
    assert run_process("-c", code).out.split("\n")[0] == "True [] []"
