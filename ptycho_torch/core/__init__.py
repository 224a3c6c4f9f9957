"""Errors, progress, atomic files, timing and deferred calls. No module here imports torch."""
