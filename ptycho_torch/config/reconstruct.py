"""Settings of the command reconstruct."""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ptycho_torch.config.base import DEVICE_HELP, REPORT_HELP, Device, option, require_not_negative
from ptycho_torch.config.engines import (
    ENGINES,
    ITERATIVE_ENGINES,
    EngineOptions,
    IterativeOptions,
    iterate_settings,
    make_engine_options,
    parse_stage,
)
from ptycho_torch.config.input import ScanReadOptions
from ptycho_torch.core.errors import ConfigError

ENGINE_DEFAULTED_FLAGS = frozenset({"alpha", "optimizer"})
"""Flags that stay None unless given, as in the configuration files written so far."""

NETWORK_FLAGS = frozenset({"model_path", "batch_size", "update_positions", "position_bound"})
"""Settings of the network engine that are flags; the others are set in the text of a stage."""


def _iterate_flags(options: type[EngineOptions]) -> Iterator[dataclasses.Field[Any]]:
    """Iterate over the settings of an engine that are flags."""
    iterative = issubclass(options, IterativeOptions)
    return (field for field in iterate_settings(options) if iterative or field.name in NETWORK_FLAGS)


def make_engine_flags() -> type[Any]:
    """Return a dataclass with ``engine`` and each setting of any engine: the flags of one stage.

    A flag is None by default if the defaults of the engines differ, and its help lists them.
    """
    fields: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    hints: dict[str, Any] = {}
    for engine, options in ENGINES.items():
        for field in _iterate_flags(options):
            if engine in ITERATIVE_ENGINES or field.name not in fields:
                fields.setdefault(field.name, {})[engine] = field
                hints.setdefault(field.name, typing.get_type_hints(options)[field.name])
    flags: list[tuple[str, Any, Any]] = [
        ("engine", str, option("pie", f"algorithm of the first stage: {', '.join(ENGINES)}"))
    ]
    for name, per_engine in fields.items():
        default, help_text = _merge_fields(per_engine)
        flags.append(
            (
                name,
                hints[name] | None if default is None else hints[name],
                option(default, help_text, group=next(iter(per_engine.values())).metadata["group"]),
            )
        )
    return dataclasses.make_dataclass("EngineFlags", flags, kw_only=True, frozen=True)


def _merge_fields(fields: dict[str, dataclasses.Field[Any]]) -> tuple[Any, str]:
    """Return the default and the help of a flag from the fields of the engines that have it."""
    help_text, separator = "", "; default: "
    engines_by_default: dict[str, list[str]] = {}
    for engine, field in fields.items():
        help_text, _, automatic = field.metadata["help"].partition(separator)
        engines_by_default.setdefault(automatic or str(field.default), []).append(engine)
    name, first = next((field.name, field.default) for field in fields.values())
    if len(fields) < len(ITERATIVE_ENGINES):
        help_text += f"; engines: {', '.join(fields)}"
    if first is not None and len(engines_by_default) == 1 and name not in ENGINE_DEFAULTED_FLAGS:
        return first, help_text
    if len(engines_by_default) == 1:
        shared = next(iter(engines_by_default))
        return None, help_text if shared == "None" else f"{help_text}{separator}{shared}"
    defaults = (f"{default} ({', '.join(engines)})" for default, engines in engines_by_default.items())
    return None, f"{help_text}{separator}{', '.join(defaults)}"


EngineFlags: Any = make_engine_flags()
"""The flags of the first stage."""


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(EngineFlags, ScanReadOptions):  # type: ignore[misc]  # a generated base class
    """Settings of the command ``reconstruct``."""

    scan: Path = option(MISSING, "scan file of any supported format to reconstruct", positional=True, group="Files")
    output_dir: Path = option(MISSING, "folder for the reconstruction, figures and report", group="Files")
    then: tuple[str, ...] = option(
        (), 'a further engine with its own settings, as "gradient:epochs=20,batch_size=64"; may be repeated'
    )
    init: Path | None = option(
        None,
        "result to continue from: its object, probe, positions, background and intensities, except those of "
        "init_object, init_probe and init_positions",
        group="Files",
    )
    save_as: tuple[Path, ...] = option(
        (),
        "file for the result in another format, by its suffix: .cxi, .h5, .ptyr or .npz; may be repeated",
        group="Files",
    )
    init_object: Path | None = option(
        None,
        "reconstruction.npz or scan file with the initial object; default: that of init, otherwise an object of ones",
        group="Object",
    )
    init_probe: str = option(
        "auto",
        "initial probe: auto, that of init, otherwise of the scan, otherwise estimated from the patterns; file, the "
        "probe of the scan; gaussian:SIGMA, sigma in pixels, with a curvature estimated from "
        "the patterns; gaussian, with a width estimated too; or the path of an NPZ file",
        group="Probe",
    )
    init_positions: Path | None = option(
        None,
        "reconstruction.npz or scan file with the initial positions; default: those of init, otherwise of the scan",
        group="Positions",
    )
    holdout: float = option(
        0.0,
        "fraction of the detector pixels that no iterative engine uses, for cross-validation and early stop",
    )
    half_scan_frc: bool = option(
        False,
        "also reconstruct each half of the positions and correlate both: the resolution without ground truth",
        group="Result",
    )
    seed: int = option(0, "seed of all random numbers")
    device: Device = option("auto", DEVICE_HELP, group="Computing")
    resume: bool = option(False, "resume from the checkpoint in the output folder")
    report: bool = option(True, REPORT_HELP, group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        make_stages(self)
        if not 0 <= self.holdout <= 0.5:
            raise ConfigError(f"`holdout` is {self.holdout}; expected a fraction from 0 to 0.5")
        require_not_negative(self, "seed")


def make_stages(config: ReconstructConfig) -> tuple[EngineOptions, ...]:
    """Return the options of the first stage, made from the flags, and of each stage of ``then``.

    Raises:
        ConfigError: an unknown engine or setting, a setting that its engine does not use, or a bad value.
    """
    flags = [field for field in dataclasses.fields(EngineFlags) if field.name != "engine"]
    values = {field.name: getattr(config, field.name) for field in flags}
    given = {field.name: values[field.name] for field in flags if values[field.name] != field.default}
    return (make_engine_options(config.engine, given), *(parse_stage(text, "then") for text in config.then))
