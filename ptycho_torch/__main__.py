"""The program ``ptycho-torch COMMAND``, also started as ``python -m ptycho_torch COMMAND``."""

import sys
from collections.abc import Sequence

from ptycho_torch import __version__
from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.cli.completion import SHELLS, format_completion
from ptycho_torch.cli.launcher import make_main
from ptycho_torch.cli.runner import EXIT_BAD_INPUT
from ptycho_torch.core.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names with the other arguments, and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv else ""
    if name in COMMANDS:
        return make_main(name)(argv[1:])
    if name == "--version":
        print(__version__)
        return 0
    if name in ("-h", "--help"):
        print(_format_usage())
        return 0
    try:
        if name != "completion":
            description = f"unknown command {name}" if argv else "no command given"
            raise ConfigError(f"{description}; expected one of {', '.join(COMMANDS)}")
        print(format_completion(" ".join(argv[1:])))
    except ConfigError as error:
        print(f"ptycho-torch: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _format_usage() -> str:
    """Return the usage line and the list of commands."""
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    summaries["completion"] = f"print the completion script of a shell ({', '.join(SHELLS)})"
    listing = "\n".join(f"  {name:<12} {summary}" for name, summary in summaries.items())
    return f"usage: ptycho-torch COMMAND [options]   (ptycho-torch COMMAND --help)\n\ncommands:\n{listing}"


if __name__ == "__main__":
    raise SystemExit(main())
