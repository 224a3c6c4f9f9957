"""Completion scripts for shells: the commands, their flags, the choices of a flag, and file names."""

import argparse
from typing import Any

from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.cli.parser import add_settings, parse_path
from ptycho_torch.core.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "ptycho-torch"


def format_completion(shell: str) -> str:
    """Return the script that completes command lines of ``ptycho-torch`` in ``shell``.

    Raises:
        ConfigError: the shell is not supported, or the package shtab is not installed.
    """
    if shell not in SHELLS:
        raise ConfigError(f"the shell is {shell or 'missing'}; expected one of {', '.join(SHELLS)}")
    try:
        import shtab  # an extra, and needed by no other command
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the package shtab is not installed; expected it for completion; run pip install 'ptycho-torch[completion]'"
        ) from error
    script: str = shtab.complete(_build_program_parser(shtab.FILE), shell)
    return script


def _build_program_parser(file_completion: Any) -> argparse.ArgumentParser:
    """Return one parser with a subparser per command, in the form that shtab reads."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    commands = parser.add_subparsers()
    for command in COMMANDS.values():
        subparser = commands.add_parser(command.name, help=command.summary, add_help=False)
        add_settings(subparser, command.config_type)
        for action in subparser._actions:
            if action.type is parse_path or action.dest == "config":
                action.complete = file_completion  # type: ignore[attr-defined]  # an attribute that shtab reads
    completion = commands.add_parser("completion", help="print the completion script of a shell", add_help=False)
    completion.add_argument("shell", choices=SHELLS)
    return parser
