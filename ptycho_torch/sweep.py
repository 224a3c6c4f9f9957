"""Launcher of the command ``sweep``, whose functions are in :mod:`ptycho_torch.commands.sweep`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("sweep")
__getattr__ = forward_attributes("sweep")

if __name__ == "__main__":
    raise SystemExit(main(None))
