"""What every settings class shares: the option field, checks, and the settings common to all commands."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from ptycho_torch.core.errors import ConfigError

AxisOrder = Literal["nhw", "hwn"]
Measurement = Literal["amplitude", "counts"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

DEVICE_HELP = "device to compute on (--accelerator is an alias); auto takes CUDA, then MPS, then CPU"
PRECISION_HELP = "arithmetic of the network (physics is always complex64); auto takes bf16 where that is faster"

MAX_WIDTH = 1024
"""Most channels of a network's finest scale: more of them fit into no memory."""


def option(default: Any, help: str, *, positional: bool = False, several: bool = False) -> Any:
    """A dataclass field with its help text. ``default`` is ``MISSING`` for a required setting.

    ``several``: the flag of a tuple takes one value or more; of other tuples it takes one, and may be repeated.
    """
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional, "several": several})


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


def require_supported_size(config: Any) -> None:
    """Raise :class:`ConfigError` if the network is too wide or the seed exceeds 2**63 - 1, the largest of torch."""
    if config.width is not None and config.width > MAX_WIDTH:
        raise ConfigError(f"`width` is {config.width}; expected at most {MAX_WIDTH}")
    if config.seed >= 2**63:
        raise ConfigError(f"`seed` is {config.seed}; expected a number below 2**63")


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command offers."""

    quiet: bool = option(False, "no progress bar and no messages below a warning")
    debug: bool = option(False, "show debug messages, and the traceback of an error")


@dataclass(frozen=True, kw_only=True)
class ScanReadOptions(CommonOptions):
    """How a scan file is to be read where the file itself leaves it open."""

    axis_order: AxisOrder | None = option(
        None, "axis order of the diffraction: nhw is (n, H, W), hwn is (H, W, n); default: found from the file"
    )
    measurement: Measurement | None = option(
        None, "what the diffraction array holds; default: the file's metadata, else amplitude (integers are refused)"
    )
    photons_per_unit: float | None = option(
        None,
        "photons for one squared unit of stored amplitude; default: the file's metadata, else the integer lattice of "
        "the data, else 1e6 photons a pattern with a warning",
    )

    def __post_init__(self) -> None:
        require_positive(self, "photons_per_unit")
