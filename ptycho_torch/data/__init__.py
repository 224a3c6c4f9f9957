"""Scans, reconstructions and the data contract. No module here imports torch."""
