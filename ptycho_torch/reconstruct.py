"""Launcher of the command ``reconstruct``, whose functions are in :mod:`ptycho_torch.commands.reconstruct`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("reconstruct")
__getattr__ = forward_attributes("reconstruct")

if __name__ == "__main__":
    raise SystemExit(main(None))
