"""Run a command: parse its settings, set up the log, call it, and turn errors into one line and an exit code.

Modules that import torch or rich are imported by name, after the command line is parsed: ``--help`` and errors of the
command line then take a tenth of the time, and a missing package ends as one line.
"""

import dataclasses
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from ptycho_torch.cli.commands import Command
from ptycho_torch.cli.messages import format_message
from ptycho_torch.cli.parser import parse
from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.core.observer import SilentObserver

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _ProcessGroup(Protocol):
    """The members of :class:`ptycho_torch.distributed.process_group.ProcessGroup` that the runner uses."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def claim_error_report(self) -> bool:
        """Return True in the one process that prints the error."""

    def close(self) -> None:
        """Leave the group."""


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Parse ``argv`` into settings, run ``command`` with them, and return the exit code.

    Args:
        command: entry of the table of commands.
        argv: arguments after the name of the command.

    Returns:
        The exit code of the command; 2 for bad input, with one line on stderr; 130 after ctrl-C.
    """
    name, debug = command.name, "--debug" in argv
    process_group: _ProcessGroup | None = None
    try:
        if _is_distributed():
            process_group = _join_process_group(command)
            if not command.distributed:
                raise ConfigError(
                    f"{process_group.size} processes were started; expected one; start the command without torchrun"
                )
        config = parse(command.config_type, argv, command.prog, command.description)
        debug = config.debug
        if process_group and not process_group.is_main:
            config = dataclasses.replace(config, quiet=True, debug=False)
        code = _call(name, config, argv, process_group)
    except PtychoError as error:
        reason = " ".join(format_message(str(error), command.config_type).split())
        return _end_with_error(EXIT_BAD_INPUT, name, reason, process_group, debug)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if debug or missing == "ptycho_torch":
            raise
        reason = (
            f"the package {missing} is not installed in this Python ({sys.executable}); expected ptycho-torch with its "
            "dependencies; run pip install ptycho-torch, or make env in a checkout"
        )
        return _end_with_error(EXIT_BAD_INPUT, name, reason, process_group)
    except KeyboardInterrupt:
        return _end_with_error(EXIT_INTERRUPTED, name, "interrupted", process_group)
    if process_group:
        process_group.close()
    return code


def _call(name: str, config: Any, argv: Sequence[str], process_group: _ProcessGroup | None) -> int:
    """Set up the log, import the command, and run it."""
    progress = import_module("ptycho_torch.core.progress")
    mute = bool(process_group and not process_group.is_main)
    import_module("ptycho_torch.cli.progress").set_up_logging(config, mute=mute)
    command = import_module(f"ptycho_torch.commands.{name}")
    invocation = import_module("ptycho_torch.commands.base").Invocation(
        command_line=shlex.join(["python", "-m", f"ptycho_torch.{name}", *argv]),
        observer=SilentObserver() if config.quiet else progress.ProgressObserver(),
        process_group=process_group,
        format_message=lambda message: format_message(message, type(config)),
    )
    return int(command.run(config, invocation))


def _is_distributed() -> bool:
    """Return True if ``torchrun`` or a similar launcher started this process as one of several."""
    size = os.environ.get("WORLD_SIZE", "")
    return "RANK" in os.environ and size.isdecimal() and int(size) > 1


def _join_process_group(command: Command) -> _ProcessGroup:
    """Join the process group that ``torchrun`` started for ``command``."""
    module = import_module("ptycho_torch.distributed.process_group")
    process_group: _ProcessGroup = module.init_process_group()

    def report_error(reason: str) -> int:
        return _print_reason(EXIT_BAD_INPUT, command.name, format_message(reason, command.config_type), process_group)

    module.start_termination_watchdog(report_error)
    return process_group


def _end_with_error(code: int, name: str, reason: str, process_group: _ProcessGroup | None, debug: bool = False) -> int:
    """Print the reason on stderr, unless another process has; return ``code``."""
    if process_group:
        import_module("ptycho_torch.distributed.process_group").ignore_stop_signals()
    return _print_reason(code, name, reason, process_group, debug)


def _print_reason(code: int, name: str, reason: str, process_group: _ProcessGroup | None, debug: bool = False) -> int:
    if process_group is None or process_group.claim_error_report():
        if debug:
            traceback.print_exc()
        print(f"{name}: {reason}", file=sys.stderr, flush=True)
    return code
