"""Launcher of the command ``train``, whose functions are in :mod:`ptycho_torch.commands.train`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("train")
__getattr__ = forward_attributes("train")

if __name__ == "__main__":
    raise SystemExit(main(None))
