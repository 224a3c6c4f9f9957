"""What a command gets besides its settings."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptycho_torch.core.observer import Observer, SilentObserver

if TYPE_CHECKING:
    from ptycho_torch.distributed.process_group import Ranks

EXIT_INTERRUPTED = 130
"""Exit code after ctrl-C."""


@dataclass(frozen=True)
class Invocation:
    """How a command was started."""

    command_line: str = ""
    """The command line, for the report."""

    observer: Observer = field(default_factory=SilentObserver)
    """Receives progress."""

    ranks: "Ranks | None" = None
    """The process group where the command runs in several processes; None: one process."""
