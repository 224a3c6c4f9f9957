"""Launcher of the command ``inference``, whose functions are in :mod:`ptycho_torch.commands.inference`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("inference")
__getattr__ = forward_attributes("inference")

if __name__ == "__main__":
    raise SystemExit(main(None))
