"""Figures, the report, and the result folder of a run."""
