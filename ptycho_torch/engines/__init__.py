"""Iterative reconstruction engines and pipelines of engines."""
