"""One module per command: what `python -m ptycho_torch.NAME` runs."""
