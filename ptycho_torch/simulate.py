"""Launcher of the command ``simulate``, whose functions are in :mod:`ptycho_torch.commands.simulate`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("simulate")
__getattr__ = forward_attributes("simulate")

if __name__ == "__main__":
    raise SystemExit(main(None))
