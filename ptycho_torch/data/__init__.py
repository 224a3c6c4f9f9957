"""Scan files and what is in them. Imports no torch."""
