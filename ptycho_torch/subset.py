"""Launcher of the command ``subset``, whose functions are in :mod:`ptycho_torch.commands.subset`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("subset")
__getattr__ = forward_attributes("subset")

if __name__ == "__main__":
    raise SystemExit(main(None))
