"""Figures, the report, and the files that a run leaves."""
