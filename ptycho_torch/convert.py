"""Launcher of the command ``convert``, whose functions are in :mod:`ptycho_torch.commands.convert`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("convert")
__getattr__ = forward_attributes("convert")

if __name__ == "__main__":
    raise SystemExit(main(None))
