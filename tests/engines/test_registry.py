"""Engines by name: their options, and errors for settings that an engine does not use."""

from typing import Any

import pytest

from ptycho_torch.config.engines import (
    ENGINES,
    ITERATIVE_ENGINES,
    Gradient,
    iterate_settings,
    make_engine_options,
    parse_stage,
)
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.registry import ITERATIVE_ENGINE_CLASSES


@pytest.mark.parametrize(
    ("engine", "settings", "alternatives"),
    [
        ("lsqml", {"tv": 1e-3}, "gradient"),
        ("pie", {"optimizer": "adam"}, "gradient"),
        ("pie", {"model_path": "model"}, "neural"),
        ("pie", {"relaxation": 0.9}, "dm, raar"),
        ("pie", {"alpha": 0.5}, "rpie"),
        ("epie", {"alpha": 0.5}, "rpie"),
        ("dm", {"momentum": 0.5}, "gradient, lsqml, pie"),
        ("gradient", {"position_method": "correlation"}, "dm, epie, lsqml, pie, raar, rpie"),
        ("neural", {"update_probe": True}, "pie"),
        ("neural", {"position_method": "correlation"}, "pie"),
    ],
)
def test_a_setting_that_the_engine_does_not_use_raises(
    engine: str, settings: dict[str, Any], alternatives: str
) -> None:
    with pytest.raises(ConfigError, match=rf"`{next(iter(settings))}` .*{engine} .*{alternatives}"):
        make_engine_options(engine, settings)


def test_every_iterative_engine_has_a_class() -> None:
    assert {options.engine for options in ITERATIVE_ENGINE_CLASSES} == set(ITERATIVE_ENGINES)
    assert {"neural", *ITERATIVE_ENGINES} == set(ENGINES)


@pytest.mark.parametrize("name", ["epochs", "time_limit", "update_probe", "support", "max_amplitude"])
def test_iterative_engines_share_settings(name: str) -> None:
    engines = {
        engine for engine, options in ENGINES.items() if name in {field.name for field in iterate_settings(options)}
    }
    assert engines == set(ITERATIVE_ENGINES)


def test_lbfgs_with_a_momentum_raises() -> None:
    with pytest.raises(ConfigError, match="lbfgs has none"):
        Gradient(optimizer="lbfgs", momentum=0.5)


@pytest.mark.parametrize("name", ["decay_start", "model"])
def test_internal_settings_cannot_be_set_by_text(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {name}"):
        parse_stage(f"pie:{name}=1", "then")


def test_a_misspelled_setting_is_refused_with_the_settings_of_its_engine() -> None:
    with pytest.raises(ConfigError, match="unknown setting epoch \\(did you mean epochs\\?\\)") as error:
        parse_stage("pie:epoch=3", "then")
    assert "optimizer" not in str(error.value)


def test_the_text_of_a_stage_gives_its_options() -> None:
    options = parse_stage("gradient:epochs=7, batch-size=16,update_probe,tv=1e-3", "then")
    assert options == Gradient(epochs=7, batch_size=16, update_probe=True, tv=1e-3)
