"""Launcher of ``python -m ptycho_torch.pretrain``: see :mod:`ptycho_torch.commands.pretrain`."""

from ptycho_torch.cli.launcher import forward_attributes, make_main

main = make_main("pretrain")
__getattr__ = forward_attributes("pretrain")

if __name__ == "__main__":
    raise SystemExit(main(None))
