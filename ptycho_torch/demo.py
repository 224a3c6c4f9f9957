"""Launcher of the command ``demo``, whose functions are in :mod:`ptycho_torch.commands.demo`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("demo")
__getattr__ = forward_attributes("demo")

if __name__ == "__main__":
    raise SystemExit(main(None))
