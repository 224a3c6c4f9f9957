"""Engines by name: a setting that an engine would ignore is refused."""

from typing import Any

import pytest

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.registry import ENGINES, check_engine, is_setting_used


@pytest.mark.parametrize(
    ("engine", "settings", "instead"),
    [
        ("lsqml", {"tv": 1e-3}, "gradient"),
        ("pie", {"optimizer": "adam"}, "gradient"),
        ("pie", {"model_path": "model"}, "neural"),
        ("pie", {"relaxation": 0.9}, "dm, raar"),
        ("pie", {"alpha": 0.5}, "rpie"),
        ("epie", {"alpha": 0.5}, "rpie"),
        ("dm", {"momentum": 0.5}, "gradient, lsqml, pie"),
        ("gradient", {"position_model": "affine"}, "dm, epie, lsqml, pie, raar, rpie"),
        ("neural", {"update_probe": True}, "pie"),
        ("neural", {"position_method": "correlation"}, "pie"),
    ],
)
def test_a_setting_without_effect_is_refused(engine: str, settings: dict[str, Any], instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{next(iter(settings))} .*{engine} .*{instead}"):
        check_engine(StageConfig(engine=engine, **settings))


@pytest.mark.parametrize("engine", [*ENGINES, "neural"])
def test_defaults_are_for_every_engine(engine: str) -> None:
    check_engine(StageConfig(engine=engine))


def test_what_entries_name_are_settings() -> None:
    known = vars(StageConfig()).keys()
    assert {name for entry in ENGINES.values() for name in entry.specific_settings} <= known


@pytest.mark.parametrize("name", ["epochs", "time_limit", "update_probe", "support", "max_amplitude"])
def test_what_no_engine_names_every_iterative_one_uses(name: str) -> None:
    assert all(is_setting_used(engine, name) for engine in ENGINES)
    assert not is_setting_used("neural", name)


def test_a_momentum_that_the_optimiser_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="lbfgs has none"):
        StageConfig(engine="gradient", optimizer="lbfgs", momentum=0.5)
