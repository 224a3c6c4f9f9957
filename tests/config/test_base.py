"""Settings: every field has a help text, and invalid numbers are rejected by name."""

import dataclasses
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ptycho_torch import config
from ptycho_torch.config.base import CommonOptions
from ptycho_torch.config.inference import InferenceConfig
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError

MODULES = [import_module(module.name) for module in pkgutil.iter_modules(config.__path__, "ptycho_torch.config.")]
CONFIGS = {
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, CommonOptions)
}


@pytest.mark.parametrize("kind", sorted(CONFIGS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_help_text_and_is_frozen(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert len(field.metadata["help"]) > 10, field.name
    assert vars(kind)["__dataclass_params__"].frozen


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_images", [0, -1]),
        ("gridsize", [0, -2]),
        ("batch_size", [0]),
        ("width", [0, 200_000]),
        ("learning_rate", [0.0, -1e-3, float("nan"), float("inf")]),
        ("photons_per_unit", [0.0, float("nan"), float("inf")]),
        ("max_epochs", [-1]),
        ("num_workers", [-1]),
        ("seed", [-1, 2**63]),
    ],
)
def test_numbers_out_of_range_are_rejected(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=f"`{name}` is {value}; expected"):
            TrainConfig(train_data_file=Path("a"), output_dir=Path("b"), **{name: value})


@pytest.mark.parametrize("name", ["n_images", "gridsize", "batch_size", "photons_per_unit"])
def test_inference_rejects_numbers_out_of_range(name: str) -> None:
    paths: dict[str, Any] = {"model_path": Path("a"), "test_data": Path("b"), "output_dir": Path("c")}
    with pytest.raises(ConfigError, match=f"`{name}` is 0"):
        InferenceConfig(**paths, **{name: 0})


@pytest.mark.parametrize("value", [0, 3])
def test_numbers_at_the_edge_of_the_range_are_accepted(value: int) -> None:
    made = TrainConfig(train_data_file=Path("a"), output_dir=Path("b"), max_epochs=value, seed=value, num_workers=value)
    assert made.max_epochs == value
