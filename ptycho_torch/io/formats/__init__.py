"""Scan files and results of other programs, one module per format."""
