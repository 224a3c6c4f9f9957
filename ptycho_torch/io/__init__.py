"""Readers and writers of files, one module per format. No module here imports torch."""
