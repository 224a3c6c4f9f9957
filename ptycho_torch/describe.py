"""Launcher of the command ``describe``, whose functions are in :mod:`ptycho_torch.commands.describe`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("describe")
__getattr__ = forward_attributes("describe")

if __name__ == "__main__":
    raise SystemExit(main(None))
