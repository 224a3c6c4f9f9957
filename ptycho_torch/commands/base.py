"""Parts that the commands share."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptycho_torch.core.observer import Observer, SilentObserver

if TYPE_CHECKING:  # at run time it would make describe and convert import torch
    from ptycho_torch.distributed.process_group import ProcessGroup

EXIT_INTERRUPTED = 130
"""Exit code after ctrl-C."""

EXIT_NO_IMAGE = 3
"""Exit code if the files of a result are written, and its model explains nothing of the patterns."""


@dataclass(frozen=True)
class Invocation:
    """Circumstances of the run of a command, in addition to its settings."""

    command_line: str = ""
    """The command line, for the report."""

    observer: Observer = field(default_factory=SilentObserver)
    """Receives progress."""

    process_group: "ProcessGroup | None" = None
    """The process group if the command runs in several processes; None: one process."""

    format_message: Callable[[str], str] = str
    """Replaces settings in backticks by the flags of the command."""


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


def report_verdict(metrics: dict[str, Any], invocation: Invocation, quiet: bool) -> int:
    """Print R, its noise floor and the verdict; return the exit code.

    A result without an image is reported on stderr, even if ``quiet``.

    Args:
        metrics: the content of ``metrics.json``.
        invocation: the run of the command.
        quiet: print nothing else.
    """
    level, text = metrics["verdict"], metrics["verdict_text"]
    causes = [f"  {number}. {cause}" for number, cause in enumerate(metrics["likely_causes"], 1)]
    lines = [text, *(["likely causes, the most likely first:", *causes] if causes else [])]
    details = invocation.format_message("\n".join(lines))
    if level == "no image":
        print(details, file=sys.stderr)
        return EXIT_NO_IMAGE
    if not quiet:
        print(f"R {metrics['r']:.4f} (counting noise alone {metrics['r_floor']:.4f}): {level}")
        if causes:
            print(details)
    return 0
