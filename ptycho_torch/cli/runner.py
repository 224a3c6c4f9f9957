"""Run a command: parse, log, call, and turn errors into one line and an exit code."""

import dataclasses
import functools
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ptycho_torch.cli.messages import format_message
from ptycho_torch.core.errors import ConfigError, PtychoError
from ptycho_torch.core.observer import SilentObserver

if TYPE_CHECKING:
    from ptycho_torch.distributed.process_group import ProcessGroup

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run_command(name: str, config_class: str, words: Sequence[str], *, distributed: bool = False) -> int:
    """Parse ``words`` into settings, run the command ``name`` with them, and return the exit code.

    Args:
        name: a command: the module below ``ptycho_torch.commands`` whose ``run`` is called.
        config_class: the class of its settings, ``module:Class`` below ``ptycho_torch``.
        words: the command line behind the name of the command.
        distributed: whether ``torchrun`` may start the command in several processes.

    Returns:
        The command's own exit code; 2 for bad input, with one line on stderr; 130 after ctrl-C.
    """
    prog, debug = f"ptycho-torch {name}", "--debug" in words
    process_group: ProcessGroup | None = None
    config_type: type[Any] | None = None
    try:
        if _is_distributed():
            group = import_module("ptycho_torch.distributed.process_group")
            process_group = group.join()
            group.end_when_stuck(functools.partial(_print_reason, EXIT_BAD_INPUT, name, process_group=process_group))
            if not distributed:
                raise ConfigError(f"runs in one process, and here are {process_group.size}: start it without torchrun")
        module, _, class_name = config_class.partition(":")
        config_type = getattr(import_module(f"ptycho_torch.{module}"), class_name)
        config = import_module("ptycho_torch.cli.parser").parse(config_type, words, prog)
        debug = config.debug
        if process_group and not process_group.is_main:
            config = dataclasses.replace(config, quiet=True, debug=False)
        code = _call(name, config, words, process_group)
    except PtychoError as error:
        reason = " ".join(format_message(str(error), config_type).split())
        return _end_with_error(EXIT_BAD_INPUT, name, reason, process_group, debug)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if debug or missing == "ptycho_torch":
            raise
        reason = (
            f"{missing} is not installed in this Python ({sys.executable}), and ptycho-torch needs "
            "it: install the package with its dependencies (pip install ptycho-torch, or make env in a checkout)"
        )
        return _end_with_error(EXIT_BAD_INPUT, name, reason, process_group)
    except KeyboardInterrupt:
        return _end_with_error(EXIT_INTERRUPTED, name, "interrupted", process_group)
    if process_group:
        process_group.close()
    return code


def _call(name: str, config: Any, words: Sequence[str], process_group: "ProcessGroup | None") -> int:
    """Set up the log, import the command, and run it."""
    progress = import_module("ptycho_torch.cli.progress")
    progress.set_up_logging(config, mute=bool(process_group and not process_group.is_main))
    command = import_module(f"ptycho_torch.commands.{name}")
    invocation = import_module("ptycho_torch.commands.base").Invocation(
        command_line=shlex.join(["python", "-m", f"ptycho_torch.{name}", *words]),
        observer=SilentObserver() if config.quiet else progress.ProgressObserver(),
        process_group=process_group,
    )
    return int(command.run(config, invocation))


def _is_distributed() -> bool:
    """Return True if ``torchrun`` or a similar launcher started this process beside others."""
    size = os.environ.get("WORLD_SIZE", "")
    return "RANK" in os.environ and size.isdecimal() and int(size) > 1


def _end_with_error(
    code: int, name: str, reason: str, process_group: "ProcessGroup | None", debug: bool = False
) -> int:
    """Print on stderr why the command ends, unless another process has; return ``code``."""
    if process_group:
        import_module("ptycho_torch.distributed.process_group").end_undisturbed()
    return _print_reason(code, name, reason, process_group, debug)


def _print_reason(code: int, name: str, reason: str, process_group: "ProcessGroup | None", debug: bool = False) -> int:
    if process_group is None or process_group.claim_error_report():
        if debug:
            traceback.print_exc()
        print(f"{name}: {reason}", file=sys.stderr, flush=True)
    return code
