"""What a command gets besides its settings."""

from dataclasses import dataclass, field

from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.distributed.process_group import ProcessGroup

EXIT_INTERRUPTED = 130
"""Exit code after ctrl-C."""


@dataclass(frozen=True)
class Invocation:
    """How a command was started."""

    command_line: str = ""
    """The command line, for the report."""

    observer: Observer = field(default_factory=SilentObserver)
    """Receives progress."""

    process_group: ProcessGroup | None = None
    """The process group where the command runs in several processes; None: one process."""
