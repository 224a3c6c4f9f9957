"""``python -m ptycho_torch COMMAND``, the same as ``ptycho-torch COMMAND``."""

import sys
from collections.abc import Sequence

from ptycho_torch import __version__
from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.cli.launcher import make_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names with the rest of ``argv``; return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return make_main(argv[0])(argv[1:])
    listing = "\n".join(f"  {name:<11} {command.summary}" for name, command in COMMANDS.items())
    usage = f"usage: ptycho-torch COMMAND [options]   (ptycho-torch COMMAND --help)\n\ncommands:\n{listing}"
    if argv and argv[0] == "--version":
        print(__version__)
        return 0
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    found = f"unknown command {argv[0]}" if argv else "no command given"
    print(f"ptycho-torch: {found}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
