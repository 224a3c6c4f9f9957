"""Launcher of the command ``pretrain``, whose functions are in :mod:`ptycho_torch.commands.pretrain`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("pretrain")
__getattr__ = forward_attributes("pretrain")

if __name__ == "__main__":
    raise SystemExit(main(None))
