"""Foundation of all settings classes: the option field, checks of values, and the settings common to all commands."""

import dataclasses
import math
import textwrap
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ptycho_torch.core.errors import ConfigError

AxisOrder = Literal["nhw", "hwn"]
Measurement = Literal["amplitude", "counts"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
SettingsClass = TypeVar("SettingsClass")

DEVICE_HELP = "device to compute on; auto selects CUDA if available, then MPS, then the CPU"
PRECISION_HELP = "number format of the network; auto selects bf16 where it is faster; the physics is always complex64"
REPORT_HELP = "write report.html and the images, which take about half of the time"

MAX_WIDTH = 1024
"""Largest number of channels of a network's finest scale; a wider network does not fit into memory."""


GROUPS = (
    "Files",
    "Scan file",
    "Keys",
    "Patterns",
    "Simulation",
    "Network",
    "Training",
    "Engine",
    "Object",
    "Probe",
    "Positions",
    "Geometry",
    "Nuisance parameters",
    "Result",
    "Output",
    "Computing",
    "General",
)
"""Headings of the help of a command, in their order."""


def option(
    default: Any,
    help: str,
    *,
    group: str = "Engine",
    default_help: str = "",
    aliases: tuple[str, ...] = (),
    value_aliases: dict[str, str] | None = None,
    positional: bool = False,
    several: bool = False,
) -> Any:
    """Return a dataclass field with the description that ``--help`` prints.

    Args:
        default: value of the setting where none is given; ``MISSING`` for a required setting.
        help: a noun phrase with its unit, without the default.
        group: one of :data:`GROUPS`, the heading under which the help lists the setting.
        default_help: description of a default that is computed, such as "from the file".
        aliases: older names of the setting, which flags and files of settings still accept.
        value_aliases: older spellings of values, and their present spellings.
        positional: whether the command line takes the value without a flag.
        several: whether the flag of a tuple takes one or more values. The flag of any other tuple takes one value and
            may be repeated.
    """
    metadata = {
        "help": help,
        "group": group,
        "default_help": default_help,
        "aliases": aliases,
        "value_aliases": value_aliases or {},
        "positional": positional,
        "several": several,
    }
    return dataclasses.field(default=default, metadata=metadata)


def copy_option(options: type[Any], name: str, help: str | None = None) -> Any:
    """Return a dataclass field with the default and the description of the field ``name`` of ``options``.

    Args:
        options: a settings class.
        name: name of the field.
        help: another noun phrase; None: the one of the field.
    """
    field = next(field for field in dataclasses.fields(options) if field.name == name)
    metadata = dict(field.metadata) | ({} if help is None else {"help": help})
    return dataclasses.field(default=field.default, metadata=metadata)


def document_settings(cls: type[SettingsClass]) -> type[SettingsClass]:
    """Append the name, description and default of each field to the docstring of a settings class, for ``help()``."""
    fields = sorted(dataclasses.fields(cls), key=_is_internal)  # type: ignore[arg-type]
    cls.__doc__ = "\n".join([f"{cls.__doc__ or ''}\n\nArgs:", *map(_document_field, fields)])
    return cls


def _is_internal(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("internal"))


def _document_field(field: dataclasses.Field[Any]) -> str:
    """Return the lines of a field in the docstring of its class."""
    text = field.metadata["help"]
    if field.default not in (None, dataclasses.MISSING) and "default:" not in text:
        text += f"; default: {field.default!r}"
    if _is_internal(field):
        text += " (internal: set in Python only)"
    return textwrap.fill(f"{field.name}: {text}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8)


def require_positive(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless each named setting is None or finite and above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"`{name}` is {value}; expected a {'finite ' if value == math.inf else ''}number above 0")


def require_not_negative(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless each named setting is None or finite and at least 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            kind = "finite number" if value == math.inf else "number"
            raise ConfigError(f"`{name}` is {value}; expected a {kind} of at least 0")


def require_share(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless each named setting is a number from 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"`{name}` is {getattr(config, name)}; expected a number from 0 to 1")


def require_supported_size(config: Any) -> None:
    """Raise :class:`ConfigError` if the network is too wide or the seed exceeds 2**63 - 1, the largest of torch."""
    if config.width is not None and config.width > MAX_WIDTH:
        raise ConfigError(f"`width` is {config.width}; expected at most {MAX_WIDTH}")
    if config.seed >= 2**63:
        raise ConfigError(f"`seed` is {config.seed}; expected a number below 2**63")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Settings of every command."""

    quiet: bool = option(False, "print neither progress nor messages below a warning", group="General")
    debug: bool = option(False, "print debug messages, and the traceback of an error", group="General")
