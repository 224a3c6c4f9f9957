"""The table of commands, and the function behind ``python -m ptycho_torch.NAME``.

A launcher parses the command line before it imports the command, so that ``--help`` and errors need no torch.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.cli.runner import run_command


def make_main(name: str) -> Callable[[Sequence[str] | None], int]:
    """Return the ``main`` of the command ``name``, which takes the arguments and returns the exit code."""

    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(COMMANDS[name], sys.argv[1:] if argv is None else list(argv))

    return main


def forward_attributes(name: str) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` that gets names from the module of the command ``name``."""

    def get(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(import_module(f"ptycho_torch.commands.{name}"), attribute)

    return get
