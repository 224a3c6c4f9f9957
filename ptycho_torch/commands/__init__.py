"""One module per command, the body of `python -m ptycho_torch.NAME`."""
