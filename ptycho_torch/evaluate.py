"""Launcher of the command ``evaluate``, whose functions are in :mod:`ptycho_torch.commands.evaluate`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("evaluate")
__getattr__ = forward_attributes("evaluate")

if __name__ == "__main__":
    raise SystemExit(main(None))
