"""Parts that the commands share."""

import sys
from dataclasses import dataclass, field

from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.distributed.process_group import ProcessGroup

EXIT_INTERRUPTED = 130
"""Exit code after ctrl-C."""


@dataclass(frozen=True)
class Invocation:
    """Circumstances of the run of a command, in addition to its settings."""

    command_line: str = ""
    """The command line, for the report."""

    observer: Observer = field(default_factory=SilentObserver)
    """Receives progress."""

    process_group: ProcessGroup | None = None
    """The process group if the command runs in several processes; None: one process."""


def report_interruption(invocation: Invocation, position: str) -> int:
    """Print that ctrl-C ended the command, in one process of a group; return the exit code.

    Args:
        invocation: the run of the command.
        position: last complete step, such as "epoch 3".
    """
    group = invocation.process_group
    if group is None or (group.is_main and group.claim_error_report()):
        print(f"interrupted after {position}; resume with --resume", file=sys.stderr)
    return EXIT_INTERRUPTED
