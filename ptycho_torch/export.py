"""Launcher of the command ``export``, whose functions are in :mod:`ptycho_torch.commands.export`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("export")
__getattr__ = forward_attributes("export")

if __name__ == "__main__":
    raise SystemExit(main(None))
